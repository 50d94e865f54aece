"""This is the console command `alexnet`: it runs the module that its first argument stands for.

alexnet COMMAND [--help] [OPTIONS], where `alexnet train` is `python -m alexnet_jax.main`, and so on
"""

import runpy
import sys

from alexnet_jax.errors import nearest
from alexnet_jax.runtime import process

# {command: (its module, what it does)}
COMMANDS = {
    "train": ("main", "trains the net that a configuration describes, or goes on with a run"),
    "evaluate": ("evaluate", "errors of a run, or of the average of several, on a split"),
    "classify": ("classify", "the likeliest classes of pictures"),
    "explain": ("explain", "a page that follows a picture through a net, layer by layer"),
    "features": ("features", "what a layer says of pictures, and which pictures are alike in it"),
    "export": ("export", "a net as StableHLO, safetensors, torchvision's weights or a folder"),
    "import-weights": ("import_weights", "weights of torchvision, Caffe or cuda-convnet"),
    "prepare": ("prepare", "a copy of a data set, shrunk to squares"),
    "check-data": ("check_data", "what is unreadable in a data set, or there twice"),
    "summary": ("summary", "the layers of a net with outputs, parameters and multiply-adds"),
    "bench": ("bench", "how fast the step, its layers, the input and the loop are"),
}


def main() -> None:
    """Runs the module of the command named first, with the arguments that follow it."""
    process.begin()
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("--help", "-h"):
        width = max(map(len, COMMANDS)) + 4
        lines = [f"  {name}".ljust(width) + about for name, (_, about) in COMMANDS.items()]
        print("\n".join([__doc__.strip(), "", "Commands:", *lines]))
        return
    if command not in COMMANDS:
        sys.exit(f"error: unknown command '{command}': {nearest(command, COMMANDS)}")
    sys.path.insert(0, "")  # as `python -m` does: a configuration may import its neighbours
    sys.argv[1:] = arguments
    runpy.run_module(f"alexnet_jax.{COMMANDS[command][0]}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
