"""Numbers out: metrics.jsonl, TensorBoard event files, result files, and what produced them.

Both records rewind. A run that resumes at step R first drops what stands beyond R, and does not
write again what it repeats at R itself, so that each step stands there once however often the
run was killed. What is kept is copied to a file aside, which is renamed into place when whole.
"""

import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from alexnet_jax.data import tfrecord
from alexnet_jax.errors import UserError, writing
from alexnet_jax.records import files

SYNC_SECONDS = 30.0  # how far behind a TensorBoard that watches the run may be
EVENTS = "events.out.tfevents."  # TensorBoard reads every file with "tfevents" in its name
# One plot for training and evaluation together, in TensorBoard's tab "custom scalars".
_TOGETHER = {
    "training and evaluation": {
        name: ["Multiline", [f"^[^/]+/{name}$"]] for name in ("loss", "top1_error", "top5_error")
    }
}


class Writer:
    """Appends to `workdir`/metrics.jsonl and to one event file; `open_writer` makes it.

    Every method raises UserError when the disk is full or not writable.
    """

    def __init__(self, workdir: Path, resume_step: int):
        self._path = workdir / "metrics.jsonl"
        with writing(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
            kept = _kept_lines(self._path, resume_step)
            files.replace(self._path, b"".join(files.json_line(line) for line in kept))
            self._lines = self._path.open("ab")
            self._events, tags = _rewound_events(workdir, resume_step)
        splits = {line["split"] for line in kept if line["step"] == resume_step}
        self._step, self._written = resume_step, splits | tags
        self._synced = time.monotonic()

    def write(self, step: int, epoch: float, split: str, values: Mapping) -> None:
        """Records the scalars `values` of `split` after `step` updates: one line, one event.

        In TensorBoard the scalars are called SPLIT/NAME. In metrics.jsonl, which must stay valid
        JSON, infinities and NaN become null. Steps may not decrease. What stands there for `step`
        already, as when a resumed run repeats its first evaluation, is not written again.
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
        """Shows `values` in TensorBoard alone, by their tags."""
        with writing(self._path):
            self._add(step, *[summary.scalar(tag, float(value)) for tag, value in values.items()])

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Shows an RGB image [H, W, 3], uint8 or float in [0, 1], in TensorBoard."""
        with writing(self._path):
            self._add(step, summary.image(tag, image, dataformats="HWC"))

    def text(self, tag: str, text: str) -> None:
        """Shows Markdown `text` in TensorBoard.

        Texts are dropped on opening, because a resumed run may have other ones to show: write them
        at each start.
        """
        with writing(self._path):
            event = Event(wall_time=time.time(), summary=summary.text(tag, text))
            self._events.write(event.SerializeToString())

    def sync(self) -> None:
        """Returns when all that was written is on the disk.

        Call it before a checkpoint is saved: a run that resumes there then finds every earlier
        line.
        """
        with writing(self._path):
            self._lines.flush()
            os.fsync(self._lines.fileno())
            self._events.flush()  # tensorboardX's flush includes fsync
        self._synced = time.monotonic()

    def close(self) -> None:
        """Syncs and closes; the writer can't be used afterwards."""
        with writing(self._path), self._lines, contextlib.closing(self._events):
            self.sync()

    def _add(self, step: int, *summaries) -> None:
        event = Event(wall_time=time.time(), step=step)
        for value in (value for each in summaries for value in each.value):
            if self._is_new(step, value.tag):
                event.summary.value.append(value)
        if event.summary.value:
            self._events.write(event.SerializeToString())

    def _is_new(self, step: int, name: str) -> bool:
        """Whether this is the first time that `name`, a split or a tag, is written at `step`."""
        if step != self._step:
            self._step, self._written = step, set()
        new = name not in self._written
        self._written.add(name)
        return new


class _NoWriter(Writer):
    """The writer of the processes that write nothing."""

    def __init__(self):
        pass

    def _nothing(self, *_, **__) -> None:
        pass

    write = scalars = image = text = sync = close = _nothing


def open_writer(workdir: str | Path, *, resume_step: int, enabled: bool = True) -> Writer:
    """Opens the records of `workdir` as they stood at `resume_step`.

    `resume_step` is the step of the restored checkpoint. At 0 the run starts afresh, and nothing
    of an earlier one is kept. Pass `enabled=jax.process_index() == 0`: the other processes get a
    writer that writes nothing.

    Raises UserError when `workdir` isn't writable or metrics.jsonl holds anything else than
    complete lines and a last one cut short by a kill.
    """
    return Writer(Path(workdir), resume_step) if enabled else _NoWriter()


def _kept_lines(path: Path, resume_step: int) -> list[dict]:
    """The lines of metrics.jsonl up to `resume_step`, without a last one that was cut short."""
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
    """Starts a new event file with all that is kept of the last one, whose successor it is.

    The file is new, not truncated, because TensorBoard may have the old one open. As each file
    holds the whole history, a kill before the old one is removed does no harm: the next start
    copies the newer and removes both.

    Returns the open file, and the tags that it holds at `resume_step`.
    """
    old = sorted(workdir.glob(EVENTS + 10 * "[0-9]"))
    number = int(old[-1].name.removeprefix(EVENTS)) + 1 if old else 1
    path = workdir / f"{EVENTS}{number:010d}"
    aside = workdir / "events.tmp"  # a name that TensorBoard passes over
    file = RecordWriter(str(aside.absolute()))
    file.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
    layout = summary.custom_scalars(_TOGETHER)
    file.write(Event(wall_time=time.time(), summary=layout).SerializeToString())
    tags = set()
    # A damaged record is where an earlier kill or a full disk left off.
    records = tfrecord.records(old[-1]) if old else ()
    for record in itertools.takewhile(lambda record: record is not None, records):
        event = Event.FromString(record)
        values = [v for v in event.summary.value if _is_kept(v)]
        if values and event.step <= resume_step and resume_step > 0:
            file.write(record)
            tags.update(value.tag for value in values if event.step == resume_step)
    file.flush()
    aside.rename(path)
    for each in old:
        each.unlink()
    files.sync(workdir)
    return file, tags


def _is_kept(value) -> bool:
    """Whether a new event file takes over a value of the old one: not what each start writes."""
    return value.metadata.plugin_data.plugin_name not in ("text", "custom_scalars")


def total(parts: Sequence[Mapping]) -> dict[str, float]:
    """Adds up dicts of device scalars, fetched in one transfer and summed exactly.

    Collect each step's dict in a list, which doesn't wait for the device, and call this when the
    numbers are wanted. Raises ValueError for an empty list.
    """
    if not parts:
        raise ValueError("nothing to add up")
    parts = jax.device_get(list(parts))
    return {name: math.fsum(float(part[name]) for part in parts) for name in parts[0]}


def summarize(sums: Mapping) -> dict[str, float]:
    """Divides sums over examples once, on the host.

    `sums` has `loss` (summed over examples), `top1` and `top5` (how many are right) and `count`.
    Returns the mean `loss`, and `top1_error` and `top5_error` in percent. Raises ValueError when
    there are no examples.
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
    """The Python number in a scalar of NumPy or JAX."""
    value = np.asarray(value)
    return value.item() if value.dtype.kind in "biu" else float(value)
