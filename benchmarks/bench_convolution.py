"""Convolution and max pooling, on the shapes of the book's `SimpleConvNet` and a batch of 100."""

import numpy as np

from . import textbook
from .common import BATCH, DTYPES, PerCall, find, random, ratio

IMAGES, FILTERS, MAPS = (BATCH, 1, 28, 28), (30, 1, 5, 5), (BATCH, 30, 24, 24)


class Convolution(PerCall):
    params = (DTYPES,)
    param_names = ("dtype",)

    def setup(self, dtype):
        self.forward, self.backward, layer = find(
            "fastgrad", "convolution_forward", "convolution_backward", "Convolution"
        )
        self.x, self.W = random(dtype, *IMAGES), random(dtype, *FILTERS)
        self.b, self.dout = random(dtype, len(self.W)), random(dtype, *MAPS)
        self.layer = layer(self.W, self.b)
        self.time_layer(dtype)

    def time_convolution_forward(self, dtype):
        self.forward(self.x, self.W, self.b)

    def time_convolution_backward(self, dtype):
        self.backward(self.dout, self.x, self.W)

    def time_layer(self, dtype):
        self.layer.forward(self.x)
        self.layer.backward(self.dout)


class Pooling(PerCall):
    params = (DTYPES,)
    param_names = ("dtype",)

    def setup(self, dtype):
        self.forward, self.backward, layer = find(
            "fastgrad", "max_pooling_forward", "max_pooling_backward", "Pooling"
        )
        self.x = random(dtype, *MAPS)
        self.dout, self.arg_max = self.forward(self.x, 2, 2)
        self.layer = layer(2, 2, stride=2)
        self.time_max_pooling_backward(dtype)
        self.time_layer(dtype)

    def time_max_pooling_forward(self, dtype):
        self.forward(self.x, 2, 2)

    def time_max_pooling_backward(self, dtype):
        self.backward(self.dout, self.arg_max, self.x.shape)

    def time_layer(self, dtype):
        self.layer.forward(self.x)
        self.layer.backward(self.dout)


class Columns(PerCall):
    """The book's `im2col` and `col2im`, which nothing of ours needs."""

    def setup(self):
        self.im2col, self.col2im = find("fastgrad", "im2col", "col2im")
        self.x = random("float64", *IMAGES)
        self.columns = self.im2col(self.x, 5, 5)
        self.time_col2im()

    def time_im2col(self):
        self.im2col(self.x, 5, 5)

    def time_col2im(self):
        self.col2im(self.columns, self.x.shape, 5, 5)


class SpeedUpOverNumPy:
    """How many times as long the book's convolution by `im2col` takes; forward and backward."""

    params = (DTYPES,)
    param_names = ("dtype",)
    unit = "x"

    def setup(self, dtype):
        self.forward, self.backward = find(
            "fastgrad", "convolution_forward", "convolution_backward"
        )
        self.x, self.W = random(dtype, *IMAGES), random(dtype, *FILTERS)
        self.b, self.dout = random(dtype, len(self.W)), random(dtype, *MAPS)

    def track_convolution(self, dtype):
        def ours():
            return self.forward(self.x, self.W, self.b), *self.backward(self.dout, self.x, self.W)

        def theirs():
            return textbook.convolution(self.x, self.W, self.b, self.dout)

        for mine, plain in zip(ours(), theirs(), strict=True):
            np.testing.assert_allclose(mine, plain, rtol=1e-3, atol=1e-3 * np.abs(plain).max())
        return ratio(theirs, ours)


class Networks(PerCall):
    """An iteration of the book's networks, one call from Python at a time."""

    params = (["SimpleConvNet", "DeepConvNet"], DTYPES)
    param_names = ("network", "dtype")

    def setup(self, network, dtype):
        self.net = find("fastgrad.book", network)()
        for name, array in self.net.params.items():
            self.net.params[name] = array.astype(dtype)
        self.sgd = find("fastgrad", "SGD")(1e-6)
        self.x, self.t = random(dtype, *IMAGES), np.arange(BATCH) % 10
        self.time_gradient_and_update(network, dtype)
        self.time_loss(network, dtype)

    def time_gradient_and_update(self, network, dtype):
        self.sgd.update(self.net.params, self.net.gradient(self.x, self.t))

    def time_loss(self, network, dtype):
        self.net.loss(self.x, self.t)


class NetworksOverNumPy:
    """How many times as long the book's gradient takes in NumPy, for ten images."""

    params = (["SimpleConvNet", "DeepConvNet"],)
    param_names = ("network",)
    unit = "x"

    def setup(self, network):
        self.net = find("fastgrad.book", network)()
        self.x, self.t = random("float64", 10, *IMAGES[1:]), np.arange(10)

    def track_gradient(self, network):
        from . import convolution

        return ratio(
            lambda: convolution.book_gradient(self.net, self.x, self.t),
            lambda: self.net.gradient(self.x, self.t),
        )
