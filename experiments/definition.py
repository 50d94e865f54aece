"""What a sweep is: a Python file with a base configuration and named variants of it.

    BASE = "configs/bench_imagenette.py"
    VARIANTS = {"baseline": {}, "no LRN": {"model.lrn": False}}

Beside these two it may have OVERRIDES, of every variant; SEEDS, how many of each (3); UNIT, what
else their number counts; BASELINE, the variant that the others are compared with ("baseline", or
else the first); CLAIM, its number in the ledger; MEASURES, names out of experiments/compare.py;
FAMILY, whether its variants are one family of findings, whose p values are corrected together; and
PAPER, what the paper says of a variant's difference to the baseline: a number in the first measure,
"higher" or "lower", or a dict of these by measure. The file's first line says what it is about. A
variant whose `init_from` is another's name begins, seed by seed, with the weights that the other
ended with.
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

ROOT = Path(__file__).parents[1]  # base configurations are named from here
FOLDER = Path(__file__).parent / "sweeps"
# What decides neither the numbers of a run nor which of them are written down.
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
    """The definition in one file; see the module's text for the fields."""

    name: str
    about: str
    base: str
    variants: dict[str, dict]
    overrides: dict = field(default_factory=dict)
    seeds: int = 3
    unit: str = "seeds"  # what the values of a row are counted in
    baseline: str = "baseline"
    claim: int | None = None
    measures: tuple[str, ...] = ("top1_error", "loss")
    paper: dict[str, float | str | dict[str, float | str]] = field(default_factory=dict)
    family: bool = False  # its findings' p values are corrected together

    @property
    def sources(self) -> set[str]:
        """The variants that only give others their initial weights."""
        return {fields.get("init_from") for fields in self.variants.values()} & set(self.variants)

    def said(self, variant: str, measure: str) -> float | str | None:
        """What the paper says of the variant's difference to the baseline in the measure."""
        paper = self.paper.get(variant)
        if isinstance(paper, dict):
            return paper.get(measure)
        return paper if measure == self.measures[0] else None


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of a sweep. Cells of several sweeps with one `digest` are the same run."""

    sweep: Sweep
    variant: str
    seed: int
    config: Config
    digest: str
    source: "Cell | None" = None  # the run with whose weights it begins

    @property
    def overrides(self) -> dict:
        """The fields that differ from the sweep's base, the seed left out."""
        return {**self.sweep.overrides, **self.sweep.variants[self.variant]}

    @property
    def folder(self) -> str:
        """The name of its work directory."""
        return f"{Path(self.sweep.base).stem}-{self.digest}"

    @property
    def title(self) -> str:
        """How it is called on the screen."""
        return f"{self.sweep.name}: {self.variant}, seed {self.seed}"

    def command(self, python: str, workdir: Path, data_dir: str = "") -> list[str]:
        """The command line of the run; relative paths are from the project's root."""
        fields = {**self.overrides, "seed": self.seed}
        if data_dir:
            fields["data.data_dir"] = data_dir
        if self.source:
            fields["init_from"] = workdir.parent / self.source.folder
        flags = [f"--config.{name}={value}" for name, value in fields.items()]
        main = [python, "-m", "alexnet_jax.main", f"--config={self.sweep.base}"]
        return [*main, f"--workdir={workdir}", *flags]

    def settings(self) -> dict:
        """All fields in which the run differs from configs/base.py, the seed left out."""
        return {name: v for name, v in _differences(self.config).items() if name != "seed"}


def load_sweep(path: str | Path) -> Sweep:
    """The sweep that a file defines.

    Raises:
        UserError: the file is missing or fails, or what it defines is no sweep.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no sweep '{path}'; {nearest(str(path), FOLDER.glob('*.py'))}")
    try:
        about = ast.get_docstring(ast.parse(path.read_text())) or ""
        defined = runpy.run_path(str(path))
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"sweep '{path}' cannot be loaded: {reason}") from None
    known = {name.upper(): name for name in Sweep.__dataclass_fields__} | {"BASE": "base"}
    fields = {known[name]: value for name, value in defined.items() if name in known}
    for name in ("base", "variants"):
        if not fields.get(name):
            raise UserError(f"sweep '{path}' defines no {name.upper()}")
    first = next(iter(fields["variants"]))
    if "baseline" not in fields:
        fields["baseline"] = "baseline" if "baseline" in fields["variants"] else first
    choose(fields["baseline"], fields["variants"], f"sweep '{path}': BASELINE")
    for variant in fields.get("paper", {}):
        choose(variant, fields["variants"], f"sweep '{path}': PAPER")
    return Sweep(name=path.stem, about=about, **fields)


def load_all() -> list[Sweep]:
    """Every sweep of experiments/sweeps, by claim and name."""
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


def studies() -> dict[str, Sweep]:
    """All sweeps and analyses by name, in the order of their claims."""
    every = sorted((*load_all(), *ANALYSES), key=lambda sweep: sweep.claim or 0)
    return {sweep.name: sweep for sweep in every}


def configuration(sweep: Sweep, variant: str, seed: int) -> Config:
    """The variant's configuration.

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
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"sweep '{sweep.name}', '{variant}': {reason}") from None


@functools.cache
def cell(sweep: Sweep, variant: str, seed: int) -> Cell:
    """One run, known by what decides its numbers: a preset's own value is that value given."""
    config = configuration(sweep, variant, seed)
    model = make_model(config, num_classes=1)
    decisive = {k: v for k, v in _differences(config).items() if not k.startswith("model.")}
    decisive["model.name"] = config.model.name
    for name, value in vars(resolve(config, model).model).items():
        # Defaults are left out, so that a field that is added later renames no earlier run.
        if name not in ("name", "num_classes") and value != getattr(AlexNet, name):
            decisive[f"model.{name}"] = value
    source = None
    if config.init_from in sweep.sources:
        source = cell(sweep, config.init_from, seed)
        decisive["init_from"] = source.digest
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:12]
    return Cell(sweep, variant, seed, config, digest, source)


def cells(sweeps: Sequence[Sweep], seeds: int | None = None) -> list[Cell]:
    """All runs in the order in which to start them: seed 0 of every variant, then seed 1, ….

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
    """Floating-point operations of the run, roughly; None where the number of images is unknown.

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
    """Of one image of `size` pixels through the net, from shapes alone."""
    return sum(2 * op.multiply_adds for op in operations(model, size))


def _differences(config: Config) -> dict:
    """The fields in which a configuration differs from configs/base.py."""
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
    """The share of the examples that a split such as 'train[:20%]' has."""
    match = re.search(r"\[:(\d+)%\]$", split)
    return int(match[1]) / 100 if match else 1.0
