"""conv1's kernels at the paper's size (section 6.1, Figure 3), and the initial noise in them.

With He's whole deviation the noise that conv1 begins with drowns what it learns: weight decay takes
only some 2% of it in such a run.
"""

BASE = "configs/imagenette128.py"
VARIANTS = {
    "baseline": {},
    "He's whole deviation": {"model.layer_init_scales": ()},
}
SEEDS = 3
