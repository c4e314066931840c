"""Parameters in the book's pickled files: a dict of arrays.

A pickle can name any function of any module for the reader to call. `load` refuses all but those
that rebuild NumPy arrays and numbers.
"""

from __future__ import annotations

import os
import pickle
from typing import Any

import numpy as np

__all__ = ["load", "save"]

#: What a pickle of arrays may name, under NumPy's module names of version 2 and before.
_ALLOWED = {
    f"numpy.{core}.{name}"
    for core in ("core", "_core")
    for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
} | {
    "numpy.ndarray",
    "numpy.dtype",
    "collections.OrderedDict",
    "_codecs.encode",  # how Python 3 reads the bytes of a pickle written by Python 2
}


class _Unpickler(pickle.Unpickler):
    """Reads plain containers, numbers and NumPy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle names, if it may."""
        if f"{module}.{name}" in _ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(
            f"the file must hold NumPy arrays only. It names {module}.{name}."
        )


def save(params: dict[str, Any], file_name: str | os.PathLike[str]) -> None:
    """Write a dict of arrays, as the book's ``save_params`` does.

    Parameters
    ----------
    params : dict of ndarray
    file_name : path_like

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    with open(file_name, "wb") as file:
        pickle.dump({name: np.asarray(array) for name, array in params.items()}, file)


def load(file_name: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a dict of arrays from a file that `save` or the book's ``save_params`` wrote.

    Parameters
    ----------
    file_name : path_like

    Returns
    -------
    dict of ndarray

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it holds anything but a dict of arrays of real numbers.
    """
    with open(file_name, "rb") as file:
        try:
            found = _Unpickler(file).load()
        except Exception as error:  # whatever a damaged file does to pickle
            raise ValueError(f"{os.fspath(file_name)!r} cannot be read: {error}") from error
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(array, np.ndarray) and array.dtype.kind in "biuf"
        for name, array in found.items()
    ):
        raise ValueError(f"{os.fspath(file_name)!r} must hold a dict of arrays of real numbers.")
    return found
