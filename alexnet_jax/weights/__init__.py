"""Reads weights of other programs, with one reader per format, and fits them to our nets."""
