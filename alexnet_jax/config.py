"""Configurations as data: loading, naming every field, and what a resumed run may change."""

import json
import runpy
from pathlib import Path

from ml_collections import ConfigDict

from alexnet_jax.errors import UserError, nearest

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


def load_config(path: str) -> ConfigDict:
    """The configuration that the file's `get_config()` returns, locked.

    Raises:
        UserError: the file is missing, fails, or has no `get_config`.
    """
    name, _, argument = str(path).partition(":")
    if not Path(name).is_file():
        folder = Path(name).parent if Path(name).parent.is_dir() else Path("configs")
        raise UserError(f"no configuration file '{name}'; {nearest(name, folder.glob('*.py'))}")
    try:
        get_config = runpy.run_path(name)["get_config"]
        return ConfigDict(get_config(argument) if argument else get_config()).lock()
    except KeyError:
        raise UserError(f"configuration file '{name}' defines no get_config()") from None
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"configuration file '{name}' cannot be loaded: {reason}") from None


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
        if name not in RESUMABLE and old.get(name) != new.get(name)
    ]
    if differing:
        raise UserError(
            f"'{workdir}' holds a run of another configuration: {', '.join(differing)}; "
            "choose another --workdir or the run's own configuration"
        )
