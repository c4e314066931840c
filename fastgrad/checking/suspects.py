"""The usual suspects: what is often behind a gradient that is wrong in a certain pattern."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastgrad.arrays import FloatArray

__all__ = ["suspect"]

#: A pattern fits if it leaves this part of the difference between the gradients unexplained.
_UNEXPLAINED = 1e-2

Mask = NDArray[np.bool_]


def suspect(
    analytic: FloatArray,
    numerical: FloatArray,
    parameters: FloatArray | None,
    wrong: Mask,
    judged: Mask,
) -> str:
    """Name what may be behind the wrong entries of a gradient.

    Parameters
    ----------
    analytic, numerical : ndarray
        The gradient to check and the numerical one.
    parameters : ndarray or None
        The array that the gradient is by.
    wrong, judged : ndarray of bool
        Which entries are wrong, and which could be judged.

    Returns
    -------
    str
        A sentence, or an empty string if no pattern fits.

    Examples
    --------
    >>> import numpy as np
    >>> true, all_ = np.array([1.0, -2.0, 3.0]), np.ones(3, bool)
    >>> suspect(100 * true, true, None, all_, all_)
    'The gradient is 100 times the numerical one: a missing mean over the batch?'
    """
    a, n = analytic.astype(np.float64), numerical.astype(np.float64)
    if not np.isfinite(a[judged]).all():
        return "It is not finite: a division by zero, a logarithm of zero, an overflow?"
    if not a[judged].any():
        return "It is zero throughout: never computed, or not stored?"
    for sentence in (
        _factor(a, n, wrong, judged),
        _transposed(a, n, judged),
        _decay(a, n, parameters, judged),
        _shifted(a, n, judged),
        _place(a, n, wrong, judged),
    ):
        if sentence:
            return sentence
    return ""


def _explains(prediction: FloatArray, a: FloatArray, n: FloatArray, judged: Mask) -> bool:
    """Return whether a prediction of the wrong gradient is far nearer to it than the right one."""
    left = np.linalg.norm((a - prediction)[judged])
    return bool(left <= _UNEXPLAINED * np.linalg.norm((a - n)[judged]))


def _factor(a: FloatArray, n: FloatArray, wrong: Mask, judged: Mask) -> str:
    if np.count_nonzero(judged) < 2 or np.count_nonzero(wrong) < 2:
        return ""
    size = np.sum(n[judged] ** 2)
    factor = float(np.sum((a * n)[judged]) / size) if size > 0 else 0.0
    if factor == 0 or not _explains(factor * n, a, n, judged):
        return ""
    text = f"The gradient is {factor:.6g} times the numerical one"
    if abs(factor + 1) < 1e-3:
        return "The gradient is the numerical one with the opposite sign: a wrong sign?"
    if abs(factor - 2) < 2e-3:
        return f"{text}: a missing ½, as of a squared error, or a term added twice?"
    if abs(factor - 0.5) < 5e-4:
        return f"{text}: a ½ too much, or a forgotten 2 of a square?"
    if factor > 2 and abs(factor - round(factor)) < 1e-3 * factor:
        times = f"{round(factor)} times the numerical one"
        return f"The gradient is {times}: a missing mean over the batch?"
    if 0 < factor < 0.5 and abs(1 / factor - round(1 / factor)) < 1e-3 / factor:
        return (
            f"The gradient is 1/{round(1 / factor)} of the numerical one: a mean over the batch "
            "taken twice, or where the loss has a sum?"
        )
    return f"{text}: a constant factor is wrong."


def _transposed(a: FloatArray, n: FloatArray, judged: Mask) -> str:
    if a.ndim == 2 and a.shape[0] == a.shape[1] > 1:
        both = judged & judged.T
        if both.any() and _explains(n.T, a, n, both):
            return "The gradient is the transpose of the numerical one: x.T @ dout, or dout.T @ x?"
    return ""


def _decay(a: FloatArray, n: FloatArray, parameters: FloatArray | None, judged: Mask) -> str:
    if parameters is None or np.count_nonzero(judged) < 3:
        return ""
    p = parameters.astype(np.float64)
    size = np.sum(p[judged] ** 2)
    times = float(np.sum(((n - a) * p)[judged]) / size) if size > 0 else 0.0
    if times == 0 or not _explains(n - times * p, a, n, judged):
        return ""
    if times > 0:
        return f"{times:.4g} times the parameter is missing: the gradient of the weight decay?"
    return f"{-times:.4g} times the parameter is too much: weight decay that the loss has not?"


def _shifted(a: FloatArray, n: FloatArray, judged: Mask) -> str:
    for axis in range(a.ndim):
        for by in (1, -1):
            rolled = np.roll(n, by, axis)
            if a.shape[axis] < 3:
                continue
            inside = judged & np.roll(judged, by, axis)
            edge = [slice(None)] * a.ndim
            edge[axis] = slice(0, 1) if by == 1 else slice(-1, None)
            inside[tuple(edge)] = False
            if inside.any() and _explains(rolled, a, n, inside):
                name = {0: "row", 1: "column"}.get(axis, f"place along axis {axis}")
                name = "entry" if a.ndim == 1 else name
                return f"The gradient is the numerical one shifted by one {name}: off by one?"
    return ""


def _place(a: FloatArray, n: FloatArray, wrong: Mask, judged: Mask) -> str:
    count = int(np.count_nonzero(wrong))
    if count == 1:
        return "Only this entry is wrong."
    for axis in range(a.ndim if a.ndim > 1 else 0):
        others = tuple(other for other in range(a.ndim) if other != axis)
        lines = np.flatnonzero(wrong.any(axis=others))
        if len(lines) == 1 and a.shape[axis] > 1:
            name = {0: "row", 1: "column"}.get(axis, f"index along axis {axis}:")
            return f"All wrong entries are in {name} {lines[0]}."
    if count < np.count_nonzero(judged):
        sizes = np.abs(n)
        if sizes[wrong].max() < np.median(sizes[judged & ~wrong]):
            return "The wrong entries are the small ones: a term that the large ones hide?"
    return ""
