"""The optimizers on MNIST (*Deep Learning from Scratch*, figure 6-9).

Four hidden layers of 100 units with ReLU. All optimizers see the same initial weights and batches.
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from fastgrad import SGD, AdaGrad, Adam, Momentum, MultiLayerNet, Nesterov, RMSprop, load_mnist
from fastgrad.book import smooth_curve


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", default="pictures/optimizer_compare_mnist.png", metavar="FILE.png"
    )
    parser.add_argument("--quick", action="store_true", help="50 iterations, not 2,000")
    options = parser.parse_args()

    (x, t), _ = load_mnist()
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    # The default rates, as in the book, which leaves Nesterov and RMSprop out; a smaller one for
    # RMSprop.
    for optimizer in (SGD(), Momentum(), Nesterov(), AdaGrad(), RMSprop(lr=0.001), Adam()):
        net = MultiLayerNet(784, [100, 100, 100, 100], 10, rng=0)
        history = net.fit(
            x, t, iterations=50 if options.quick else 2000, batch_size=128, optimizer=optimizer,
            rng=0,
        )  # fmt: skip
        name = type(optimizer).__name__
        print(f"{name:9} last loss {history.loss[-1]:.4f}, {history.seconds:.2f} s")
        axes.plot(smooth_curve(history.loss), label=f"{name}, lr = {optimizer.lr:g}")
    axes.set(xlabel="iteration", ylabel="loss", ylim=(0, 1), title="The optimizers on MNIST")
    axes.grid(alpha=0.3)
    axes.legend()
    Path(options.output).parent.mkdir(exist_ok=True)
    figure.savefig(options.output, dpi=100)
    print("drawn:", options.output)


if __name__ == "__main__":
    main()
