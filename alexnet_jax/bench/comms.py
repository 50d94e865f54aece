"""Counts the collectives of the compiled step and their bytes in each layout; runs nothing."""

import dataclasses

import jax

from alexnet_jax.bench.collectives import collectives
from alexnet_jax.bench.common import Options, Table, compile_step, first_batch, synthetic_run
from alexnet_jax.config import Config
from alexnet_jax.errors import UserError
from alexnet_jax.parallel import MeshSpec


def measure(config: Config, options: Options) -> dict:
    """Counts each layout's collectives on 2 devices and on all.

    Raises:
        UserError: there is only one device.
    """
    total = jax.device_count()
    if total < 2:
        raise UserError("comms needs two devices or more and here is one: try JAX_PLATFORMS=cpu")
    meshes = [("data", total, 1), ("towers", total // 2, 2), ("hybrid", 1, total)]
    if total > 2:
        meshes = [("data", 2, 1), ("towers", 1, 2), ("hybrid", 1, 2), *meshes]
    layouts, left_out = [], []
    for layout, across, model in meshes:
        mesh = {"layout": layout, "data": across, "model": model}
        try:
            run = synthetic_run(dataclasses.replace(config, mesh=MeshSpec(**mesh)))
        except UserError as error:
            left_out.append({**mesh, "reason": str(error)})
            continue
        layouts.append({**mesh, **_counted(compile_step(run, first_batch(run)).as_text())})
    return {"layouts": layouts, "left_out": left_out}


def _counted(hlo_text: str) -> dict:
    """Returns the bytes that a device sends in a step, in total and by kind of collective."""
    kinds, sent = {}, 0
    for each in collectives(hlo_text):
        kind = kinds.setdefault(each.kind, {"count": 0, "bytes_sent": 0})
        kind["count"] += 1
        kind["bytes_sent"] += each.bytes_sent
        sent += each.bytes_sent
    return {"bytes_sent": sent, "collectives": kinds}


def tables(result: dict) -> list[Table]:
    """Makes a table of what a device sends in each layout, and says why one is left out."""
    rows = []
    for each in result["layouts"]:
        kinds = ", ".join(
            f"{kind['count']} {name} {kind['bytes_sent'] / 1e6:.2f}"
            for name, kind in each["collectives"].items()
        )
        rows.append((_name(each), f"{each['bytes_sent'] / 1e6:.2f}", kinds))
    header = ("layout, data x model", "MB sent by a device", "of which")
    note = "\n".join(f"{_name(each)} left out: {each['reason']}" for each in result["left_out"])
    return [Table("a training step's collectives", header, rows, note)]


def _name(mesh: dict) -> str:
    return f"{mesh['layout']} {mesh['data']} x {mesh['model']}"
