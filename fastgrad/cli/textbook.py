"""The numerical gradient as the textbook computes it, in plain NumPy.

What ``python -m fastgrad exercise`` compares with: no compiled code, and nothing of the package.
*Deep Learning from Scratch*, sections 4.2 (loss), 4.4 (numerical gradient), 4.5 (the network).
"""

from __future__ import annotations

import ctypes
import math
import timeit
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["central_difference", "faster_blas_threads", "loss", "near_kinks", "random_positions"]

Params = Mapping[str, NDArray[Any]]

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


def central_difference(
    f: Callable[[], Any], parameters: NDArray[Any], index: int, h: float
) -> float:
    """Compute the central difference of a function by one entry of an array that it reads.

    Parameters
    ----------
    f : callable
        The function, without arguments.
    parameters : ndarray, C-contiguous
        The array. Its entry is changed in place and then restored.
    index : int
        A flat index into it.
    h : float
        The step.

    Returns
    -------
    float
        (f(w + h) − f(w − h)) / 2h.

    Examples
    --------
    >>> w = np.array([1.0, 3.0])
    >>> round(central_difference(lambda: (w**2).sum(), w, 1, 1e-4), 6)
    6.0
    """
    flat = parameters.reshape(-1)
    value = flat[index]
    flat[index] = value + h
    above = f()
    flat[index] = value - h
    below = f()
    flat[index] = value
    return float((above - below) / (2 * h))


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


def random_positions(params: Params, count: int, rng: np.random.Generator) -> list[tuple[str, int]]:
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
        Names of arrays and flat indices into them, in the order of the arrays.
    """
    positions = [(name, index) for name, array in params.items() for index in range(array.size)]
    order = [positions[i] for i in rng.permutation(len(positions))]
    least = min(10, count // len(params))
    needed = [each for name in params for each in [p for p in order if p[0] == name][:least]]
    drawn = set(list(dict.fromkeys(needed + order))[:count])
    return [position for position in positions if position in drawn]


def _openblas() -> tuple[Any, Any] | None:
    """Return the functions that get and set OpenBLAS's number of threads, or None."""
    with suppress(OSError), open("/proc/self/maps", encoding="utf-8") as maps:  # Linux alone has it
        for path in sorted({line.split()[-1] for line in maps if "openblas" in line}):
            library = ctypes.CDLL(path)
            for name in _OPENBLAS:
                if hasattr(library, name.format("get")):
                    return library[name.format("get")], library[name.format("set")]
    return None


@contextmanager
def faster_blas_threads(call: Callable[[], object], repeats: int = 30) -> Iterator[str]:
    """Let NumPy's matrix products use one thread or all in a ``with`` block: the faster.

    On small matrices the threads of BLAS may cost more than they bring, above all beside other
    programs.

    Parameters
    ----------
    call : callable
        What to time with either.
    repeats : int, optional
        How often, in turn.

    Yields
    ------
    str
        A few words about it, with a comma before them; empty if NumPy uses no OpenBLAS.
    """
    functions = _openblas()
    if functions is None:
        yield ""
        return
    get_threads, set_threads = functions
    before = get_threads()
    timer = timeit.Timer(call)
    least = {1: math.inf, before: math.inf}
    try:
        for _ in range(repeats):
            for count in least:
                set_threads(count)
                least[count] = min(least[count], timer.timeit(1))
        count = min(least, key=least.__getitem__)
        set_threads(count)
        yield f", with {count} BLAS thread{'s' * (count != 1)}"
    finally:
        set_threads(before)
