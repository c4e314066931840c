"""Activations under several initial weights (*Deep Learning from Scratch*, figures 6-10 to 6-14).

Five layers of 100 units each, 1,000 random samples. Values near 0 and 1 mean vanishing gradients,
values all alike mean units that do the same work.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fastgrad import relu, sigmoid


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", default="pictures/weight_init_activation_histogram.png", metavar="FILE.png"
    )
    options = parser.parse_args()

    units, n_layers = 100, 5
    cases = (
        ("sigmoid, std 1", sigmoid, 1.0),
        ("sigmoid, std 0.01", sigmoid, 0.01),
        ("sigmoid, Xavier", sigmoid, np.sqrt(1 / units)),
        ("ReLU, std 0.01", relu, 0.01),
        ("ReLU, Xavier", relu, np.sqrt(1 / units)),
        ("ReLU, He", relu, np.sqrt(2 / units)),
    )
    figure = Figure(figsize=(11, 11), layout="constrained")
    rows = figure.subplots(len(cases), n_layers, sharex=True, sharey=True)
    for row, (name, activation, std) in zip(rows, cases, strict=True):
        rng = np.random.default_rng(0)
        z = rng.normal(size=(1000, units))
        for axes in row:
            z = activation(z @ rng.normal(scale=std, size=(units, units)))
            axes.hist(z.ravel(), bins=30, range=(0, 1))
            axes.set_ylim(0, 15_000)
        row[0].set_ylabel(name)
        print(f"{name:18} layer {n_layers}: mean {z.mean():.3f}, standard deviation {z.std():.3f}")
    for layer, axes in enumerate(rows[0], 1):
        axes.set_title(f"layer {layer}")
    figure.supxlabel("activation")
    Path(options.output).parent.mkdir(exist_ok=True)
    figure.savefig(options.output, dpi=80)
    print("drawn:", options.output)


if __name__ == "__main__":
    main()
