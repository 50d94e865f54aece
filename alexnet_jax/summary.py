"""Prints the layers of a net, without training and without a data set.

python -m alexnet_jax.summary --config=FILE [--config.FIELD=VALUE …]
python -m alexnet_jax.summary --workdir=RUN | --weights=NAME|FILE

For each layer it prints the output [H x W x C] of one image, the parameters, the multiply-adds of
the forward pass on one image, and the receptive field: the side in pixels of the square on which
one output depends. For a net in two towers it also prints the maps that each tower reads.
"""

from collections.abc import Iterable

from absl import flags

from alexnet_jax import cli, console
from alexnet_jax.assemble import make_model
from alexnet_jax.config import Config
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UserError
from alexnet_jax.models import AlexNet, Operation, operations
from alexnet_jax.trained import pictures
from alexnet_jax.trained.pretrained import open_pretrained

# {name of a data set without its version: its number of classes}, to be known without its data.
CLASSES = {"imagenet2012": 1000, "imagenette": 10, "cifar10": 10, "cifar10_jpeg": 10, "photos": 12}


def num_classes(config: Config) -> int:
    """Returns how many classes the configuration's net has.

    Raises:
        UserError: the configuration does not say so, and the data set is not available.
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
    """Returns {activation: the side in pixels of its receptive field} for convolutional layers.

    The receptive field is the square of the image on which one output depends, where padding counts
    as a part of the image.
    """
    fields, field, jump = {}, 1, 1  # jump: pixels from one output to the next
    for op in table:
        if not op.dense:
            field, jump = field + (op.window - 1) * jump, jump * op.stride
            fields[op.name] = field
    return fields


def show(config: Config) -> None:
    """Prints the layers of the net that a configuration describes.

    Raises:
        UserError: `num_classes` raises it, or the images are too small for the net.
    """
    model = make_model(config, num_classes(config))
    show_net(config.model.name, model, config.data.image_size)


def show_net(name: str, model: AlexNet, size: int) -> None:
    """Prints the table of `model`, called `name`, on images of size x size pixels."""
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
    console.say(f"{name}, {towers}, one image of {size} x {size}")
    console.layer_table(model, size, extra=extra)


def main(_):
    """Prints the layers of the net of --config, or of a trained net."""
    given = flags.FLAGS
    if not (given.workdir or given.weights):
        show(given.config)
    elif given.config is not None:
        raise UserError("which net? Give one of --config, --workdir and --weights")
    else:
        path = pictures.net_path()
        net = open_pretrained(path)
        show_net(path, net.model, net.recipe.image_size)


if __name__ == "__main__":
    cli.define_config()
    pictures.define_flags()
    cli.run(main, instead_of_config=("workdir", "weights"))
