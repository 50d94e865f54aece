"""Contains what concerns a command's process, and the way in which JAX runs programs."""
