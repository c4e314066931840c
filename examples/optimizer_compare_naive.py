"""The optimizers on x²/20 + y² (*Deep Learning from Scratch*, figures 6-3 and 6-5 to 6-7)."""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fastgrad import SGD, AdaGrad, Adam, Momentum, Nesterov, RMSprop


def f(x, y):
    return x**2 / 20 + y**2


def gradient(x, y):
    return {"x": x / 10, "y": 2 * y}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", default="pictures/optimizer_compare_naive.png", metavar="FILE.png"
    )
    options = parser.parse_args()

    optimizers = (
        SGD(lr=0.95),
        Momentum(lr=0.1),
        Nesterov(lr=0.1),
        AdaGrad(lr=1.5),
        RMSprop(lr=0.3, decay_rate=0.9),
        Adam(lr=0.3),
    )
    x, y = np.linspace(-10, 10, 200), np.linspace(-10, 10, 200)
    height = f(*np.meshgrid(x, y))
    figure = Figure(figsize=(12, 7), layout="constrained")
    for axes, optimizer in zip(figure.subplots(2, 3).flat, optimizers, strict=True):
        params = {"x": -7.0, "y": 2.0}
        path = []
        for _ in range(30):
            path.append((params["x"], params["y"]))
            optimizer.update(params, gradient(**params))
        name = type(optimizer).__name__
        print(f"{name:9} f = {f(**params):.2e} after 30 steps")
        axes.contour(x, y, height, levels=np.arange(1, 8) ** 2 / 7, colors="silver", linewidths=0.8)
        axes.plot(*np.transpose(path), "o-", markersize=3, linewidth=1, color="tab:red")
        axes.plot(0, 0, "+", color="black")
        axes.set(title=f"{name}, lr = {optimizer.lr:g}", xlim=(-8, 8), ylim=(-4, 4))
        axes.set(xlabel="x", ylabel="y")
    Path(options.output).parent.mkdir(exist_ok=True)
    figure.savefig(options.output, dpi=100)
    print("drawn:", options.output)


if __name__ == "__main__":
    main()
