"""Step function, sigmoid and ReLU (*Deep Learning from Scratch*, figures 3-6 to 3-9)."""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fastgrad import relu, relu_grad, sigmoid, sigmoid_grad, step_function


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="pictures/activations.png", metavar="FILE.png")
    options = parser.parse_args()

    x = np.linspace(-5, 5, 501)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(x, sigmoid(x), label="sigmoid")
    left.plot(x, step_function(x), "--", label="step function")
    left.set_title("Sigmoid and step function")
    middle.plot(x, relu(x), color="tab:green", label="ReLU")
    middle.set_title("ReLU")
    right.plot(x, sigmoid_grad(x), label="of sigmoid")
    right.plot(x, relu_grad(x), color="tab:green", label="of ReLU")
    right.set_title("Their derivatives")
    for axes in (left, middle, right):
        axes.set_xlabel("x")
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left")
    Path(options.output).parent.mkdir(exist_ok=True)
    figure.savefig(options.output, dpi=100)
    print("drawn:", options.output)


if __name__ == "__main__":
    main()
