"""The layer table of a configuration's net: nothing is trained and no data set is needed.

python -m alexnet_jax.summary --config=FILE [--config.FIELD=VALUE …]

For each layer its output [H x W x C] of one image, parameters, multiply-adds forward on one image,
receptive field (the side in pixels of what one of its outputs depends on), and, of a net in two
towers, whose maps a tower reads.
"""

from collections.abc import Iterable

from absl import flags

from alexnet_jax import cli, console
from alexnet_jax.assemble import make_model
from alexnet_jax.config import Config
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UserError
from alexnet_jax.models import Operation, operations

# Classes of data sets that need not be here, by their name without the version.
CLASSES = {"imagenet2012": 1000, "imagenette": 10, "cifar10": 10, "cifar10_jpeg": 10, "photos": 12}


def num_classes(config: Config) -> int:
    """Returns how many classes the configuration's net has.

    Raises:
        UserError: it doesn't say, and the data set is neither well known nor here.
    """
    if config.model.num_classes is not None:
        return config.model.num_classes
    name = config.data.name
    if known := CLASSES.get(name.partition("/")[0]):
        return known
    try:
        source = open_source(name, config.data.data_dir, config.data.train_split, download=False)
    except UserError as error:
        raise UserError(
            f"how many classes has '{name}'? Set --config.model.num_classes, as {error}"
        ) from None
    return len(source.class_names)


def receptive_fields(table: Iterable[Operation]) -> dict[str, int]:
    """Returns the side in pixels of the receptive field of each activation of the convolutions.

    The receptive field is the square of the image that one output depends on; padding counts as
    image. The keys are the activations' names.
    """
    fields, field, jump = {}, 1, 1  # jump: pixels from one output to the next
    for op in table:
        if not op.dense:
            field, jump = field + (op.window - 1) * jump, jump * op.stride
            fields[op.name] = field
    return fields


def show(config: Config) -> None:
    """Prints the table.

    Raises:
        UserError: see `num_classes`; the net doesn't fit its images.
    """
    size = config.data.image_size
    model = make_model(config, num_classes(config))
    table = operations(model, size)
    work = {op.name: op.multiply_adds for op in table if op.kernel}
    work["total"] = sum(work.values())
    extra = [
        ("multiply-adds", {name: f"{count:,}" for name, count in work.items()}),
        ("field", {name: str(side) for name, side in receptive_fields(table).items()}),
    ]
    if model.towers == 2:
        reads = {"image": "image", "own": "its own", "both": "both"}
        extra.append(("tower reads", {op.name: reads[op.reads] for op in table if op.kernel}))
    towers = "two towers" if model.towers == 2 else "one tower"
    console.say(f"{config.model.name}, {towers}, one image of {size} x {size}")
    console.layer_table(model, (size, size, 3), extra=extra)


def main(_):
    """Prints the table of --config."""
    show(flags.FLAGS.config)


if __name__ == "__main__":
    cli.define_config()
    cli.run(main)
