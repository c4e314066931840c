"""The numerical gradient as the textbook computes it, in plain NumPy.

What ``python -m fastgrad exercise`` compares with: no compiled code, and nothing of the package.
*Deep Learning from Scratch*, sections 4.2 (loss), 4.4 (numerical gradient), 4.5 (the network).
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "blas_threads",
    "faster_blas_threads",
    "loss",
    "near_kinks",
    "numerical_gradient",
    "random_positions",
]

Params = Mapping[str, NDArray[Any]]
Position = tuple[str, int]

_DELTA = 1e-7  # keeps the logarithm finite

#: How OpenBLAS, which NumPy's wheels bring, calls the number of its threads: ``set`` and ``get``
#: stand for {}.
_OPENBLAS = (
    "scipy_openblas_{}_num_threads64_",
    "scipy_openblas_{}_num_threads",
    "openblas_{}_num_threads64_",
    "openblas_{}_num_threads",
)


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
        As for `loss`. Every parameter is changed in place and then restored.
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
    """Mark the parameters whose change by ±h moves a hidden unit's input to zero, ReLU's kink.

    The central difference approximates no derivative there.

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


def _openblas() -> tuple[Any, Any] | None:
    """Return the functions that get and set OpenBLAS's number of threads, or None."""
    libraries = []
    with suppress(OSError), open("/proc/self/maps", encoding="utf-8") as maps:  # Linux alone has it
        libraries = sorted({line.split()[-1] for line in maps if "openblas" in line})
    for path in libraries:
        with suppress(OSError):
            library = ctypes.CDLL(path)
            for name in _OPENBLAS:
                with suppress(AttributeError):
                    return getattr(library, name.format("get")), getattr(
                        library, name.format("set")
                    )
    return None


@contextmanager
def blas_threads(count: int | None) -> Iterator[None]:
    """Let NumPy's matrix products use so many threads in a ``with`` block.

    Parameters
    ----------
    count : int or None
        None changes nothing; nor does a number where NumPy uses no OpenBLAS.
    """
    functions = None if count is None else _openblas()
    if functions is None:
        yield
        return
    get, set_ = functions
    before = get()
    set_(count)
    try:
        yield
    finally:
        set_(before)


def faster_blas_threads(call: Callable[[], object], repeats: int = 30) -> tuple[int | None, str]:
    """Find out whether a call is faster with one thread of BLAS or with all of them.

    Parameters
    ----------
    call : callable
        What to time.
    repeats : int, optional
        How often, in turn.

    Returns
    -------
    int or None
        The number of threads for `blas_threads`; None if it cannot be set.
    str
        A few words about it, with a comma before them; empty if it cannot be set.
    """
    functions = _openblas()
    if functions is None:
        return None, ""
    every = functions[0]()
    least = {1: math.inf, every: math.inf}
    for _ in range(repeats):
        for count in least:
            with blas_threads(count):
                begin = time.perf_counter()
                call()
                least[count] = min(least[count], time.perf_counter() - begin)
    count = min(least, key=least.__getitem__)
    return count, f", with {count} BLAS thread{'s' * (count != 1)}"
