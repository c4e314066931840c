"""Measure networks of many layers against NumPy: ``python benchmarks/deep.py``.

Trains ``MultiLayerNet(784, [100, 100, 100, 100], 10)`` on MNIST with each optimizer, in NumPy as in
the book and with `fit`, from the same parameters on the same batches: the losses must agree over
the first 50 iterations, then both are timed. And takes a numerical gradient of [50, 50] units for
10 images against the book's loop, which is timed on some of the parameters, of which each costs the
same. Exits with 1 if a figure misses its goal.
"""

import sys

import numpy as np

from fastgrad import MultiLayerNet, load_mnist
from fastgrad.nn import optimizers

if __package__:  # imported as a part of the folder, by asv
    from . import functions, measuring, reports, textbook
else:
    import functions
    import measuring
    import reports
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


def train_in_turn(goals, name, x, t):
    """Compare the losses of an optimizer's first iterations with the book's; then time both."""
    net = MultiLayerNet(x.shape[1], HIDDEN, 10, rng=0)
    book = Book({key: array.copy() for key, array in net.params.items()}, name)
    optimizer = getattr(optimizers, name)(RATE)

    def fit(iterations, rng):
        return net.fit(
            x, t, iterations=iterations, batch_size=BATCH, optimizer=optimizer, rng=rng
        ).loss

    batches = np.random.default_rng(0).integers(len(x), size=(CURVE, BATCH))
    want, got = book.train(x, t, batches), fit(CURVE, np.random.default_rng(0))
    what = f"an iteration, {name}"
    goals.add(f"{what}: losses differ by", np.abs(got / want - 1).max(), CURVE_GOAL, at_most=True)
    goals.speed_up(
        what,
        measuring.Iteration(fit, 5 * STEPS),
        measuring.stretch(lambda: book.train(x, t, batches[:STEPS]), STEPS),
        SPEED_GOAL,
    )


def differentiate_in_turn(goals, x, t, sample):
    """Time a numerical gradient, and the book's for a sample of the parameters."""
    net = MultiLayerNet(x.shape[1], [50, 50], 10, rng=0)
    params = {key: array.copy() for key, array in net.params.items()}
    positions = textbook.random_positions(params, sample)
    goals.speed_up(
        "numerical gradient",
        measuring.calls(net.numerical_gradient, x, t),
        measuring.stretch(
            lambda: textbook.numerical_gradient(params, x, t, positions, evaluate=loss)
        ),
        NUMERICAL_GOAL,
        part=len(positions) / sum(array.size for array in params.values()),
    )


def main():
    parser = reports.options(__doc__, rounds=5)
    parser.add_argument("--sample", type=int, default=100, help="parameters of the book's loop")
    parser.add_argument("--only", default="", help="measure what has this text in its name")
    settings = parser.parse_args()
    measuring.limit_threads(settings.threads)
    reports.machine()
    goals = reports.Goals(settings)
    (x, t), _ = load_mnist()
    for name in OPTIMIZERS:
        if settings.only in f"an iteration, {name}":
            train_in_turn(goals, name, x, t)
    if settings.only in "numerical gradient":
        differentiate_in_turn(goals, x[:10], t[:10], settings.sample)
    return goals.finish()


if __name__ == "__main__":
    sys.exit(main())
