"""Which module of the book hands on which names, and where fastgrad has them.

It is a table of names: what stands behind one is imported when a script asks for its module.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

__all__ = ["CONTENTS", "FORMULAS", "SERVED", "TWO_LAYER_NETS", "found"]

#: Where the book's own formulas in NumPy are: what a reader has of these is as good, and stays.
FORMULAS = (
    "fastgrad.book.functions",
    "fastgrad.book.layers",
    "fastgrad.book.training",
    "fastgrad.nn.layers",
    "numpy",
    "collections",
)


def _from(module: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), module)


# Star imports hand np on; scripts of the book rely on it.
_NUMPY = {"np": "numpy"}
_FUNCTIONS = _NUMPY | _from(
    "fastgrad.book.functions",
    "identity_function step_function sigmoid sigmoid_grad relu relu_grad softmax "
    "sum_squared_error mean_squared_error cross_entropy_error softmax_loss",
)
_GRADIENT = _NUMPY | _from("fastgrad.book.gradients", "numerical_gradient")
_COLUMNS = _from("fastgrad.book.convolutions", "im2col col2im")
_LAYERS = {
    **_FUNCTIONS,
    **_from("fastgrad.book.layers", "Relu Sigmoid Affine SoftmaxWithLoss Dropout"),
    **_from("fastgrad.nn.layers", "BatchNormalization"),
    **_from("fastgrad.book.convolutions", "Convolution Pooling"),
    **_COLUMNS,
}
_LAYERED = {**_LAYERS, **_GRADIENT, **_from("collections", "OrderedDict")}
_OPTIMIZERS = _NUMPY | _from(
    "fastgrad.book.optimizers", "SGD Momentum Nesterov AdaGrad RMSprop Adam"
)

#: The names that each module hands on, and the modules that have them.
CONTENTS: dict[str, Mapping[str, str]] = {
    "common.functions": _FUNCTIONS,
    "common.gradient": _GRADIENT
    | _from(
        "fastgrad.book.gradients",
        "numerical_gradient_2d _numerical_gradient_1d _numerical_gradient_no_batch",
    ),
    "common.layers": _LAYERS,
    "common.multi_layer_net": _LAYERED
    | {"MultiLayerNet": "fastgrad.book.networks:LayeredMultiLayerNet"},
    "common.multi_layer_net_extend": _LAYERED
    | {"MultiLayerNetExtend": "fastgrad.book.networks:MultiLayerNetExtend"},
    "common.optimizer": _OPTIMIZERS,
    "common.trainer": _OPTIMIZERS | _from("fastgrad.book.training", "Trainer"),
    "common.util": _NUMPY
    | _COLUMNS
    | _from("fastgrad.book.functions", "smooth_curve shuffle_dataset conv_output_size"),
    "dataset.mnist": _NUMPY
    | _from("fastgrad.data.mnist", "load_mnist")
    | _from(
        "fastgrad.book.functions",
        "init_mnist download_mnist train_num test_num img_dim img_size",
    ),
    "deep_convnet": _LAYERS
    | _from("collections", "OrderedDict")
    | {"DeepConvNet": "fastgrad.book.convnets:BookDeepConvNet"},
    "simple_convnet": _LAYERED | {"SimpleConvNet": "fastgrad.book.convnets:BookSimpleConvNet"},
    "two_layer_net": {},  # by its chapter, see below
}
#: The contents of ``two_layer_net`` by chapter.
TWO_LAYER_NETS: dict[int, Mapping[str, str]] = {
    4: _FUNCTIONS | _GRADIENT | {"TwoLayerNet": "fastgrad.book.networks:BookTwoLayerNet"},
    5: _LAYERED | {"TwoLayerNet": "fastgrad.book.networks:LayeredTwoLayerNet"},
}

#: The modules that fastgrad serves.
SERVED = tuple(CONTENTS)


def found(name: str, place: str, module: str) -> Any:
    """Import what a name of the book's stands for.

    Parameters
    ----------
    name : str
    place : str
        The module that has it, and after a colon what it is called there if that is another name.
    module : str
        The module that hands it on, for a class of another name.

    Returns
    -------
    object
    """
    home, _, attribute = place.partition(":")
    imported = importlib.import_module(home)
    if name == "np":
        return imported
    if not attribute:
        return getattr(imported, name)
    base = getattr(imported, attribute)
    return type(name, (base,), {"__module__": module, "__doc__": base.__doc__})
