"""A function and its tangents at x = 5 and x = 10 (*Deep Learning from Scratch*, 4-6 and 4-7)."""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fastgrad import numerical_diff


def function_1(x):
    return 0.01 * x**2 + 0.1 * x


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="pictures/tangents.png", metavar="FILE.png")
    options = parser.parse_args()

    grid = np.arange(0.0, 20.0, 0.1)
    figure = Figure(figsize=(12, 4), layout="constrained")
    for axes, x in zip(figure.subplots(1, 3, sharey=True), (None, 5, 10), strict=True):
        axes.plot(grid, function_1(grid), label="0.01 x² + 0.1 x")
        if x is not None:
            slope = numerical_diff(function_1, x)
            axes.plot(grid, function_1(x) + slope * (grid - x), label=f"slope {slope:.6f}")
            axes.plot(x, function_1(x), "o", color="black")
        axes.set(xlabel="x", title="f(x)" if x is None else f"tangent at x = {x}")
        axes.legend(loc="upper left")
    figure.axes[0].set_ylabel("f(x)")
    Path(options.output).parent.mkdir(exist_ok=True)
    figure.savefig(options.output, dpi=120)
    print("drawn:", options.output)


if __name__ == "__main__":
    main()
