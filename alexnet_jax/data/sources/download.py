"""What only TFDS can do: find out what a data set is that isn't here, download and prepare it."""

import contextlib
import difflib
import logging
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alexnet_jax.data import files
from alexnet_jax.data.sources.source import Progress, SourceMissing, one_line

# What must be fetched by hand, where TFDS's own text is long.
_ARCHIVES = {"imagenet2012": "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar"}


def prepared_folder(
    name: str, data_dir: str | None, root: Path, may_download: bool, progress: Progress
) -> Path:
    """Returns the folder of a set that TFDS knows, and prepares it where it must.

    Args:
        name: a TFDS name.
        data_dir: TFDS's folder of prepared sets; empty or None: TFDS's own default.
        root: the same folder, in which no set of that name was found.
        may_download: have TFDS download and prepare the set.
        progress: called before anything is prepared.

    Raises:
        SourceMissing: the set isn't here and cannot be fetched.
    """
    if name.startswith(("/", "./", "../", "~")):  # TFDS would take it apart.
        raise SourceMissing(f"data set {name!r} looks like a path: write folder:{name}")
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise SourceMissing(
            f"data set {name!r} is not prepared in {root}{_beside(name, root)}, and TFDS, which"
            f" might download it, cannot be used ({error}): pip install tensorflow-datasets and"
            " tensorflow-cpu, or set data.data_dir"
        ) from None
    place = os.path.expanduser(data_dir) if data_dir else None
    builder, problem = None, None
    with _quiet():
        try:
            builder = tfds.builder(name, data_dir=place)
            if builder.is_prepared():
                return Path(builder.data_path)
        except Exception as error:  # Builders run arbitrary set-up code of their own.
            problem = error
        # The set may be there in a version of its default configuration, which only TFDS knows.
        with contextlib.suppress(Exception):
            found = tfds.core.read_only_builder.builder_from_files(name, data_dir=place)
            return Path(found.data_path)
        if isinstance(problem, tfds.core.registered.DatasetNotFoundError):
            known = tfds.list_builders(with_community_datasets=False)
            near = difflib.get_close_matches(name.split("/")[0].split(":")[0], known)
            hint = f" (did you mean {' or '.join(near)}?)" if near else ""
            if os.path.isdir(name):
                hint = f"; for the folder of images of that name write folder:{name}"
            raise SourceMissing(
                f"unknown data set {name!r}: neither TFDS nor {place or 'its data directory'}"
                f" has it{hint}"
            )
        if builder is None:
            raise SourceMissing(f"data set {name!r} cannot be opened: {one_line(problem)}")
        if not may_download:
            raise SourceMissing(f"data set {name!r} is not prepared in {builder.data_path}")
        progress(f"downloading and preparing {name}", 0, 0)
        tfds.disable_progress_bar()  # TFDS's would write into that of `progress`
        _prepare(name, builder)
    return Path(builder.data_path)


def features(name: str) -> dict:
    """Returns what features.json would hold of a set prepared before TFDS 4, which wrote none.

    Raises:
        ValueError: TFDS doesn't know the set, or isn't here.
    """
    try:
        import tensorflow_datasets as tfds

        return tfds.builder(name).info.features.to_json()
    except Exception as error:  # Builders run arbitrary set-up code of their own.
        raise ValueError(f"features.json is missing, and {one_line(error)}") from None


def _beside(name: str, root: Path) -> str:
    """Returns a hint at the sets that are prepared under a similar name."""
    first = name.split("/")[0].split(":")[0]
    known = files.subfolders(root)
    if first in known:
        inside = ", ".join(f"{first}/{each}" for each in files.subfolders(root / first))
        return f" ({inside} is there)" if inside else ""
    near = difflib.get_close_matches(first, known)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _prepare(name: str, builder: Any) -> None:
    """Downloads and prepares a set. Raises SourceMissing."""
    where = f"data set {name!r} is not prepared: looked in {builder.data_path}"
    manual = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    try:
        if not manual:
            _check_network(builder)
        builder.download_and_prepare()
    except Exception as error:  # TFDS raises whatever the network, the disk and its builders do.
        if manual:
            archives = _ARCHIVES.get(builder.name) or one_line(manual)
            folder = Path(builder.data_path)
            while folder.name != builder.name:
                folder = folder.parent
            raise SourceMissing(
                f"{where}; its archives are fetched by hand: put {archives} into"
                f" {folder.parent / 'downloads' / 'manual'} and start again, or set data.data_dir"
            ) from None
        raise SourceMissing(
            f"{where}; downloading failed ({one_line(error)}): run `tfds build {name}` where there"
            " is a network and copy its data, or set data.data_dir"
        ) from None


def _check_network(builder: Any) -> None:
    """Raises OSError at once where TFDS would retry for minutes."""
    if urllib.request.getproxies():
        return
    hosts = {urllib.parse.urlparse(url).hostname for url in builder.url_infos}
    for host in sorted(filter(None, hosts))[:1]:
        socket.create_connection((host, 443), timeout=10).close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the warnings of TFDS about data that isn't prepared, and of its downloader."""
    loggers = [logging.getLogger("absl"), logging.getLogger("urllib3")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
