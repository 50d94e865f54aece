"""The full grid of dropout's rate and the pooling. The paper reports no such grid."""

CLAIM = 8
BASE = "configs/bench_imagenette.py"
RATES = (0.0, 0.25, 0.5, 0.75)
POOLINGS = {
    "max 2x2": {"model.pool_window": 2},
    "max 3x3": {},
    "average 3x3": {"model.pooling": "avg"},
}
VARIANTS = {
    f"dropout {rate}, {pooling}": {"model.dropout": rate, **fields}
    for rate in RATES
    for pooling, fields in POOLINGS.items()
}
BASELINE = "dropout 0.5, max 3x3"
SEEDS = 3
FAMILY = True
