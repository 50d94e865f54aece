"""Keeps a finished run's result: one line in experiments/results/NAME/runs.jsonl.

    python -m experiments.record --workdir=runs/imagenette --name=imagenette

The line holds result.json (errors, seed, command, commit, hardware, versions, date), the resolved
configuration, the wall time of the whole run and the whole error curve.
"""

import json
from pathlib import Path

from absl import flags

from alexnet_jax import cli
from alexnet_jax.config import read_config
from alexnet_jax.errors import UserError

RESULTS = Path(__file__).parent / "results"


def record(workdir: Path, name: str) -> Path:
    """Appends the run in `workdir` to the records called `name`; returns their file.

    Raises:
        UserError: the run has not ended.
    """
    try:
        result = json.loads((workdir / "result.json").read_text())
    except FileNotFoundError:
        raise UserError(f"the run in '{workdir}' has not ended: it has no result.json") from None
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    result["config"] = read_config(workdir).to_dict()
    result["curve"] = lines
    path = RESULTS / name / "runs.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(result) + "\n")
    return path


def main(_):
    """Records one run."""
    path = record(Path(flags.FLAGS.workdir), flags.FLAGS.name)
    print(f"recorded in {path}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The finished run.")
    flags.DEFINE_string("name", None, "What it is recorded under.")
    flags.mark_flags_as_required(["workdir", "name"])
    cli.run(main)
