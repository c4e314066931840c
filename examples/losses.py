"""Squared error and cross entropy by hand (*Deep Learning from Scratch*, 4.2 and figure 4-3)."""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fastgrad import cross_entropy_error, sum_squared_error


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="pictures/losses.png", metavar="FILE.png")
    options = parser.parse_args()

    t = np.array([0, 0, 1, 0, 0, 0, 0, 0, 0, 0])  # the right answer is 2
    for guess, y in (
        (2, np.array([0.1, 0.05, 0.6, 0.0, 0.05, 0.1, 0.0, 0.1, 0.0, 0.0])),
        (7, np.array([0.1, 0.05, 0.1, 0.0, 0.05, 0.1, 0.0, 0.6, 0.0, 0.0])),
    ):
        print(
            f"most probable {guess}: squared error {sum_squared_error(y, t):.4f}, "
            f"cross entropy {cross_entropy_error(y, t):.12f}"
        )
    batch = np.array([[0.1, 0.9], [0.8, 0.2]])
    print("a batch, by labels: ", cross_entropy_error(batch, np.array([1, 0])))
    print("a batch, by one-hot:", cross_entropy_error(batch, np.array([[0, 1], [1, 0]])))

    p = np.linspace(0.005, 1, 400)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(p, [cross_entropy_error([q, 1 - q], [1.0, 0.0]) for q in p], label="cross entropy")
    axes.plot(
        p, [sum_squared_error([q, 1 - q], [1.0, 0.0]) for q in p], "--", label="squared error"
    )
    axes.set(xlabel="probability given to the right one of two classes", ylabel="loss")
    axes.set_title("What a wrong answer costs")
    axes.grid(alpha=0.3)
    axes.legend()
    Path(options.output).parent.mkdir(exist_ok=True)
    figure.savefig(options.output, dpi=100)
    print("drawn:", options.output)


if __name__ == "__main__":
    main()
