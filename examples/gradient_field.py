"""The gradient of x0² + x1² as a field of arrows (*Deep Learning from Scratch*, figure 4-9).

The arrows show the negative gradient: the direction in which the function falls fastest.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fastgrad import numerical_gradient


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="pictures/gradient_field.png", metavar="FILE.png")
    options = parser.parse_args()

    points = np.stack(np.meshgrid(np.linspace(-2, 2, 17), np.linspace(-2, 2, 17)))
    # The sum of x0² + x1² over all points: its gradient holds the gradient at each of them.
    gradient = numerical_gradient(lambda x: np.sum(x**2), points)

    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    axes.quiver(*points, *-gradient, angles="xy", color="dimgray")
    axes.set(xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), xlabel="x0", ylabel="x1", aspect="equal")
    axes.set_title("The negative gradient of x0² + x1²")
    axes.grid(alpha=0.4)
    Path(options.output).parent.mkdir(exist_ok=True)
    figure.savefig(options.output, dpi=120)
    print("drawn:", options.output)


if __name__ == "__main__":
    main()
