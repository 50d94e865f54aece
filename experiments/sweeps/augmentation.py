"""Random crops and flips (section 4.1): without them the paper's net overfits substantially."""

CLAIM = 13
BASE = "configs/bench_imagenette.py"
VARIANTS = {
    "baseline": {},
    "no crops or flips": {"data.crop": False, "data.flip": False},
}
SEEDS = 3
MEASURES = ("top1_error", "train_top1_error", "loss", "rise")
PAPER = {"no crops or flips": "higher"}
