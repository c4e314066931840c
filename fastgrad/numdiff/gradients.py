"""Numerical derivatives of any function, and gradient descent on them.

`fastgrad.numdiff.trees` takes a model apart, `fastgrad.numdiff.objective` evaluates the function
around it, and `fastgrad.numdiff.formulas` turns values into slopes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastgrad.numdiff.arguments import (
    Batched,
    Step,
    Workers,
    array_of,
    entries_of,
    generator_of,
    steps_of,
    tree_of,
)
from fastgrad.numdiff.directions import along_directions
from fastgrad.numdiff.entries import Entries
from fastgrad.numdiff.extrapolation import extrapolated
from fastgrad.numdiff.formulas import evaluate_around
from fastgrad.numdiff.noise import noise_of, scatter
from fastgrad.numdiff.objective import Function, Objective
from fastgrad.validation import (
    FloatArray,
    flag,
    real_array,
    real_number,
    whole_number,
)

__all__ = ["gradient_descent", "numerical_diff", "numerical_gradient"]


# ------------------------------------------------------------------------------------ public


def numerical_diff(f: Function, x: ArrayLike, h: Step = 1e-4, *, error: bool = False) -> Any:
    """Differentiate a function of one variable numerically, by a central difference.

    Parameters
    ----------
    f : callable
        ``f(x)`` of one number; for an array x it must work element by element.
    x : float or array_like
        Where to differentiate.
    h : float, array_like of x's shape or "auto", default 1e-4
        The step; see `numerical_gradient`.
    error : bool
        Whether to return an estimate of the error as well.

    Returns
    -------
    slope : float or ndarray
        ``(f(x + h) - f(x - h)) / (2 h)``, with the step really taken in the denominator.
    error : float or ndarray
        Only with ``error=True``: an upper estimate of the absolute error. At a kink, such as that
        of ReLU at 0, it is at least half the difference between the slopes to both sides.

    Raises
    ------
    TypeError
        If x is no array, x or h is not real, or f does not return numbers.
    ValueError
        If a step is not above zero, or f(x) does not have the shape of an array x.

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

    A kink shows in the error:

    >>> slope, error = numerical_diff(lambda x: max(x, 0.0), 0.0, error=True)
    >>> slope, error >= 0.5
    (0.5, True)
    """
    error = flag(error, "error")
    elements = _Elements(Objective(f, array_of(x, "x"), ()))
    steps = steps_of(h, elements.objective, elements.numbers)
    if steps is None or error:
        elements.here = elements.at(elements.center)
    if steps is None:
        elements.tell_apart()
        slope, estimate = extrapolated(elements)[:2]
    else:
        around = evaluate_around(elements, steps, 2, twice=error)
        with np.errstate(all="ignore"):
            slope = estimate = around.gradient(2)
            if error:
                estimate = around.error(2, 2 * around.unit(elements.eps))
    return (elements.result(slope), elements.result(estimate)) if error else elements.result(slope)


class _Elements(Entries):
    """The elements of f(x): each depends on its own one of x, or on the only one."""

    def __init__(self, objective: Objective) -> None:
        super().__init__(objective, objective.entries)
        self.leaf = objective.x.leaves[0]
        self.is_number = self.leaf.array.ndim == 0
        self.shape = None if self.is_number else self.leaf.array.shape
        self.is_constant = False  # there is no need to know

    def tell_apart(self) -> None:
        """Let each element of f at a number be a function of its own."""
        if self.is_number:
            self.numbers = np.zeros(self.here.size, np.int64)
            self.center = self.objective.center[self.numbers]

    def at(self, points: FloatArray) -> FloatArray:
        """Return f at a point for each entry; as in the book, a number goes in as a number."""
        perturbed = self.leaf.shaped(points).astype(self.leaf.array.dtype)  # always a copy
        found = real_array(self.objective.f(perturbed[()]), "f(x)", layout="K")
        if self.shape is None:
            self.shape = found.shape
        if found.shape != self.shape:
            raise ValueError(
                f"`f` must return an array of shape {self.shape}, element by element. Got "
                f"{found.shape}; of a function of several variables take `numerical_gradient` or "
                "`numerical_jacobian`."
            )
        return (found if self.is_number else found.transpose(self.leaf.axes)).reshape(-1)

    def _evaluate(self, which: Any, points: FloatArray, *, tolerant: bool) -> FloatArray:
        return np.array([self._row(which, row) for row in points])

    def _row(self, which: Any, points: FloatArray) -> Any:
        """Return some elements of f(x), each at a point of its own."""
        if not self.is_number:
            moved = self.center.copy()
            moved[which] = points
            return self.at(moved)[which]
        values = self.at(points[:1])[which]
        for point in set(points[1:].tolist()) - {float(points[0])}:  # once for all elements
            values = np.where(points == point, self.at(np.array([point]))[which], values)
        return values

    def result(self, values: FloatArray) -> Any:
        """Return numbers in the shape of f(x)."""
        if self.is_number:
            assert self.shape is not None
            return values.reshape(self.shape) if self.shape else float(values[0])
        return self.leaf.shaped(values).astype(self.leaf.array.dtype)


def numerical_gradient(
    f: Function,
    x: Any,
    h: Step = 1e-4,
    *,
    args: tuple[Any, ...] = (),
    workers: Workers | None = None,
    order: int = 2,
    error: bool = False,
    sample: int | None = None,
    directions: int | None = None,
    bounds: tuple[Any, Any] | None = None,
    progress: bool = False,
    rng: Any = None,
    batched: Batched = "auto",
) -> Any:
    r"""Compute the gradient of a function of an array by central differences.

    Parameters
    ----------
    f : callable
        ``f(x, *args)``, one real number: a Python or NumPy scalar, or an array of one element.
        A function compiled with ``numba.njit`` is evaluated on all threads at once.
    x : array_like, or a tree of arrays and numbers
        Where to differentiate; any shape and memory layout. A float32 or float64 array is perturbed
        in place, one element at a time, so an f that ignores its argument and reads the live array
        works; it is restored exactly, whatever happens. Anything else is converted to float64
        first, and f sees the converted array. A compiled f, and f in `workers`, gets copies.

        A tree is a dict, list, tuple, named tuple or dataclass of arrays and numbers, nested as one
        likes; lists and tuples of numbers alone are arrays. f gets the caller's own tree. For a
        compiled f it may be a tuple of arrays, or of such tuples.
    h : float, array_like of x's shape, tree like x, or "auto", default 1e-4
        The step. "auto" looks at the function: it extrapolates from a sequence of steps that it
        chooses for each element, with 6 evaluations of an easy one and about 24 of a hard one. It
        keeps clear of the edges of the domain and of kinks; `order` does not matter then.
    args : tuple
        Further arguments of f: for a compiled f numbers, arrays and tuples of them.
    workers : callable, optional
        A map-like callable that evaluates f elsewhere: the ``map`` of a ``multiprocessing`` pool,
        or of any executor with the interface of ``concurrent.futures`` (Dask, mpi4py, ...).
    order : {2, 4, 6}
        The order of the error in h. The function is evaluated `order` times an element, and for
        4 and 6 once at x itself.
    error : bool
        Whether to return an estimate of the error as well, at one and a half times to twice the
        work.
    sample : int, optional
        So many entries of each array, drawn at random; the others are NaN.
    directions : int, optional
        Estimate the gradient from so many derivatives along random directions of each array, about
        ten evaluations each, instead of going through the entries. It is right on average, and as
        far off as there are more entries than directions; the error is that of the average, three
        standard deviations.
    bounds : (low, high), optional
        Where f is defined: two numbers, or arrays or trees like x. Near a bound the points lie on
        one side of x, and the formula is one of the same order.
    progress : bool
        Whether to show a progress bar.
    rng : int, Generator, SeedSequence or RandomState of numpy.random, optional
        Where `sample` and `directions` draw from.
    batched : {"auto", True, False}
        Whether a Python f is evaluated at all points at once, in a single run of its code: where
        that is possible and the loop would take longer than a moment; always, or a ValueError says
        why not; or never.

    Returns
    -------
    gradient : ndarray, of x's shape, memory order and dtype (float32 or float64); or a tree like x
    error : ndarray or tree, of the same form
        Only with ``error=True``: an upper estimate of the absolute error of each element.

    Warns
    -----
    UserWarning
        If all values of f are the same although x was converted: f reads another array then.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or f returns something else than a real number.
    ValueError
        If `order` or a step is out of range, f returns more than one number, f changes its
        argument, or entries of x share memory; if `batched` is True and f cannot be evaluated so.
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

    With h="auto" the central differences over a ladder of steps are extrapolated to a step of zero
    (Romberg), as C. J. F. Ridders did (1982); see `fastgrad.numdiff.extrapolation`.

    In place means: do not use x in another thread meanwhile.

    Where a kink, as of ReLU, lies between the points of order 4 or 6, the formula is that of the
    largest order below whose points have none between them.

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

    >>> gradient, error = numerical_gradient(np.exp, [1.0], "auto", error=True)
    >>> bool(abs(gradient[0] - np.e) < error[0] < 1e-10)
    True

    A model:

    >>> params = {"W": np.ones((2, 2)), "b": np.zeros(2)}
    >>> gradient = numerical_gradient(lambda p: np.sum((p["W"] @ [1, 2] + p["b"]) ** 2), params)
    >>> gradient["b"].round(8)
    array([6., 6.])
    """
    error = flag(error, "error")
    with entries_of(
        f, x, h, args=args, workers=workers, order=order, sample=sample, bounds=bounds,
        progress=progress, rng=rng, batched=batched,
    ) as entries:  # fmt: skip
        objective = entries.objective
        if directions is not None:
            entries = Entries(objective, objective.entries)
            slope, estimate = _from_directions(objective, directions, rng)
        elif entries.steps is None:
            noise = noise_of(objective, objective.value(), repeats=1)
            entries.here = noise.here
            slope, estimate = extrapolated(entries, noise.level)[:2]
        else:
            # NaN and infinities go on as they are.
            with np.errstate(all="ignore"):
                if error or order > 2 or bounds is not None:
                    entries.here = objective.value()
                around = evaluate_around(entries, entries.steps, order, twice=error)
                slope = estimate = around.gradient(order)
                if error:
                    level = scatter(noise_of(objective, entries.here), around)
                    noise_of_values = np.maximum(4 * level, 2 * around.unit(entries.eps))
                    estimate = around.error(order, noise_of_values)
    if directions is None:
        entries.warn_if_constant(stacklevel=3)
    gradient = entries.result(slope)
    return (gradient, entries.result(estimate)) if error else gradient


def gradient_descent(
    f: Function,
    init_x: Any,
    lr: float = 0.01,
    step_num: int = 100,
    *,
    return_history: bool = False,
    batched: Batched = "auto",
) -> Any:
    r"""Minimise a function by gradient descent on its numerical gradient.

    Parameters
    ----------
    f : callable
        ``f(x)``, one real number; Python or compiled, as for `numerical_gradient`.
    init_x : array_like, or a tree of arrays and numbers
        Where to start; not changed. f gets a copy, and must use it.
    lr : float, default 0.01
        The learning rate.
    step_num : int, default 100
        The number of steps.
    return_history : bool
        Whether to return the path as well.
    batched : {"auto", True, False}
        As for `numerical_gradient`.

    Returns
    -------
    x : ndarray, of init_x's shape; float32 or float64; or a tree like init_x
        The last point.
    history : ndarray, shape (step_num + 1, \*x.shape)
        Only with ``return_history=True``: all points, the first one included; of a tree, a tree of
        such arrays.

    Warns
    -----
    UserWarning
        If all values of f around the first point are the same.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or f returns something else than a real number.
    ValueError
        If `lr` is not finite or negative, or `step_num` is negative.
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
    lr, return_history = real_number(lr, "lr", minimum=0), flag(return_history, "return_history")
    step_num = whole_number(step_num, "step_num", minimum=0)
    tree = tree_of(init_x, "init_x").copied()
    history = [[leaf.array.copy(order="K")] for leaf in tree.leaves]
    objective = Objective(f, tree, (), batched=batched)
    relative = np.sqrt(objective.eps)
    for step in range(step_num):
        # A descent that diverges goes on to diverge: no step is lost beside a huge x.
        steps = np.fmax(1e-4, relative * np.nan_to_num(np.abs(objective.center)))
        entries = Entries(objective, objective.entries)
        around = evaluate_around(entries, steps, 2, twice=False)
        if step == 0:
            entries.warn_if_constant(stacklevel=3)
        with np.errstate(all="ignore"):
            slopes = tree.shaped(around.gradient(2))
        for leaf, slope, points in zip(tree.leaves, slopes, history, strict=True):
            leaf.array -= lr * slope.astype(leaf.array.dtype)
            if return_history:
                points.append(leaf.array.copy(order="K"))
        objective.update()
    x = tree.rebuilt([leaf.array for leaf in tree.leaves])
    if not return_history:
        return x
    return x, tree.rebuilt([np.stack(points) for points in history])


def _from_directions(
    objective: Objective, directions: Any, rng: Any
) -> tuple[FloatArray, FloatArray]:
    """Return an estimate of the gradient from derivatives along directions, and its error."""
    count = whole_number(directions, "directions", minimum=1)
    noise = noise_of(objective, objective.value(), repeats=1)
    found = along_directions(objective, count, generator_of(rng), noise, np.zeros(objective.size))
    slopes = np.empty((2, objective.size))
    for part, (vectors, derivatives) in zip(objective.x.by_leaf(slopes.T), found, strict=True):
        # The mean of v v^T is 1/n times the identity.
        each = vectors.shape[1] * vectors * derivatives.slope[:, None]
        part[:, 0] = each.mean(axis=0)
        spread = each.std(axis=0, ddof=1) if count > 1 else np.inf
        part[:, 1] = 3 * spread / np.sqrt(count)
    return slopes[0], slopes[1]
