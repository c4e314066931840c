"""The library of oneTBB, which the package loads when it is imported.

oneTBB is the one threading layer that survives a fork, several Python threads at once and a NumPy
matrix product beside it, so it is loaded where it is installed. Numba looks for it by file name
only and does not find the library of the ``tbb`` wheel by itself; loading it once with `ctypes` is
enough, and leaves every process-wide setting (environment, Numba's configuration, thread count)
alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import sys

_TBB_LIBRARY = {"win32": "tbb12.dll", "darwin": "libtbb.12.dylib"}.get(sys.platform, "libtbb.so.12")


def load_tbb() -> bool:
    """Make the library of the ``tbb`` wheel known to this process.

    Returns
    -------
    bool
        Whether the library was found and loaded.
    """
    try:
        files = importlib.metadata.files("tbb") or []
    except importlib.metadata.PackageNotFoundError:
        return False
    for file in files:
        if file.name == _TBB_LIBRARY:
            with contextlib.suppress(OSError):
                ctypes.CDLL(os.path.realpath(str(file.locate())), mode=ctypes.RTLD_GLOBAL)
                return True
    return False
