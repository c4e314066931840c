"""The module names of *Deep Learning from Scratch*, served by fastgrad.

A script or a notebook of the book's chapters 2 to 8 imports ``common.functions``,
``dataset.mnist`` or ``two_layer_net``. After `install` those names lead here, also where files of
these names lie about; `run_script` does that for one script. Everything else still comes from the
book's own folder, and a served module also hands on the functions, classes and constants that only
the book's own file defines. A network that the reader wrote is recognised by `numerical_gradient`
as ``common.gradient`` serves it, see `fastgrad.book.recognition`; `report` tells.

Examples
--------
>>> import fastgrad.book
>>> fastgrad.book.install()
>>> from common.functions import *
>>> softmax(np.array([0.3, 2.9, 4.0])).round(8)
array([0.01821127, 0.24519181, 0.73659691])
>>> fastgrad.book.uninstall()
"""

from fastgrad.book.contents import SERVED
from fastgrad.book.convnets import DeepConvNet, SimpleConvNet
from fastgrad.book.functions import (
    numerical_gradient_2d,
    shuffle_dataset,
    smooth_curve,
    softmax_loss,
)
from fastgrad.book.networks import (
    LayeredMultiLayerNet,
    LayeredTwoLayerNet,
    MultiLayerNetExtend,
)
from fastgrad.book.serving import install, report, run_script, uninstall
from fastgrad.book.training import Trainer

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
