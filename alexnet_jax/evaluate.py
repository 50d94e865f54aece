"""Computes the loss and the top-1 and top-5 errors of a run over every example of a split.

python -m alexnet_jax.evaluate --workdir=DIR|NAME[,DIR …] [--split=NAME] [--step=N] [--views=1|9|10]
    [--per_class] [--json=FILE]
"""

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from alexnet_jax import cli, console, data, distributed
from alexnet_jax.assemble import Run, assemble
from alexnet_jax.config import Config, is_folder
from alexnet_jax.console.progress import counter
from alexnet_jax.data import identity
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UserError, local_path
from alexnet_jax.parallel import MeshSpec
from alexnet_jax.preprocess import Preprocess
from alexnet_jax.records import files, metrics, restore
from alexnet_jax.runtime.ahead import Ahead
from alexnet_jax.step import classification_sums
from alexnet_jax.trained import net_folder, per_class
from alexnet_jax.trained.kept import Kept
from alexnet_jax.trained.pretrained import locate, open_pretrained


def evaluate(
    run: Run,
    params: dict,
    *,
    split: str | None = None,
    views: int = 1,
    progress: data.Progress = lambda *_: None,
) -> dict:
    """Returns the loss, the errors in percent and the number of examples of a split.

    Args:
        run: the net, its data and its compiled `predict`.
        params: the parameters, as they lie on the run's mesh.
        split: the name of the split; None for the evaluation split of the configuration.
        views: the number of crops of each image whose softmax probabilities are averaged: 1 takes
            the centre; 10 takes the paper's four corners and centre with their mirror images
            (section 4.1); 9 takes a grid (as cuda-convnet's CIFAR nets do).
        progress: a function that is called with (what, done, total) after each batch.
    """
    return evaluate_together([run], [params], split=split, views=views, progress=progress)[-1]


def evaluate_together(
    runs: Sequence[Run],
    all_params: Sequence[dict],
    *,
    split: str | None = None,
    views: int = 1,
    confusion: bool = False,
    progress: data.Progress = lambda *_: None,
) -> list[dict]:
    """Evaluates several nets, and then the average of their probabilities.

    The paper averages the predictions of five and of seven nets (section 6, Table 2). The nets may
    have different batch and input sizes, but must have the same examples and classes. The arguments
    are those of `evaluate`, for each net its own. With `confusion`, each result includes a tally of
    its errors, 'per_class' (see `per_class.add`).

    Raises:
        UserError: the runs differ in examples or classes.
    """
    split = split or runs[0].config.data.eval_split
    runs = [with_split(run, split, progress) for run in runs]
    _check_together(runs, split)
    batch_size = _common_batch_size(runs)
    ahead = Ahead()
    streams = [_batches(run, split, batch_size, views, ahead) for run in runs]
    parts = [[] for _ in range(len(runs) + 1)]
    tallies = [per_class.empty(runs[0].model.num_classes) for _ in parts if confusion]
    done, total = 0, runs[0].data.splits[split].num_examples
    progress(f"evaluating {split}", done, total)
    skipped = runs[0].data.bad.get(split, {})
    for batches in zip(*streams, strict=True):
        predictions = (
            run.predict(params, batch)
            for run, params, batch in zip(runs, all_params, batches, strict=True)
        )
        predicted = list(ahead.each(predictions))
        predicted = [jax.device_put(each, predicted[0].sharding) for each in predicted]
        ahead.add(average := _average(predicted))
        for part, log_probs in zip(parts, [*predicted, average], strict=True):
            part.append(_score(log_probs, batches[0]["labels"], batches[0]["mask"]))
            ahead.add(part[-1])
        for i, log_probs in enumerate([*predicted, average] if confusion else ()):
            told = {name: batches[0][name] for name in ("labels", "ids", "mask")}
            tallies[i] = per_class.add(tallies[i], log_probs, told)
            ahead.add(tallies[i])
        done += len(batches[0]["ids"])
        progress(f"evaluating {split}", min(done, total), total)
    skipped.update(distributed.union(skipped))  # Each process knows those that it has read.
    if len(skipped) == total:
        reason = next(iter(skipped.values()))
        raise UserError(f"no image of split {split!r} can be decoded to evaluate on it: {reason}")
    results = [_summarized(part, total - len(skipped)) for part in parts]
    for result, tally in zip(results, tallies, strict=False):
        result["per_class"] = jax.device_get(tally)
    return results


def _summarized(sums: list[dict], num_examples: int) -> dict[str, float]:
    """Returns the numbers of an evaluation, which must have counted every example once."""
    added = metrics.total(sums)
    if added["count"] != num_examples:
        raise RuntimeError(f"evaluated {added['count']:.0f} of {num_examples} examples")
    return metrics.summarize(added) | {"count": num_examples}


def with_split(run: Run, split: str, progress: data.Progress = lambda *_: None) -> Run:
    """Returns the run with a split of its data open; `progress` is called during long tasks."""
    progress(f"opening {run.config.data.name}", 0, 0)
    return replace(run, data=data.open_split(run.data, split, progress=progress))


def _batches(run: Run, split: str, batch_size: int, views: int, ahead: Ahead) -> Iterator[dict]:
    batches = data.eval_batches(
        run.data,
        split,
        batch_size=batch_size,
        views=data.views(views, run.data.resize_size - run.data.spec.image_size),
        shardings=run.layout.batch_shardings(),
    )
    return ahead.each(batches)


def _check_together(runs: Sequence[Run], split: str) -> None:
    """Raises UserError if the runs' outputs for `split` cannot be averaged."""
    first, *others = [(run.data.identity(split), run.model.num_classes) for run in runs]
    for number, other in enumerate(others, start=2):
        words = ("in the first", f"in run {number}")
        what = identity.differences(first[0], other[0], words)
        if not what and first[1] != other[1]:
            what = f"{first[1]} outputs {words[0]}, {other[1]} {words[1]}"
        if what:
            raise UserError(
                f"run {number} cannot be averaged with the first: split '{split}' differs: {what}"
            )


def _common_batch_size(runs: Sequence[Run]) -> int:
    """Returns the first run's batch size, raised until it divides over the devices of each run."""
    devices = math.lcm(*(run.layout.mesh.shape["data"] for run in runs))
    return -(-runs[0].config.batch_size // devices) * devices


_score = jax.jit(classification_sums)


@jax.jit
def _average(log_probs: Sequence) -> jax.Array:
    """Returns the logarithm of the mean of several nets' probabilities, each [B, classes]."""
    stacked = jnp.stack(log_probs)
    return jax.nn.logsumexp(stacked, axis=0) - jnp.log(len(log_probs))


def load_run(workdir: Path, step: int | None = None, data_dir: str = "") -> tuple[Run, dict, int]:
    """Returns the run in `workdir`, the parameters of one of its checkpoints, and their step.

    The classes and the mean are those that the run kept, and its data are opened when they are
    used. A run of an early commit kept neither, so that its data set is opened at once.

    Args:
        workdir: the run's directory, or what `pretrained.locate` accepts for runs of this package.
        step: the step of the checkpoint; None for the best one.
        data_dir: the folder of the data, if they have moved. Of a run on a folder of images, it is
            that folder itself.

    Raises:
        UserError: there is no run or no such checkpoint, or the data set is missing.
    """
    (config, kept), place = net_folder.read_trained(workdir), locate(workdir)
    # Every backend reads the same images, and that of the training may not work here.
    spec = replace(moved(config.data, data_dir), backend="auto")
    config = replace(config, data=spec, mesh=MeshSpec(data=_divisor(config.batch_size)))
    run = _from_kept(config, kept) if kept else assemble(config)
    abstract = run.abstract_state().params
    if place.is_dir():
        wanted = "best" if step is None else step
        params, meta = restore.restore_params(place, abstract, wanted)
        return run, params, meta["step"]
    net = open_pretrained(place, step)
    params = jax.tree.map(lambda x, as_: jax.device_put(x, as_.sharding), net.params, abstract)
    return run, params, net_folder.step_of(place)


def moved(spec: data.DataSpec, data_dir: str) -> data.DataSpec:
    """Returns the spec with its data in `data_dir`, where that is given: a folder's own folder."""
    if not data_dir:
        return spec
    if is_folder(spec.name):
        return replace(spec, name=f"folder:{data_dir}")
    return replace(spec, data_dir=data_dir)


def _from_kept(config: Config, kept: Kept) -> Run:
    spec = config.data
    if kept.train:
        num_train = kept.train.num_examples
    else:  # The run of an early commit. Only its schedule, which is not used here, depends on it.
        num_train = config.batch_size
        with contextlib.suppress(UserError):
            source = open_source(spec.name, spec.data_dir, spec.train_split, download=False)
            num_train = max(num_train, source.num_examples)
    opened = data.open_for_evaluation(spec, class_names=kept.class_names, num_train=num_train)
    recipe = kept.recipe
    preprocess = Preprocess(
        mean=recipe.mean, mean_under_crop=recipe.mean_under_crop, scale=config.preprocess.scale
    )
    return assemble(config, opened, preprocess=preprocess)


def say_changes(workdir: Path, run: Run, split: str) -> None:
    """Prints a line if the split, which is open, has changed since the run was started."""
    kept = net_folder.read_trained(workdir)[1]
    for then in (kept.train, kept.evaluation) if kept else ():
        if then and then.split == split:
            if what := identity.differences(then, run.data.identity(split)):
                console.say(f"{workdir}: split '{split}' has changed since its training: {what}")
            return


def _divisor(batch_size: int) -> int:
    """Returns the largest number of local devices over which a batch divides."""
    return max(n for n in range(1, jax.device_count() + 1) if batch_size % n == 0)


def named_runs(text: str) -> list[Path]:
    """Splits a list of work directories at its commas; the name of a directory may contain some.

    Raises:
        UserError: no directory is named, or one is not on a local file system.
    """
    parts, found = [part for part in text.split(",") if part], []
    while parts:
        joined = [local_path(",".join(parts[:count])) for count in range(1, len(parts) + 1)]
        count = max((n for n, path in enumerate(joined, start=1) if path.is_dir()), default=1)
        found.append(joined[count - 1])
        parts = parts[count:]
    if not found:
        raise UserError("--workdir names no run")
    return found


def main(_):
    """Prints the errors of each run and of their average."""
    given, workdirs = flags.FLAGS, named_runs(flags.FLAGS.workdir)
    loaded = [load_run(workdir, given.step, given.data_dir) for workdir in workdirs]
    runs, params, steps = zip(*loaded, strict=True)
    split, views = given.split or runs[0].config.data.eval_split, given.views
    with counter() as progress:
        runs = [with_split(run, split, progress) for run in runs]
        for workdir, run in zip(workdirs, runs, strict=True):
            for line in run.data.places:
                console.say(line)
            say_changes(workdir, run, split)
        results = evaluate_together(
            *(runs, params), split=split, views=views, confusion=given.per_class, progress=progress
        )
    titles = [f"{workdir} step {step}" for workdir, step in zip(workdirs, steps, strict=True)]
    if len(workdirs) > 1:
        titles.append(f"average of {len(workdirs)}")
    for title, result in zip(titles, results, strict=False):
        errors = console.errors(result, runs[0].model.num_classes)
        console.say(
            f"{title}  {split}  {views} view{'s' * (views > 1)}  {errors}  "
            f"of {result['count']} examples"
        )
    if given.per_class:
        _say_classes(runs[0], workdirs, steps, titles, results, split, views)
    if given.json:
        lines = [
            {"name": title, "split": split, "views": views}
            | {name: value for name, value in result.items() if name != "per_class"}
            for title, result in zip(titles, results, strict=False)
        ]
        files.write_json(given.json, lines)


def _say_classes(
    run: Run, workdirs: list[Path], steps, titles: list[str], results: list[dict], split, views
) -> None:
    """Prints the errors of each class, and writes them into the work directories.

    The errors of an average are written into the first directory.
    """
    for i, (title, result) in enumerate(zip(titles, results, strict=False)):
        whose = f"step{steps[i]}" if i < len(workdirs) else f"average{len(workdirs)}"
        workdir = workdirs[i] if i < len(workdirs) else workdirs[0]
        if not workdir.is_dir():  # a net that comes with the package
            whose, workdir = f"{workdir}-{whose}", Path()
        name = re.sub(r"[^\w.-]+", "_", f"{split}-{whose}-{views}views")
        what = f"{title}, {split}, {views} view{'s' * (views > 1)}"
        per_class.report(run, result["per_class"], workdir / "per_class" / name, what, split)


def report_best(run: Run, workdir: Path) -> None:
    """Evaluates the best net of a run that ends, and prints and writes its errors by class.

    Raises:
        UserError: they cannot be written.
    """
    params, meta = restore.restore_params(workdir, run.abstract_state().params, "best")
    results = evaluate_together([run], [params], confusion=True)
    if jax.process_index() == 0:
        title, split = f"{workdir} step {meta['step']}", run.config.data.eval_split
        _say_classes(run, [workdir], [meta["step"]], [title], results, split, 1)


if __name__ == "__main__":
    about = "The run to evaluate, or a net of the package; several, with commas, are averaged."
    flags.DEFINE_string("workdir", None, about)
    flags.DEFINE_string(
        "split", None, "A split of its data set; the evaluation split of the run if not given."
    )
    flags.DEFINE_integer("step", None, "The checkpoint to evaluate; the best one if not given.")
    flags.DEFINE_integer("views", 1, "Crops of each image to average: 1, 9 or 10.")
    flags.DEFINE_string("data_dir", "", "The folder of the data, if they have moved.")
    flags.DEFINE_boolean("per_class", False, "Print errors by class, and write WORKDIR/per_class/.")
    cli.define_path("json", None, "A file to write the results to.", result=True)
    cli.run(main, required=("workdir",))
