"""The headline: one training iteration on MNIST, by backpropagation and by numerical gradient.

Everything goes through the public API. These are the benchmarks that ``asv continuous`` judges.
"""

from .common import BATCH, CLASSES, DTYPES, HIDDEN, PerCall, find, images, network

#: Small steps: `fit` goes on from the weights it left, and speed must not depend on how far it got.
RATE = 1e-6


class Backpropagation(PerCall):
    """An iteration of `fit`: draw a batch, forward, backward, update.

    On 1,000 images, so that preparing the data, which `fit` does once, is a few hundredths.
    """

    params = ([50, 200], [100, 1000], DTYPES)
    param_names = ("hidden", "batch", "dtype")

    def setup(self, hidden, batch, dtype):
        self.calls = 50_000 // batch
        self.x, self.t = images(1000, dtype)
        self.net = network(hidden, dtype)
        self.net.fit(self.x, self.t, iterations=2, batch_size=batch, learning_rate=RATE, rng=0)

    def time_iteration(self, hidden, batch, dtype):
        self.net.fit(
            self.x, self.t, iterations=self.calls, batch_size=batch, learning_rate=RATE, rng=0
        )


class NumericalGradient(PerCall):
    """The gradient of all parameters by central differences, and a step along it."""

    params = ([50, 200], [100, 1000], DTYPES)
    param_names = ("hidden", "batch", "dtype")

    def setup(self, hidden, batch, dtype):
        self.calls = max(1, 2_000 // batch * 50 // hidden)
        self.x, self.t = images(batch, dtype)
        self.net = network(hidden, dtype)
        self.sgd = find("fastgrad", "SGD")(RATE)
        self.sgd.update(self.net.params, self.net.numerical_gradient(self.x, self.t))

    def time_iteration(self, hidden, batch, dtype):
        for _ in range(self.calls):
            self.sgd.update(self.net.params, self.net.numerical_gradient(self.x, self.t))


class FromPython(PerCall):
    """The same network used as the book's own scripts do, one call from Python at a time."""

    params = (DTYPES,)
    param_names = ("dtype",)
    calls = 50

    def setup(self, dtype):
        self.x, self.t = images(BATCH, dtype)
        self.net = network(HIDDEN, dtype)
        self.sgd = find("fastgrad", "SGD")(RATE)
        self.net.predict(self.x)
        self.net.loss(self.x, self.t)
        self.sgd.update(self.net.params, self.net.gradient(self.x, self.t))

    def time_gradient_and_update(self, dtype):
        for _ in range(self.calls):
            self.sgd.update(self.net.params, self.net.gradient(self.x, self.t))

    def time_predict(self, dtype):
        for _ in range(self.calls):
            self.net.predict(self.x)

    def time_loss(self, dtype):
        for _ in range(self.calls):
            self.net.loss(self.x, self.t)


class Paths(PerCall):
    """Iterations that take another way through the kernels than MNIST with one sigmoid layer."""

    params = (["no zeros", "relu", "soft targets", "three layers", "Adam", "numerical_gradient"],)
    param_names = ("path",)
    calls = 100

    def setup(self, path):
        self.x, self.t = images(1000, "float64")
        self.options = {"batch_size": BATCH, "learning_rate": RATE, "rng": 0}
        self.net = network(HIDDEN, "float64", activation="relu" if path == "relu" else "sigmoid")
        if path == "no zeros":
            self.x = self.x + 0.1
        elif path == "soft targets":
            one_hot = (self.t[:, None] == range(CLASSES)).astype("float64")
            self.t = 0.9 * one_hot + 0.1 / CLASSES
        elif path == "three layers":
            self.net = find("fastgrad", "MultiLayerNet")(self.x.shape[1], [HIDDEN, 20], CLASSES)
        elif path == "Adam":
            del self.options["learning_rate"]
            self.options["optimizer"] = find("fastgrad", "Adam")(RATE)
        elif path == "numerical_gradient":
            self.options["method"] = path
            self.calls = 10
        self.net.fit(self.x, self.t, iterations=2, **self.options)

    def time_iteration(self, path):
        self.net.fit(self.x, self.t, iterations=self.calls, **self.options)


class General(PerCall):
    """Numerical gradients that need the kernel for every depth and every step."""

    params = (["three layers", "a step of 1"],)
    param_names = ("case",)

    def setup(self, case):
        self.x, self.t = images(10, "float64")
        self.h = 1e-4
        if case == "three layers":
            self.net = find("fastgrad", "MultiLayerNet")(self.x.shape[1], [10, 10], CLASSES)
        else:
            self.net = network(10, "float64")
            self.h = 1.0
        self.net.numerical_gradient(self.x, self.t, self.h)

    def time_numerical_gradient(self, case):
        self.net.numerical_gradient(self.x, self.t, self.h)


class Preparation(PerCall):
    """What `fit` does once: it finds and packs the non-zero pixels of 10,000 images."""

    def setup(self):
        self.x, self.t = images(10_000, "float64")
        self.net = network(HIDDEN, "float64")
        self.net.fit(self.x, self.t, iterations=0)

    def time_fit_of_no_iterations(self):
        self.net.fit(self.x, self.t, iterations=0)
