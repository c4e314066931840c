"""Compute gradients to 50 digits: ``python benchmarks/reference/make.py`` writes gradients.json.

The central difference and the exact derivative of the loss of small two-layer networks, for both
activations and with and without delta, by mpmath; the loss is written out as in the book (sections
3.5, 4.2 and 4.4) and nudged one parameter at a time. The arithmetic has 90 digits, of which
a difference of two losses costs up to thirty. Inputs are float32 numbers, so that they are the same
to a network of either dtype. Needs mpmath (``pip install ".[test]"``).
"""

import json
from pathlib import Path

import mpmath
import numpy as np

FILE = Path(__file__).with_name("gradients.json")
SIZES = (6, 5, 4)
N = 3
H = 1e-4


def problem(activation):
    """Return parameters, samples and soft targets, some zeros among the samples."""
    rng = np.random.default_rng(SIZES[0] if activation == "sigmoid" else SIZES[1])
    n_in, n_hidden, n_out = SIZES
    arrays = {
        "W1": rng.standard_normal((n_in, n_hidden)),
        "b1": rng.standard_normal(n_hidden),
        "W2": rng.standard_normal((n_hidden, n_out)),
        "b2": rng.standard_normal(n_out),
        "x": rng.uniform(size=(N, n_in)) * (rng.uniform(size=(N, n_in)) < 0.7),
        "t": rng.dirichlet(np.ones(n_out), N),
    }
    return {name: array.astype(np.float32).astype(np.float64) for name, array in arrays.items()}


def loss(p, x, t, activation, delta):
    """Return the mean loss; `p`, `x` and `t` are nested lists of mpf."""
    total = mpmath.mpf(0)
    for sample, target in zip(x, t, strict=True):
        z = []
        for j, bias in enumerate(p["b1"]):
            a = bias + mpmath.fsum(value * p["W1"][i][j] for i, value in enumerate(sample))
            z.append(1 / (1 + mpmath.exp(-a)) if activation == "sigmoid" else max(a, mpmath.mpf(0)))
        e = [
            mpmath.exp(bias + mpmath.fsum(value * p["W2"][j][k] for j, value in enumerate(z)))
            for k, bias in enumerate(p["b2"])
        ]
        s = mpmath.fsum(e)
        total -= mpmath.fsum(w * mpmath.log(u / s + delta) for w, u in zip(target, e, strict=True))
    return total / len(x)


def central_difference(p, x, t, activation, delta, h):
    """Return the central difference of the loss by every parameter."""
    result = {}
    for name, array in p.items():
        rows = array if isinstance(array[0], list) else [array]
        found = []
        for row in rows:
            for i, kept in enumerate(row):
                row[i] = kept + h
                above = loss(p, x, t, activation, delta)
                row[i] = kept - h
                below = loss(p, x, t, activation, delta)
                row[i] = kept
                found.append((above - below) / (2 * h))
        result[name] = [mpmath.nstr(value, 50) for value in found]
    return result


def main():
    mpmath.mp.dps = 90
    cases = []
    for activation in ("sigmoid", "relu"):
        arrays = problem(activation)
        exact = {
            k: np.vectorize(mpmath.mpf, otypes=[object])(v).tolist() for k, v in arrays.items()
        }
        x, t = exact.pop("x"), exact.pop("t")
        for delta in (1e-7, 0.0):
            args = exact, x, t, activation, mpmath.mpf(delta)
            cases.append(
                {
                    "activation": activation,
                    "delta": delta,
                    "h": H,
                    "arrays": {name: array.tolist() for name, array in arrays.items()},
                    # Off from the derivative by about h**2, beyond the fiftieth digit.
                    "gradient": central_difference(*args, mpmath.mpf("1e-28")),
                    "numerical_gradient": central_difference(*args, mpmath.mpf(H)),
                }
            )
    FILE.write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
