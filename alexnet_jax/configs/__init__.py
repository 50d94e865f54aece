"""The configurations that ship: `--config=NAME` names one, and a file of one's own may import it.

In a checkout the folder `configs` is a link to this one.
"""
