"""Contains what a run leaves in its directory: checkpoints, metrics, its result and its lock."""
