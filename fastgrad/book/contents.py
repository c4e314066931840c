"""Which module of the book hands on which names."""

from __future__ import annotations

import types
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastgrad import convolution, functions, gradients, layers, networks, optimizers
from fastgrad.book.convnets import DeepConvNet, SimpleConvNet
from fastgrad.book.functions import (
    conv_output_size,
    init_mnist,
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
from fastgrad.book.recognition import numerical_gradient
from fastgrad.book.training import Trainer
from fastgrad.datasets import load_mnist


def _names(module: types.ModuleType, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(module, name) for name in names}


# Star imports hand np on; scripts of the book rely on it.
_FUNCTIONS: dict[str, Any] = {
    "np": np,
    **_names(
        functions,
        (
            "identity_function",
            "step_function",
            "sigmoid",
            "sigmoid_grad",
            "relu",
            "relu_grad",
            "softmax",
            "sum_squared_error",
            "mean_squared_error",
            "cross_entropy_error",
        ),
    ),
    "softmax_loss": softmax_loss,
}
_GRADIENT: dict[str, Any] = {"np": np, "numerical_gradient": numerical_gradient}
_LAYER_NAMES = (
    "Relu",
    "Sigmoid",
    "Affine",
    "SoftmaxWithLoss",
    "BatchNormalization",
    "Dropout",
)
_COLUMNS = _names(convolution, ("im2col", "col2im"))
_LAYERS = {
    **_FUNCTIONS,
    **_names(layers, _LAYER_NAMES),
    **_names(convolution, ("Convolution", "Pooling")),
    **_COLUMNS,
}
_LAYERED = {**_LAYERS, **_GRADIENT, "OrderedDict": OrderedDict}
_OPTIMIZERS = {"np": np, **_names(optimizers, optimizers.__all__)}

#: The names that each module hands on.
CONTENTS: dict[str, Mapping[str, Any]] = {
    "common.functions": _FUNCTIONS,
    "common.gradient": {
        **_GRADIENT,
        "numerical_gradient_2d": numerical_gradient_2d,
        "_numerical_gradient_1d": gradients.numerical_gradient,
        "_numerical_gradient_no_batch": numerical_gradient,
    },
    "common.layers": _LAYERS,
    "common.multi_layer_net": {**_LAYERED, "MultiLayerNet": LayeredMultiLayerNet},
    "common.multi_layer_net_extend": {**_LAYERED, "MultiLayerNetExtend": MultiLayerNetExtend},
    "common.optimizer": _OPTIMIZERS,
    "common.trainer": {**_OPTIMIZERS, "Trainer": Trainer},
    "common.util": {
        "np": np,
        "smooth_curve": smooth_curve,
        "shuffle_dataset": shuffle_dataset,
        "conv_output_size": conv_output_size,
        **_COLUMNS,
    },
    "dataset.mnist": {
        "np": np,
        "load_mnist": load_mnist,
        "init_mnist": init_mnist,
        "download_mnist": init_mnist,
        "train_num": 60_000,
        "test_num": 10_000,
        "img_dim": (1, 28, 28),
        "img_size": 784,
    },
    "deep_convnet": {"np": np, **_LAYERS, "OrderedDict": OrderedDict, "DeepConvNet": DeepConvNet},
    "simple_convnet": {**_LAYERED, "SimpleConvNet": SimpleConvNet},
    "two_layer_net": {},
}
#: The contents of ``two_layer_net`` by chapter.
TWO_LAYER_NETS: dict[int, Mapping[str, Any]] = {
    4: {**_FUNCTIONS, **_GRADIENT, "TwoLayerNet": networks.TwoLayerNet},
    5: {**_LAYERED, "TwoLayerNet": LayeredTwoLayerNet},
}

#: The modules that fastgrad serves.
SERVED = tuple(CONTENTS)
