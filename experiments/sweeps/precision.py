"""Computing in bfloat16, with parameters in float32, against float32 throughout."""

BASE = "configs/bench_imagenette.py"
VARIANTS = {
    "baseline": {},
    "bfloat16": {"model.dtype": "bfloat16"},
}
SEEDS = 5
