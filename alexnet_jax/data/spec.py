"""Specifies what to read and how: the section `data` of a configuration."""

from dataclasses import dataclass

BACKENDS = ("auto", "tfdata", "mapped", "device")


@dataclass(frozen=True)
class DataSpec:
    """What to read, and how examples are cut. `PreprocessSpec` has the rest of the section."""

    name: str = "imagenet2012"  # a TFDS name, 'folder:PATH' with SPLIT/CLASS/IMAGE, or 'photos'
    data_dir: str = ""  # where TFDS sets lie; '': $TFDS_DATA_DIR or ~/tensorflow_datasets
    train_split: str = "train"  # a split, or a TFDS expression such as 'train[:90%]'
    eval_split: str = "validation"  # the split whose error decides schedule and best checkpoint
    image_size: int = 224  # side of the crop that the net reads, in pixels (paper, section 4.1)
    resize_size: int | None = None  # side of the square it is cut from; None: 256/224 image_size
    backend: str = "auto"  # 'tfdata', 'mapped' or 'device' (docs/data.md); 'auto': what will do
    copies: str = ""  # the folder in which mapped copies lie (prepare --raw); '': none
    crop: bool = True  # train on random crops (paper, section 4.1); False: on the centre
    flip: bool = True  # flip half of the training images left to right (paper, section 4.1)
    bad_images: str = "error"  # an unreadable image is an 'error', or 'skip' leaves it out

    @property
    def skip_bad(self) -> bool:
        """Whether images that cannot be decoded are skipped."""
        return self.bad_images == "skip"
