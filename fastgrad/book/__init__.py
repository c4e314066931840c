"""The module names of *Deep Learning from Scratch*, served by fastgrad.

A script or a notebook of the book's chapters 2 to 8 imports ``common.functions``,
``dataset.mnist`` or ``two_layer_net``. After `install` those that are missing are served; in those
that the reader has, each definition that is the book's gives way to a faster one, and everything
else is the reader's. `run_script` does that for one script. A numerical
gradient of a network that the reader wrote is computed in the fastest of three ways, see
`fastgrad.book.loops`; `report` tells.

Examples
--------
>>> import fastgrad.book
>>> fastgrad.book.install()
>>> from common.functions import *
>>> softmax(np.array([0.3, 2.9, 4.0])).round(8)
array([0.01821127, 0.24519181, 0.73659691])
>>> fastgrad.book.uninstall()
"""

import importlib
from typing import TYPE_CHECKING

from fastgrad.book.finder import install, report, uninstall
from fastgrad.book.modules import SERVED
from fastgrad.book.script import run_script

if TYPE_CHECKING:
    from fastgrad.book.convnets import DeepConvNet, SimpleConvNet
    from fastgrad.book.functions import shuffle_dataset, smooth_curve, softmax_loss
    from fastgrad.book.gradients import numerical_gradient_2d
    from fastgrad.book.networks import (
        LayeredMultiLayerNet,
        LayeredTwoLayerNet,
        MultiLayerNetExtend,
    )
    from fastgrad.book.training import Trainer
else:

    def __getattr__(name):
        """Import what needs NumPy or Numba: a script that is run may need neither."""
        modules = ("functions", "gradients", "training", "networks", "convnets")
        for module in modules if name in __all__ else ():
            found = importlib.import_module(f"{__name__}.{module}")
            if name in found.__all__:
                return getattr(found, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "SERVED",
    "DeepConvNet",
    "LayeredMultiLayerNet",
    "LayeredTwoLayerNet",
    "MultiLayerNetExtend",
    "SimpleConvNet",
    "Trainer",
    "install",
    "numerical_gradient_2d",
    "report",
    "run_script",
    "shuffle_dataset",
    "smooth_curve",
    "softmax_loss",
    "uninstall",
]
