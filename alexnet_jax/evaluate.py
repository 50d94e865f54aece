"""How good parameters are: top-1 and top-5 error over every example of a split, each once.

python -m alexnet_jax.evaluate --workdir=DIR[,DIR …] [--split=NAME] [--step=N] [--views=1|9|10]
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from alexnet_jax import cli, console, data, distributed
from alexnet_jax.ahead import Ahead
from alexnet_jax.assemble import Run, assemble
from alexnet_jax.config import read_config
from alexnet_jax.errors import UserError, local_path
from alexnet_jax.records import files, metrics, restore
from alexnet_jax.step import classification_sums


def evaluate(run: Run, params: dict, *, split: str | None = None, views: int = 1) -> dict:
    """Loss, errors in percent and count of `params` on a split (default: the run's own).

    Args:
        views: crops of each image whose softmax probabilities are averaged: 1, the centre; 10,
            the paper's four corners and centre with their mirrors (section 4.1); 9, a grid
            (cuda-convnet's CIFAR nets).
    """
    return evaluate_together([run], [params], split=split, views=views)[-1]


def evaluate_together(
    runs: Sequence[Run], all_params: Sequence[dict], *, split: str | None = None, views: int = 1
) -> list[dict]:
    """What `evaluate` returns for each net, and last for the average of their probabilities.

    The paper averages the predictions of five and of seven nets (section 6, Table 2).

    Raises:
        UserError: the runs' data differ in examples or classes.
    """
    split = split or runs[0].config.data.eval_split
    ahead = Ahead()
    streams = [
        ahead.each(
            data.eval_batches(
                run.data,
                split,
                batch_size=run.config.batch_size,
                views=data.views(views, run.data.resize_size - run.data.spec.image_size),
                shardings=run.layout.batch_shardings(),
            )
        )
        for run in runs
    ]
    parts = [[] for _ in range(len(runs) + 1)]
    skipped = runs[0].data.bad.get(split, {})
    for batches in zip(*streams, strict=True):
        predictions = (
            run.predict(params, batch)
            for run, params, batch in zip(runs, all_params, batches, strict=True)
        )
        predicted = list(ahead.each(predictions))
        ahead.add(average := _average(predicted))
        for part, log_probs in zip(parts, [*predicted, average], strict=True):
            part.append(_score(log_probs, batches[0]["labels"], batches[0]["mask"]))
            ahead.add(part[-1])
    skipped.update(distributed.union(skipped))  # each process knows those that it has read
    num_examples = data.num_examples(runs[0].data, split) - len(skipped)
    results = []
    for part in parts:
        sums = metrics.total(part)
        if sums["count"] != num_examples:
            raise RuntimeError(f"evaluated {sums['count']:.0f} of {num_examples} examples")
        results.append(metrics.summarize(sums) | {"count": num_examples})
    return results


_score = jax.jit(classification_sums)


@jax.jit
def _average(log_probs: Sequence) -> jax.Array:
    """The log of the mean of probabilities, each [B, classes]."""
    stacked = jnp.stack(log_probs)
    return jax.nn.logsumexp(stacked, axis=0) - jnp.log(len(log_probs))


def load_run(workdir: Path, step: int | None = None, data_dir: str = "") -> tuple[Run, dict, int]:
    """The run in `workdir` with the parameters of its best checkpoint, or of `step`; and the step.

    Raises:
        UserError: no run, no such checkpoint, or its data set is gone.
    """
    config = read_config(workdir)
    with config.unlocked():
        if data_dir:
            config.data.data_dir = data_dir
        config.mesh = dict(layout="data", data=_divisor(config.batch_size), model=1)
    run = assemble(config)
    abstract = run.abstract_state().params
    params, meta = restore.restore_params(workdir, abstract, "best" if step is None else step)
    return run, params, meta["step"]


def _divisor(batch_size: int) -> int:
    """The most local devices over which a batch divides."""
    return max(n for n in range(1, jax.device_count() + 1) if batch_size % n == 0)


def named_runs(text: str) -> list[Path]:
    """The work directories in a list with commas; a directory's name may have commas itself.

    Raises:
        UserError: none is named, or one is not on a local file system.
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
    workdirs = named_runs(flags.FLAGS.workdir)
    loaded = [load_run(workdir, flags.FLAGS.step, flags.FLAGS.data_dir) for workdir in workdirs]
    runs, params, steps = zip(*loaded, strict=True)
    split, views = flags.FLAGS.split or runs[0].config.data.eval_split, flags.FLAGS.views
    results = evaluate_together(runs, params, split=split, views=views)
    names = [f"{workdir} step {step}" for workdir, step in zip(workdirs, steps, strict=True)]
    if len(workdirs) > 1:
        names.append(f"average of {len(workdirs)}")
    for name, result in zip(names, results, strict=False):
        errors = console.errors(result, runs[0].model.num_classes)
        console.say(
            f"{name}  {split}  {views} view{'s' * (views > 1)}  {errors}  "
            f"of {result['count']} examples"
        )
    if flags.FLAGS.json:
        files.write_json(
            flags.FLAGS.json,
            [
                {"name": n, "split": split, "views": views} | r
                for n, r in zip(names, results, strict=False)
            ],
        )


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The run to evaluate; several, with commas, are averaged.")
    flags.DEFINE_string(
        "split", None, "A split of its data set; the run's evaluation split if not given."
    )
    flags.DEFINE_integer("step", None, "The checkpoint to evaluate; the best one if not given.")
    flags.DEFINE_integer("views", 1, "Crops of each image to average: 1, 9 or 10.")
    flags.DEFINE_string("data_dir", "", "Where the data lies now, if it has moved.")
    cli.define_path("json", None, "A file to write the results to.")
    cli.run(main, required=("workdir",))
