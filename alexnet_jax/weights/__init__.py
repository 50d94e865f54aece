"""Weights of other programs: one reader a format, and the fit of what they read to our nets."""
