"""The usual suspects: what is often behind a gradient that is wrong in a certain pattern."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fastgrad.checking.verdicts import TOLERANCE
from fastgrad.validation import FloatArray

__all__ = ["suspect"]

#: A pattern fits an entry if it leaves this part of the difference between the gradients
#: unexplained, and an array if it fits nine entries of ten: others may lie at kinks.
_UNEXPLAINED, _MOST = 1e-2, 0.9

#: How often chance may put wrong entries where a sentence says that they are.
_CHANCE = 0.01

#: A batch is no larger than that.
_LARGEST_BATCH = 10**6

#: What runs along the axes of a matrix.
_LINES = {0: "row", 1: "column"}

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
    for sentence, prediction, where, fitted in _patterns(a, n, parameters, judged):
        if _explains(prediction, a, n, where, fitted):
            return sentence
    return _place(n, wrong, judged)


def _explains(
    prediction: FloatArray, a: FloatArray, n: FloatArray, judged: Mask, fitted: int
) -> bool:
    """Return whether a prediction of the wrong gradient is far nearer to it than the right one.

    It must do so in two entries more than there are numbers fitted to them.
    """
    left, off = np.abs(a - prediction)[judged], np.abs(a - n)[judged]
    wrong = off > TOLERANCE * np.maximum(np.abs(a), np.abs(n))[judged]
    # An entry that is right must not be spoilt by it.
    fits = left <= np.where(wrong, _UNEXPLAINED * off, TOLERANCE * np.abs(n[judged]))
    enough = np.count_nonzero(fits & wrong) >= 2 + fitted
    return bool(enough and np.count_nonzero(fits) >= _MOST * fits.size)


def _patterns(
    a: FloatArray, n: FloatArray, parameters: FloatArray | None, judged: Mask
) -> Iterator[tuple[str, FloatArray, Mask, int]]:
    """Yield sentences, the gradients that they predict, for which entries, and how much is fitted.

    The most likely ones come first.
    """
    factor = _ratio(a, n, judged)
    times = f"The gradient is {factor:.6g} times the numerical one"
    batch = round(factor) if factor > 1 else round(1 / factor) if 0 < factor < 1 else 0
    named = {
        -1.0: "The gradient is the numerical one with the opposite sign: a wrong sign?",
        2.0: f"{times}: a missing ½, as of a squared error, or a term added twice?",
        0.5: f"{times}: a ½ too much, or a forgotten 2 of a square?",
    }
    if 2 < batch <= _LARGEST_BATCH:
        named[float(batch)] = (
            f"The gradient is {batch} times the numerical one: a missing mean over the batch?"
        )
        named[1 / batch] = (
            f"The gradient is 1/{batch} of the numerical one: a mean over the batch taken twice, "
            "or where the loss has a sum?"
        )
    for value, sentence in named.items():
        if abs(factor - value) < 1e-3 * abs(value):
            yield sentence, factor * n, judged, 0
    if factor:
        yield f"{times}: a constant factor is wrong.", factor * n, judged, 1

    if a.ndim == 2 and a.shape[0] == a.shape[1] > 1:
        sentence = "The gradient is the transpose of the numerical one: x.T @ dout, or dout.T @ x?"
        yield sentence, n.T, judged & judged.T, 0

    p = np.zeros(n.shape) if parameters is None else parameters.astype(np.float64)
    decay = _ratio(n - a, p, judged)
    sentence = f"{-decay:.4g} times the parameter is too much: weight decay that the loss has not?"
    if decay > 0:
        sentence = f"{decay:.4g} times the parameter is missing: the gradient of the weight decay?"
    if decay:
        yield sentence, n - decay * p, judged, 1

    for axis, length in enumerate(a.shape):
        for by in (1, -1) if length > 2 else ():
            inside = judged & np.roll(judged, by, axis)
            np.moveaxis(inside, axis, 0)[0 if by == 1 else -1] = False
            name = "entry" if a.ndim == 1 else _LINES.get(axis, f"place along axis {axis}")
            sentence = f"The gradient is the numerical one shifted by one {name}: off by one?"
            yield sentence, np.roll(n, by, axis), inside, 0


def _ratio(numerator: FloatArray, denominator: FloatArray, judged: Mask) -> float:
    """Return the median ratio of two arrays' entries, or 0 if there is none."""
    ratios = (numerator / np.where(denominator == 0, np.nan, denominator))[judged]
    return float(np.nanmedian(ratios)) if np.isfinite(ratios).any() else 0.0


def _place(n: FloatArray, wrong: Mask, judged: Mask) -> str:
    """Say where the wrong entries are, if that is no chance."""
    count, others = int(np.count_nonzero(wrong)), judged & ~wrong
    if count == 1:
        return "Only this entry is wrong." if others.any() else ""
    for axis in range(n.ndim if n.ndim > 1 else 0):
        rest = tuple(other for other in range(n.ndim) if other != axis)
        lines = np.flatnonzero(wrong.any(axis=rest))
        occupied = np.count_nonzero(judged.any(axis=rest))
        if len(lines) == 1 and occupied ** (1.0 - count) <= _CHANCE:
            name = _LINES.get(axis, f"index along axis {axis}:")
            return f"All wrong entries are in {name} {lines[0]}."
    sizes = np.abs(n)
    if others.any() and 0.5**count <= _CHANCE and sizes[wrong].max() < np.median(sizes[others]):
        return "The wrong entries are the small ones: a term that the large ones hide?"
    return ""
