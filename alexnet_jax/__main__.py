"""Runs the command that the first argument names.

alexnet COMMAND [--help] [OPTIONS]

`alexnet train` is the same as `python -m alexnet_jax.main`; every other command has the name of its
module, with - for _, such as `python -m alexnet_jax.evaluate`.
"""

import runpy
import sys

from alexnet_jax.errors import nearest
from alexnet_jax.runtime import process

# {command: (its module, what it does)}
COMMANDS = {
    "train": ("main", "trains the net that a configuration describes, or resumes a run"),
    "evaluate": ("evaluate", "computes the errors of a run, or of several averaged, on a split"),
    "classify": ("classify", "prints the most probable classes of pictures"),
    "explain": ("explain", "writes a page that follows a picture through a net, layer by layer"),
    "features": ("features", "saves a layer's activations of pictures and finds similar pictures"),
    "export": ("export", "writes a net as StableHLO, safetensors, torchvision weights or a folder"),
    "import-weights": ("import_weights", "reads weights of torchvision, Caffe or cuda-convnet"),
    "prepare": ("prepare", "makes a copy of a data set that is shrunk to squares"),
    "check-data": ("check_data", "finds unreadable and duplicate images in a data set"),
    "summary": ("summary", "lists a net's layers with outputs, parameters and multiply-adds"),
    "bench": ("bench", "measures the speed of the step, its layers, the input and the loop"),
}


def main() -> None:
    """Runs the module of the command, with the arguments that follow the command's name."""
    process.begin()
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("--help", "-h"):
        width = max(map(len, COMMANDS)) + 4
        lines = [f"  {name}".ljust(width) + about for name, (_, about) in COMMANDS.items()]
        print("\n".join([__doc__.strip(), "", "Commands:", *lines]))
        return
    if command not in COMMANDS:
        sys.exit(f"error: unknown command '{command}': {nearest(command, COMMANDS)}")
    sys.path.insert(0, "")  # As with `python -m`, a configuration may import files beside it.
    sys.argv[1:] = arguments
    runpy.run_module(f"alexnet_jax.{COMMANDS[command][0]}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
