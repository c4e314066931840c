"""Measure what `fastgrad.numerical_gradient` promises: ``python benchmarks/differences.py``.

Speed against the loop in Python and SciPy, the cost of a new compiled function, errors, and the
facts that the book states. Exits with 1 if a figure misses its goal.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import numba
import numpy as np
from numba import njit

from fastgrad.numdiff.gradients import gradient_descent, numerical_diff, numerical_gradient

if __package__:  # imported as a part of the folder, by asv, which imports every file
    from . import measuring, reports, textbook
else:
    import measuring
    import reports
    import textbook


compiled_rosenbrock = njit(textbook.rosenbrock_loop)


def rosenbrock_gradient(x):
    bend = x[1:] - x[:-1] ** 2
    gradient = np.zeros_like(x)
    gradient[:-1] = -400.0 * x[:-1] * bend - 2.0 * (1.0 - x[:-1])
    gradient[1:] += 200.0 * bend
    return gradient


def new_function(factor: float) -> Any:
    """Compile the Rosenbrock function anew, with a constant of its own."""

    @njit
    def f(x):
        total = 0.0
        for i in range(x.size - 1):
            total += factor * (x[i + 1] - x[i] * x[i]) ** 2 + (1.0 - x[i]) ** 2
        return total

    return f


def cost_of_a_new_function(x: np.ndarray, rounds: int) -> tuple[float, float]:
    """Return the largest time beyond the compilation of f itself, and that of a compilation."""
    beyond, compiling = [], []
    for i in range(rounds):
        f = new_function(100.0 + i)
        start = time.perf_counter()
        f(x)
        compiled = time.perf_counter()
        numerical_gradient(f, x)
        beyond.append(time.perf_counter() - compiled)
        compiling.append(compiled - start)
    return max(beyond), statistics.median(compiling)


def accuracy() -> dict[str, float]:
    """Return the largest error of each function, relative to the gradient's largest entry."""
    x = np.random.default_rng(0).uniform(-2, 2, 10)
    cases = {
        "exp": (lambda x: np.sum(np.exp(x)), np.exp),
        "sin": (lambda x: np.sum(np.sin(x)), np.cos),
        "Rosenbrock": (textbook.rosenbrock, rosenbrock_gradient),
        "log-sum-exp": (
            lambda x: np.log(np.sum(np.exp(x))),
            lambda x: np.exp(x) / np.sum(np.exp(x)),
        ),
    }
    errors = {}
    for name, (f, gradient) in cases.items():
        true = gradient(x)
        found = numerical_gradient(f, x, "auto", order=4)
        errors[name] = float(np.max(np.abs(found - true)) / np.max(np.abs(true)))
    return errors


def book_facts() -> dict[str, tuple[float, float]]:
    """Return the error of each fact that the book states, and what is allowed."""

    def function_1(x):
        return 0.01 * x**2 + 0.1 * x

    def function_2(x):
        return x[0] ** 2 + x[1] ** 2

    facts = {
        "numerical_diff at 5": (abs(numerical_diff(function_1, 5) - 0.2), 1e-9),
        "numerical_diff at 10": (abs(numerical_diff(function_1, 10) - 0.3), 1e-9),
    }
    for point, gradient in (((3, 4), (6, 8)), ((0, 2), (0, 4)), ((3, 0), (6, 0))):
        found = numerical_gradient(function_2, np.array(point))
        facts[f"numerical_gradient at {point}"] = (np.max(np.abs(found - gradient)), 1e-9)
    found = gradient_descent(function_2, np.array([-3.0, 4.0]), lr=0.1, step_num=100)
    facts["gradient_descent"] = (np.max(np.abs(found - [-6.11110793e-10, 8.14814391e-10])), 1e-12)
    return {name: (float(error), goal) for name, (error, goal) in facts.items()}


def main() -> int:
    settings = reports.options(__doc__ or "", rounds=5).parse_args()
    measuring.limit_threads(settings.threads)
    reports.machine()

    from scipy.optimize._numdiff import approx_derivative  # asv's environments have no SciPy

    x = np.random.default_rng(0).normal(size=1000)
    goals = reports.Goals(settings)
    ours = measuring.calls(numerical_gradient, compiled_rosenbrock, x)
    loop = measuring.calls(textbook.central_differences, compiled_rosenbrock, x)
    for threads, goal in ((1, 1.3), (2, 2.3)):
        if threads <= numba.config.NUMBA_NUM_THREADS:
            what = f"njit f, against the loop in Python, {threads} thread(s)"
            goals.speed_up(what, measuring.with_threads(ours, threads), loop, goal)
    scipys = measuring.calls(lambda: approx_derivative(textbook.rosenbrock, x, method="3-point"))
    goals.speed_up("njit f, against SciPy's 3-point in NumPy, all threads", ours, scipys, 20)
    beyond, compiling = cost_of_a_new_function(x, 5)
    what, note = "a new njit f, seconds beyond its compilation", f"which takes {compiling:.2f} s"
    goals.add(what, beyond, 0.3, at_most=True, note=note)
    for name, error in accuracy().items():
        goals.add(f"error of {name}, order=4, h='auto'", error, 1e-11, at_most=True)
    for name, (error, goal) in book_facts().items():
        goals.add(f"book: error of {name}", error, goal, at_most=True)
    return goals.finish()


if __name__ == "__main__":
    sys.exit(main())
