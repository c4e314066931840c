"""The error of a numerical gradient against its step h, on MNIST: truncation against rounding.

A forward difference is off by about h, a central one by h². Both also subtract two nearly equal
losses, which costs digits like 1/h: the error falls, then rises, a V. fastgrad evaluates the
*change* of the loss with full relative precision, so its V has a right arm only: the error falls
with h² until it reaches the precision of the arithmetic, and stays there.

The truth to compare with is the gradient by backpropagation, which is exact to rounding.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fastgrad import TwoLayerNet, load_mnist


def textbook_differences(net, x, t, places, h):
    """Return forward and central differences of the loss at some places of W1."""
    W1 = net.params["W1"]
    here = net.loss(x, t)
    forward, central = [], []
    for place in places:
        kept = W1[place]
        W1[place] = kept + h
        upper = net.loss(x, t)
        W1[place] = kept - h
        lower = net.loss(x, t)
        W1[place] = kept
        forward.append((upper - here) / h)
        central.append((upper - lower) / (2 * h))
    return np.array(forward), np.array(central)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="pictures/error_against_step.png", metavar="FILE.png")
    parser.add_argument("--quick", action="store_true", help="fewer steps and entries")
    options = parser.parse_args()

    (x, t), _ = load_mnist(one_hot_label=True)
    x, t = x[:100], t[:100]
    net = TwoLayerNet(784, 50, 10, weight_init_std=0.1, rng=0)
    true = net.gradient(x, t)["W1"]
    count, per_decade = (4, 1) if options.quick else (15, 2)
    # Places spread over the entries of middling size; the largest would flatter everyone.
    order = np.argsort(np.abs(true), axis=None)
    chosen = order[(np.linspace(0.7, 0.98, count) * order.size).astype(int)]
    places = [tuple(map(int, np.unravel_index(i, true.shape))) for i in chosen]
    expected = np.array([true[place] for place in places])

    steps = np.logspace(-12, 0, 12 * per_decade + 1)
    names = ("forward difference", "central difference", "fastgrad")
    errors = {name: [] for name in names}
    for h in steps:
        ours = net.numerical_gradient(x, t, h)["W1"]
        ours = np.array([ours[place] for place in places])
        for name, found in zip(
            names, (*textbook_differences(net, x, t, places, h), ours), strict=True
        ):
            errors[name].append(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    for name, color in zip(names, ("tab:orange", "tab:blue", "tab:green"), strict=True):
        axes.loglog(steps, np.maximum(errors[name], 1e-17), "o-", color=color, label=name, ms=3)
    axes.axvline(1e-4, color="gray", linestyle=":", label="h = 1e-4, the book's step")
    axes.set(xlabel="h", ylabel="largest error / largest entry", ylim=(1e-16, 10))
    axes.set_title("Numerical gradient of a 784-50-10 network, 100 MNIST images, float64")
    axes.grid(alpha=0.3)
    axes.legend()
    Path(options.output).parent.mkdir(exist_ok=True)
    figure.savefig(options.output, dpi=120)
    print("drawn:", options.output)


if __name__ == "__main__":
    main()
