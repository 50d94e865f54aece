"""Records a finished run as one line of experiments/results/NAME/runs.jsonl.

    python -m experiments.record --workdir=runs/imagenette --name=imagenette

The line holds result.json (errors, seed, command, commit, hardware, versions, date), the resolved
configuration and the whole error curve.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from alexnet_jax import cli
from alexnet_jax.config import read_config, to_dict
from alexnet_jax.errors import UserError
from alexnet_jax.records import files

RESULTS = Path(__file__).parent / "results"


def read_run(workdir: Path) -> tuple[dict, list[dict]]:
    """Returns the content of result.json and metrics.jsonl of a finished run.

    Raises:
        UserError: the run has not ended.
    """
    try:
        result = json.loads((workdir / "result.json").read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"the run in '{workdir}' has not ended: it has no result.json") from None
    return result, read_lines(workdir / "metrics.jsonl")


def read_records(name: str) -> list[dict]:
    """Returns the lines of experiments/results/NAME/runs.jsonl; none if the file is missing."""
    path = _file(name)
    return read_lines(path) if path.exists() else []


def write_records(name: str, lines: Sequence[dict]) -> None:
    """Replaces the records called `name`; a kill leaves the old file or the new one."""
    path = _file(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace(path, b"".join(json.dumps(line).encode() + b"\n" for line in lines))


def record(workdir: Path, name: str) -> Path:
    """Appends the run in `workdir` to the records called `name`; returns their file.

    Raises:
        UserError: the run has not ended.
    """
    result, curve = read_run(workdir)
    result["config"] = to_dict(read_config(workdir))
    result["curve"] = curve
    write_records(name, [*read_records(name), result])
    return _file(name)


def _file(name: str) -> Path:
    return RESULTS / name / "runs.jsonl"


def read_lines(path: Path) -> list[dict]:
    """Returns the JSON objects of a file, one a line.

    Raises:
        UserError: one is not JSON.
    """
    lines = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        try:
            lines.append(json.loads(line))
        except ValueError:
            raise UserError(f"{path}, line {number}: not JSON") from None
    return lines


def main(_):
    """Records the run that the flags name."""
    path = record(Path(flags.FLAGS.workdir), flags.FLAGS.name)
    print(f"recorded in {path}")


if __name__ == "__main__":
    cli.define_path("workdir", None, "The finished run.")
    flags.DEFINE_string("name", None, "The name of the records.")
    cli.run(main, required=("workdir", "name"))
