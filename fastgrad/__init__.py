"""Numerical gradients and small-network training at compiled speed.

Drop-in names for *Deep Learning from Scratch*, chapters 2 to 8, and a gradient checker for
functions of your own. ``python -m fastgrad exercise`` shows what it is about.
"""

import os

if not os.path.isdir(os.path.dirname(__file__)):
    raise ImportError("fastgrad must be installed into a folder. It cannot run from a zip archive.")

from fastgrad.convolution import (
    Convolution,
    Pooling,
    col2im,
    convolution_backward,
    convolution_forward,
    im2col,
    max_pooling_backward,
    max_pooling_forward,
)
from fastgrad.datasets import load_mnist
from fastgrad.functions import (
    affine_backward,
    affine_forward,
    cross_entropy_error,
    identity_function,
    mean_squared_error,
    relu,
    relu_grad,
    sigmoid,
    sigmoid_grad,
    softmax,
    softmax_cross_entropy,
    softmax_cross_entropy_backward,
    step_function,
    sum_squared_error,
)
from fastgrad.gradients import (
    GradientCheck,
    GradientCheckWarning,
    check_backward,
    check_gradient,
    gradient_descent,
    numerical_diff,
    numerical_gradient,
)
from fastgrad.layers import (
    AddLayer,
    Affine,
    BatchNormalization,
    Dropout,
    MulLayer,
    Relu,
    Sigmoid,
    SoftmaxWithLoss,
)
from fastgrad.networks import MultiLayerNet, TwoLayerNet
from fastgrad.optimizers import SGD, AdaGrad, Adam, Momentum, Nesterov, RMSprop
from fastgrad.training import History

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "AdaGrad",
    "Adam",
    "AddLayer",
    "Affine",
    "BatchNormalization",
    "Convolution",
    "Dropout",
    "GradientCheck",
    "GradientCheckWarning",
    "History",
    "Momentum",
    "MulLayer",
    "MultiLayerNet",
    "Nesterov",
    "Pooling",
    "RMSprop",
    "Relu",
    "Sigmoid",
    "SoftmaxWithLoss",
    "TwoLayerNet",
    "affine_backward",
    "affine_forward",
    "check_backward",
    "check_gradient",
    "col2im",
    "convolution_backward",
    "convolution_forward",
    "cross_entropy_error",
    "gradient_descent",
    "identity_function",
    "im2col",
    "load_mnist",
    "max_pooling_backward",
    "max_pooling_forward",
    "mean_squared_error",
    "numerical_diff",
    "numerical_gradient",
    "relu",
    "relu_grad",
    "sigmoid",
    "sigmoid_grad",
    "softmax",
    "softmax_cross_entropy",
    "softmax_cross_entropy_backward",
    "step_function",
    "sum_squared_error",
]
