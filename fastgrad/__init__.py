"""Numerical gradients and small-network training at compiled speed.

Drop-in names for *Deep Learning from Scratch*, chapters 2 to 8, and a gradient checker for
functions of your own. ``python -m fastgrad exercise`` shows what it is about.
"""

import importlib
import importlib.util
import os
from typing import TYPE_CHECKING

if not os.path.isdir(os.path.dirname(__file__)):
    raise ImportError("fastgrad must be installed into a folder. It cannot run from a zip archive.")

from fastgrad.runtime.tbb import load_tbb

__version__ = "0.1.0"

load_tbb()  # before anybody starts another threading layer

# The public names are imported when the first of them is asked for: NumPy and Numba take the better
# part of a second, in which the command line could not say a word.
if TYPE_CHECKING:
    from fastgrad.api import *  # noqa: F403
    from fastgrad.api import __all__ as __all__
else:

    def __getattr__(name):
        if importlib.util.find_spec(f"{__name__}.{name}"):
            return importlib.import_module(f"{__name__}.{name}")
        api = importlib.import_module("fastgrad.api")
        globals().update({public: getattr(api, public) for public in ("__all__", *api.__all__)})
        if name not in globals():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals()[name]

    def __dir__():
        return sorted(__getattr__("__all__"))
