"""Reads pickles from untrusted sources without calling anything that they name.

A pickle is a program. The classes and functions that it names are looked up by `find_class`, which
returns only stand-ins here: containers, NumPy arrays, or a record that does nothing.
"""

import io
import pickle
from collections.abc import Mapping

import numpy as np


class Record:
    """Stands in for an object of any other class, and keeps its arguments and its state."""

    def __new__(cls, *args, **kwargs):
        """Sets the attributes here, because a pickle may leave __init__ out."""
        self = super().__new__(cls)
        self.args, self.state, self.items = args, None, []
        return self

    def __setstate__(self, state):
        self.state = state

    def __setitem__(self, key, value):
        self.items.append((key, value))

    def append(self, item):
        """Takes the place of a list's method."""
        self.items.append(item)

    def extend(self, items):
        """Takes the place of a list's method."""
        self.items.extend(items)


class _Dict(dict):
    """Stands in for an OrderedDict or another dictionary with a state, which is dropped."""

    def __setstate__(self, state):
        pass


class _Dtype:
    """Stands in for a pickled numpy.dtype, and keeps None for dtypes other than of numbers."""

    def __init__(self, name, *_):
        self.dtype = np.dtype(name) if name in _NUMBERS else None

    def __setstate__(self, state):
        if self.dtype is not None and state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


_NUMBERS = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} | {"f2", "f4", "f8", "b1"}


class Array:
    """Stands in for a pickled NumPy array of numbers; `np.asarray` returns the array."""

    def __init__(self, *_):
        self.array = np.zeros(0, np.float32)

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        if dtype.dtype is None:  # Arrays of objects or texts are not a part of a net.
            return
        flat = np.frombuffer(_bytes(data), dtype.dtype)
        self.array = flat.reshape(shape, order="F" if fortran else "C")

    def __array__(self, dtype=None, copy=None):
        return np.array(self.array, dtype)


def _bytes(data) -> bytes:
    # A str of Python 2 is read as text with one character per byte.
    return data.encode("latin-1") if isinstance(data, str) else bytes(data)


def _scalar(dtype, data):
    if dtype.dtype is None:  # Texts, for example, are not a part of a net.
        return None
    return np.frombuffer(_bytes(data), dtype.dtype)[0].item()


def _encode(text, encoding):
    """Returns bytes in the form in which Python 3 writes them in protocol 2."""
    return text.encode(encoding if encoding == "latin1" else "utf-8")


def _stand_ins() -> dict:
    """Returns new stand-ins by (module, name) for each file, which may set attributes on them."""
    found = {
        ("collections", "OrderedDict"): _Dict,
        ("ordereddict", "OrderedDict"): _Dict,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): lambda *args: _encode(*args),
    }
    for module in ("__builtin__", "builtins"):
        found |= {(module, kind.__name__): kind for kind in (set, frozenset, complex)}
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        found[module, "_reconstruct"] = Array
        found[module, "scalar"] = lambda *args: _scalar(*args)
    return found


class _Unpickler(pickle._Unpickler):
    # The unpickler in C would allocate memory for as many objects as a damaged file claims.
    def __init__(self, file, stand_ins: Mapping, persistent_load):
        super().__init__(file, encoding="latin-1")
        self.stand_ins = _stand_ins() | dict(stand_ins)
        self.load_persistent = persistent_load

    def find_class(self, module, name):
        """Returns a stand-in, and never the object that the names mean in Python."""
        return self.stand_ins.get((module, name), Record)

    def persistent_load(self, pid):
        """Returns the object of a reference to data outside of the pickle."""
        if self.load_persistent is None:
            raise pickle.UnpicklingError("it refers to data outside of it")
        return self.load_persistent(pid)


def load(data: bytes, stand_ins: Mapping | None = None, persistent_load=None):
    """Reads the object in a pickle of Python 2 or 3.

    Args:
        data: the pickle's bytes.
        stand_ins: {(module, name): callable} beside those of this module.
        persistent_load: a function from a reference to data outside of the pickle to its object;
            without it such a reference is an error.

    Raises:
        ValueError: the data are damaged or not a pickle; the message says what is wrong.
    """
    try:
        return _Unpickler(io.BytesIO(data), stand_ins or {}, persistent_load).load()
    except Exception as error:  # A damaged pickle may raise almost any error.
        raise ValueError(f"{type(error).__name__}: {error}" if str(error) else "damaged") from None
