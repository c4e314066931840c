"""Twenty kinds of models with exact gradients, for `benchmarks/checking.py`.

Each is a function of a random generator that returns a loss, its gradient and a point. Gradients
are formulas, or complex steps where a formula is long: ``f(x + 1e-200j).imag / 1e-200`` is exact to
rounding, for nothing is subtracted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Model = tuple[Callable[[Any], Any], Any, Any]


def complex_step(f: Callable[[Any], Any], x: Any) -> Any:
    """Return the gradient of an analytic function of an array."""
    slopes = np.empty(x.shape)
    for i in np.ndindex(x.shape):
        point = x.astype(complex)
        point[i] += 1e-200j
        slopes[i] = f(point).imag / 1e-200
    return slopes


def analytic(f: Callable[[Any], Any], x: Any) -> Model:
    """Return a model of an analytic function."""
    return lambda x: float(f(x).real), complex_step(f, x), x


def garch(rng: Any) -> Model:
    """Return the likelihood of a GARCH(1, 1) process, with a parameter of about 1e-6."""
    returns = 1e-2 * rng.normal(size=200)
    squares = returns**2

    def f(p: Any) -> Any:
        variance, total = np.mean(squares), 0
        for square in squares:
            total = total + np.log(variance) + square / variance
            variance = p[0] + p[1] * square + p[2] * variance
        return total / 2

    return analytic(f, np.array([5e-6 * rng.uniform(0.5, 2), rng.uniform(0.05, 0.1), 0.85]))


def impedance(rng: Any) -> Model:
    """Return the fit of a Randles circuit to a spectrum; its capacity is about 1e-6."""
    omega = np.geomspace(1, 1e5, 30)
    data = rng.normal(size=(2, 30)) * 5 + 50

    def f(p: Any) -> Any:
        # Real and imaginary parts apart, for the complex step.
        r, d = p[1], 1 + (omega * p[1] * p[2]) ** 2
        real, imaginary = p[0] + r / d, -omega * r**2 * p[2] / d
        return np.mean((real - data[0]) ** 2 + (imaginary - data[1]) ** 2)

    x = np.array([rng.uniform(5, 20), rng.uniform(50, 200), 1e-6 * rng.uniform(0.5, 5)])
    return analytic(f, x)


def arrhenius(rng: Any) -> Model:
    """Return a model: rates at several temperatures, a factor of 1e10 and an energy of 5e4."""
    temperature = np.linspace(300, 500, 12)
    data = np.log(1e10) - 5e4 / 8.314 / temperature + rng.normal(size=12)

    def f(p: Any) -> Any:
        return np.mean((np.log(p[0]) - p[1] / (8.314 * temperature) - data) ** 2)

    return analytic(f, np.array([10.0 ** rng.uniform(8, 12), rng.uniform(3e4, 8e4)]))


def michaelis_menten(rng: Any) -> Model:
    """Return a model: concentrations of about 1e-9, and rates of about 1e-6."""
    s = np.geomspace(1e-10, 1e-8, 15)
    data = 1e-6 * s / (s + 1e-9) * (1 + 0.1 * rng.normal(size=15))
    x = np.array([1e-6, 1e-9]) * rng.uniform(0.5, 2, 2)
    return analytic(lambda p: np.sum((p[0] * s / (s + p[1]) - data) ** 2) * 1e12, x)


def relu_network(rng: Any, step: float = 1.0) -> Model:
    """Return a model: two hidden layers of ReLU: 4-5-5-3, 12 samples."""
    x, t = rng.normal(size=(12, 4)), rng.normal(size=(12, 3))
    p = {f"W{i}": rng.normal(size=s) for i, s in enumerate([(4, 5), (5, 5), (5, 3)])}

    def layers(p: Any) -> Any:
        a = np.maximum(x @ p["W0"], 0)
        b = np.maximum(a @ p["W1"], 0)
        return a, b, b @ p["W2"] - t

    a, b, off = layers(p)
    dy = 2 * off / off.size
    db = dy @ p["W2"].T * (b > 0)
    da = db @ p["W1"].T * (a > 0)
    grads = {"W0": x.T @ da, "W1": a.T @ db, "W2": b.T @ dy}
    return lambda p: float(np.mean(layers(p)[2] ** 2)), grads, p


def wide_relu_network(rng: Any) -> Model:
    """Return a model: many kinks: 3-12-2 with 300 samples."""
    x, t = rng.normal(size=(300, 3)), rng.normal(size=(300, 2))
    p = {"W1": rng.normal(size=(3, 12)), "b1": rng.normal(size=12), "W2": rng.normal(size=(12, 2))}

    def f(p: Any) -> float:
        return float(np.mean((np.maximum(x @ p["W1"] + p["b1"], 0) @ p["W2"] - t) ** 2))

    a = x @ p["W1"] + p["b1"]
    dy = 2 * (np.maximum(a, 0) @ p["W2"] - t) / t.size
    da = dy @ p["W2"].T * (a > 0)
    return f, {"W1": x.T @ da, "b1": da.sum(0), "W2": np.maximum(a, 0).T @ dy}, p


def max_pooling(rng: Any) -> Model:
    """Return a model: the largest of every four, squared."""
    x = rng.normal(size=(6, 4))
    first = np.argmax(x, axis=1)[:, None] == np.arange(4)
    return lambda x: float(np.sum(x.max(axis=1) ** 2)), 2 * x * first, x


def hinge(rng: Any) -> Model:
    """Return a model: a support vector machine's loss."""
    x, t = rng.normal(size=(50, 6)), np.sign(rng.normal(size=50))
    w = rng.normal(size=6)
    grads = -x.T @ (t * (t * (x @ w) < 1)) / 50 + 0.1 * w
    return (
        lambda w: float(np.mean(np.maximum(1 - t * (x @ w), 0)) + 0.05 * np.sum(w**2)),
        grads,
        w,
    )


def huber(rng: Any) -> Model:
    """Return a model: robust regression: quadratic near zero, linear further away."""
    x, t = rng.normal(size=(30, 5)), rng.normal(size=30) * 3
    w = rng.normal(size=5)

    def f(w: Any) -> float:
        r = np.abs(x @ w - t)
        return float(np.sum(np.where(r < 1, r**2 / 2, r - 0.5)))

    return f, x.T @ np.clip(x @ w - t, -1, 1), w


def edges(rng: Any) -> Model:
    """Return a model: functions at points close to the edge of their domain."""
    x = 10.0 ** rng.uniform(-7, 0, 5)
    return (
        lambda x: float(np.sum(np.sqrt(x) + x * np.log(x))) if (x > 0).all() else np.nan,
        0.5 / np.sqrt(x) + np.log(x) + 1,
        x,
    )


def barrier(rng: Any) -> Model:
    """Return a model: a logarithmic barrier, infinite outside."""
    x = 10.0 ** rng.uniform(-6, 0, 4)
    return lambda x: -float(np.sum(np.log(x))) if (x > 0).all() else np.inf, -1 / x, x


def entropy(rng: Any) -> Model:
    """Return a model: the entropy of probabilities, some of them small."""
    x = rng.dirichlet(np.full(6, 0.3)) + 1e-8
    return lambda p: -float(np.sum(p * np.log(p))), -np.log(x) - 1, x


def scales(rng: Any) -> Model:
    """Return a model: slopes between 1e-12 and 1e12, one at a time."""
    size, x = 10.0 ** rng.uniform(-12, 12), rng.normal(size=4)
    return lambda x: size * float(np.sum(np.sin(x))), size * np.cos(x), x


def lengths(rng: Any) -> Model:
    """Return a model: parameters between 1e-12 and 1e12, and a function on their scale."""
    length = 10.0 ** rng.uniform(-12, 12)
    x = length * rng.uniform(0.5, 3, 4) * rng.choice([-1, 1], 4)
    return (
        lambda x: float(np.sum(np.tanh(x / length) ** 2)),
        (2 * np.tanh(x / length) / np.cosh(x / length) ** 2 / length),
        x,
    )


def short_waves(rng: Any) -> Model:
    """Return a model: waves far shorter than the default step."""
    length = 10.0 ** rng.uniform(-7, -3)
    x = length * rng.normal(size=3)
    return lambda x: float(np.sum(np.sin(x / length))), np.cos(x / length) / length, x


def batch_normalisation(rng: Any) -> Model:
    """Return a model: a layer whose bias does not matter."""
    x, t = rng.normal(size=(10, 3)), rng.normal(size=(10, 4))
    p = {"W": rng.normal(size=(3, 4)), "b": rng.normal(size=4)}

    def forward(p: Any) -> Any:
        a = x @ p["W"] + p["b"]
        deviation = np.sqrt(a.var(axis=0) + 1e-5)
        return (a - a.mean(axis=0)) / deviation, deviation

    z, deviation = forward(p)
    y = np.tanh(z)
    dz = 2 * (y - t) / t.size * (1 - y**2)
    da = (dz - dz.mean(axis=0) - z * (dz * z).mean(axis=0)) / deviation
    grads = {"W": x.T @ da, "b": da.sum(axis=0)}
    return lambda p: float(np.mean((np.tanh(forward(p)[0]) - t) ** 2)), grads, p


def softmax_regression(rng: Any) -> Model:
    """Return a model: cross entropy of three classes."""
    x, t = rng.normal(size=(20, 5)), np.eye(3)[rng.integers(0, 3, 20)]
    w = rng.normal(size=(5, 3))

    def f(w: Any) -> float:
        a = x @ w
        a = a - a.max(axis=1, keepdims=True)
        return float(np.mean(np.log(np.exp(a).sum(axis=1)) - (a * t).sum(axis=1)))

    e = np.exp(x @ w)
    return f, x.T @ (e / e.sum(axis=1, keepdims=True) - t) / 20, w


def recurrent(rng: Any) -> Model:
    """Return a model: fifteen steps of a recurrent network."""
    x, u = rng.normal(size=(15, 3)), rng.normal(size=(3, 3))

    def f(w: Any) -> Any:
        state = np.zeros(3)
        for row in x:
            state = np.tanh(state @ w + row @ u)
        return np.sum(state**2)

    return analytic(f, rng.normal(size=(3, 3)))


def rosenbrock(rng: Any) -> Model:
    """Return a model: a narrow valley."""
    return analytic(
        lambda x: np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2), rng.normal(size=6)
    )


def log_determinant(rng: Any) -> Model:
    """Return a model: the likelihood of a covariance matrix."""
    a = rng.normal(size=(4, 4))
    a = a @ a.T + np.eye(4)
    return lambda a: float(np.linalg.slogdet(a)[1]), np.linalg.inv(a).T, a


def peaks(rng: Any) -> Model:
    """Return a model: a mixture of peaks, some of them narrow."""
    widths = 10.0 ** rng.uniform(-3.5, 0, 4)
    x = rng.normal(size=4)
    centers = x + widths * rng.uniform(-1, 1, 4)

    def f(x: Any) -> float:
        return float(np.sum(np.exp(-(((x - centers) / widths) ** 2))))

    z = (x - centers) / widths
    return f, -2 * z / widths * np.exp(-(z**2)), x


MODELS = [garch, impedance, arrhenius, michaelis_menten, relu_network, wide_relu_network,
          max_pooling, hinge, huber, edges, barrier, entropy, scales, lengths, short_waves,
          batch_normalisation, softmax_regression, recurrent, rosenbrock, log_determinant,
          peaks]  # fmt: skip


def single_precision(rng: Any) -> Model:
    """Return a network in float32 throughout, with its gradient in float32."""
    kind = rng.choice(["tanh", "sigmoid", "softmax"])
    samples, inputs, hidden, outputs = (int(n) for n in rng.integers(3, 17, 4))
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    x, t = draw(samples, inputs), draw(samples, outputs)
    p = {"W1": draw(inputs, hidden) / 2, "b1": draw(hidden), "W2": draw(hidden, outputs) / 2}

    def hidden_layer(p: Any) -> Any:
        a = x @ p["W1"] + p["b1"]
        return np.tanh(a) if kind != "sigmoid" else 1 / (1 + np.exp(-a))

    def softmax(y: Any) -> Any:
        e = np.exp(y - y.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    labels = np.eye(outputs, dtype=np.float32)[rng.integers(0, outputs, samples)]

    def f(p: Any) -> Any:
        y = hidden_layer(p) @ p["W2"]
        if kind == "softmax":
            return -np.mean(np.log((softmax(y) * labels).sum(axis=1)))
        return np.mean((y - t) ** 2)

    z = hidden_layer(p)
    y = z @ p["W2"]
    size = np.float32(samples if kind == "softmax" else t.size)
    dy = (softmax(y) - labels) / size if kind == "softmax" else 2 * (y - t) / size
    da = dy @ p["W2"].T * (1 - z**2 if kind != "sigmoid" else z * (1 - z))
    return f, {"W1": x.T @ da, "b1": da.sum(axis=0), "W2": z.T @ dy}, p
