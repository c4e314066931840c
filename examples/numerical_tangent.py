"""The true and the numerical tangent (*Deep Learning from Scratch*, figure 4-5).

The numerical derivative is the slope of the line through two points of the curve, a little apart;
the true one is the slope of the tangent. Drawn here with a step as large as in the book's figure,
so that the two can be told apart, and with the central difference, which is far closer.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fastgrad import numerical_diff


def curve(x):
    return 0.15 * x**3 - 0.4 * x**2 + 0.6 * x + 1.0


def slope(x):
    return 0.45 * x**2 - 0.8 * x + 0.6


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="pictures/numerical_tangent.png", metavar="FILE.png")
    options = parser.parse_args()

    x, h = 2.2, 1.2
    grid = np.linspace(0, 4.2, 200)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(grid, curve(grid), color="black", label="f(x)")
    for name, derivative, style in (
        ("true tangent", slope(x), {"color": "tab:green"}),
        (
            "forward: (f(x + h) − f(x)) / h",
            (curve(x + h) - curve(x)) / h,
            {"color": "tab:red", "linestyle": "--"},
        ),
        (
            "central: (f(x + h) − f(x − h)) / 2h",
            numerical_diff(curve, x, h),
            {"color": "tab:blue", "linestyle": "-."},
        ),
    ):
        axes.plot(
            grid, curve(x) + derivative * (grid - x), label=f"{name}, {derivative:.3f}", **style
        )
    for place, text in ((x - h, "x − h"), (x, "x"), (x + h, "x + h")):
        axes.plot([place, place], [-1, curve(place)], color="gray", linewidth=0.8, linestyle=":")
        axes.plot(place, curve(place), "o", color="black", markersize=4)
        axes.annotate(text, (place, -1), xytext=(4, 4), textcoords="offset points")
    axes.set(xlim=(0, 4.2), ylim=(-1, 9), xlabel="x", ylabel="f(x)")
    axes.set_title(f"The true and the numerical tangent at x = {x}, h = {h}")
    axes.legend()
    Path(options.output).parent.mkdir(exist_ok=True)
    figure.savefig(options.output, dpi=120)
    print("drawn:", options.output)


if __name__ == "__main__":
    main()
