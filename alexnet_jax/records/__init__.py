"""What a run leaves behind: checkpoints, metrics, its lock, and what TensorBoard shows of it."""
