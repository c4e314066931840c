"""The book's scripts: an iteration as chapters 4, 5 and 6 write it, and a class typed by hand."""

import numpy as np

from .common import BATCH, CLASSES, HIDDEN, INPUTS, PerCall, find, images, ratio

#: Of the optimizers: small, for the speed must not depend on how far training got.
RATE = 1e-6


def softmax(a):
    e = np.exp(a - np.max(a, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def cross_entropy_error(y, t):
    return -np.sum(np.log(y[np.arange(len(y)), t] + 1e-7)) / len(y)


class ByHand:
    """The exercise as a reader types it: hidden layers in `sizes`, sigmoid or ReLU."""

    def __init__(self, *sizes, relu=False):
        rng = np.random.default_rng(0)
        self.params, self.relu, self.last = {}, relu, len(sizes) - 1
        for n in range(1, len(sizes)):
            scale = 0.01 if self.last == 2 else np.sqrt(2 / sizes[n - 1])
            self.params[f"W{n}"] = scale * rng.standard_normal((sizes[n - 1], sizes[n]))
            self.params[f"b{n}"] = np.zeros(sizes[n])

    def forward(self, x):
        outputs = [x]
        for n in range(1, self.last + 1):
            a = np.dot(outputs[-1], self.params[f"W{n}"]) + self.params[f"b{n}"]
            if n == self.last:
                return outputs, softmax(a)
            outputs.append(np.maximum(0, a) if self.relu else 1 / (1 + np.exp(-a)))
        raise AssertionError

    def loss(self, x, t):
        return cross_entropy_error(self.forward(x)[1], t)

    def accuracy(self, x, t):
        return np.mean(np.argmax(self.forward(x)[1], axis=1) == t)

    def gradient(self, x, t):
        outputs, y = self.forward(x)
        dout, grads = y.copy(), {}
        dout[np.arange(len(x)), t] -= 1
        dout /= len(x)
        for n in range(self.last, 0, -1):
            z = outputs[n - 1]
            grads[f"W{n}"], grads[f"b{n}"] = np.dot(z.T, dout), np.sum(dout, axis=0)
            if n > 1:
                dout = np.dot(dout, self.params[f"W{n}"].T)
                dout *= (z > 0) if self.relu else z * (1 - z)
        return grads


def networks(chapter):
    """Return a served network as the chapter's script has it, and the same in NumPy."""
    if chapter == "4":
        return find("fastgrad", "TwoLayerNet")(INPUTS, HIDDEN, CLASSES), ByHand(
            INPUTS, HIDDEN, CLASSES
        )
    if chapter == "5":
        return find("fastgrad.book", "LayeredTwoLayerNet")(INPUTS, HIDDEN, CLASSES), ByHand(
            INPUTS, HIDDEN, CLASSES, relu=True
        )
    hidden = [100, 100, 100, 100]
    return find("fastgrad.book", "LayeredMultiLayerNet")(INPUTS, hidden, CLASSES), ByHand(
        INPUTS, *hidden, CLASSES, relu=True
    )


class Script(PerCall):
    """An iteration: draw a batch, gather it, gradient, update in NumPy, loss."""

    params = (["4", "5", "6"],)
    param_names = ("chapter",)
    calls = 50

    def setup(self, chapter):
        self.x, t = images(1000, "float32")
        self.t = t.astype(np.uint8)
        self.ours, self.plain = networks(chapter)
        self.rng = np.random.default_rng(0)
        self.iterate(self.ours)

    def iterate(self, net):
        mask = self.rng.choice(len(self.x), BATCH)
        x_batch, t_batch = self.x[mask], self.t[mask]
        grads = net.gradient(x_batch, t_batch)
        for key in net.params:
            net.params[key] -= RATE * grads[key]
        return net.loss(x_batch, t_batch)

    def time_iteration(self, chapter):
        for _ in range(self.calls):
            self.iterate(self.ours)

    def track_iteration_against_numpy(self, chapter):
        return ratio(lambda: self.iterate(self.plain), lambda: self.iterate(self.ours))

    track_iteration_against_numpy.unit = "times faster"


class Recognised(PerCall):
    """One numerical gradient of a network typed by hand, through recognition."""

    calls = 5

    def setup(self):
        gradient = find("fastgrad.book.gradients", "numerical_gradient")
        self.net = net = ByHand(INPUTS, HIDDEN, CLASSES)
        x, t = images(BATCH, "float32")

        def loss(_):
            return net.loss(x, t)

        self.loss = lambda: loss(None)
        self.gradient = lambda: [gradient(loss, W) for W in net.params.values()]
        self.gradient()

    def time_gradient(self):
        for _ in range(self.calls):
            self.gradient()

    def track_gradient_against_the_loop(self):
        """By the time of the loop's evaluations; it would take a minute."""
        evaluations = 2 * sum(W.size for W in self.net.params.values())
        return evaluations * ratio(self.loss, self.gradient)

    track_gradient_against_the_loop.unit = "times faster"


class Accuracy(PerCall):
    """The accuracy over as many images as there are to train with."""

    params = (["4", "5", "6"],)
    param_names = ("chapter",)
    calls = 1

    def setup(self, chapter):
        x, t = images(1000, "float32")
        self.x, self.t = np.tile(x, (60, 1)), np.tile(t, 60)
        self.ours, self.plain = networks(chapter)
        self.ours.accuracy(self.x, self.t)

    def time_accuracy(self, chapter):
        self.ours.accuracy(self.x, self.t)

    def track_accuracy_against_numpy(self, chapter):
        return ratio(
            lambda: self.plain.accuracy(self.x[:2000], self.t[:2000]),
            lambda: self.ours.accuracy(self.x[:2000], self.t[:2000]),
        )

    track_accuracy_against_numpy.unit = "times faster"
