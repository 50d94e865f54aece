"""Lists the activations of a net without computing them."""

import itertools

from alexnet_jax.models.operations import operations


def activations(model, image_size: int) -> list[tuple[str, tuple[int, ...], int]]:
    """Returns the name, the shape without the batch and the parameter count of each activation.

    These are the activations that the module returns beside its logits, in their order. A dense
    layer has one, which its activation function and dropout have already been applied to.

    Raises:
        UserError: See `operations`.
    """
    return [
        (name, ops[-1].output, sum(op.parameters for op in ops))
        for name, ops in itertools.groupby(
            operations(model, image_size), key=lambda op: op.layer if op.dense else op.name
        )
        for ops in [list(ops)]
    ]
