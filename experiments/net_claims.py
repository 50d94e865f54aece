"""Judges the claims on the paper's net that no sweep tests: its size, and its time on two GPUs."""

import json
import math
from pathlib import Path

from alexnet_jax import models
from experiments import record

NOT_RUN, PARTLY = "not run", "agrees in part"  # verdicts


def sizes() -> tuple[str, str]:
    """Returns the parameters and units of the paper's net by its shapes, and the verdict.

    The totals agree if they are within two percent, as the paper's are rounded.
    """
    layers = models.activations(models.create("alexnet"), 224)
    parameters = {name: count for name, _, count in layers if count}
    units = {name: math.prod(shape) for name, shape, count in layers if count}
    total, every = sum(parameters.values()), sum(units.values())
    largest = {name: 100 * count / total for name, count in parameters.items() if "conv" in name}
    over = ", ".join(f"{name} {share:.2f}%" for name, share in largest.items() if share > 1)
    told = (
        f"{total:,} parameters and {every:,} units; but conv1 has {units['conv1']:,}"
        " units where the text counts 253,440 (its own counts add up to 622,312), and over 1% are"
        f" {over}"
    )
    if not all(math.isclose(*pair, rel_tol=0.02) for pair in ((total, 60e6), (every, 650e3))):
        return told, "contradicts"
    return told, PARTLY if over else "agrees"


ONE_GPU = {"model.name": "alexnet_half", "mesh.data": 1}  # half the kernels (3.5)
TWO_GPUS = {"mesh.layout": "towers", "mesh.model": 2, "mesh.data": 1}
# The paper's: where a record's are smaller, its time is a rehearsal's or a trial's.
SIZES = {"batch_size": 128, "data.image_size": 224, "model.width": 1, "model.hidden_units": 4096}


def times() -> tuple[str, str]:
    """Compares the training step of the two-GPU net with that of the one-GPU net.

    It takes the newest `bench step --record` of each, of configs/imagenet2012.py on one kind of
    GPU, that agree in all other fields; none of a net, of images or of a batch that is smaller.
    """
    path = record.RESULTS / "bench" / "step.jsonl"
    lines = record.read_lines(path) if path.exists() else ()
    seconds = {1: {}, 2: {}}  # of a step on so many GPUs, by their kind and the other fields
    for line in lines:
        kind, fields = line["hardware"]["device_kind"], line["overrides"]
        if kind == "cpu" or Path(line["config"]).name != "imagenet2012.py":
            continue
        if any((fields.get(name) or paper) < paper for name, paper in SIZES.items()):
            continue
        for count, own in ((1, ONE_GPU), (2, TWO_GPUS)):
            if own.items() <= fields.items():
                rest = {name: value for name, value in fields.items() if name not in own}
                seconds[count][kind, json.dumps(rest, sort_keys=True)] = line["step_seconds"]
    for (kind, rest), two in reversed(seconds[2].items()):
        if one := seconds[1].get((kind, rest)):
            judged = "agrees" if two < one else "contradicts"
            return f"{two / one:.2f}× the time of half the net on one {kind}", judged
    return "no record of two GPUs", NOT_RUN
