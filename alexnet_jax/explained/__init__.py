"""Explains how a picture goes through a net: computes what `explain` shows, and makes its page."""
