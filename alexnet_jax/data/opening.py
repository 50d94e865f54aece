"""Leads from a specification to an open split: its source, the backend, and what holds it."""

import contextlib
import time
from collections.abc import Mapping, Sequence

import jax

from alexnet_jax.data import cache, copies, decoded, device, squares, tfdata, threads
from alexnet_jax.data.copies import Copy, NoCopy
from alexnet_jax.data.decoded import Squares
from alexnet_jax.data.sources import Progress, Source, SourceMissing, open_source
from alexnet_jax.data.spec import DataSpec
from alexnet_jax.errors import UserError

Opened = Source | Copy | Squares


def find_source(
    spec: DataSpec,
    split: str,
    resize_size: int,
    class_names: Sequence[str] | None,
    progress: Progress | None,
) -> Source | None:
    """Opens the source of a split; None where it isn't here and its squares are.

    Raises UserError.
    """
    choices = {"class_names": class_names, "progress": progress or (lambda *_: None)}
    if spec.backend == "tfdata":
        return open_source(spec.name, spec.data_dir, split, **choices)
    try:
        return open_source(spec.name, spec.data_dir, split, **choices, download=False)
    except SourceMissing:
        if stand_in(spec, split, resize_size, class_names) is not None:
            return None
        return open_source(spec.name, spec.data_dir, split, **choices)


def stand_in(
    spec: DataSpec, split: str, resize_size: int, class_names: Sequence[str] | None
) -> Copy | Squares:
    """Returns the squares of a split whose source isn't here, as `find_source` found."""
    copy = find_copy(spec, split, resize_size, None, class_names)
    return copy or decoded.load_kept(spec.name, split, resize_size, skip_bad=spec.skip_bad)


def find_copy(
    spec: DataSpec,
    split: str,
    resize_size: int,
    source: Source | None,
    class_names: Sequence[str] | None,
) -> Copy | None:
    """Opens the mapped copy of a split; None where there is none. Raises UserError."""
    if not spec.copies:
        return None
    with contextlib.suppress(NoCopy):
        return _copy(spec, split, resize_size, source, class_names)


def _copy(
    spec: DataSpec,
    split: str,
    resize_size: int,
    source: Source | None,
    class_names: Sequence[str] | None,
) -> Copy:
    if not spec.copies:
        raise UserError(
            "data.backend is 'mapped' and data.copies is empty: name the folder of the copy that"
            " `python -m alexnet_jax.prepare --raw --out=DIR` makes with --config.data.copies=DIR"
        )
    return copies.find(
        spec.copies,
        spec.name,
        split,
        resize_size,
        source=source,
        class_names=source.class_names if source else class_names,
        skip_bad=spec.skip_bad,
    )


def hold(
    spec: DataSpec,
    split: str,
    resize_size: int,
    source: Source | None,
    class_names: Sequence[str] | None,
    progress: Progress | None,
) -> Opened:
    """Returns what the chosen backend takes a split's images from. Raises UserError.

    For the device backend that is a mapped copy, or else the squares in memory, decoded unless an
    earlier run kept them in the cache folder; `progress(what, done, total)` is called meanwhile.
    """
    if spec.backend == "tfdata":
        # A split without labels is refused now; what is unreadable is met later.
        with contextlib.suppress(OSError, ValueError):
            source.check_label(0, source.read(0)[1])
        return source
    if spec.backend == "mapped":
        return _copy(spec, split, resize_size, source, class_names)
    if source is None:
        return stand_in(spec, split, resize_size, class_names)
    copy = find_copy(spec, split, resize_size, source, class_names)
    return copy or decoded.load(source, resize_size, skip_bad=spec.skip_bad, progress=progress)


def places(
    spec: DataSpec, sources: Mapping[str, Source | None], opened: Mapping[str, Opened]
) -> tuple[str, ...]:
    """Returns a line for each place that splits come from and that their names don't say."""
    stand_ins: dict[str, list[str]] = {}
    for split, source in sources.items():
        if source is not None:
            continue
        place = f"are those of the mapped copy in {spec.copies}"
        if isinstance(opened[split], Squares):
            place = f"are those that an earlier run decoded and kept in {cache.folder()}"
        stand_ins.setdefault(place, []).append(repr(split))
    return (
        *(source.elsewhere for source in sources.values() if source and source.elsewhere),
        *(
            f"{spec.name!r} isn't on this machine: the images of {' and '.join(splits)} {place}"
            for place, splits in stand_ins.items()
        ),
    )


def choose_backend(
    spec: DataSpec,
    resize_size: int,
    sources: Mapping[str, Source | None],
    class_names: Sequence[str] | None,
) -> tuple[str, str]:
    """Returns the backend that 'auto' stands for, and a line that says so, why, and what it takes.

    Args:
        spec: what to read and how.
        resize_size: the side R of the squares, in pixels.
        sources: the source of each split that is read; None where it isn't on this machine.
        class_names: the classes in the order of the labels; None: the split's own.

    Raises:
        UserError: none will do.
    """
    held: dict[str, Copy | Squares] = {}
    why = "data.copies names no mapped copy of it"
    for split, source in sources.items():
        if source is None:
            held[split] = stand_in(spec, split, resize_size, class_names)
        elif spec.copies:
            try:
                held[split] = _copy(spec, split, resize_size, source, class_names)
            except NoCopy as error:
                why = str(error)
    mapped = len(held) == len(sources) and all(isinstance(each, Copy) for each in held.values())
    count = sum((source or held[split]).num_examples for split, source in sources.items())
    size = count * resize_size**2 * 3
    what = f"{count:,} squares of {resize_size} x {resize_size} pixels, {size / 1e9:.3g} GB"

    # Decoded squares lie in the host's memory first, and CPU devices have no other memory.
    in_host = (not mapped) + (jax.default_backend() == "cpu")
    room = device.room(jax.local_devices())
    fits = in_host * size <= decoded.free_memory() - decoded.RESERVE
    if fits and size <= room * jax.device_count():
        decoding = 0 if mapped else _decoding_seconds(sources, resize_size, count)
        first = (
            f"; decoding them first takes about {decoding / 60:.0f} min" if decoding > 60 else ""
        )
        where = "the devices' memory" if size <= room else "the memory of all devices together"
        return "device", f"data.backend is device: {what}, fit into {where}{first}"
    what = f"{what}, don't fit into the memory of the devices"
    if mapped:
        return "mapped", f"data.backend is mapped: {what}; they are read from {spec.copies}"
    if None in sources.values():
        raise UserError(
            f"{what}; {why}; and {spec.name!r} itself isn't on this machine to be read as it goes:"
            " fetch it, free memory, or name a mapped copy with data.copies"
        )
    if not tfdata.is_installed():
        raise UserError(
            f"{what}; {why}; and the backend 'tfdata' needs TensorFlow, which isn't installed"
        )
    decoding = _decoding_seconds(sources, resize_size, count)
    minutes = f"{decoding / 60:.0f} min"
    return "tfdata", f"data.backend is tfdata: {what}; {why}. A pass decodes for about {minutes}"


def _decoding_seconds(sources: Mapping[str, Source | None], resize_size: int, count: int) -> float:
    """Returns about how long decoding takes that isn't kept already, by a few images."""
    left = [each for each in sources.values() if each and not decoded.is_kept(each, resize_size)]
    if not left:
        return 0
    sample = range(0, left[0].num_examples, max(1, left[0].num_examples // 8))[:8]
    start = time.perf_counter()
    for example in sample:
        with contextlib.suppress(UserError):
            squares.read(left[0], example, resize_size, {})
    return (time.perf_counter() - start) / len(sample) * count / threads.cores()
