"""Training from three kinds of initial weights (*Deep Learning from Scratch*, figure 6-15)."""

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from fastgrad import SGD, MultiLayerNet, load_mnist
from fastgrad.book import smooth_curve


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="pictures/weight_init_compare.png", metavar="FILE.png")
    parser.add_argument("--quick", action="store_true", help="50 iterations, not 2,000")
    options = parser.parse_args()

    (x, t), _ = load_mnist()
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, std in (("std = 0.01", 0.01), ("Xavier", "xavier"), ("He", "he")):
        net = MultiLayerNet(784, [100, 100, 100, 100], 10, weight_init_std=std, rng=0)
        iterations = 50 if options.quick else 2000
        history = net.fit(x, t, iterations=iterations, batch_size=128, optimizer=SGD(0.01), rng=0)
        print(f"{name:10} last loss {history.loss[-1]:.4f}, {history.seconds:.2f} s")
        axes.plot(smooth_curve(history.loss), label=name)
    axes.set(xlabel="iteration", ylabel="loss", ylim=(0, 2.5), title="Initial weights, with ReLU")
    axes.grid(alpha=0.3)
    axes.legend()
    Path(options.output).parent.mkdir(exist_ok=True)
    figure.savefig(options.output, dpi=100)
    print("drawn:", options.output)


if __name__ == "__main__":
    main()
