"""Keeps what was derived from data in the user's cache folder, in files that appear whole."""

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from alexnet_jax.errors import UserError, local_path
from alexnet_jax.records import files


def folder() -> Path:
    """Returns the cache folder: $ALEXNET_JAX_CACHE, or else the platform's own place for caches.

    Raises:
        UserError: the variable holds no path on this machine.
    """
    chosen = os.environ.get("ALEXNET_JAX_CACHE")
    if not chosen:
        return Path(platformdirs.user_cache_dir("alexnet_jax"))
    try:
        return local_path(chosen)
    except UserError as error:
        raise UserError(f"$ALEXNET_JAX_CACHE: {error}") from None


def slug(*parts: str) -> str:
    """Returns a file name for a data set: readable, and distinct for distinct `parts`."""
    text = "-".join(parts)
    readable = re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[-60:]
    return f"{readable}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:8]}"


def write(path: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> bool:
    """Does what `store` does, and returns False where that is impossible."""
    try:
        store(path, arrays, meta)
    except OSError:
        return False
    return True


def store(path: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Writes `arrays` and `meta` (JSON) to an npz file.

    The file appears under its name only when complete, so any number of processes may write it.
    Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path, shared=True) as file:
        np.savez(file, meta=np.array(json.dumps(meta)), **arrays)


def read(
    path: Path, only: Collection[str] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Returns what `write` wrote, or None if there is no such file or it is damaged.

    With `only`, the arrays of other names aren't read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names = file.files if only is None else ("meta", *only)
            arrays = {key: file[key] for key in names}
        return arrays, json.loads(arrays.pop("meta").item())
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile):
        return None
