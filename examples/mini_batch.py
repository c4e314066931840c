"""How well a mini-batch stands for all the data (*Deep Learning from Scratch*, section 4.2.3)."""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fastgrad import TwoLayerNet, load_mnist


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="pictures/mini_batch.png", metavar="FILE.png")
    parser.add_argument("--quick", action="store_true", help="fewer batches")
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    (x, t), _ = load_mnist(one_hot_label=True)
    batch = rng.choice(len(x), 10)
    print("a mini-batch:", batch)
    print("its shapes:", x[batch].shape, t[batch].shape)

    net = TwoLayerNet(784, 50, 10, rng=0)
    net.fit(x, t, iterations=500, rng=0)
    everything = net.loss(x, t)
    print(f"loss over all {len(x):,} images: {everything:.4f}")
    count = 50 if options.quick else 1000
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for size in (10, 100, 1000):
        choices = rng.integers(len(x), size=(count, size))
        losses = [net.loss(x[batch], t[batch]) for batch in choices]
        print(f"batches of {size:4}: mean {np.mean(losses):.4f}, spread {np.std(losses):.4f}")
        axes.hist(losses, bins=40, alpha=0.6, density=True, label=f"batches of {size:,}")
    axes.axvline(everything, color="black", linewidth=1, label="all images")
    axes.set(xlabel="loss", ylabel="density", title="The loss over mini-batches")
    axes.set_yscale("log")
    axes.legend()
    Path(options.output).parent.mkdir(exist_ok=True)
    figure.savefig(options.output, dpi=100)
    print("drawn:", options.output)


if __name__ == "__main__":
    main()
