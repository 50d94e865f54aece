"""Does one heap for all threads cost decoding anything? Threads against arenas of glibc's malloc.

    python -m experiments.allocator --images=../shared/data/imagenet_sample [--record]

`process.begin` has glibc keep one arena, for the sake of the training step (see there). Here the
images of a folder are decoded to squares by 1, 8 and 32 threads, with one arena and with as many
as glibc makes by itself, each in a process of its own, in turns. --record appends one line to
experiments/results/allocator/results.jsonl: of each pair the CPU milliseconds of an image, spent in
the program and in the kernel, the images a second, and the most memory that the process took.
"""

import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from alexnet_jax import cli
from alexnet_jax.records import files, provenance

RESULTS = Path(__file__).parent / "results" / "allocator" / "results.jsonl"
THREADS = (1, 8, 32)
ARENAS = (1, 0)  # 0: as many as glibc makes by itself, eight a core
SIDE = 256  # pixels of a square


def decode(images: str, num_threads: int, arenas: int, passes: int) -> dict:
    """Decodes the images, after a pass that counts for nothing; returns what it took."""
    mmap_max, trim_threshold, arena_max = -4, -1, -8  # as in process.begin
    mallopt = ctypes.CDLL("libc.so.6").mallopt
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)
    if arenas:
        mallopt(arena_max, arenas)
    from alexnet_jax.data import squares
    from alexnet_jax.data.sources import open_source

    source = open_source(f"folder:{images}", None, "validation")

    def one_pass() -> None:
        for _ in squares.read_all(source, SIDE, num_threads=num_threads, chunk=2):
            pass

    one_pass()
    start, before = time.perf_counter(), os.times()
    for _ in range(passes):
        one_pass()
    after, count = os.times(), passes * source.num_examples
    peak = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line
    )
    return {
        "user_ms": 1e3 * (after.user - before.user) / count,
        "system_ms": 1e3 * (after.system - before.system) / count,
        "images_per_second": count / (time.perf_counter() - start),
        "most_mib": int(peak.split()[1]) / 2**10,
    }


def main(_) -> None:
    """Measures in turns, prints, and records."""
    given, pairs = flags.FLAGS, [(n, arenas) for n in THREADS for arenas in ARENAS]
    measured = {pair: [] for pair in pairs}
    for _ in range(given.repeats):
        for pair in pairs:
            arguments = f"{given.images!r}, *{pair}, {given.passes}"
            code = "import json; from experiments.allocator import decode\n"
            code += f"print(json.dumps(decode({arguments})))"
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            )
            measured[pair].append(json.loads(done.stdout.splitlines()[-1]))
    rows = []
    for (num_threads, arenas), each in measured.items():
        row = {name: statistics.median(one[name] for one in each) for name in each[0]}
        rows.append({"threads": num_threads, "arenas": arenas, **row})
        print(
            f"{num_threads:2} threads, {arenas or 'many'} arenas: {row['user_ms']:.2f} +"
            f" {row['system_ms']:.2f} ms of CPU an image, {row['most_mib']:.0f} MiB"
        )
    if given.record:
        load = {"load_average": os.getloadavg()[0], "repeats": given.repeats}
        files.append_json(RESULTS, {**provenance.collect(), **load, "rows": rows})


if __name__ == "__main__":
    cli.define_path("images", None, "A folder of images with the split `validation`.")
    flags.DEFINE_integer("repeats", 3, "Turns that a median is taken over.", lower_bound=1)
    flags.DEFINE_integer("passes", 2, "How often the images are decoded in a turn.", lower_bound=1)
    flags.DEFINE_boolean("record", False, "Append the result to experiments/results/allocator.")
    cli.run(main, required=("images",))
