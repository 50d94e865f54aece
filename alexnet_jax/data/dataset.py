"""Opens a data set: which splits it has, what each of them is, and where it is held."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from alexnet_jax.data import decoded, opening, overlap, tfdata
from alexnet_jax.data.identity import Identity
from alexnet_jax.data.opening import Opened
from alexnet_jax.data.sources import Progress, Source, plain_name
from alexnet_jax.data.spec import BACKENDS, DataSpec
from alexnet_jax.errors import UserError, choose


@dataclass(frozen=True, eq=False)
class Data:
    """A data set, of which some splits are open.

    Attributes:
        spec: what is read and how; its backend is 'auto' only while no split is open.
        class_names: the classes of the training split, in the order of the labels.
        resize_size: the side R of the squares, in pixels.
        num_train: examples of the training split; None where it isn't open and that isn't known.
        splits: what each open split is held by.
        bad: the undecodable images of each open split, where they are skipped: {split: {id:
            reason}}. It is a notebook, and no part of the value: whoever decodes an image that is
            bad, as `statistics` and the streams of the backend 'tfdata' do, writes it down there.
        contents: the digest of each split that was read as a whole.
        choice: why the backend is what it is, in a line; empty where the specification named it.
        places: a line for each place that open splits come from and that their names don't say.
        shared: how many examples of the evaluation split are those of the training split, as far
            as that is known without comparing images.
    """

    spec: DataSpec
    class_names: tuple[str, ...]
    resize_size: int
    num_train: int | None = None
    splits: Mapping[str, Opened] = field(default_factory=dict, repr=False)
    bad: Mapping[str, dict[int, str]] = field(default_factory=dict)
    contents: Mapping[str, str] = field(default_factory=dict)
    choice: str = ""
    places: tuple[str, ...] = ()
    shared: int = 0

    @property
    def num_classes(self) -> int:
        """The number of classes of the training split."""
        return len(self.class_names)

    @property
    def num_eval(self) -> int:
        """The number of examples of the evaluation split."""
        return self.splits[self.spec.eval_split].num_examples

    @property
    def left_out(self) -> dict[str, tuple[str, ...]]:
        """Which files in the folder of each open split are not read, and why."""
        return {split: opened.left_out for split, opened in self.splits.items()}

    def with_contents(self, split: str, contents: str) -> "Data":
        """Returns the data set with the digest of a split that was read as a whole."""
        return replace(self, contents={**self.contents, split: contents})

    def identity(self, split: str) -> Identity:
        """Returns what is known of an open split: more once it was read as a whole."""
        opened = self.splits[split]
        return Identity(
            split=split,
            origin=opened.origin,
            num_examples=opened.num_examples,
            class_names=opened.class_names,
            fingerprint=opened.fingerprint,
            contents=self.contents.get(split, ""),
            files=opened.files,
        )


def open_split(data: Data, split: str, *, progress: Progress | None = None) -> Data:
    """Returns the data set with a split open, which may be any that it has.

    Args:
        data: the data set.
        split: a split, or TFDS's expression for a part of one.
        progress: called with (what, done, total) while the split is prepared and decoded.

    Raises:
        UserError: the split isn't there, or isn't what the specification says.
    """
    if split in data.splits:
        return data
    source = opening.find_source(data.spec, split, data.resize_size, data.class_names, progress)
    return _with(data, {split: source}, progress)


def _with(data: Data, sources: Mapping[str, Source | None], progress: Progress | None) -> Data:
    """Returns the data set with splits open whose sources are found; see opening.find_source."""
    spec, choice = data.spec, data.choice
    if spec.backend == "auto":
        backend, choice = opening.choose_backend(spec, data.resize_size, sources, data.class_names)
        spec = replace(spec, backend=backend)
    opened = {
        split: opening.hold(spec, split, data.resize_size, source, data.class_names, progress)
        for split, source in sources.items()
    }
    for split, each in opened.items():
        if each.class_names != data.class_names:
            raise UserError(f"split {split!r} of {spec.name!r} has other classes than training had")
    places = (*data.places, *opening.places(spec, sources, opened))
    return _holding(replace(data, spec=spec, choice=choice, places=places), opened)


def _holding(data: Data, opened: Mapping[str, Opened]) -> Data:
    """Returns the data set with splits that are open."""
    squares = {split: each for split, each in opened.items() if not isinstance(each, Source)}
    bad = {split: dict(squares[split].bad) if split in squares else {} for split in opened}
    return replace(
        data,
        splits={**data.splits, **opened},
        bad={**data.bad, **(bad if data.spec.skip_bad else {})},
        contents={**data.contents, **{split: each.contents for split, each in squares.items()}},
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
    data = _with(data, {spec.train_split: train, spec.eval_split: test}, progress)
    return replace(data, shared=_shared(data, train, test))


def _shared(data: Data, train: Source | None, test: Source | None) -> int:
    """Returns `Data.shared`; the sources are None where they aren't on this machine."""
    splits = data.spec.train_split, data.spec.eval_split
    contents, others = (data.contents.get(split) for split in splits)
    if splits[0] == splits[1] or (contents and contents == others):
        return data.num_eval
    return overlap.shared(train, test) if train and test else 0


def open_for_evaluation(
    spec: DataSpec, *, class_names: Sequence[str], num_train: int | None
) -> Data:
    """Returns the data set of a run that has ended, of which no split is open; see `open_split`.

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
    return _holding(data, {spec.train_split: squares})


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
