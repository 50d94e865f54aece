"""Contains the configurations that ship with the package.

`--config=NAME` names one, and your own configuration file may import it. In a checkout, the folder
`configs` is a link to this one.
"""
