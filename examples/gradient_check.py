"""Check backpropagation with numerical gradients (*Deep Learning from Scratch*, section 5.7.3)."""

import argparse
from pathlib import Path

import numpy as np

from fastgrad import TwoLayerNet, load_mnist


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="pictures/gradient_check.png", metavar="FILE.png")
    options = parser.parse_args()

    (x, t), _ = load_mnist(one_hot_label=True)
    x, t = x[:3], t[:3]
    net = TwoLayerNet(784, 50, 10, rng=0)

    # As in the book: the mean difference of each array.
    numerical, backpropagation = net.numerical_gradient(x, t), net.gradient(x, t)
    for name in numerical:
        print(f"{name}: {np.average(np.abs(backpropagation[name] - numerical[name])):.2e}")

    # In one call, with a verdict.
    check = net.check_gradient(x, t)
    print(check)
    Path(options.output).parent.mkdir(exist_ok=True)
    check.plot().savefig(options.output, dpi=100)
    print("drawn:", options.output)


if __name__ == "__main__":
    main()
