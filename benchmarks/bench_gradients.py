"""`numerical_gradient` of Python and compiled functions, over the number of variables."""

from __future__ import annotations

import functools

import numpy as np

from .common import PerCall, find, ratio
from .textbook import central_differences as textbook
from .textbook import rosenbrock, rosenbrock_loop


@functools.cache
def function(kind):
    """Return the same function in Python or compiled; once, however often asv calls `setup`."""
    if kind == "python":
        return rosenbrock
    from numba import njit

    return njit(rosenbrock_loop)


class NumericalGradient(PerCall):
    params = (["python", "njit"], [2, 50, 1000])
    param_names = ("f", "variables")

    def setup(self, kind, variables):
        self.numerical_gradient = find("fastgrad", "numerical_gradient")
        self.f = function(kind)
        self.x = np.random.default_rng(0).normal(size=variables)
        self.calls = max(1, (1000 if kind == "njit" else 200) // variables)
        self.time_order_2(kind, variables)

    def time_order_2(self, kind, variables):
        for _ in range(self.calls):
            self.numerical_gradient(self.f, self.x)


class Options(PerCall):
    """Other ways to the gradient of 100 variables."""

    params = (["python", "njit"], ["float32", "order 4 with error"])
    param_names = ("f", "option")

    def setup(self, kind, option):
        self.numerical_gradient = find("fastgrad", "numerical_gradient")
        self.f = function(kind)
        self.x = np.random.default_rng(0).normal(size=100)
        self.calls = 10 if kind == "njit" else 1
        self.h, self.options = "auto", {"order": 4, "error": True}
        if option == "float32":
            self.x = self.x.astype(np.float32)
            self.h, self.options = 1e-4, {}
        self.time_call(kind, option)

    def time_call(self, kind, option):
        for _ in range(self.calls):
            self.numerical_gradient(self.f, self.x, self.h, **self.options)


class PeakMemory:
    """Of the whole process, with Python and Numba."""

    params = (["python", "njit"],)
    param_names = ("f",)

    def setup(self, kind):
        self.numerical_gradient = find("fastgrad", "numerical_gradient")
        self.x = np.random.default_rng(0).normal(size=1000)

    def peakmem_order_2(self, kind):
        self.numerical_gradient(function(kind), self.x)


class SeveralOutputs(PerCall):
    """A Jacobian of 20 outputs by 10 entries, and a Hessian by 10 entries."""

    def setup(self):
        self.jacobian, self.hessian = find("fastgrad", "numerical_jacobian", "numerical_hessian")
        rng = np.random.default_rng(0)
        self.x, self.A = rng.normal(size=10), rng.normal(size=(20, 10))
        self.time_jacobian()
        self.time_hessian()

    def time_jacobian(self):
        self.jacobian(lambda x: np.tanh(self.A @ x), self.x)

    def time_hessian(self):
        self.hessian(lambda x: np.sum(np.tanh(self.A @ x)), self.x)


class CheckGradient(PerCall):
    def setup(self):
        gradient, self.check_gradient = find("fastgrad", "numerical_gradient", "check_gradient")
        self.f = function("njit")
        self.x = np.random.default_rng(0).normal(size=1000)
        self.gradient = gradient(self.f, self.x, "auto", order=4)
        self.time_check_gradient()

    def time_check_gradient(self):
        self.check_gradient(self.f, self.gradient, self.x)


class CheckBackward(PerCall):
    """A layer's backward pass, by the gradients of its 10 inputs and 55 parameters."""

    def setup(self):
        self.check_backward, affine = find("fastgrad", "check_backward", "Affine")
        rng = np.random.default_rng(0)
        self.layer = affine(rng.normal(size=(10, 5)), rng.normal(size=5))
        self.x = rng.normal(size=(1, 10))
        self.time_check_backward()

    def backward(self, dout):
        dx = self.layer.backward(dout)
        return dx, {"W": self.layer.dW, "b": self.layer.db}

    def time_check_backward(self):
        parameters = {"W": self.layer.W, "b": self.layer.b}
        self.check_backward(self.layer.forward, self.backward, self.x, parameters)


class SpeedUp:
    """How many times faster than the book's loop, with the same function; taken in turn."""

    params = (["python", "njit"],)
    param_names = ("f",)
    unit = "x"

    def setup(self, kind):
        self.numerical_gradient = find("fastgrad", "numerical_gradient")
        self.f = function(kind)
        self.x = np.random.default_rng(0).normal(size=1000)
        self.numerical_gradient(self.f, self.x)

    def track_over_the_textbook_loop(self, kind):
        return ratio(
            lambda: textbook(self.f, self.x), lambda: self.numerical_gradient(self.f, self.x)
        )


def compiled_driver():
    """Return the compiled loop over the variables of a user's compiled function."""
    try:
        return find("fastgrad.kernels.user_function", "evaluate_perturbed")
    except NotImplementedError:
        return find("fastgrad.kernels.user_function", "evaluate_nudged")  # its former name


class Compilations:
    unit = "compilations"

    def setup(self):
        find("fastgrad", "numerical_gradient")
        compiled_driver()

    def track_for_a_second_function(self):
        """Count what is compiled of the driver for another function of the same types."""
        from numba import njit

        gradient = find("fastgrad", "numerical_gradient")
        evaluate_perturbed = compiled_driver()
        x = np.ones(10)
        gradient(njit(rosenbrock_loop), x)
        before = len(evaluate_perturbed.signatures)
        gradient(njit(rosenbrock_loop), x)
        return len(evaluate_perturbed.signatures) - before

    # What is counted is the same as before the file had another name, so earlier results stand.
    track_for_a_second_function.version = (
        "36337486647137eef5be83033304611f382ddac08036ceddb512a4f3e76363c5"
    )
