"""Writes the metrics of a run to metrics.jsonl and to a TensorBoard event file.

Both files are rewound on a resume. A run that resumes at step R first drops the records after R,
and does not write again what it repeats at R itself, so that each step is recorded once however
often the run was killed. The records that are kept are copied to a temporary file, which is renamed
into place when it is complete. The records of a run that begins again at step 0, because its
checkpoints are gone, are moved to WORKDIR/earlier-STEP.
"""

import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from alexnet_jax import console
from alexnet_jax.data import tfrecord
from alexnet_jax.errors import UserError, writing
from alexnet_jax.records import files

SYNC_SECONDS = 30.0  # the longest time after which TensorBoard can see what was written
EVENTS = "events.out.tfevents."  # TensorBoard reads every file with "tfevents" in its name
# One plot for training and evaluation together, in TensorBoard's tab "custom scalars".
_TOGETHER = {
    "training and evaluation": {
        name: ["Multiline", [f"^[^/]+/{name}$"]] for name in ("loss", "top1_error", "top5_error")
    }
}


class Writer:
    """Appends to WORKDIR/metrics.jsonl and to one event file; `open_writer` makes it.

    Every method raises UserError if the disk is full or not writable.
    """

    def __init__(self, workdir: Path, resume_step: int):
        self._path = workdir / "metrics.jsonl"
        with writing(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
            if resume_step == 0:
                _set_aside(workdir)
            kept = _kept_lines(self._path, resume_step)
            files.replace(self._path, b"".join(files.json_line(line) for line in kept))
            self._lines = self._path.open("ab")
            self._events, tags = _rewound_events(workdir, resume_step)
        splits = {line["split"] for line in kept if line["step"] == resume_step}
        self._step, self._written = resume_step, splits | tags
        self._texts, self._broken = [], False
        self._synced = time.monotonic()

    def write(self, step: int, epoch: float, split: str, values: Mapping) -> None:
        """Records the scalars `values` of `split` after `step` updates, as one line and one event.

        In TensorBoard the scalars are called SPLIT/NAME. In metrics.jsonl, which must be valid
        JSON, infinities and NaN become null. Steps must not decrease. What is already recorded for
        `step` is not written again, for example if a resumed run repeats an evaluation.
        """
        values = {name: _number(value) for name, value in values.items()}
        with writing(self._path):
            if self._is_new(step, split):
                line = {"step": int(step), "epoch": _number(epoch), "split": split, **values}
                self._lines.write(files.json_line(line))
                self._lines.flush()
            scalars = [summary.scalar(f"{split}/{name}", v) for name, v in values.items()]
            self._add(step, *scalars)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def scalars(self, step: int, values: Mapping) -> None:
        """Records `values`, {tag: number}, for TensorBoard only."""
        with writing(self._path):
            self._add(step, *[summary.scalar(tag, float(value)) for tag, value in values.items()])

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Records an RGB image [H, W, 3], uint8 or float in [0, 1], for TensorBoard."""
        with writing(self._path):
            self._add(step, summary.image(tag, image, dataformats="HWC"))

    def text(self, tag: str, text: str) -> None:
        """Records a Markdown text for TensorBoard.

        Texts must be written at each start: earlier ones are dropped when the writer is opened,
        because those of a resumed run may differ.
        """
        with writing(self._path):
            self._texts.append(Event(wall_time=time.time(), summary=summary.text(tag, text)))
            self._put(self._texts[-1])

    def sync(self) -> None:
        """Returns once everything that was written is on the disk.

        It must be called before a checkpoint is saved, so that a run that resumes there finds every
        earlier line.
        """
        with writing(self._path):
            self._lines.flush()
            os.fsync(self._lines.fileno())
            with self._whole_events():
                self._events.flush()  # tensorboardX's flush includes fsync
        self._synced = time.monotonic()

    def close(self) -> None:
        """Syncs and closes the files, after which the writer cannot be used."""
        with writing(self._path), self._lines, contextlib.closing(self._events):
            self.sync()

    def _add(self, step: int, *summaries) -> None:
        event = Event(wall_time=time.time(), step=step)
        for value in (value for each in summaries for value in each.value):
            if self._is_new(step, value.tag):
                event.summary.value.append(value)
        if event.summary.value:
            self._put(event)

    def _put(self, event: Event) -> None:
        with self._whole_events():
            self._events.write(event.SerializeToString())

    @contextlib.contextmanager
    def _whole_events(self) -> Iterator[None]:
        """Opens a new event file first if the last may end in half a record, as on a full disk."""
        if self._broken:
            with contextlib.suppress(OSError):
                self._events.close()
            self._events, _ = _rewound_events(self._path.parent, self._step)
            for text in self._texts:
                self._events.write(text.SerializeToString())
        self._broken = True
        yield
        self._broken = False

    def _is_new(self, step: int, name: str) -> bool:
        """Returns whether `name`, a split or a tag, is written for the first time at `step`."""
        if step != self._step:
            self._step, self._written = step, set()
        new = name not in self._written
        self._written.add(name)
        return new


class _NoWriter(Writer):
    """Writes nothing, in the processes other than process 0."""

    def __init__(self):
        pass

    def _nothing(self, *_, **__) -> None:
        pass

    write = scalars = image = text = sync = close = _nothing


def open_writer(workdir: str | Path, *, resume_step: int, enabled: bool = True) -> Writer:
    """Opens the records of a run as they were at `resume_step`.

    Args:
        workdir: the run's directory.
        resume_step: the step of the restored checkpoint. At 0 the run starts from scratch, and
            earlier records are moved aside, of which a line is printed.
        enabled: whether the writer writes anything, as it does in process 0.

    Raises:
        UserError: `workdir` is not writable, or a line of metrics.jsonl is not one of metrics. (The
            last line may be incomplete after a kill.)
    """
    return Writer(Path(workdir), resume_step) if enabled else _NoWriter()


def _set_aside(workdir: Path) -> None:
    """Moves away the records of a run whose checkpoints are gone, or were not yet made."""
    path = workdir / "metrics.jsonl"
    lines = map(_parsed, path.read_bytes().splitlines() if path.exists() else ())
    steps = [line["step"] for line in lines if isinstance(line, dict) and "step" in line]
    last = max((step for step in steps if isinstance(step, int)), default=0)
    if last > 0:
        folder = workdir / f"earlier-{last}"
        folder.mkdir(exist_ok=True)
        for each in (*_event_files(workdir), path):  # The last one still tells of a kill between.
            each.replace(folder / each.name)
        files.sync(workdir)
        console.say(
            f"no checkpoint is left: the run begins again at step 0; the records of the {last} "
            f"steps it had made are in {folder}"
        )


def _kept_lines(path: Path, resume_step: int) -> list[dict]:
    """Returns the lines of metrics.jsonl up to `resume_step`, without an incomplete last one."""
    if not path.exists() or resume_step <= 0:
        return []
    texts = path.read_bytes().splitlines()
    kept = {}
    for number, text in enumerate(texts, start=1):
        match _parsed(text):
            case {"step": int(step), "split": str(split)} as line:
                if step <= resume_step:
                    kept.setdefault((step, split), line)
            case _ if number < len(texts):
                raise UserError(
                    f"{path}, line {number}: not a line of metrics; repair it or move the file away"
                )
    return list(kept.values())


def _parsed(text: bytes):
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _rewound_events(workdir: Path, resume_step: int) -> tuple[RecordWriter, set]:
    """Starts a new event file with the events of the last one up to `resume_step`.

    The old file is replaced and not truncated, because TensorBoard may have it open. Each file has
    the whole history, so a kill before the old file is removed does no harm: the next start copies
    the newer file and removes both.

    Returns:
        The open file, and the tags that it has at `resume_step`.
    """
    old = _event_files(workdir)
    number = int(old[-1].name.removeprefix(EVENTS)) + 1 if old else 1
    path = workdir / f"{EVENTS}{number:010d}"
    aside = workdir / "events.tmp"  # TensorBoard does not read a file of this name.
    file = RecordWriter(str(aside.absolute()))
    try:
        tags = _copy_events(old[-1] if old else None, file, resume_step)
        file.flush()
    except BaseException:
        with contextlib.suppress(OSError):
            file.close()
        aside.unlink(missing_ok=True)  # It would take space on a full disk.
        raise
    aside.rename(path)
    for each in old:
        each.unlink()
    files.sync(workdir)
    return file, tags


def _copy_events(old: Path | None, file: RecordWriter, resume_step: int) -> set:
    """Begins a file with the events of an old one up to `resume_step`; returns the tags there."""
    file.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
    layout = summary.custom_scalars(_TOGETHER)
    file.write(Event(wall_time=time.time(), summary=layout).SerializeToString())
    tags = set()
    # Writing was interrupted at a damaged record, by a kill or a full disk.
    records = tfrecord.records(old) if old else ()
    for record in itertools.takewhile(lambda record: record is not None, records):
        event = Event.FromString(record)
        values = [v for v in event.summary.value if _is_kept(v)]
        if values and event.step <= resume_step and resume_step > 0:
            file.write(record)
            tags.update(value.tag for value in values if event.step == resume_step)
    return tags


def _event_files(workdir: Path) -> list[Path]:
    return sorted(workdir.glob(EVENTS + 10 * "[0-9]"))


def _is_kept(value) -> bool:
    """Returns whether a new event file takes over a value, unlike one that each start writes."""
    return value.metadata.plugin_data.plugin_name not in ("text", "custom_scalars")


def total(parts: Sequence[Mapping]) -> dict[str, float]:
    """Sums dictionaries of device scalars exactly, after one transfer.

    Raises:
        ValueError: the list is empty.
    """
    if not parts:
        raise ValueError("nothing to add up")
    parts = jax.device_get(list(parts))
    return {name: math.fsum(float(part[name]) for part in parts) for name in parts[0]}


def summarize(sums: Mapping) -> dict[str, float]:
    """Divides the sums over examples by their count, on the host.

    Args:
        sums: 'loss' (summed over examples), 'top1' and 'top5' (correct predictions) and 'count'.

    Returns:
        The mean 'loss', and 'top1_error' and 'top5_error' in percent.

    Raises:
        ValueError: there are no examples.
    """
    sums = {name: float(value) for name, value in jax.device_get(dict(sums)).items()}
    count = sums["count"]
    if not count > 0:
        raise ValueError("no examples to average over")
    return {
        "loss": sums["loss"] / count,
        "top1_error": 100 * (count - sums["top1"]) / count,
        "top5_error": 100 * (count - sums["top5"]) / count,
    }


def _number(value) -> int | float:
    """Returns a NumPy or JAX scalar as a Python number."""
    value = np.asarray(value)
    return value.item() if value.dtype.kind in "biu" else float(value)
