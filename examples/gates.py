"""Logic gates from perceptrons (*Deep Learning from Scratch*, chapter 2, figures 2-6 to 2-8).

A single perceptron draws a straight line, which is enough for AND, NAND and OR. XOR needs two
layers.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fastgrad import step_function

INPUTS = np.array([[0, 0], [1, 0], [0, 1], [1, 1]])


def perceptron(x, w, b):
    return step_function(np.dot(x, w) + b)


def AND(x):  # noqa: N802
    return perceptron(x, np.array([0.5, 0.5]), -0.7)


def NAND(x):  # noqa: N802
    return perceptron(x, np.array([-0.5, -0.5]), 0.7)


def OR(x):  # noqa: N802
    return perceptron(x, np.array([0.5, 0.5]), -0.2)


def XOR(x):  # noqa: N802
    return AND(np.stack([NAND(x), OR(x)], axis=-1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="pictures/gates.png", metavar="FILE.png")
    options = parser.parse_args()

    gates = (AND, NAND, OR, XOR)
    print("x1 x2  " + "  ".join(f"{gate.__name__:>4}" for gate in gates))
    for x in INPUTS:
        print(f"{x[0]:2} {x[1]:2}  " + "  ".join(f"{int(gate(x)):4}" for gate in gates))

    grid = np.linspace(-0.5, 1.5, 400)
    plane = np.stack(np.meshgrid(grid, grid), axis=-1)
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    for axes, gate in zip(figure.subplots(1, 4), gates, strict=True):
        axes.contourf(grid, grid, gate(plane), levels=[-0.5, 0.5, 1.5], colors=["white", "0.85"])
        output = gate(INPUTS)
        for value, marker in ((0, "o"), (1, "^")):
            axes.plot(*INPUTS[output == value].T, marker, color="black", label=f"output {value}")
        axes.set(title=gate.__name__, xlabel="x1", ylabel="x2", aspect="equal")
        axes.set(xticks=[0, 1], yticks=[0, 1])
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    Path(options.output).parent.mkdir(exist_ok=True)
    figure.savefig(options.output, dpi=100)
    print("drawn:", options.output)


if __name__ == "__main__":
    main()
