"""The numerical gradient as the textbook computes it, in plain NumPy.

What ``python -m fastgrad exercise`` compares with: no compiled code, and nothing of the package.
*Deep Learning from Scratch*, sections 4.2 (loss), 4.4 (numerical gradient), 4.5 (the network).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["loss", "near_kinks", "numerical_gradient", "random_positions"]

Params = Mapping[str, NDArray[Any]]
Position = tuple[str, int]

_DELTA = 1e-7  # keeps the logarithm finite


def loss(params: Params, x: NDArray[Any], t: NDArray[Any], activation: str = "sigmoid") -> Any:
    """Compute the mean cross entropy of the two-layer network.

    Parameters
    ----------
    params : dict of ndarray
        W1 (D, H), b1 (H,), W2 (H, C), b2 (C,).
    x : ndarray, shape (N, D)
        Samples, of the parameters' dtype.
    t : ndarray of int, shape (N,)
        Labels.
    activation : {"sigmoid", "relu"}, optional
        Of the hidden layer.

    Returns
    -------
    numpy.floating

    Examples
    --------
    >>> shapes = {"W1": (4, 3), "b1": 3, "W2": (3, 2), "b2": 2}
    >>> zeros = {name: np.zeros(shape) for name, shape in shapes.items()}
    >>> print(f"{loss(zeros, np.ones((5, 4)), np.array([0, 1, 1, 0, 1])):.4f}")
    0.6931
    """
    a1 = x @ params["W1"] + params["b1"]
    z1 = 1 / (1 + np.exp(-a1)) if activation == "sigmoid" else np.maximum(a1, 0)
    a2 = z1 @ params["W2"] + params["b2"]
    exp = np.exp(a2 - a2.max(axis=1, keepdims=True))
    y = exp / exp.sum(axis=1, keepdims=True)
    return -np.log(y[np.arange(len(t)), t] + _DELTA).mean()


def numerical_gradient(
    params: Params,
    x: NDArray[Any],
    t: NDArray[Any],
    positions: Iterable[Position],
    h: float = 1e-4,
    activation: str = "sigmoid",
) -> list[float]:
    """Compute the central difference of `loss` by some of the parameters, one after the other.

    Parameters
    ----------
    params, x, t, activation
        As for `loss`. Every parameter is nudged in place and then put back.
    positions : iterable of (str, int)
        Parameters, as the name of an array and a flat index into it.
    h : float, optional
        The step.

    Returns
    -------
    list of float
        (L(w + h) − L(w − h)) / 2h for each of the positions.

    Examples
    --------
    >>> shapes = {"W1": (4, 3), "b1": 3, "W2": (3, 2), "b2": 2}
    >>> zeros = {name: np.zeros(shape) for name, shape in shapes.items()}
    >>> x, t = np.ones((5, 4)), np.array([0, 1, 1, 0, 1])
    >>> [round(slope, 6) for slope in numerical_gradient(zeros, x, t, [("b2", 0), ("b2", 1)])]
    [0.1, -0.1]
    """
    result = []
    for name, index in positions:
        flat = params[name].reshape(-1)
        value = flat[index]
        flat[index] = value + h
        above = loss(params, x, t, activation)
        flat[index] = value - h
        below = loss(params, x, t, activation)
        flat[index] = value
        result.append(float((above - below) / (2 * h)))
    return result


def near_kinks(params: Params, x: NDArray[Any], h: float) -> dict[str, NDArray[np.bool_]]:
    """Mark the parameters whose nudge carries a hidden unit's input to zero, the kink of ReLU.

    No derivative belongs to the central difference there.

    Parameters
    ----------
    params, x
        As for `loss`.
    h : float
        The step.

    Returns
    -------
    dict of ndarray of bool
        Like `params`.
    """
    marks = {name: np.zeros(array.shape, np.bool_) for name, array in params.items()}
    for sample, inputs in zip(x, np.abs(x @ params["W1"] + params["b1"]), strict=True):
        marks["W1"] |= h * np.abs(sample)[:, None] >= inputs
        marks["b1"] |= h >= inputs
    return marks


def random_positions(params: Params, count: int, rng: np.random.Generator) -> list[Position]:
    """Draw different parameters at random, ten of each array at least where `count` allows.

    Parameters
    ----------
    params : dict of ndarray
        The parameters.
    count : int
        How many; all of them if there are no more.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    list of (str, int)
        In the order of the arrays.
    """
    everything = [(name, index) for name, array in params.items() for index in range(array.size)]
    least = min(10, count // len(params))
    order = rng.permutation(len(everything))
    taken = dict.fromkeys(params, 0)
    needed: list[int] = []
    others: list[int] = []
    for i in order:
        name = everything[i][0]
        (needed if taken[name] < least else others).append(i)
        taken[name] += 1
    return [everything[i] for i in sorted((needed + others)[:count])]
