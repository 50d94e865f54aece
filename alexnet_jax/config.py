"""Configurations as data: loading, naming every field, and what a resumed run may change."""

import importlib.util
import json
import runpy
import sys
from pathlib import Path

from ml_collections import ConfigDict

from alexnet_jax import configs
from alexnet_jax.errors import UserError, local_path, nearest

SHIPPED = Path(configs.__file__).parent

NEVER = -1  # of a cadence in steps: not before the run ends

# A run started again in the same work directory may change these, and nothing else: its length,
# how often it logs, evaluates and saves, where the data lies, the devices it runs on, and what
# becomes of the steps and images that would otherwise have stopped it.
RESUMABLE = frozenset(
    {
        *("num_epochs", "num_train_steps", "log_every_steps"),
        *("eval_every_steps", "checkpoint_every_steps", "keep_checkpoints"),
        *("data.data_dir", "data.backend", "mesh.data", "mesh.model", "mesh.layout"),
        *("on_nonfinite", "on_save_error", "deterministic", "data.bad_images"),
    }
)

# Fields that earlier commits didn't know, with what their runs did.
_LATER_FIELDS = {
    **{"on_nonfinite": "stop", "on_save_error": "stop", "deterministic": False},
    **{"init_from": "", "model.layer_init_scales": ()},
}


def load_config(name: str | Path) -> ConfigDict:
    """Returns what the `get_config()` of a configuration file gives, locked.

    Args:
        name: a file, or the name of a shipped one: 'imagenette'. After a colon may follow a text
            that `get_config` takes.

    Raises:
        UserError: the file is missing, fails, or has no `get_config`.
    """
    name, _, argument = str(local_path(name)).partition(":")
    path = _find(Path(name))
    if importlib.util.find_spec("configs") is None:
        sys.modules["configs"] = configs  # as files that were written in a checkout import it
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
    """Returns the names of the configurations that ship."""
    return sorted(path.stem for path in SHIPPED.glob("[!_]*.py"))


def _find(path: Path) -> Path:
    """Returns `path`, or the shipped file that 'NAME' and 'configs/NAME.py' stand for elsewhere."""
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


def flatten(config: ConfigDict, prefix: str = "") -> dict:
    """{'data.name': value, …}: every leaf of the configuration under its dotted name."""
    leaves = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves


def read_config(workdir: Path) -> ConfigDict:
    """The configuration of the run in `workdir`, from its config.json.

    Raises:
        UserError: there is no run, or its config.json cannot be read.
    """
    path = Path(workdir) / "config.json"
    try:
        config = ConfigDict(_with_tuples(json.loads(path.read_text())))
        for name, value in _LATER_FIELDS.items():
            section, _, field = name.rpartition(".")
            place = config[section] if section else config
            if field not in place:
                place[field] = value
        return config.lock()
    except FileNotFoundError:
        raise UserError(f"no run in '{workdir}': it has no config.json") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError) as error:
        raise UserError(f"'{path}' cannot be read: {error}") from None


def _with_tuples(value):
    """JSON's lists as the tuples that they were written from; modules must be hashable."""
    if isinstance(value, dict):
        return {name: _with_tuples(each) for name, each in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def is_folder(name: str) -> bool:
    """Whether the name of a data set is that of a folder of images."""
    return name.startswith("folder:")


def check_same_run(config: ConfigDict, workdir: Path) -> None:
    """Refuses to go on with a run under another configuration than it was started with.

    Raises:
        UserError: fields other than `RESUMABLE` differ; the line names them with both values.
    """
    if not (Path(workdir) / "config.json").exists():
        return
    old, new = flatten(read_config(workdir)), flatten(config)
    differing = [
        f"{name} (was {old.get(name)!r}, now {new.get(name)!r})"
        for name in sorted(old.keys() | new.keys())
        if name not in RESUMABLE
        and old.get(name) != new.get(name)
        # Folders may move: trained/resume.py compares what is in them.
        and not (name == "data.name" and is_folder(old[name]) and is_folder(new[name]))
    ]
    if differing:
        raise UserError(
            f"'{workdir}' holds a run of another configuration: {', '.join(differing)}; "
            "choose another --workdir or the run's own configuration"
        )
