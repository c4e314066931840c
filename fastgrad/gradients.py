"""Numerical gradients of any function, gradient descent on them, and a gradient checker.

`fastgrad.evaluation` evaluates the function around x; what follows here is arithmetic on whole
arrays of values.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastgrad.arrays import FloatArray, one_of, real_array, real_number, step_size, whole_number
from fastgrad.evaluation import (
    Function,
    Values,
    WorkerTraceback,
    evaluate,
    further_arguments,
    nudge,
    one_number,
)

__all__ = [
    "ArrayCheck",
    "GradientCheck",
    "GradientCheckWarning",
    "WorkerTraceback",
    "check_gradient",
    "compare_gradients",
    "gradient_descent",
    "numerical_diff",
    "numerical_gradient",
]

Step = float | ArrayLike | Literal["auto"]

#: Central differences of each order: the slope between x - k h and x + k h has weight w[k].
_WEIGHTS: dict[int, dict[int, float]] = {
    2: {1: 1.0},
    4: {1: 4 / 3, 2: -1 / 3},
    6: {1: 3 / 2, 2: -3 / 5, 3: 1 / 10},
}

#: The coefficient of h**order in the truncation error of each of them.
_TRUNCATION = {2: 1 / 6, 4: 1 / 30, 6: 1 / 140}

#: Two gradients may differ by this part. A mistake of 0.1% is four times as large, the truncation
#: error of a well-chosen step far smaller.
_TOLERANCE = 2.5e-4

#: The mistake that a check must be able to see in the largest entry of an array.
_MISTAKE = 1e-3


#: No function is taken to be noisier than that many units in the last place.
_NOISIEST = 1e6


class GradientCheckWarning(UserWarning):
    """A gradient check could not see a mistake of 0.1%, for example in float32."""


# ------------------------------------------------------------------------------------ public


def numerical_diff(f: Function, x: ArrayLike, h: Step = 1e-4) -> Any:
    """Differentiate a function of one variable numerically, by a central difference.

    Parameters
    ----------
    f : callable
        ``f(x)`` of one number; for an array x it must work element by element.
    x : float or array_like
        Where to differentiate.
    h : float, array_like of x's shape or "auto", default 1e-4
        The step; see `numerical_gradient`.

    Returns
    -------
    float or ndarray
        ``(f(x + h) - f(x - h)) / (2 h)``, with the step really taken in the denominator.

    Raises
    ------
    TypeError
        If x or h is not real, or f does not return numbers.
    ValueError
        If a step is not above zero.

    Notes
    -----
    *Deep Learning from Scratch*, section 4.3.1.

    Examples
    --------
    >>> round(numerical_diff(lambda x: 0.01 * x**2 + 0.1 * x, 5), 9)
    0.2
    >>> import numpy as np
    >>> numerical_diff(np.sin, np.array([0.0, np.pi])).round(6)
    array([ 1., -1.])
    """
    array = real_array(x, "x", layout="K")
    plus, minus = nudge(array, _steps(h, array, 2), (1,))
    # As in the book, a number goes in as a number.
    upper, lower = (real_array(f(nudged.copy()[()]), "f(x)") for nudged in (plus, minus))
    with np.errstate(all="ignore"):
        slope = (upper - lower) / (plus - minus)
    return float(slope) if array.ndim == 0 == np.ndim(slope) else slope


@overload
def numerical_gradient(
    f: Function,
    x: ArrayLike,
    h: Step = ...,
    *,
    args: tuple[Any, ...] = ...,
    workers: Callable[..., Iterable[Any]] | None = ...,
    order: int = ...,
    error: Literal[False] = ...,
) -> FloatArray: ...


@overload
def numerical_gradient(
    f: Function,
    x: ArrayLike,
    h: Step = ...,
    *,
    args: tuple[Any, ...] = ...,
    workers: Callable[..., Iterable[Any]] | None = ...,
    order: int = ...,
    error: Literal[True],
) -> tuple[FloatArray, FloatArray]: ...


def numerical_gradient(
    f: Function,
    x: ArrayLike,
    h: Step = 1e-4,
    *,
    args: tuple[Any, ...] = (),
    workers: Callable[..., Iterable[Any]] | None = None,
    order: int = 2,
    error: bool = False,
) -> FloatArray | tuple[FloatArray, FloatArray]:
    r"""Compute the gradient of a function of an array by central differences.

    Parameters
    ----------
    f : callable
        ``f(x, *args)``, one real number: a Python or NumPy scalar, or an array of one element.
        A function compiled with ``numba.njit`` is evaluated on all threads at once.
    x : array_like
        Where to differentiate; any shape and memory layout. A float32 or float64 array is nudged in
        place, one element at a time, so an f that ignores its argument and reads the live array
        works; it is restored exactly, whatever happens. Anything else is converted to float64
        first, and f sees the converted array. A compiled f, and f in `workers`, gets copies.
    h : float, array_like of x's shape or "auto", default 1e-4
        The step. "auto" balances truncation against rounding for the dtype and the order, and
        grows with the square root of \|x\| where that is above 1. A function that varies faster
        than that (the logarithm near zero) wants a step of its own.
    args : tuple
        Further arguments of f: for a compiled f numbers, arrays and tuples of them.
    workers : callable, optional
        A map-like callable that evaluates f elsewhere: the ``map`` of a ``multiprocessing`` pool,
        or of any executor with the interface of ``concurrent.futures`` (Dask, mpi4py, ...).
    order : {2, 4, 6}
        The order of the error in h. The function is evaluated `order` times an element.
    error : bool
        Whether to return an estimate of the error as well, at one and a half times to twice the
        work.

    Returns
    -------
    gradient : ndarray, of x's shape, memory order and dtype (float32 or float64)
    error : ndarray, of the same form
        Only with ``error=True``: an upper estimate of the absolute error of each element.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or f returns something else than a real number.
    ValueError
        If `order` or a step is out of range, f returns more than one number, or f changes its
        argument.
    Exception
        Whatever f raises. From a worker it comes with a `WorkerTraceback` as its cause.

    Notes
    -----
    *Deep Learning from Scratch*, section 4.4: ``(f(x + h) - f(x - h)) / (2 h)``. The denominator is
    the distance between the two points as they were rounded, so no error is made there; a step too
    small to change an element is widened to the next floating-point number. The orders
    4 and 6 combine the slopes over h, 2 h and 3 h. The error estimate is Richardson's, from the
    same formula at 2 h, plus the rounding error of f: two units in the last place, or more if the
    values scatter more around a smooth curve (the median over the elements).

    In place means: do not use x in another thread meanwhile.

    Examples
    --------
    >>> import numpy as np
    >>> numerical_gradient(lambda x: np.sum(x**2), np.array([3.0, 4.0])).round(9)
    array([6., 8.])

    Compiled, and with a further argument:

    >>> from numba import njit
    >>> @njit
    ... def weighted(x, w):
    ...     return np.sum(w * x**2)
    >>> numerical_gradient(weighted, [3.0, 4.0], args=(np.array([1.0, 10.0]),)).round(8)
    array([ 6., 80.])

    Four more digits, and how far to trust them:

    >>> gradient, error = numerical_gradient(np.exp, [1.0], "auto", order=4, error=True)
    >>> bool(abs(gradient[0] - np.e) < error[0] < 1e-10)
    True
    """
    array = real_array(x, "x", layout="K")
    order = _order(order)
    weights = _WEIGHTS[order]
    steps = _steps(h, array, order)
    multiples = tuple(sorted({*weights, *(2 * k for k in weights)}) if error else weights)
    values = evaluate(f, array, steps, multiples, args, workers)
    with np.errstate(all="ignore"):  # NaN and infinities go on as they are
        slope = dict(zip(multiples, values.slopes(), strict=True))
        gradient = _sum(w * slope[k] for k, w in weights.items())
        if not error:
            return _like(array, gradient)
        coarse = _sum(w * slope[2 * k] for k, w in weights.items())
        here = _at_center(f, values, args)
        noise = np.maximum(values.noise(array.dtype), 4 * _measured_noise(values, here, multiples))
        # Slopes of noise n / (k h), added with their weights.
        noise = noise / (values.width()[0] / 2) * sum(abs(w) / k for k, w in weights.items())
        estimate = _richardson(gradient, coarse, noise, order)
    return _like(array, gradient), _like(array, estimate)


@overload
def gradient_descent(
    f: Function,
    init_x: ArrayLike,
    lr: float = ...,
    step_num: int = ...,
    *,
    return_history: Literal[False] = ...,
) -> FloatArray: ...


@overload
def gradient_descent(
    f: Function,
    init_x: ArrayLike,
    lr: float = ...,
    step_num: int = ...,
    *,
    return_history: Literal[True],
) -> tuple[FloatArray, FloatArray]: ...


def gradient_descent(
    f: Function,
    init_x: ArrayLike,
    lr: float = 0.01,
    step_num: int = 100,
    *,
    return_history: bool = False,
) -> FloatArray | tuple[FloatArray, FloatArray]:
    r"""Minimise a function by gradient descent on its numerical gradient.

    Parameters
    ----------
    f : callable
        ``f(x)``, one real number; Python or compiled, as for `numerical_gradient`.
    init_x : array_like
        Where to start; not changed.
    lr : float, default 0.01
        The learning rate.
    step_num : int, default 100
        The number of steps.
    return_history : bool
        Whether to return the path as well.

    Returns
    -------
    x : ndarray, of init_x's shape; float32 or float64
        The last point.
    history : ndarray, shape (step_num + 1, \*x.shape)
        Only with ``return_history=True``: all points, the first one included.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or f returns something else than a real number.
    ValueError
        If `lr` is not finite, or `step_num` is negative.
    Exception
        Whatever f raises.

    Notes
    -----
    *Deep Learning from Scratch*, section 4.4.1: ``x -= lr * gradient``. The gradient is taken with
    the step 1e-4, or with the root of the machine epsilon times \|x\| where that is larger.

    Examples
    --------
    >>> import numpy as np
    >>> x = gradient_descent(lambda x: np.sum(x**2), [-3.0, 4.0], lr=0.1)
    >>> bool(np.all(abs(x) < 1e-9))
    True
    """
    x = real_array(init_x, "init_x", layout="K").copy(order="K")
    lr = real_number(lr, "lr")
    step_num = whole_number(step_num, "step_num", minimum=0)
    history = np.empty((step_num + 1 if return_history else 1, *x.shape), x.dtype)
    history[0] = x
    relative = np.finfo(x.dtype).eps ** 0.5
    for step in range(1, step_num + 1):
        # A descent that diverges goes on to diverge: no step is lost beside a huge x.
        x -= lr * numerical_gradient(f, x, np.fmax(1e-4, relative * np.nan_to_num(np.abs(x))))
        if return_history:
            history[step] = x
    return (x, history) if return_history else x


def check_gradient(
    f: Function,
    grad: ArrayLike | Callable[..., ArrayLike],
    x: ArrayLike,
    h: Step = 1e-4,
    *,
    args: tuple[Any, ...] = (),
) -> GradientCheck:
    """Compare a gradient with the numerical gradient of the function.

    Parameters
    ----------
    f : callable
        ``f(x, *args)``, one real number, as for `numerical_gradient`.
    grad : array_like of x's shape, or callable
        The gradient to check, or ``grad(x, *args)`` that computes it.
    x : array_like
        Where to check it.
    h : float, array_like of x's shape or "auto", default 1e-4
        The step.
    args : tuple
        Further arguments of f and `grad`.

    Returns
    -------
    GradientCheck
        True in a condition if no mistake was found; printed, it is a table.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or f returns something else than a real number.
    ValueError
        If `grad` does not have x's shape; and as `numerical_gradient`.
    Exception
        Whatever f or `grad` raises.

    Warns
    -----
    GradientCheckWarning
        If a mistake of 0.1% could not be seen, as with float32 and a small step.

    Notes
    -----
    f is evaluated at x ± h/2 and x ± h for each element. The difference between the two slopes is
    the truncation error (Richardson); that between the second differences is rounding, whose median
    over the elements is the noise of f (at least one unit in the last place). Where either is out
    of proportion f has a kink or a sharp bend within ±h: such an element is counted and fails only
    if the gradient lies outside of the slopes to the left and to the right.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([0.5, 2.0])
    >>> check = check_gradient(lambda x: np.sum(np.log(x)), 1 / x, x)
    >>> check.ok
    True
    >>> bool(check_gradient(lambda x: np.sum(np.log(x)), 1.001 / x, x))
    False
    """
    array = real_array(x, "x", layout="K")
    steps = _steps(h, array, 2)
    args = further_arguments(args)
    claimed = grad(array.copy(), *args) if callable(grad) else grad
    analytic = real_array(claimed, "grad", shape=array.shape, layout="K")
    values = evaluate(f, array, steps / 2, (1, 2), args, None)
    here = _at_center(f, values, args)
    with np.errstate(all="ignore"):
        numerical, bound, kinks = _examine(values, here, analytic, steps, array.dtype)
    return compare_gradients(
        {"x": analytic}, {"x": numerical}, h=steps, noise={"x": bound}, kinks={"x": kinks}
    )


def _at_center(f: Function, values: Values, args: tuple[Any, ...]) -> float:
    """Return f(x), of a copy: f may work in place."""
    return one_number(f(values.center.copy(order="K"), *args))


def _sum(arrays: Iterable[FloatArray]) -> FloatArray:
    return functools.reduce(np.add, arrays)


def _like(x: FloatArray, values: Any) -> FloatArray:
    """Return values as an array of x's dtype and memory order."""
    if x.flags.c_contiguous and values.dtype == x.dtype:
        return np.ascontiguousarray(values).reshape(x.shape)
    result = np.empty_like(x)
    result[...] = values
    return result


@dataclass(frozen=True)
class ArrayCheck:
    r"""What a gradient check found in one array.

    Attributes
    ----------
    shape : tuple of int
    verdict : {"ok", "wrong", "unresolved"}
        "unresolved" if nothing is wrong, but a mistake of 0.1% in the largest entry would not have
        been seen either.
    max_abs_error : float
        The largest \|analytic - numerical\| among the entries judged.
    max_rel_error : float
        The largest \|analytic - numerical\| in proportion to the larger of the two numbers, among
        the entries large enough for a mistake of 0.1% to be seen; 0 if there are none.
    index : tuple of int
        Where the two differ most in proportion to what is allowed there; empty in an empty array.
    analytic, numerical : float
        The two numbers at that place.
    noise : float
        The noise floor: the error to expect of the numerical gradient, the median over the entries.
    kinks : int
        In how many entries a kink lies within ±h; these are not judged.
    """

    shape: tuple[int, ...]
    verdict: Literal["ok", "wrong", "unresolved"]
    max_abs_error: float
    max_rel_error: float
    index: tuple[int, ...]
    analytic: float
    numerical: float
    noise: float
    kinks: int


@dataclass(frozen=True)
class GradientCheck:
    """The result of a gradient check: a table when printed, a truth value in a condition.

    ``bool(check)`` is `ok`, so that ``assert net.check_gradient(x, t)`` says what it seems to say.

    Attributes
    ----------
    arrays : dict of str to ArrayCheck
        What was found in each array.
    h : float or ndarray
        The step of the numerical gradient.
    analytic, numerical : dict of str to ndarray
        The two gradients.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([1.0, 2.0])
    >>> check = check_gradient(lambda x: np.sum(x**3), [3.0, 12.1], x)
    >>> check.ok
    False
    >>> check.arrays["x"].index
    (1,)
    """

    arrays: dict[str, ArrayCheck]
    h: float | FloatArray
    analytic: dict[str, FloatArray] = field(repr=False)
    numerical: dict[str, FloatArray] = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether no array is wrong."""
        return all(array.verdict != "wrong" for array in self.arrays.values())

    @property
    def resolved(self) -> bool:
        """Whether a mistake of 0.1% would have been seen in every array."""
        return all(array.verdict != "unresolved" for array in self.arrays.values())

    def __bool__(self) -> bool:
        """Return `ok`."""
        return self.ok

    def __str__(self) -> str:
        """Return the table."""
        head = ("array", "shape", "max error", "relative", "noise", "worst at", "analytic",
                "numerical", "kinks", "verdict")  # fmt: skip
        rows = [
            (
                name,
                str(a.shape),
                f"{a.max_abs_error:.1e}",
                f"{a.max_rel_error:.1e}",
                f"{a.noise:.1e}",
                str(a.index),
                f"{a.analytic:.9g}",
                f"{a.numerical:.9g}",
                str(a.kinks),
                a.verdict,
            )
            for name, a in self.arrays.items()
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (head, *rows)
        ]
        low, high = np.min(self.h, initial=np.inf), np.max(self.h, initial=0)
        step = f"h from {low:g} to {high:g}" if low < high else f"h = {high:g}"
        kinks = sum(array.kinks for array in self.arrays.values())
        summary = "no mistake found" if self.ok else "WRONG"
        if kinks:
            summary += f"; {kinks} not judged, for a kink lies within ±h"
        return "\n".join([*lines, f"{step}: {summary}"])

    def plot(self) -> Any:
        """Draw the error of each array as an image beside its histogram.

        Returns
        -------
        matplotlib.figure.Figure
            One row for each array. A notebook shows it; ``savefig`` saves it.

        Raises
        ------
        ImportError
            If matplotlib is not installed (extra ``plot``).
        """
        from fastgrad.plots import new_figure

        names = [name for name, array in self.numerical.items() if array.size]
        figure = new_figure(9, 2.6 * max(1, len(names)))
        if not names:
            return figure
        for name, (left, right) in zip(
            names, figure.subplots(len(names), 2, squeeze=False), strict=True
        ):
            error = np.abs(self.analytic[name] - self.numerical[name]).astype(np.float64)
            picture = error.reshape(error.shape[0] if error.ndim > 1 else 1, -1)
            image = left.imshow(picture, aspect="auto", interpolation="nearest")
            figure.colorbar(image, ax=left)
            left.set(title=f"{name}: |analytic − numerical|", xlabel="column", ylabel="row")
            if error.ndim < 2:
                left.set(xlabel="entry", ylabel="", yticks=[])
            visible = error[np.isfinite(error) & (error > 0)]
            if visible.size:
                right.hist(np.log10(visible), bins=min(60, 5 + visible.size // 4))
            right.axvline(np.log10(max(self.arrays[name].noise, 1e-300)), color="tab:red",
                          label="noise floor")  # fmt: skip
            right.legend()
            right.set(
                title=f"{name}: {self.arrays[name].verdict}, {error.size - visible.size} zeros",
                xlabel="log10 of the error",
                ylabel="entries",
            )
        return figure


def compare_gradients(
    analytic: Mapping[str, ArrayLike],
    numerical: Mapping[str, ArrayLike],
    *,
    h: Any,
    noise: float | Mapping[str, Any],
    kinks: Mapping[str, NDArray[np.bool_]] | None = None,
) -> GradientCheck:
    """Compare gradients array by array and judge them.

    Parameters
    ----------
    analytic, numerical : mapping of str to array_like
        The gradient to check and the numerical one, with the same keys and shapes.
    h : float or ndarray
        The step of the numerical gradient.
    noise : float, or mapping of str to float or ndarray
        The absolute error to expect of the numerical gradient. One number for an array is its
        rounding error, to which ``h**2`` times the largest entry is added for the truncation; an
        array of its shape is the whole error, entry by entry.
    kinks : mapping of str to ndarray of bool, optional
        The entries within ±h of a kink; they are counted, not judged.

    Returns
    -------
    GradientCheck

    Raises
    ------
    TypeError
        If the gradients do not hold real numbers.
    ValueError
        If keys or shapes do not fit.

    Warns
    -----
    GradientCheckWarning
        If a mistake of 0.1% in the largest entry of an array could not be seen.

    Notes
    -----
    An entry is wrong if the two numbers differ by more than ``noise + 0.00025 max(|a|, |n|)``: a
    quarter of a mistake of 0.1%. NaN is wrong.

    Examples
    --------
    >>> print(compare_gradients({"b": [1.0, 2.0]}, {"b": [1.0, 2.002]}, h=1e-4, noise=1e-12))
    array  shape  max error  relative  noise    worst at  analytic  numerical  kinks  verdict
    b      (2,)   2.0e-03    1.0e-03   1.0e-12  (1,)      2         2.002      0      wrong
    h = 0.0001: WRONG
    """
    if set(analytic) != set(numerical):
        raise ValueError(
            f"`analytic` must have the keys {sorted(numerical)}. Got {sorted(analytic)}."
        )
    found: dict[str, ArrayCheck] = {}
    arrays: tuple[dict[str, FloatArray], dict[str, FloatArray]] = ({}, {})
    for name in numerical:
        n = real_array(numerical[name], f"numerical[{name!r}]")
        a = real_array(analytic[name], f"analytic[{name!r}]", shape=n.shape)
        floor = noise[name] if isinstance(noise, Mapping) else noise
        mask = np.zeros(n.shape, bool) if kinks is None else np.asarray(kinks[name], bool)
        with np.errstate(all="ignore"):
            found[name] = _judge(a, n, floor, mask, h)
        if found[name].verdict == "unresolved":
            _warn_unresolved(name, found[name], a, n)
        arrays[0][name], arrays[1][name] = a.copy(), n.copy()
    return GradientCheck(found, h, *arrays)


def _judge(
    a: FloatArray, n: FloatArray, noise: Any, kinks: NDArray[np.bool_], h: Any
) -> ArrayCheck:
    """Compare one array."""
    shape = n.shape
    dtype = np.result_type(a, n)
    a, n = a.astype(np.float64), n.astype(np.float64)
    if n.size == 0:
        return ArrayCheck(shape, "ok", 0.0, 0.0, (), 0.0, 0.0, 0.0, 0)
    largest = np.maximum(np.abs(a), np.abs(n))
    truncation = 0.0
    if np.shape(noise) != shape or shape == ():
        truncation = np.max(h) ** 2 * np.nanmax(np.abs(n), initial=0.0)
    # The two arrays are themselves rounded to their dtype.
    floor = noise + truncation + 2 * np.finfo(dtype).eps * largest
    error = np.abs(a - n)
    allowed = floor + _TOLERANCE * largest
    excess = np.where(kinks, 0.0, error / np.where(allowed > 0, allowed, 1.0))
    wrong = ~kinks & ~(error <= allowed)
    excess[wrong & np.isnan(excess)] = np.inf
    index = np.unravel_index(np.argmax(excess), shape)
    seen = ~kinks & (_MISTAKE * largest > allowed)
    relative = np.where(seen, error / np.where(largest > 0, largest, 1.0), 0.0)
    if wrong.any():
        verdict: Literal["ok", "wrong", "unresolved"] = "wrong"
    elif (
        seen[np.unravel_index(np.argmax(np.where(kinks, -1.0, largest)), shape)]
        or not (largest > 0).any()
    ):
        verdict = "ok"
    else:
        verdict = "unresolved"
    return ArrayCheck(
        shape=shape,
        verdict=verdict,
        max_abs_error=float(np.max(np.where(kinks, 0.0, error))),
        max_rel_error=float(np.max(relative)),
        index=tuple(int(i) for i in index),
        analytic=float(a[index]),
        numerical=float(n[index]),
        noise=float(np.median(noise)),
        kinks=int(np.count_nonzero(kinks)),
    )


def _warn_unresolved(name: str, check: ArrayCheck, a: FloatArray, n: FloatArray) -> None:
    if check.kinks == n.size:
        reason = (
            "f has a kink or a sharp bend within ±h of every entry; check at another point, or "
            "with a smaller h"
        )
    else:
        single = np.float32 in (a.dtype, n.dtype)
        remedy = "use float64" if single else "use another h, or check at another point"
        reason = (
            f"its noise floor is {check.noise:.1e} in {n.dtype}, its largest entry "
            f"{np.nanmax(np.abs(n)):.1e}; {remedy}"
        )
    warnings.warn(
        f"the numerical gradient of `{name}` cannot show a mistake of 0.1%: {reason}.",
        GradientCheckWarning,
        stacklevel=4,
    )


# --------------------------------------------------------------------------- error estimates


def _richardson(fine: Any, coarse: Any, noise: Any, order: int) -> Any:
    """Estimate the error of a difference at h from that at 2 h and the rounding error.

    What may be rounding in the disagreement counts in full; the rest is truncation, of which the
    difference at h has the (2**order - 1)th part, doubled for the orders above.
    """
    disagreement = np.abs(fine - coarse)
    rounding = np.minimum(disagreement, 30 * noise)
    return noise + rounding + 2 * (disagreement - rounding) / (2**order - 1)


def _measured_noise(values: Values, here: float, multiples: tuple[int, ...]) -> float:
    """Measure the rounding error of f: how far its values lie off a smooth curve.

    The sums f(x + k h) + f(x - k h) are a polynomial in k**2 as far as f is smooth, and the highest
    divided difference of all of them is what no polynomial explains. The median over the elements
    leaves out the few that have a kink, and the cap any number of them.
    """
    nodes = [0, *(k * k for k in multiples)]
    weights = [1 / math.prod(a - b for b in nodes if b != a) for a in nodes]
    sums = (values.values[0::2] + values.values[1::2]).reshape(len(multiples), -1)
    rest = _sum(w * s for w, s in zip(weights[1:], sums, strict=True)) + 2 * here * weights[0]
    rest = np.abs(rest[np.isfinite(rest)])
    if rest.size == 0:
        return 0.0
    # Noise of standard deviation s in every value gives the sum a median of 0.67 scale * s.
    scale = math.sqrt(4 * weights[0] ** 2 + 2 * sum(w * w for w in weights[1:]))
    noise = float(np.quantile(rest, 0.5, method="lower")) / (0.67 * scale)
    finite = np.abs(values.values[np.isfinite(values.values)])
    return min(noise, _NOISIEST * float(np.finfo(values.points.dtype).eps * np.max(finite)))


def _examine(
    values: Values, here: float, analytic: FloatArray, steps: Any, dtype: np.dtype[Any]
) -> tuple[Any, Any, NDArray[np.bool_]]:
    """Return the numerical gradient over h, a bound of its error, and where f has a kink.

    `values` belong to x ± h/2 and x ± h.
    """
    fine, slope = values.slopes()
    upper, lower = values.values[0::2], values.values[1::2]
    bend = upper - 2 * here + lower  # h**2 f'' where f is smooth: four times as much at h as at h/2
    unbalanced = np.abs(bend[1] - 4 * bend[0])
    unit, measured = values.noise(dtype) / 2, _measured_noise(values, here, (1, 2))
    noise = np.maximum(unit, measured)
    # One unit is a bound, what was measured a standard deviation.
    rounding = np.maximum(1.5 * unit, 4 * measured) / (values.width()[1] / 2)
    disagreement = np.abs(slope - fine)
    sides = np.stack(
        [
            *((upper - here) / (values.points[0::2] - values.center)),
            *((here - lower) / (values.center - values.points[1::2])),
        ]
    )
    steepest = np.max(np.abs(sides), axis=0)
    kinks = (unbalanced > 40 * noise + 1e-3 * np.abs(bend[1])) | (
        disagreement > rounding + _TOLERANCE / 2 * steepest
    )
    margin = rounding + _TOLERANCE * steepest
    kinks &= (analytic >= np.min(sides, axis=0) - margin) & (
        analytic <= np.max(sides, axis=0) + margin
    )
    # Where the gradient is not judged as a kink but f has one, the plain bound applies.
    bound = rounding + np.minimum(2 * disagreement, _TOLERANCE * steepest)
    return slope.astype(dtype), bound, kinks


# ------------------------------------------------------------------------------------ steps


def _order(order: Any) -> int:
    if not isinstance(order, int | np.integer) or order not in _WEIGHTS:
        raise ValueError(f"`order` must be 2, 4 or 6. Got {order!r}.")
    return int(order)


def _steps(h: Any, x: FloatArray, order: int) -> Any:
    """Return the step for each element, or one for all, in x's dtype."""
    if isinstance(h, str):
        one_of(h, "h", ("auto",))
        # The minimum of truncation t h**p plus rounding r eps / h. Eight units of rounding: f is
        # most often a sum over all elements, and so larger than the share of one.
        rounding = 8 * sum(abs(w) / k for k, w in _WEIGHTS[order].items())
        balance = rounding * np.finfo(x.dtype).eps / (order * _TRUNCATION[order])
        # Powers of x want a step like |x|, exp and sin one that does not depend on x: the mean.
        scale = np.sqrt(np.maximum(1, np.abs(x)))
        return (balance ** (1 / (order + 1)) * scale).astype(x.dtype)
    if np.ndim(h) == 0:
        return x.dtype.type(step_size(h, dtype=x.dtype))
    with np.errstate(over="ignore"):
        steps = real_array(h, "h", shape=x.shape, layout="K").astype(x.dtype)
    if not (np.isfinite(steps) & (steps > 0)).all():
        raise ValueError(f"`h` must hold finite numbers above 0 only, in {x.dtype}.")
    return steps
