"""What the networks should compute, written down twice and naively: in NumPy, and with 50 digits.

Nothing here is shared with the package: a network is a list of sizes, a dict of parameters W1, b1,
W2, b2, .. and the name of an activation. Targets are always one row of class weights per sample.
"""

import functools
import math
from itertools import pairwise

import gmpy2
import numba
import numpy as np
from numba.extending import is_jitted

DIGITS = 50

#: The book's optimizers and their settings: the rate, and what `step` calls a and b.
SETTINGS = {
    "SGD": {"lr": 0.01},
    "Momentum": {"lr": 0.01, "momentum": 0.9},
    "Nesterov": {"lr": 0.01, "momentum": 0.9},
    "AdaGrad": {"lr": 0.01},
    "RMSprop": {"lr": 0.01, "decay_rate": 0.99},
    "Adam": {"lr": 0.001, "beta1": 0.9, "beta2": 0.999},
}


def random_params(sizes, rng, *, scale=1.0, dtype=np.float64):
    """Return normal parameters; weights are divided by the root of their number of inputs."""
    params = {}
    for layer, (n_in, n_out) in enumerate(pairwise(sizes), start=1):
        params[f"W{layer}"] = rng.standard_normal((n_in, n_out)) * (scale / np.sqrt(n_in))
        params[f"b{layer}"] = rng.standard_normal(n_out) * 0.1 * scale
    return {name: array.astype(dtype) for name, array in params.items()}


def rows(t, classes):
    """Return labels or soft targets as rows of class weights."""
    t = np.asarray(t)
    if t.ndim == 2:
        return t.astype(float)
    return np.eye(classes)[t]


def sigmoid(a):
    small = np.exp(-np.abs(a))
    return np.where(a < 0, small, 1) / (1 + small)


def forward(params, x, activation):
    """Return inputs and values of every layer; the last values are the logits."""
    depth = len(params) // 2
    inputs, values = [None], [np.asarray(x)]
    for layer in range(1, depth + 1):
        a = values[-1] @ params[f"W{layer}"] + params[f"b{layer}"]
        inputs.append(a)
        if layer == depth:
            values.append(a)
        else:
            values.append(sigmoid(a) if activation == "sigmoid" else np.maximum(a, 0))
    return inputs, values


def probabilities(params, x, activation):
    logits = forward(params, x, activation)[1][-1]
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def loss(params, x, t, activation, delta, decay=0.0):
    """Return the mean loss over the rows of `x`."""
    logits = forward(params, x, activation)[1][-1]
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    if delta:
        log_p = np.log(np.exp(log_p) + delta)
    # A target of 0 adds nothing, whatever its probability.
    penalty = (
        sum((W**2).sum() for name, W in params.items() if name.startswith("W")) if decay else 0
    )
    return -np.where(t == 0, 0, t * log_p).sum() / len(x) + decay / 2 * penalty


def gradient(params, x, t, activation, delta, decay=0.0):
    """Return the derivative of `loss`, by the chain rule."""
    depth = len(params) // 2
    inputs, values = forward(params, x, activation)
    p = probabilities(params, x, activation)
    # d/da_k of -t_m log(p_m + delta) is -t_m p_m / (p_m + delta) (1[k = m] - p_k); summed without
    # the terms that cancel.
    pull = t * (p / (p + delta) if delta else 1.0)
    others = 1 - np.eye(p.shape[1])
    error = (p * (pull @ others) - pull * (p @ others)) / len(x)
    result = {}
    for layer in range(depth, 0, -1):
        result[f"W{layer}"] = values[layer - 1].T @ error
        if decay:  # 0 times an infinite weight would be NaN
            result[f"W{layer}"] += decay * params[f"W{layer}"]
        result[f"b{layer}"] = error.sum(axis=0)
        if layer > 1:
            error = error @ params[f"W{layer}"].T
            a = inputs[layer - 1]
            error = error * (sigmoid(a) * sigmoid(-a) if activation == "sigmoid" else a > 0)
    return result


def numerical_gradient(params, x, t, activation, delta, h, decay=0.0):
    """Return central differences by the textbook's loop, cancellation and all."""
    params = {name: array.astype(float) for name, array in params.items()}
    result = {}
    for name, array in params.items():
        result[name] = np.empty_like(array)
        for i in np.ndindex(array.shape):
            kept = array[i]
            array[i] = kept + h
            above = loss(params, x, t, activation, delta, decay)
            array[i] = kept - h
            below = loss(params, x, t, activation, delta, decay)
            array[i] = kept
            result[name][i] = (above - below) / (2 * h)
    return result


def step(kind, p, g, first, second, lr, a, b):
    """Return a parameter and an optimizer's memory after a step: the book's formulas."""
    if kind == "SGD":
        return p - lr * g, first, second
    if kind == "Momentum":
        v = a * first - lr * g
        return p + v, v, second
    if kind == "Nesterov":
        return p + a * a * first - (1 + a) * lr * g, a * first - lr * g, second
    if kind == "AdaGrad":
        h = first + g * g
        return p - lr * g / (np.sqrt(h) + 1e-7), h, second
    if kind == "RMSprop":
        h = a * first + (1 - a) * g * g
        return p - lr * g / (np.sqrt(h) + 1e-7), h, second
    m = first + (1 - a) * (g - first)
    v = second + (1 - b) * (g**2 - second)
    return p - lr * m / (np.sqrt(v) + 1e-7), m, v


class Optimizer:
    """One of the book's optimizers, in float64; settings replace the book's."""

    def __init__(self, kind, **settings):
        self.kind = kind
        self.lr, self.a, self.b = (*(SETTINGS[kind] | settings).values(), 0.0, 0.0)[:3]
        self.memory, self.steps = {}, 0

    def update(self, params, grads):
        """Replace all parameters."""
        self.steps += 1
        lr = self.lr
        if self.kind == "Adam":
            lr = lr * np.sqrt(1 - self.b**self.steps) / (1 - self.a**self.steps)
        for key in params:
            p, g = np.float64(params[key]), np.float64(grads[key])
            memory = self.memory.get(key, (0.0, 0.0))
            params[key], *self.memory[key] = step(self.kind, p, g, *memory, lr, self.a, self.b)


def exact_sample_loss(layers, x, t, activation, delta):
    """Return one sample's loss; all arguments are numbers of many digits in lists."""
    values = x
    for depth, (W, b) in enumerate(layers, start=1):
        a = [
            b[k] + gmpy2.fsum([v * row[k] for v, row in zip(values, W, strict=True)])
            for k in range(len(b))
        ]
        if depth == len(layers):
            break
        if activation == "sigmoid":
            values = [1 / (1 + gmpy2.exp(-v)) for v in a]
        else:
            values = [max(v, gmpy2.mpfr(0)) for v in a]
    top = max(a)
    total = gmpy2.fsum([gmpy2.exp(v - top) for v in a])
    result = gmpy2.mpfr(0)
    for v, weight in zip(a, t, strict=True):
        if weight and delta:
            result -= weight * gmpy2.log(gmpy2.exp(v - top) / total + delta)
        elif weight:
            result -= weight * (v - top - gmpy2.log(total))
    return result


def exact_central_difference(
    params, x, t, activation, delta, h, decay=0.0, *, only=None, digits=DIGITS
):
    """Return central differences in arithmetic of 50 digits or more, rounded to float64.

    `only` restricts them to some parameters, given as a dict of lists of indices; the result then
    holds NaN elsewhere. A saturated network, whose probabilities are 1 - 1e-60 say, needs more
    digits.
    """
    with gmpy2.context(precision=math.ceil(digits * math.log2(10))):
        number = gmpy2.mpfr
        depth = len(params) // 2
        layers = [
            (
                [[number(float(v)) for v in row] for row in params[f"W{layer}"]],
                [number(float(v)) for v in params[f"b{layer}"]],
            )
            for layer in range(1, depth + 1)
        ]
        xs = [[number(float(v)) for v in row] for row in x]
        ts = [[number(float(v)) for v in row] for row in t]
        step, shift, decay = number(float(h)), number(float(delta)), number(float(decay))

        def mean_loss():
            losses = (
                exact_sample_loss(layers, a, b, activation, shift)
                for a, b in zip(xs, ts, strict=True)
            )
            return gmpy2.fsum(list(losses)) / len(xs)

        result = {}
        for name, array in params.items():
            result[name] = np.full(array.shape, np.nan)
            W, b = layers[int(name[1:]) - 1]
            for i in np.ndindex(array.shape) if only is None else only[name]:
                row, column = (W[i[0]], i[1]) if name.startswith("W") else (b, i[0])
                kept = row[column]
                row[column] = kept + step
                above = mean_loss()
                row[column] = kept - step
                below = mean_loss()
                row[column] = kept
                value = (above - below) / (2 * step)
                if name.startswith("W"):
                    value += decay * kept
                result[name][i] = float(value)
        return result


def relative_errors(got, expected):
    """Return the largest error of each array, relative to its largest expected entry.

    An array that is zero throughout is held to an absolute error instead.
    """
    errors = {}
    for name, want in expected.items():
        known = ~np.isnan(want)
        largest = np.abs(want[known]).max() or 1.0
        errors[name] = float(np.abs(got[name][known].astype(float) - want[known]).max() / largest)
    return errors


@functools.cache
def from_python(helper):
    """Return a helper of the kernels, which only compiled code can call, for Python to call."""
    return numba.njit(lambda *args: helper(*args)) if is_jitted(helper) else helper
