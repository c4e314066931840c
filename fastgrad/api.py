"""The public names: what ``fastgrad.NAME`` stands for."""

from fastgrad.checking.check import check_backward, check_gradient
from fastgrad.checking.result import GradientCheck, GradientCheckWarning
from fastgrad.data.mnist import load_mnist
from fastgrad.networks.fit import History
from fastgrad.networks.fully_connected import MultiLayerNet, TwoLayerNet
from fastgrad.nn.convolution import (
    Convolution,
    Pooling,
    col2im,
    convolution_backward,
    convolution_forward,
    im2col,
    max_pooling_backward,
    max_pooling_forward,
)
from fastgrad.nn.functions import (
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
from fastgrad.nn.layers import (
    AddLayer,
    Affine,
    BatchNormalization,
    Dropout,
    MulLayer,
    Relu,
    Sigmoid,
    SoftmaxWithLoss,
)
from fastgrad.nn.optimizers import SGD, AdaGrad, Adam, Momentum, Nesterov, RMSprop
from fastgrad.numdiff.gradients import gradient_descent, numerical_diff, numerical_gradient
from fastgrad.numdiff.hessian import numerical_hessian
from fastgrad.numdiff.jacobian import numerical_jacobian

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
    "numerical_hessian",
    "numerical_jacobian",
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
