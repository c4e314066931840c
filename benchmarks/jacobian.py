"""Compare `numerical_jacobian` with JAX's Jacobians, and with numdifftools, on twenty functions.

``python benchmarks/jacobian.py`` needs JAX, whose results are exact to rounding, and numdifftools.
An error is relative to the largest element of the Jacobian.
"""

from __future__ import annotations

import time

import numpy as np

import fastgrad

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 5, 4))
X = RNG.normal(size=4)
POSITIVE = np.abs(X) + 0.3

#: Each function takes the module of NumPy's functions, then x.
FUNCTIONS = {
    "linear": (lambda m, x: A @ x, X),
    "sin": (lambda m, x: m.sin(A @ x), X),
    "exp": (lambda m, x: m.exp(A @ x), X),
    "tanh": (lambda m, x: m.tanh(A @ x), X),
    "log": (lambda m, x: m.log(x), POSITIVE),
    "sqrt": (lambda m, x: m.sqrt(x), POSITIVE),
    "quotients": (lambda m, x: x / x[::-1], POSITIVE),
    "powers": (lambda m, x: x**3.5, POSITIVE),
    "outer product": (lambda m, x: m.outer(x, x), X),
    "softmax": (lambda m, x: m.exp(A @ x) / m.sum(m.exp(A @ x)), X),
    "sigmoid layer": (lambda m, x: B.T @ (1 / (1 + m.exp(-(A @ x)))), X),
    "two layers": (lambda m, x: m.tanh(B.T @ m.tanh(A @ x)), X),
    "norm": (lambda m, x: x / m.sqrt(m.sum(x**2)), X),
    "polar": (lambda m, x: x[0] * m.stack([m.cos(x[1]), m.sin(x[1])]), X),
    "Rosenbrock residuals": (lambda m, x: m.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]]), X),
    "Runge": (lambda m, x: 1 / (1 + 25 * x**2), X),
    "waves": (lambda m, x: m.sin(20 * x), X),
    "decays": (lambda m, x: x[0] * m.exp(-x[1] * np.linspace(0, 3, 20)) + x[2], POSITIVE),
    "Gauss": (lambda m, x: m.exp(-(m.outer(x, x) ** 2)), X),
    "logistic growth": (lambda m, x: x[0] / (1 + x[1] * m.exp(-x[2] * np.arange(8.0))), POSITIVE),
}


class Counted:
    """A function that counts its evaluations."""

    def __init__(self, f):
        self.f = f
        self.calls = 0

    def __call__(self, x):
        """Evaluate it."""
        self.calls += 1
        return self.f(np, np.asarray(x))


def shortest(call, repeats=3):
    """Return the result of a call, and its shortest time in milliseconds."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - begin)
    return result, 1e3 * min(times)


def main():
    """Print a row for each function."""
    import jax
    import jax.numpy as jnp
    import numdifftools

    jax.config.update("jax_enable_x64", True)
    print(f"{'':22}   error: auto     numdifftools   evaluations      ms")
    rows = []
    for name, (f, x) in FUNCTIONS.items():
        exact = np.asarray(jax.jacobian(lambda x, f=f: f(jnp, x))(jnp.asarray(x)))
        ours, theirs = Counted(f), Counted(lambda m, x, f=f: np.ravel(f(m, x)))
        first, ms = shortest(lambda: fastgrad.numerical_jacobian(ours, x.copy(), "auto"))  # noqa: B023
        second, other_ms = shortest(lambda: numdifftools.Jacobian(theirs)(x.copy()))  # noqa: B023
        scale = np.abs(exact).max()
        errors = (
            np.abs(first - exact).max() / scale,
            np.abs(second.reshape(exact.shape) - exact).max() / scale,
        )
        rows.append((*errors, ours.calls // 3, theirs.calls // 3, ms, other_ms))
        print(f"{name:22} {errors[0]:12.1e} {errors[1]:14.1e}", end="")
        print(f" {rows[-1][2]:7} {rows[-1][3]:5} {ms:8.2f} {other_ms:7.2f}")
    worst, median = np.max(rows, axis=0), np.median(rows, axis=0)
    print("largest", *(f"{v:.3g}" for v in worst))
    print("median ", *(f"{v:.3g}" for v in median))


if __name__ == "__main__":
    main()
