"""A loss written in NumPy, evaluated at all points at once, against the loop."""

from __future__ import annotations

import numpy as np

from .common import PerCall, find, ratio

#: Pixels of a sample: the loop takes fifty milliseconds.
PIXELS = 8


def loss(x, t, params):
    """Return the loss of a network as a reader of the book types it."""
    z = 1 / (1 + np.exp(-(np.dot(x, params["W1"]) + params["b1"])))
    a = np.dot(z, params["W2"]) + params["b2"]
    e = np.exp(a - np.max(a, axis=1, keepdims=True))
    y = e / np.sum(e, axis=1, keepdims=True)
    return -np.sum(np.log(y[np.arange(len(t)), t] + 1e-7)) / len(t)


class Batched(PerCall):
    """The gradient by W1 of a network with 50 hidden units, on 100 samples."""

    params = (["sparse", "dense"],)
    param_names = ("samples",)

    def setup(self, samples):
        self.numerical_gradient = find("fastgrad", "numerical_gradient")
        rng = np.random.default_rng(0)
        x, t = rng.random((100, PIXELS)), rng.integers(0, 10, 100)
        if samples == "sparse":  # as many zeros as MNIST has
            x[rng.random(x.shape) < 0.8] = 0
        params = {
            "W1": 0.1 * rng.normal(size=(PIXELS, 50)), "b1": np.zeros(50),
            "W2": 0.1 * rng.normal(size=(50, 10)), "b2": np.zeros(10),
        }  # fmt: skip
        self.f = lambda _: loss(x, t, params)
        self.x = params["W1"]
        self.calls = 1
        self.time_gradient(samples)

    def time_gradient(self, samples):
        self.numerical_gradient(self.f, self.x, batched=True)

    def time_gradient_looped(self, samples):
        self.numerical_gradient(self.f, self.x, batched=False)

    def track_ratio_to_the_loop(self, samples):
        return ratio(
            lambda: self.time_gradient_looped(samples), lambda: self.time_gradient(samples)
        )

    track_ratio_to_the_loop.unit = "times"
