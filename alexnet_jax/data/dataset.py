"""A data set that is open: which splits it has, what each of them is, and where it is held."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from alexnet_jax.data import decoded, device, opening, tfdata
from alexnet_jax.data.device import Shardings
from alexnet_jax.data.identity import Identity
from alexnet_jax.data.opening import Opened
from alexnet_jax.data.sources import Progress, Source, plain_name
from alexnet_jax.data.spec import BACKENDS, DataSpec
from alexnet_jax.errors import UserError, choose


@dataclass(eq=False)
class Data:
    """A data set, whose splits are opened when they are first asked for and then stay open.

    The backend of `spec` is never 'auto' once a split is open; `choice` then says why it is what
    it is, in a line, or is empty where the specification named it.
    `resize_size` is the side R of its squares. `num_train` is None where the training split was not
    opened and isn't known. `bad` lists the undecodable images met so far, where they are skipped:
    {split: {id: reason}}. `left_out` says of each split opened so far which files in its folder are
    not read, and why; `contents` has the digest of each that was read as a whole.
    """

    spec: DataSpec
    class_names: tuple[str, ...]
    resize_size: int
    num_train: int | None = None
    bad: dict[str, dict[int, str]] = field(default_factory=dict)
    left_out: dict[str, tuple[str, ...]] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)
    choice: str = ""
    _splits: dict[str, Opened] = field(default_factory=dict, repr=False)
    _placed: dict[Any, device.DeviceSplit] = field(default_factory=dict, repr=False)

    @property
    def num_classes(self) -> int:
        """The number of classes of the training split."""
        return len(self.class_names)

    @property
    def num_eval(self) -> int:
        """The number of examples of the evaluation split."""
        return self.split(self.spec.eval_split).num_examples

    def split(self, split: str, progress: Progress | None = None) -> Opened:
        """Returns a split, opened; `progress` is called while it is decoded."""
        if split not in self._splits:
            source = opening.find_source(
                self.spec, split, self.resize_size, self.class_names, progress
            )
            self.open({split: source}, progress)
        return self._splits[split]

    def open(self, sources: dict[str, Source | None], progress: Progress | None = None) -> None:
        """Opens splits of which the sources are found; see opening.find_source."""
        if self.spec.backend == "auto":
            backend, self.choice = opening.choose_backend(
                self.spec, self.resize_size, sources, self.class_names
            )
            self.spec = replace(self.spec, backend=backend)
        for split, source in sources.items():
            opened = opening.hold(
                self.spec, split, self.resize_size, source, self.class_names, progress
            )
            if opened.class_names != self.class_names:
                raise UserError(
                    f"split {split!r} of {self.spec.name!r} has other classes than training had"
                )
            self.add(split, opened)

    def add(self, split: str, opened: Opened) -> None:
        """Takes in a split that is open."""
        self._splits[split] = opened
        self.left_out[split] = opened.left_out
        if not isinstance(opened, Source):
            self.contents[split] = opened.contents
        if self.spec.skip_bad:
            self.bad[split] = {} if isinstance(opened, Source) else dict(opened.bad)

    def placed(self, split: str, shardings: Shardings) -> device.DeviceSplit:
        """Returns a split of decoded squares on the devices of `shardings`."""
        key = split, device.replicated(shardings)
        if key not in self._placed:
            self._placed[key] = device.place(self.split(split), shardings)
        return self._placed[key]

    def identity(self, split: str) -> Identity:
        """Returns what is known of a split: more once it was read as a whole."""
        opened = self.split(split)
        return Identity(
            split=split,
            origin=opened.origin,
            num_examples=opened.num_examples,
            class_names=opened.class_names,
            fingerprint=opened.fingerprint,
            contents=self.contents.get(split, ""),
            files=opened.files,
        )


def open_data(
    spec: DataSpec,
    *,
    class_names: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Data:
    """Opens both splits and checks all that can be checked before training.

    With the device backend this decodes the data set, unless an earlier run kept it in the cache
    folder.

    Args:
        spec: what to read and how.
        class_names: the classes in the order of the labels; the training split's own by default.
        progress: called with (what, done, total) while the data set is prepared and decoded.

    Raises:
        UserError: the data aren't there, or aren't what `spec` says; of its kinds, OtherClasses if
            they have a class beyond `class_names`.
    """
    spec, resize_size = checked(spec)
    train = opening.find_source(spec, spec.train_split, resize_size, class_names, progress)
    known = train or opening.stand_in(spec, spec.train_split, resize_size, class_names)
    if len(known.class_names) < 2:
        raise UserError(
            f"data set {spec.name!r} has one class, {known.class_names[0]!r}: there is nothing to"
            " tell apart. Do the class folders lie a level deeper or higher?"
        )
    data = Data(spec, known.class_names, resize_size, known.num_examples)
    test = opening.find_source(spec, spec.eval_split, resize_size, known.class_names, progress)
    data.open({spec.train_split: train, spec.eval_split: test}, progress)
    return data


def open_for_evaluation(
    spec: DataSpec, *, class_names: Sequence[str], num_train: int | None
) -> Data:
    """Returns the data set of a run that has ended, of which nothing is opened before it is used.

    Args:
        spec: what to read and how.
        class_names: the run's classes, in the order of its labels.
        num_train: how many examples it was trained on, where that is known.
    """
    spec, resize_size = checked(spec)
    return Data(spec, tuple(class_names), resize_size, num_train)


def open_squares(spec: DataSpec, squares: decoded.Squares, *, num_train: int) -> Data:
    """Returns a data set of which `squares` stand for the `num_train` examples of training."""
    data = Data(spec, squares.class_names, squares.resize_size, num_train)
    data.add(spec.train_split, squares)
    return data


def checked(spec: DataSpec) -> tuple[DataSpec, int]:
    """Returns the spec with its name in one way of writing it, and the side of its squares.

    Raises:
        UserError: a field's value is impossible, or the backend cannot be had here.
    """
    choose(spec.backend, BACKENDS, "data.backend")
    if spec.backend == "tfdata":
        tfdata.check_installed()
    choose(spec.bad_images, ("error", "skip"), "data.bad_images")
    if spec.image_size < 1:
        raise UserError(f"data.image_size is {spec.image_size}: it must be 1 pixel or more")
    resize_size = spec.resize_size or round(spec.image_size * 256 / 224)
    if resize_size < spec.image_size:
        raise UserError(
            f"data.resize_size is {resize_size}: it must not be below data.image_size,"
            f" {spec.image_size}"
        )
    return replace(spec, name=plain_name(spec.name)), resize_size
