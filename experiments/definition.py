"""Defines what a sweep is: a Python file with a base configuration and named variants of it.

    BASE = "configs/bench_imagenette.py"
    VARIANTS = {"baseline": {}, "no LRN": {"model.lrn": False}}

The file may also have these names. OVERRIDES are fields of every variant. SEEDS is the number of
seeds of each variant (3). UNIT is what else the number of runs counts. BASELINE is the variant with
which the others are compared ("baseline", or else the first). CLAIM is its number in the ledger.
MEASURES are names in experiments/measures.py. FAMILY says whether the p values of its variants are
corrected together. PAPER is what the paper says of a variant's difference to the baseline: a number
in the first measure, "higher" or "lower", or a dict of these by measure. PUBLISHED is what is in
print of a variant's own first measure. The first line of the file says what the sweep is about. If
`init_from` of a variant is the name of another one, each seed starts with the weights of the
other's best checkpoint.
"""

import ast
import functools
import hashlib
import json
import re
import runpy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alexnet_jax.assemble import make_model, resolve, suited
from alexnet_jax.config import NEVER, Config, flatten, load_config, override
from alexnet_jax.errors import UserError, choose, nearest
from alexnet_jax.models import AlexNet, operations
from experiments import sweep_file
from experiments.measures import MEASURES

ROOT = Path(__file__).parents[1]  # the folder from which base configurations are named
FOLDER = Path(__file__).parent / "sweeps"
# Fields that decide neither the numbers of a run nor which of them are written down.
ELSEWHERE = (
    "data.data_dir",
    "data.backend",
    "data.copies",
    "mesh.layout",
    "mesh.data",
    "mesh.model",
)
ELSEWHERE += ("keep_checkpoints", "checkpoint_every_steps", "on_save_error")
# Training and evaluation examples of the data sets that take no opening to know them.
EXAMPLES = {"imagenet2012": (1_281_167, 50_000), "cifar10": (50_000, 10_000)}
EXAMPLES |= {"imagenette": (9_469, 3_925)}


@dataclass(frozen=True, eq=False)
class Sweep:
    """Holds the definition in one file; the docstring of the module describes its fields."""

    name: str
    about: str
    base: str
    variants: dict[str, dict]
    overrides: dict = field(default_factory=dict)
    seeds: int = 3
    unit: str = "seeds"  # what the number of values in a row counts
    baseline: str = "baseline"
    claim: int | None = None
    measures: tuple[str, ...] = ("top1_error", "loss")
    paper: dict[str, float | str | dict[str, float | str]] = field(default_factory=dict)
    published: dict[str, float] = field(default_factory=dict)
    family: bool = False  # whether the p values of its findings are corrected together

    @property
    def sources(self) -> set[str]:
        """Returns the variants that only provide initial weights for others."""
        return {fields.get("init_from") for fields in self.variants.values()} & set(self.variants)

    def said(self, variant: str, measure: str) -> float | str | None:
        """Returns what the paper says of a variant's difference to the baseline in a measure."""
        paper = self.paper.get(variant)
        if isinstance(paper, dict):
            return paper.get(measure)
        return paper if measure == self.measures[0] else None


@dataclass(frozen=True, eq=False)
class Cell:
    """Describes one run of a sweep; cells of several sweeps with the same `digest` are one run."""

    sweep: Sweep
    variant: str
    seed: int
    config: Config
    digest: str
    source: "Cell | None" = None  # the run with whose weights it starts

    @property
    def overrides(self) -> dict:
        """Returns the fields that differ from the sweep's base, without the seed."""
        return {**self.sweep.overrides, **self.sweep.variants[self.variant]}

    @property
    def folder(self) -> str:
        """Returns the name of its work directory."""
        return f"{Path(self.sweep.base).stem}-{self.digest}"

    @property
    def title(self) -> str:
        """Returns its name on the screen."""
        return f"{self.sweep.name}: {self.variant}, seed {self.seed}"

    def command(self, python: str, workdir: Path, data_dir: str = "") -> list[str]:
        """Returns the command line of the run, with paths relative to the project's root."""
        fields = {**self.overrides, "seed": self.seed}
        if data_dir:
            fields["data.data_dir"] = data_dir
        if self.source:
            fields["init_from"] = workdir.parent / self.source.folder
        flags = [f"--config.{name}={value}" for name, value in fields.items()]
        main = [python, "-m", "alexnet_jax.main", f"--config={self.sweep.base}"]
        return [*main, f"--workdir={workdir}", *flags]

    def settings(self) -> dict:
        """Returns all fields that differ from configs/base.py, without the seed."""
        return {name: v for name, v in _differences(self.config).items() if name != "seed"}


def load_sweep(path: str | Path) -> Sweep:
    """Returns the sweep that a file defines.

    Raises:
        UserError: the file is missing or fails, or what it defines is no sweep.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no sweep '{path}'; {nearest(str(path), FOLDER.glob('*.py'))}")
    try:
        about = ast.get_docstring(ast.parse(path.read_bytes())) or ""
        defined = runpy.run_path(str(path))
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"sweep '{path}' cannot be loaded: {reason}") from None
    known = [name.upper() for name in Sweep.__dataclass_fields__ if name not in ("name", "about")]
    fields = {name.lower(): value for name, value in defined.items() if name in known}
    sweep_file.check(path, defined, fields, known)
    first = next(iter(fields["variants"]))
    if "baseline" not in fields:
        fields["baseline"] = "baseline" if "baseline" in fields["variants"] else first
    sweep = Sweep(name=path.stem, about=about, **fields)
    choose(sweep.baseline, sweep.variants, f"sweep '{path}': BASELINE")
    for measure in sweep.measures:
        choose(measure, MEASURES, f"sweep '{path}': MEASURES")
    sweep_file.check_said(path, fields, sweep.measures)
    analysis = path.stem in {each.name for each in ANALYSES}
    shipped = FOLDER / path.name
    if analysis or (shipped.exists() and not path.samefile(shipped)):
        raise UserError(
            f"sweep '{path}': the project has {'an analysis' if analysis else 'a sweep'} of this "
            "name, whose records it would replace; give it another name"
        )
    return sweep


def load_all() -> list[Sweep]:
    """Returns every sweep of experiments/sweeps, in the order of claims and names."""
    sweeps = [load_sweep(path) for path in sorted(FOLDER.glob("*.py"))]
    return sorted(sweeps, key=lambda sweep: (sweep.claim or 0, sweep.name))


# What experiments/analyse.py finds out about finished runs, told as sweeps are. Nothing is trained.
ANALYSES = (
    Sweep(
        name="averaging",
        about="Averaging the predictions of five nets (section 6, Table 2) at bench scale:"
        " of each kind of net that has five.",
        base="configs/bench_imagenette.py",
        variants={"one net": {}, "five averaged": {}},
        unit="kinds of net",
        baseline="one net",
        claim=1,
        measures=("top1_error", "top5_error"),
        paper={"five averaged": {"top1_error": 38.1 - 40.7, "top5_error": 16.4 - 18.2}},
    ),
    Sweep(
        name="views",
        about="Ten views of each image against the centre (section 4.1).",
        base="configs/bench_imagenette.py",
        variants={"centre": {}, "ten views": {}},
        baseline="centre",
        claim=10,
        measures=("top1_error", "top5_error"),
        # computerhistory/AlexNet-Source-Code, logs of net 145 on ILSVRC-2010.
        paper={"ten views": {"top1_error": -1.55, "top5_error": -1.30}},
    ),
    *(
        Sweep(
            name=name,
            about=f"Colour in conv1's kernels, by tower (section 6.1, Figure 3), {where}.\n\n"
            "The colour energy of a kernel is the share of its squares that is left when each"
            " weight's mean over red, green and blue is taken out. Shuffled: kernels dealt out at"
            " random. Low frequencies are those below a quarter of a cycle a pixel.",
            base=base,
            variants={"kernels shuffled": {}, "as trained": {}},
            baseline="kernels shuffled",
            claim=14,
            measures=("colour_gap", "low_frequency"),
            paper={"as trained": "higher"},
        )
        for name, base, where in (
            ("specialisation", "configs/bench_imagenette.py", "5x5 pixels and He's initial scale"),
            ("specialisation_large", "configs/imagenette128.py", "11x11 pixels and a tenth of it"),
        )
    ),
    Sweep(
        name="neighbours",
        about="Of the five training images nearest to a validation image, how many are of its class"
        " (section 6.1, Figure 4): by Euclidean distance in fc7, and in pixels.",
        base="configs/bench_imagenette.py",
        variants={"pixels": {}, "fc7": {}},
        baseline="pixels",
        claim=15,
        measures=("precision_at_5",),
        paper={"fc7": "higher"},
    ),
)


@functools.cache
def studies() -> dict[str, Sweep]:
    """Returns all sweeps and analyses by name, in the order of their claims."""
    every = sorted((*load_all(), *ANALYSES), key=lambda sweep: sweep.claim or 0)
    return {sweep.name: sweep for sweep in every}


def configuration(sweep: Sweep, variant: str, seed: int) -> Config:
    """Returns the configuration of a variant.

    Raises:
        UserError: a field is unknown, or its value of another type.
    """
    config = load_config(ROOT / sweep.base)
    known = flatten(config)
    fields = {**sweep.overrides, **sweep.variants[variant], "seed": seed}
    for name in fields:
        if name not in known:
            raise UserError(
                f"sweep '{sweep.name}', '{variant}': unknown field {name}; {nearest(name, known)}"
            )
    try:
        return override(config, fields)
    except (TypeError, ValueError, UserError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"sweep '{sweep.name}', '{variant}': {reason}") from None


@functools.cache
def cell(sweep: Sweep, variant: str, seed: int) -> Cell:
    """Returns one run, whose digest depends on what decides its numbers.

    A field that has the preset's value by default or explicitly gives the same digest.
    """
    config = configuration(sweep, variant, seed)
    model = make_model(config, num_classes=1)
    decisive = {k: v for k, v in _differences(config).items() if not k.startswith("model.")}
    decisive["model.name"] = config.model.name
    for name, value in vars(resolve(config, model).model).items():
        # Defaults are left out, so that a field that is added later renames no earlier run.
        if name not in ("name", "module", "num_classes") and value != getattr(AlexNet, name):
            decisive[f"model.{name}"] = value
    source = None
    if config.init_from in sweep.sources:
        source = cell(sweep, config.init_from, seed)
        decisive["init_from"] = source.digest
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:12]
    return Cell(sweep, variant, seed, config, digest, source)


def cells(sweeps: Sequence[Sweep], seeds: int | None = None) -> list[Cell]:
    """Returns all runs in the order of their start: seed 0 of every variant, then seed 1, ….

    What is stopped half-way is then balanced.
    """
    counts = [sweep.seeds if seeds is None else seeds for sweep in sweeps]
    return [
        cell(sweep, variant, seed)
        for seed in range(max(counts, default=0))
        for sweep, count in zip(sweeps, counts, strict=True)
        if seed < count
        for variant in sweep.variants
    ]


def cost(config: Config) -> float | None:
    """Estimates the floating-point operations of a run, or returns None for an unknown data set.

    A multiply-add is two; the backward pass takes twice the forward pass.
    """
    examples = next((n for k, n in EXAMPLES.items() if config.data.name.startswith(k)), None)
    if examples is None:
        return None
    train = examples[0] * _share(config.data.train_split)
    evaluated = examples[1] * _share(config.data.eval_split)
    config = suited(config, int(train))
    steps = config.num_train_steps or config.num_epochs * (train // config.batch_size)
    every = config.eval_every_steps or train // config.batch_size
    evaluations = 1 if every == NEVER else steps // every + 1
    size = config.data.image_size
    forward = forward_flops(make_model(config, num_classes=10), size)
    return forward * (3 * steps * config.batch_size + evaluations * evaluated)


@functools.cache
def forward_flops(model: AlexNet, size: int) -> int:
    """Returns the operations for one image of `size` pixels through the net."""
    return sum(2 * op.multiply_adds for op in operations(model, size))


def _differences(config: Config) -> dict:
    """Returns the fields of a configuration that differ from configs/base.py."""
    base = _base()
    return {
        name: value
        for name, value in flatten(config).items()
        if name not in ELSEWHERE and value != base.get(name)
    }


@functools.cache
def _base() -> dict:
    return flatten(load_config(ROOT / "configs/base.py"))


def _share(split: str) -> float:
    """Returns the share of the examples in a split such as 'train[:20%]'."""
    match = re.search(r"\[:(\d+)%\]$", split)
    return int(match[1]) / 100 if match else 1.0
