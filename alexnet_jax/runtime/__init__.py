"""The process that a command runs in, and what depends on how JAX runs its programs."""
