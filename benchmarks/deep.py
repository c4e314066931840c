"""Measure networks of many layers against NumPy: ``python benchmarks/deep.py``.

Trains ``MultiLayerNet(784, [100, 100, 100, 100], 10)`` on MNIST with each optimizer, in NumPy as in
the book and with `fit`, from the same parameters on the same batches: the losses must agree over
the first 50 iterations, then both are timed. And takes a numerical gradient of [50, 50] units for
10 images against the book's loop, which is timed on some of the parameters, of which each costs the
same. Prints a table of medians and ratios; exits with 1 if a figure misses its goal.
"""

import argparse
import sys

import numpy as np

from fastgrad import MultiLayerNet, load_mnist, optimizers

if __package__:  # imported as a part of the folder, by asv
    from . import functions, measuring, textbook
else:
    import functions
    import measuring
    import textbook

OPTIMIZERS = ("SGD", "Momentum", "Nesterov", "AdaGrad", "RMSprop", "Adam")
HIDDEN, BATCH, RATE = [100, 100, 100, 100], 100, 0.01
CURVE, STEPS, CURVE_GOAL, SPEED_GOAL, NUMERICAL_GOAL = 50, 40, 1e-6, 2.0, 100.0


def forward(params, x):
    """Return the values of every layer, the input first, and the class probabilities."""
    layers = len(params) // 2
    values = [x]
    for layer in range(1, layers + 1):
        a = values[-1] @ params[f"W{layer}"]
        a += params[f"b{layer}"]
        values.append(np.maximum(a, 0, out=a) if layer < layers else a)
    return values[:-1], textbook.softmax(values[-1])


def loss(params, x, t):
    """Return the loss of a network of layers with ReLU."""
    return textbook.cross_entropy(forward(params, x)[1], t)


def gradient(params, x, t):
    """Return the loss and its gradient by backpropagation, exactly."""
    values, y = forward(params, x)
    value = textbook.cross_entropy(y, t)
    rows = np.arange(len(t))
    right = y[rows, t]
    y[rows, t] -= 1
    y *= (right / (right + textbook.DELTA) / len(t))[:, None]
    grads = {}
    for layer in range(len(values), 0, -1):
        grads[f"W{layer}"] = values[layer - 1].T @ y
        grads[f"b{layer}"] = y.sum(axis=0)
        if layer > 1:
            y = y @ params[f"W{layer}"].T
            y *= values[layer - 1] > 0
    return value, grads


class Book:
    """The book's training loop."""

    def __init__(self, params, name):
        self.params, self.name, self.steps = params, name, 0
        self.first = {key: np.zeros_like(array) for key, array in params.items()}
        self.second = {key: np.zeros_like(array) for key, array in params.items()}

    def train(self, x, t, batches):
        """Take a step for each batch; return the losses."""
        losses = np.empty(len(batches))
        for k, batch in enumerate(batches):
            losses[k], grads = gradient(self.params, x.take(batch, axis=0), t[batch])
            self.steps += 1
            rate = RATE
            if self.name == "Adam":
                rate *= np.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
            for key, array in self.params.items():
                functions.plain_step(
                    self.name, array, grads[key], self.first[key], self.second[key], rate
                )
        return losses


def training_row(name, x, t, rounds):
    """Return the deviation of the losses, and the times of an iteration, for an optimizer."""
    net = MultiLayerNet(x.shape[1], HIDDEN, 10, rng=0)
    book = Book({key: array.copy() for key, array in net.params.items()}, name)
    optimizer = getattr(optimizers, name)(RATE)
    batches = np.random.default_rng(0).integers(len(x), size=(CURVE, BATCH))
    want = book.train(x, t, batches)
    got = net.fit(
        x, t, iterations=CURVE, batch_size=BATCH, optimizer=optimizer, rng=np.random.default_rng(0)
    ).loss
    deviation = float(np.abs(got / want - 1).max())

    def fit(count, rng):
        net.fit(x, t, iterations=count, batch_size=BATCH, optimizer=optimizer, rng=rng)

    def loop():
        index = np.random.default_rng(1).integers(len(x), size=(STEPS, BATCH))
        book.train(x, t, index)

    sides = {
        "fastgrad": measuring.Iteration(fit, 5 * STEPS),
        "NumPy": measuring.stretch(loop, STEPS),
    }
    return deviation, measuring.in_turn(sides, rounds)


def numerical_times(x, t, sample, rounds):
    """Return the times of a numerical gradient, the book's for a sample of the parameters."""
    net = MultiLayerNet(x.shape[1], [50, 50], 10, rng=0)
    params = {key: array.copy() for key, array in net.params.items()}
    places = textbook.random_positions(params, sample)
    part = len(places) / sum(array.size for array in params.values())
    sides = {
        "fastgrad": measuring.stretch(lambda: net.numerical_gradient(x, t)),
        "NumPy": measuring.stretch(
            lambda: textbook.numerical_gradient(params, x, t, places, evaluate=loss)
        ),
    }
    return measuring.in_turn(sides, rounds), {"NumPy": 1 / part}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each side has its turn")
    parser.add_argument("--sample", type=int, default=100, help="parameters of the book's loop")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="measure rows with this text in their name")
    options = parser.parse_args()
    measuring.limit_threads(options.threads)
    print(measuring.describe(measuring.machine(["numpy", "numba", "fastgrad"])), end="\n\n")
    neighbours = measuring.Neighbours()
    (x, t), _ = load_mnist()
    lines, missed = [], False

    def add(name, times, scale, goal, deviation):
        nonlocal missed
        rows = {row["name"]: row for row in measuring.summary(times, "fastgrad", scale=scale)}
        ratio = rows["NumPy"]["ratio"]
        missed |= ratio < goal or (deviation is not None and deviation > CURVE_GOAL)
        lines.append(
            [
                name, measuring.seconds(rows["fastgrad"]["median_s"]),
                measuring.seconds(rows["NumPy"]["median_s"]), measuring.factor(ratio),
                f"{goal:g}", "" if deviation is None else f"{deviation:.1e}",
            ]
        )  # fmt: skip

    for name in OPTIMIZERS:
        title = f"an iteration, {name}"
        if options.only in title:
            deviation, times = training_row(name, x, t, options.rounds)
            add(title, times, None, SPEED_GOAL, deviation)
    if options.only in "numerical gradient":
        times, scale = numerical_times(x[:10], t[:10], options.sample, options.rounds)
        add("numerical gradient", times, scale, NUMERICAL_GOAL, None)
    header = ["", "fastgrad", "NumPy", "times as fast", "goal", "losses differ by"]
    print(measuring.table(header, lines))
    print(neighbours.warning())
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
