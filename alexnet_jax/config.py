"""Defines the configuration of a run: its schema, its files, and what a resumed run may change.

The fields outside sections are those of `Config`; the fields of a section are those of the spec
that it configures. A `get_config()` returns an ml_collections ConfigDict, which `config_dict` makes
and which may be assigned to. Only this module reads ConfigDicts; everything else gets a `Config`.
"""

import dataclasses
import functools
import importlib.util
import json
import runpy
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from alexnet_jax import configs, console
from alexnet_jax.data.spec import DataSpec
from alexnet_jax.errors import UserError, local_path, nearest
from alexnet_jax.fields import typed
from alexnet_jax.models import AlexNet
from alexnet_jax.optim import OptimSpec
from alexnet_jax.parallel import MeshSpec
from alexnet_jax.preprocess import PreprocessSpec

SHIPPED = Path(configs.__file__).parent
NEVER = -1  # as a number of steps between two actions: only at the end of the run

# The section `model` has the preset's name, the Python module that adds the preset if it is not one
# of this package, and AlexNet's fields, where None takes the preset's value.
ModelSpec = dataclasses.make_dataclass(
    "ModelSpec",
    [
        ("name", str, "alexnet"),
        ("module", str, ""),
        *(
            (each.name, each.type | None, None)
            for each in dataclasses.fields(AlexNet)
            if each.name not in ("layers", "placement", "parent", "name")
        ),
    ],
    frozen=True,
)


@dataclass(frozen=True)
class Config:
    """Holds every setting of a run. The defaults are the paper's, on ImageNet (ILSVRC-2012).

    If batch_size, num_epochs or log_every_steps is None, `assemble.suited` chooses a number that
    suits the number of training images.
    """

    seed: int = 0  # seed of the initial weights, the order, crops, flips and dropout
    batch_size: int | None = 128  # images per step over all devices (paper, section 5)
    num_epochs: int | None = 90  # passes over the training set (paper, section 5: "roughly 90")
    num_train_steps: int | None = None  # the step at which the run ends; None: after num_epochs
    init_from: str = ""  # a run, or --out of import_weights, with the initial weights; '': none
    log_every_steps: int | None = 100  # steps between logged training losses; at most an epoch
    eval_every_steps: int | None = None  # between evaluations; None: an epoch; -1: only at the end
    checkpoint_every_steps: int | None = None  # between saves; None: an epoch; -1: only at the end
    keep_checkpoints: int = 3  # how many of the newest checkpoints are kept, beside the best
    on_nonfinite: str = "stop"  # if a loss or gradient is not finite: 'stop', or 'skip' the step
    on_save_error: str = "stop"  # if something cannot be saved: 'stop', or 'continue' without it
    per_class: bool = False  # whether to write errors by class and the worst mistakes at the end
    deterministic: bool = False  # whether a GPU, too, computes the same bits in every run

    data: DataSpec = field(default_factory=DataSpec)
    preprocess: PreprocessSpec = field(default_factory=PreprocessSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    optim: OptimSpec = field(default_factory=OptimSpec)
    mesh: MeshSpec = field(default_factory=MeshSpec)


# {spec of a Config: the section that has its fields}
SECTIONS = {
    **{"data": "data", "preprocess": "data"},
    **{"model": "model", "optim": "optim", "mesh": "mesh"},
}


def _schema() -> dict[str, dataclasses.Field]:
    fields = {each.name: each for each in dataclasses.fields(Config) if each.name not in SECTIONS}
    for name, section in SECTIONS.items():
        specs = dataclasses.fields(getattr(Config(), name))
        fields |= {f"{section}.{each.name}": each for each in specs}
    return fields


SCHEMA = _schema()  # {name of a field in files: its declaration}

# A resumed run may change only these fields: its length, how often it logs, evaluates and saves,
# where its data are, its devices, and how it treats steps and images that would stop it.
RESUMABLE = frozenset(
    {
        *("num_epochs", "num_train_steps", "log_every_steps"),
        *("eval_every_steps", "checkpoint_every_steps", "keep_checkpoints"),
        *("data.data_dir", "data.backend", "data.copies", "mesh.data", "mesh.model", "mesh.layout"),
        *("mesh.shard_dense", "model.fused_kernel"),
        *("on_nonfinite", "on_save_error", "deterministic", "data.bad_images", "per_class"),
    }
)

# {field that early commits did not have: the value that describes what their runs did}
_LATER_FIELDS = {
    **{"on_nonfinite": "stop", "on_save_error": "stop", "deterministic": False},
    **{"mesh.shard_dense": False, "mesh.reduce_dtype": None, "model.fused_kernel": False},
    **{"init_from": "", "per_class": False, "data.copies": ""},
    **{"model.layer_init_scales": (), "model.module": ""},
}

# {former name of a field: its present name}, and the fields in which 0 formerly meant None.
_RENAMED = {"optim.dexp_steps": "optim.dexp_stages"}
_ZERO_WAS_NONE = (
    *("num_train_steps", "eval_every_steps", "checkpoint_every_steps"),
    "data.resize_size",
)


def load_config(name: str | Path) -> Config:
    """Returns the configuration that the `get_config()` of a file makes.

    Args:
        name: a file, or the name of a shipped one, such as 'imagenette'. It may be followed by a
            colon and a text, which is passed to `get_config`.

    Raises:
        UserError: the file is missing, fails, has no `get_config`, or sets an unknown field.
    """
    return freeze(load_config_dict(name), f"configuration '{name}'")


def load_config_dict(name: str | Path) -> ConfigDict:
    """Returns the configuration of a file as a locked ConfigDict, which flags can override.

    Raises:
        UserError: see `load_config`.
    """
    name, _, argument = str(local_path(name)).partition(":")
    path = _find(Path(name))
    if importlib.util.find_spec("configs") is None:
        sys.modules["configs"] = configs  # Files that were written in a checkout may import it.
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        if get_config is None:
            raise UserError(f"configuration file '{path}' defines no get_config()")
        return ConfigDict(get_config(argument) if argument else get_config()).lock()
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"configuration file '{path}' cannot be loaded: {reason}") from None


def shipped() -> list[str]:
    """Returns the names of the configurations that ship with the package."""
    return sorted(path.stem for path in SHIPPED.glob("[!_]*.py"))


def _find(path: Path) -> Path:
    """Returns `path` if it is a file, else the shipped file of 'NAME' or 'configs/NAME.py'."""
    if path.is_file():
        return path
    if path.parent in (Path(), Path("configs")) and path.stem in shipped():
        return SHIPPED / f"{path.stem}.py"
    if path.parent == Path():
        beside = (each.name for each in Path().glob("*.py"))
        raise UserError(f"no configuration '{path}'; {nearest(str(path), [*shipped(), *beside])}")
    if not path.parent.is_dir():
        raise UserError(f"no configuration file '{path}'; {nearest(path.stem, shipped())}")
    raise UserError(
        f"no configuration file '{path}'; {nearest(str(path), path.parent.glob('[!_]*.py'))}"
    )


def config_dict(config: Config | None = None) -> ConfigDict:
    """Returns a configuration as a ConfigDict, by default that of the paper.

    Each field accepts only values of its type, and None where the schema allows it.
    """
    result = ConfigDict({section: {} for section in SECTIONS.values()})
    for name, value in flatten(config or Config()).items():
        section, _, key = name.rpartition(".")
        place = result[section] if section else result
        kinds = typing.get_args(SCHEMA[name].type)
        if types.NoneType in kinds:
            kinds = [typing.get_origin(kind) or kind for kind in kinds]
            place[key] = placeholder(tuple if tuple in kinds else kinds[0])
        if value is not None:
            place[key] = value
    return result


def freeze(config: ConfigDict, where: str = "the configuration") -> Config:
    """Returns the `Config` of a ConfigDict; fields that it lacks have their defaults.

    Raises:
        UserError: it has an unknown field, and the line names the nearest one; or a value is of
            another type than its field, infinite or not a number. The line begins with `where`.
    """
    return _from_flat(flatten(Config()) | _read(config.to_dict(), where, say=True), where)


def override(config: Config, fields: Mapping[str, Any]) -> Config:
    """Returns a configuration with some fields replaced, {'data.name': value, …}.

    Raises:
        TypeError, ValueError: a value has another type than its field.
        KeyError: a field does not exist.
    """
    changed = config_dict(config).lock()
    changed.update_from_flattened_dict(fields)
    return freeze(changed, where="")


def flatten(config: Config) -> dict[str, Any]:
    """Returns every field under its name in files, {'data.name': value, …}."""
    fields = {name: value for name, value in vars(config).items() if name not in SECTIONS}
    for name, section in SECTIONS.items():
        values = vars(getattr(config, name))
        fields |= {f"{section}.{key}": value for key, value in values.items()}
    return fields


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the fields by section, in the form of config.json."""
    result = {}
    for name, value in flatten(config).items():
        section, _, key = name.rpartition(".")
        (result.setdefault(section, {}) if section else result)[key] = value
    return result


def read_config(workdir: Path) -> Config:
    """Returns the configuration of the run in `workdir`, from its config.json.

    Raises:
        UserError: `workdir` has no config.json, or it cannot be read.
    """
    path = Path(workdir) / "config.json"
    try:
        return from_dict(json.loads(path.read_text()), f"'{path}'")
    except FileNotFoundError:
        raise UserError(f"no run in '{workdir}': it has no config.json") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError) as error:
        raise UserError(f"'{path}' cannot be read: {error}") from None


def from_dict(nested: Mapping[str, Any], where: str) -> Config:
    """Returns the configuration that `to_dict` gave, of this commit or of an earlier one.

    Args:
        nested: the fields by sections, as JSON has them.
        where: what an error names.

    Raises:
        UserError: it has an unknown field, or a value of another type than its field.
        ValueError, TypeError, KeyError, AttributeError: it is damaged.
    """
    given = _LATER_FIELDS | _read(nested, where)
    if lacking := SCHEMA.keys() - given.keys():
        raise ValueError(f"it has no {', '.join(sorted(lacking))}")
    return _from_flat(given, where)


def is_folder(name: str) -> bool:
    """Returns whether the name of a data set is that of a folder of images."""
    return name.startswith("folder:")


def check_same_run(config: Config, workdir: Path, but: tuple[str, ...] = ()) -> None:
    """Checks that a run is resumed with the configuration that it was started with.

    Raises:
        UserError: a field that is not in `RESUMABLE` nor in `but` differs; the line gives both.
    """
    if not (Path(workdir) / "config.json").exists():
        return
    old, new = flatten(read_config(workdir)), flatten(config)
    differing = [
        f"{name} (was {old[name]!r}, now {new[name]!r})"
        for name in sorted(new)
        if name not in RESUMABLE.union(but)
        and old[name] != new[name]
        # A folder may have been moved: trained/resume.py compares what it contains.
        and not (name == "data.name" and is_folder(old[name]) and is_folder(new[name]))
    ]
    if differing:
        raise UserError(
            f"'{workdir}' holds a run of another configuration: {', '.join(differing)}; "
            "choose another --workdir or the run's own configuration"
        )


def present_name(name: str) -> str:
    """Returns the present name of a field, and prints a line if `name` is a former one."""
    if name in _RENAMED:
        _say_renamed(name)
    return _RENAMED.get(name, name)


@functools.cache  # A name is reported once.
def _say_renamed(name: str) -> None:
    console.say(f"the field {name} is called {_RENAMED[name]} now")


def _read(nested: Mapping[str, Any], where: str, *, say: bool = False) -> dict[str, Any]:
    """Returns the fields of a nested dictionary under their present names and values.

    With `say` it prints a line where 0 is read as None.
    """
    given = {}
    for section, value in nested.items():
        inside = section in SECTIONS.values() and isinstance(value, Mapping)
        given |= {f"{section}.{k}": v for k, v in value.items()} if inside else {section: value}
    fields = {}
    for name in sorted(given, key=_RENAMED.__contains__):  # A value under a former name wins.
        present, value = present_name(name), given[name]
        if present not in SCHEMA:
            raise UserError(f"{where} has an unknown field {name}; {nearest(name, SCHEMA)}")
        if value == 0 and present in _ZERO_WAS_NONE:
            value = None
            if say:
                _say_zero(present)
        fields[present] = value
    return fields


@functools.cache  # A name is reported once.
def _say_zero(name: str) -> None:
    console.say(f"{name}=0 is read as None, which it meant formerly")


def _from_flat(given: Mapping[str, Any], where: str) -> Config:
    """Returns the `Config` of all fields; an error about a value begins with `where`."""
    place = f"{where}: " if where else ""
    fields = {k: typed(place + k, value, SCHEMA[k].type) for k, value in given.items()}
    specs = {}
    for name, section in SECTIONS.items():
        spec = getattr(Config(), name)
        own = {each.name: fields[f"{section}.{each.name}"] for each in dataclasses.fields(spec)}
        specs[name] = type(spec)(**own)
    return Config(**{name: value for name, value in fields.items() if "." not in name}, **specs)
