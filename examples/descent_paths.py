"""Gradient descent with three learning rates (*Deep Learning from Scratch*, figure 4-10)."""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fastgrad import gradient_descent


def function_2(x):
    return x[0] ** 2 + x[1] ** 2


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="pictures/descent_paths.png", metavar="FILE.png")
    options = parser.parse_args()

    start = np.array([-3.0, 4.0])
    grid = np.linspace(-5, 5, 200)
    height = function_2(np.stack(np.meshgrid(grid, grid)))
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    for axes, (lr, verdict) in zip(
        figure.subplots(1, 3),
        ((0.1, "arrives"), (10.0, "diverges"), (1e-10, "stands still")),
        strict=True,
    ):
        x, history = gradient_descent(function_2, start, lr=lr, step_num=100, return_history=True)
        axes.contour(grid, grid, height, levels=np.arange(1, 8) ** 2, colors="silver")
        drawn = history[np.all(np.abs(history) < 1e3, axis=1)]
        axes.plot(*drawn.T, "o-", markersize=4, linewidth=0.8)
        axes.plot(*start, "s", color="black", label="start (−3, 4)")
        axes.plot(0, 0, "+", color="tab:red", markersize=12, label="minimum")
        axes.set(xlim=(-5, 5), ylim=(-5, 5), xlabel="x0", ylabel="x1", aspect="equal")
        axes.set_title(f"lr = {lr:g}: {verdict}\nafter 100 steps ({x[0]:.3g}, {x[1]:.3g})")
        axes.legend(loc="lower left")
    Path(options.output).parent.mkdir(exist_ok=True)
    figure.savefig(options.output, dpi=120)
    print("drawn:", options.output)


if __name__ == "__main__":
    main()
