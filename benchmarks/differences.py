"""Measure what `fastgrad.numerical_gradient` promises: ``python benchmarks/differences.py``.

Timings are taken in turn, A B A B, in one process, each after its threads have settled, and the
median of the ratios counts. In brackets stands the ratio of the fastest runs: where it is far from
the other, the machine was busy. Exits with 1 if a figure misses its goal.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import njit

from fastgrad.gradients import gradient_descent, numerical_diff, numerical_gradient

if __package__:  # imported as a part of the folder, by asv, which imports every file
    from . import measuring, textbook
else:
    import measuring
    import textbook


compiled_rosenbrock = njit(textbook.rosenbrock_loop)


def rosenbrock_gradient(x):
    bend = x[1:] - x[:-1] ** 2
    gradient = np.zeros_like(x)
    gradient[:-1] = -400.0 * x[:-1] * bend - 2.0 * (1.0 - x[:-1])
    gradient[1:] += 200.0 * bend
    return gradient


def ratio(slow: Callable[[], Any], fast: Callable[[], Any], rounds: int) -> tuple[float, str]:
    """Return the median of the ratios, and the times in words."""
    sides = {"slow": measuring.calls(slow), "fast": measuring.calls(fast)}
    times = measuring.in_turn(sides, rounds)
    rows = {row["name"]: row for row in measuring.summary(times, "fast")}
    slow_row, fast_row = rows["slow"], rows["fast"]
    note = (
        f"{measuring.seconds(slow_row['median_s'])} / {measuring.seconds(fast_row['median_s'])} "
        f"({slow_row['min_s'] / fast_row['min_s']:.2f})"
    )
    return slow_row["ratio"], note


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="how often each side has its turn")
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()

    from scipy.optimize._numdiff import approx_derivative  # asv's environments have no SciPy

    x = np.random.default_rng(0).normal(size=1000)
    scipy_jacobian = lambda: approx_derivative(textbook.rosenbrock, x, method="3-point")  # noqa: E731
    figures: list[dict[str, Any]] = []

    def report(what: str, value: float, goal: float, *, at_least: bool, note: str = "") -> None:
        met = value >= goal if at_least else value <= goal
        figures.append({"what": what, "value": value, "goal": goal, "met": bool(met)})
        sign = ">=" if at_least else "<="
        print(f"{what:<58}{value:>10.3g} {sign} {goal:<8g}{'ok' if met else 'MISSED':<8}{note}")

    print(measuring.describe(measuring.machine(["numpy", "numba", "fastgrad"])), end="\n\n")
    for count, goal in ((1, 1.3), (2, 2.3)):
        if count > numba.config.NUMBA_NUM_THREADS:
            continue
        numba.set_num_threads(count)
        ours = lambda: numerical_gradient(compiled_rosenbrock, x)  # noqa: E731
        value, note = ratio(
            lambda: textbook.central_differences(compiled_rosenbrock, x), ours, options.rounds
        )
        what = f"njit f, against the loop in Python, {count} thread(s)"
        report(what, value, goal, at_least=True, note=note)
        if count == 2:
            value, note = ratio(scipy_jacobian, ours, options.rounds)
            what = "njit f, against SciPy's 3-point in NumPy, 2 threads"
            report(what, value, 20, at_least=True, note=note)
    numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    beyond, compiling = cost_of_a_new_function(x, 5)
    report(
        "a new njit f, seconds beyond its compilation", beyond, 0.3, at_least=False,
        note=f"its compilation: {compiling:.2f} s",
    )  # fmt: skip
    for name, error in accuracy().items():
        report(f"error of {name}, order=4, h='auto'", error, 1e-11, at_least=False)
    for name, (error, goal) in book_facts().items():
        report(f"book: error of {name}", error, goal, at_least=False)

    if options.json:
        measuring.write_json(options.json, figures)
    return 0 if all(figure["met"] for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
