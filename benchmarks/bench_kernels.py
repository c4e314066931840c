"""Each kernel behind its public function, on the shapes of a 784-50-10 network and a batch of 100.

The kernels themselves take one memory layout; the others cost a copy, which belongs to the time.
"""

import numpy as np

from .common import (
    BATCH,
    CLASSES,
    DTYPES,
    HIDDEN,
    INPUTS,
    LAYOUTS,
    PerCall,
    arrange,
    find,
    random,
)

LABELS = np.arange(BATCH) % CLASSES


class Affine(PerCall):
    params = ([*LAYOUTS, "float32"],)
    param_names = ("layout",)
    calls = 30

    def setup(self, layout):
        dtype = "float32" if layout == "float32" else "float64"
        self.forward, self.backward = find("fastgrad", "affine_forward", "affine_backward")
        self.x = arrange(random(dtype, BATCH, INPUTS), layout)
        self.W = arrange(random(dtype, INPUTS, HIDDEN), layout)
        self.b = arrange(random(dtype, HIDDEN), layout)
        self.dout = arrange(random(dtype, BATCH, HIDDEN), layout)
        self.forward(self.x, self.W, self.b)
        self.backward(self.dout, self.x, self.W)

    def time_affine_forward(self, layout):
        for _ in range(self.calls):
            self.forward(self.x, self.W, self.b)

    def time_affine_backward(self, layout):
        for _ in range(self.calls):
            self.backward(self.dout, self.x, self.W)


class Activations(PerCall):
    params = (["sigmoid", "relu"], LAYOUTS)
    param_names = ("function", "layout")
    calls = 500

    def setup(self, function, layout):
        self.function = find("fastgrad", function)
        self.x = arrange(random("float64", BATCH, HIDDEN), layout)
        self.function(self.x)

    def time_call(self, function, layout):
        for _ in range(self.calls):
            self.function(self.x)


class SoftmaxCrossEntropy(PerCall):
    params = (LAYOUTS,)
    param_names = ("layout",)
    calls = 300

    def setup(self, layout):
        self.softmax, self.cross_entropy, self.forward, self.backward = find(
            "fastgrad",
            "softmax",
            "cross_entropy_error",
            "softmax_cross_entropy",
            "softmax_cross_entropy_backward",
        )
        self.a = arrange(random("float64", BATCH, CLASSES), layout)
        self.y = arrange(self.softmax(self.a), layout)
        self.t = arrange(LABELS, layout)
        self.cross_entropy(self.y, self.t)
        self.forward(self.a, self.t)
        self.backward(self.y, self.t)

    def time_softmax(self, layout):
        for _ in range(self.calls):
            self.softmax(self.a)

    def time_cross_entropy_error(self, layout):
        for _ in range(self.calls):
            self.cross_entropy(self.y, self.t)

    def time_softmax_cross_entropy(self, layout):
        for _ in range(self.calls):
            self.forward(self.a, self.t)

    def time_softmax_cross_entropy_backward(self, layout):
        for _ in range(self.calls):
            self.backward(self.y, self.t)


class Updates(PerCall):
    """One step of an optimizer on all 39,760 parameters, with a rate that moves them nowhere."""

    params = (["SGD", "Momentum", "Nesterov", "AdaGrad", "RMSprop", "Adam"],)
    param_names = ("rule",)
    calls = 50

    def setup(self, rule):
        self.rule = find("fastgrad", rule)(1e-12)
        shapes = {
            "W1": (INPUTS, HIDDEN),
            "b1": (HIDDEN,),
            "W2": (HIDDEN, CLASSES),
            "b2": (CLASSES,),
        }
        self.weights = {name: random("float64", *shape).copy() for name, shape in shapes.items()}
        self.grads = {name: random("float64", *shape).copy() for name, shape in shapes.items()}
        self.rule.update(self.weights, self.grads)

    def time_update(self, rule):
        for _ in range(self.calls):
            self.rule.update(self.weights, self.grads)


class UpdateLayouts(PerCall):
    """A step of SGD along a gradient in any layout."""

    params = (LAYOUTS,)
    param_names = ("layout",)
    calls = 50

    def setup(self, layout):
        self.rule = find("fastgrad", "SGD")(1e-12)
        self.weights = {"W": random("float64", INPUTS, HIDDEN).copy()}
        self.grads = {"W": arrange(self.weights["W"], layout)}
        self.rule.update(self.weights, self.grads)

    def time_update(self, layout):
        for _ in range(self.calls):
            self.rule.update(self.weights, self.grads)


class Others(PerCall):
    """Functions and layers that share the kernels above, contiguous."""

    params = (
        [
            "sigmoid_grad",
            "relu_grad",
            "step_function",
            "sum_squared_error",
            "Relu",
            "Sigmoid",
            "Affine",
            "SoftmaxWithLoss",
            "BatchNormalization",
            "Dropout",
        ],
    )
    param_names = ("name",)
    calls = 100

    def setup(self, name):
        member = find("fastgrad", name)
        x = random("float64", BATCH, HIDDEN)
        if name == "Affine":
            self.layer = member(random("float64", HIDDEN, CLASSES), random("float64", CLASSES))
            args, dout = (x,), (random("float64", BATCH, CLASSES),)
        elif name == "SoftmaxWithLoss":
            self.layer = member()
            args, dout = (random("float64", BATCH, CLASSES), LABELS), ()
        elif name == "BatchNormalization":
            self.layer = member(random("float64", HIDDEN), random("float64", HIDDEN))
            args, dout = (x,), (x,)
        elif isinstance(member, type):
            self.layer = member()
            args, dout = (x,), (x,)
        else:
            args = (x, x[::-1].copy()) if name == "sum_squared_error" else (x,)
            self.call = lambda: member(*args)
            self.call()
            return

        def forward_and_backward():
            self.layer.forward(*args)
            self.layer.backward(*dout)

        self.call = forward_and_backward
        self.call()

    def time_call(self, name):
        for _ in range(self.calls):
            self.call()

    # `setup` learned of more layers, and the others are measured as before: their results stand.
    time_call.version = "bd77b48080a3eb4af7c69036e4ef17197cd57eb88284a66191f13f986631875b"


def loop(function):
    """Compile a loop over an array, as a kernel has it."""
    kernel = find("fastgrad.runtime.compile", "kernel")

    def loop_over(x, out):
        for i in range(x.size):
            out[i] = function(x[i])

    return kernel(loop_over)


class Elementary(PerCall):
    """The exponentials, vectorised by the compiler, over 5,000 numbers."""

    params = (["exp", "expm1"], DTYPES)
    param_names = ("function", "dtype")
    calls = 500
    loops = {}  # noqa: RUF012 - compiled once, however often asv calls `setup`

    def setup(self, function, dtype):
        if function not in self.loops:
            self.loops[function] = loop(find("fastgrad.kernels.elementary", function))
        self.function = self.loops[function]
        self.x = random(dtype, BATCH * HIDDEN)
        self.out = self.x.copy()
        self.function(self.x, self.out)

    def time_call(self, function, dtype):
        for _ in range(self.calls):
            self.function(self.x, self.out)
