"""Numerical gradients of any function, gradient descent on them, and a gradient checker.

`fastgrad.trees` takes a model apart, `fastgrad.evaluation` evaluates the function around it,
`fastgrad.differences` turns values into slopes and `fastgrad.checking` judges them.
"""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastgrad.arrays import (
    FloatArray,
    IntArray,
    as_generator,
    flag,
    one_of,
    real_array,
    real_number,
    step_size,
    whole_number,
)
from fastgrad.checking import (
    ArrayCheck,
    GradientCheck,
    GradientCheckWarning,
    check,
    compare_gradients,
    evidence,
    verdicts,
)
from fastgrad.differences import CENTRAL, Differences, central_error, evaluate_around
from fastgrad.evaluation import Function, Objective, WorkerTraceback
from fastgrad.extrapolation import extrapolate, extrapolated
from fastgrad.noise import Noise, noise_of, scatter
from fastgrad.trees import Leaf, Tree, is_tree, leaves_like

__all__ = [
    "ArrayCheck",
    "GradientCheck",
    "GradientCheckWarning",
    "WorkerTraceback",
    "check_backward",
    "check_gradient",
    "compare_gradients",
    "gradient_descent",
    "numerical_diff",
    "numerical_gradient",
]

Step = float | ArrayLike | Literal["auto"]
Workers = Callable[..., Iterable[Any]]
Batched = Literal["auto"] | bool


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

    A kink shows in the error:

    >>> slope, error = numerical_diff(lambda x: max(x, 0.0), 0.0, error=True)
    >>> slope, error >= 0.5
    (0.5, True)
    """
    tree = _tree(x, "x")
    objective = Objective(f, tree, ())
    leaf = tree.leaves[0]

    def values(points: FloatArray) -> FloatArray:
        """Return f at points in memory order; as in the book, a number goes in as a number."""
        nudged = leaf.shaped(points).astype(leaf.array.dtype)
        return real_array(f(nudged.copy()[()]), "f(x)", layout="K")

    if _is_auto(h):
        slope, estimate = _extrapolated_diff(values, objective, leaf)
    else:
        steps = _steps(h, objective, objective.entries)
        multiples = np.array([1, -1, 2, -2] if error else [1, -1], float)
        nudged = objective.nudged(
            objective.entries, np.multiply.outer(multiples, steps).reshape(len(multiples), -1)
        )
        upper, lower, *twice = (values(points) for points in nudged)
        with np.errstate(all="ignore"):
            width = leaf.shaped(nudged[0] - nudged[1]).astype(leaf.array.dtype)
            slope = (upper - lower) / width
            estimate = slope
            if error:
                here = values(objective.center)
                estimate = _error_of_diff(leaf, nudged, here, [upper, lower, *twice])
    results = [
        float(part) if leaf.array.ndim == 0 == np.ndim(part) else part for part in (slope, estimate)
    ]
    return (results[0], results[1]) if error else results[0]


def _error_of_diff(
    leaf: Leaf, points: FloatArray, here: FloatArray, values: list[FloatArray]
) -> FloatArray:
    """Estimate the error of a central difference from values at x, x ± h and x ± 2 h."""
    steps = [leaf.shaped(row) for row in points]
    h = np.abs(steps[0] - steps[1]) / 2
    unit = np.finfo(leaf.array.dtype).eps * np.max(np.abs(values), axis=0)
    fine, coarse = ((values[k] - values[k + 1]) / (steps[k] - steps[k + 1]) for k in (0, 2))
    bends = [(values[k] + values[k + 1] - 2 * here) / (steps[k] - steps[k + 1]) for k in (0, 2)]
    estimate = central_error(
        np.abs(coarse - fine), np.abs(bends[1] - 2 * bends[0]), 2 * unit / h, 2
    )
    return np.asarray(estimate, leaf.array.dtype)


def _extrapolated_diff(
    values: Callable[[FloatArray], FloatArray], objective: Objective, leaf: Leaf
) -> tuple[FloatArray, FloatArray]:
    """Differentiate each element of f(x) by its own element of x, or all by the only one."""
    here = values(objective.center)
    shape = here.shape if leaf.array.ndim == 0 else leaf.array.shape
    if here.shape != shape:
        raise ValueError(
            f"`f` must return an array of shape {shape}, element by element. Got {here.shape}; "
            "of a function of several variables take `numerical_gradient` or `numerical_jacobian`."
        )
    flat = here.reshape(-1) if leaf.array.ndim == 0 else _flat(objective.x, [here])
    center = np.broadcast_to(objective.center, flat.shape)

    def beside(which: IntArray, offsets: FloatArray) -> tuple[FloatArray, FloatArray]:
        points = objective.rounded(np.zeros_like(which), center[which] + offsets)
        found = np.empty(points.shape)
        for row, row_points in zip(found, points, strict=True):
            if leaf.array.ndim == 0:
                for point in np.unique(row_points):
                    chosen = row_points == point
                    row[chosen] = values(np.array([point])).reshape(-1)[which[chosen]]
            else:
                moved = objective.center.copy()
                moved[which] = row_points
                row[:] = _flat(objective.x, [values(moved)])[which]
        return found, points

    eps = np.full(flat.shape, np.max(objective.eps, initial=0))
    with np.errstate(all="ignore"):
        found = extrapolate(beside, center, flat.astype(np.float64), eps)
    if leaf.array.ndim == 0:
        return found.slope.reshape(shape), found.error.reshape(shape)
    slope, error = (leaf.shaped(part).astype(leaf.array.dtype) for part in found[:2])
    return slope, error


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
        Where to differentiate; any shape and memory layout. A float32 or float64 array is nudged in
        place, one element at a time, so an f that ignores its argument and reads the live array
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
        The order of the error in h. The function is evaluated `order` times an element.
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
    rng : int or numpy.random.Generator, optional
        Where `sample` draws from.
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
    (Romberg), as C. J. F. Ridders did (1982); see `fastgrad.extrapolation`.

    In place means: do not use x in another thread meanwhile.

    The orders 4 and 6 take three and five points more. Where a kink lies between them, as of ReLU,
    the formula is that of the largest order below whose points have none between them.

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
    order = _order(order)
    tree = _tree(x, "x")
    with _objective(f, tree, args, workers, progress, batched) as objective:
        entries = _drawn(objective, sample, rng)
        limits = _limits(bounds, objective, entries)
        if directions is not None:
            both = _from_directions(objective, directions, rng)
            return both if error else both[0]
        if _is_auto(h):
            here = objective.here()
            noise = noise_of(objective, here, repeats=1)
            found = extrapolated(objective, entries, noise, limits)
            gradient = _result(objective, entries, found.slope)
            return (gradient, _result(objective, entries, found.error)) if error else gradient
        steps = _steps(h, objective, entries)
        # NaN and infinities go on as they are.
        with np.errstate(all="ignore"):
            here = objective.here() if error or order > 2 or limits is not None else np.nan
            around = evaluate_around(
                objective, entries, steps, order, twice=error, here=here, bounds=limits
            )
            gradient = around.gradient(order)
            if error:
                level = scatter(noise_of(objective, here), around)
                estimate = around.error(
                    order, np.maximum(4 * level, 2 * around.unit(objective.eps_of(entries)))
                )
    if tree.converted:
        _warn_if_constant(around)
    if error:
        return _result(objective, entries, gradient), _result(objective, entries, estimate)
    return _result(objective, entries, gradient)


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
    lr = real_number(lr, "lr")
    step_num = whole_number(step_num, "step_num", minimum=0)
    tree = _tree(init_x, "init_x").copied()
    history = [[leaf.array.copy(order="K")] for leaf in tree.leaves]
    objective = Objective(f, tree, (), batched=batched)
    relative = np.sqrt(objective.eps)
    for step in range(step_num):
        # A descent that diverges goes on to diverge: no step is lost beside a huge x.
        steps = np.fmax(1e-4, relative * np.nan_to_num(np.abs(objective.center)))
        around = evaluate_around(objective, objective.entries, steps, 2, twice=False)
        if step == 0:
            _warn_if_constant(around)
        with np.errstate(all="ignore"):
            slopes = objective.by_leaf(around.gradient(2))
        for leaf, slope, points in zip(tree.leaves, slopes, history, strict=True):
            leaf.array -= lr * leaf.shaped(slope).astype(leaf.array.dtype)
            if return_history:
                points.append(leaf.array.copy(order="K"))
        objective.update()
    x = tree.rebuilt([leaf.array for leaf in tree.leaves])
    if not return_history:
        return x
    return x, tree.rebuilt([np.stack(points) for points in history])


def check_gradient(
    f: Function,
    grad: Any,
    x: Any,
    h: Step = 1e-4,
    *,
    args: tuple[Any, ...] = (),
    workers: Workers | None = None,
    order: int = 2,
    sample: int | None = None,
    directions: int | None = None,
    bounds: tuple[Any, Any] | None = None,
    progress: bool = False,
    rng: Any = None,
    batched: Batched = "auto",
) -> GradientCheck:
    """Compare a gradient with the numerical gradient of the function.

    Parameters
    ----------
    f : callable
        ``f(x, *args)``, one real number, as for `numerical_gradient`.
    grad : array_like of x's shape, tree like x, or callable
        The gradient to check, or ``grad(x, *args)`` that computes it.
    x : array_like, or a tree of arrays and numbers
        Where to check it; see `numerical_gradient`.
    h : float, array_like of x's shape, tree like x, or "auto", default 1e-4
        The step.
    args : tuple
        Further arguments of f and `grad`.
    directions : int, optional
        Check the derivatives along so many random directions of each array as well, or, without
        `sample`, instead of the entries. It takes about ten evaluations each, whatever the number
        of entries, and shows mistakes of the whole array; that of a single entry may be lost.
    workers, order, sample, bounds, progress, rng, batched
        As for `numerical_gradient`. f is evaluated at twice as many points, all within ±h for order
        2 (one and a half times as many for the others), and at about 6 to 24 more for each entry
        that these do not show to be right.

    Returns
    -------
    GradientCheck
        True in a condition if every array could be judged and no mistake was found; printed, it is
        a table.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or f returns something else than a real number.
    ValueError
        If `grad` does not have x's form and shapes; and as `numerical_gradient`.
    Exception
        Whatever f or `grad` raises.

    Warns
    -----
    GradientCheckWarning
        If a mistake of 0.1% could not be seen, as where f has a kink at x, or is too noisy.

    Notes
    -----
    For the order 2, f is evaluated at x ± h/2 and x ± h for each entry. An entry is right at once
    if all values are finite, the two slopes agree, f shows no kink, and the gradient agrees with
    them. All others are looked at again with the steps of ``h="auto"``, and judged by that:
    `fastgrad.checking.verdicts.judge` has the rules, `fastgrad.noise.noise_of` how noise is
    measured. A kink at x is counted, and fails only if the gradient lies outside of the slopes to
    the left and to the right.

    f is called several times at x. If the values differ by more than rounding, nothing is ok.

    An entry that f does not depend on is right if both gradients are zero to rounding.

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
    order = _order(order)
    tree = _tree(x, "x")
    with _objective(f, tree, args, workers, progress, batched) as objective:
        if callable(grad):
            grad = grad(tree.rebuilt([leaf.array.copy(order="K") for leaf in tree.leaves]), *args)
        claimed = leaves_like(grad, tree, "grad")
        analytic = _flat(tree, claimed)
        source = _generator(rng)
        noise = noise_of(objective, objective.here())
        found = GradientCheck({}, _shown(h), {}, {}, repeats=noise.repeats, noise=noise.level)
        if directions is None or sample is not None:
            entries = _drawn(objective, sample, source)
            limits = _limits(bounds, objective, entries)
            steps = None if _is_auto(h) else _steps(h, objective, entries)
            seen, codes = evidence.gather(
                objective, entries, analytic[entries], noise, steps, order, limits
            )
            _record_entries(found, objective, entries, claimed, seen, codes)
        if directions is not None:
            count = whole_number(directions, "directions", minimum=1)
            _record_directions(found, objective, count, source, noise, analytic)
    if not noise.repeats:
        check.warn_if_unresolved(found)
    return found


def _record_entries(
    found: GradientCheck,
    objective: Objective,
    entries: IntArray,
    claimed: list[FloatArray],
    seen: verdicts.Evidence,
    codes: verdicts.Codes,
) -> None:
    everywhere = (
        _spread(objective, entries, seen.numerical),
        _spread(objective, entries, seen.error),
        _spread(objective, entries, codes, verdicts.NOT_DRAWN),
    )
    parts = (objective.by_leaf(values) for values in everywhere)
    for leaf, a, n, e, c in zip(objective.x.leaves, claimed, *parts, strict=True):
        n, e, c = (leaf.shaped(part) for part in (n, e, c))
        check.record(
            found, leaf.path, a, n.astype(leaf.array.dtype), e, c.astype(np.int8), leaf.array
        )


def _record_directions(
    found: GradientCheck,
    objective: Objective,
    count: int,
    rng: np.random.Generator,
    noise: Noise,
    analytic: FloatArray,
) -> None:
    derivatives = evidence.along_directions(objective, count, rng, noise, analytic)
    eps = float(np.max(objective.eps, initial=0))
    pairs = zip(objective.x.leaves, objective.by_leaf(analytic), derivatives, strict=True)
    for leaf, part, (directions, slopes) in pairs:
        along, seen = directions @ part, evidence.of_slopes(slopes)
        codes = verdicts.judge(along, seen, eps)
        name = f"{leaf.path} along {len(directions)} directions"
        check.record(found, name, along, seen.numerical, seen.error, codes)


def check_backward(
    forward: Callable[[Any], Any],
    backward: Callable[[FloatArray], Any],
    x: Any,
    params: Any = None,
    h: Step = 1e-4,
    *,
    rng: Any = None,
    **options: Any,
) -> GradientCheck:
    """Check the backward pass of a layer.

    Parameters
    ----------
    forward : callable
        ``forward(x)``, an array of any shape. It reads the parameters where they are.
    backward : callable
        ``backward(dout)``, the gradient by x for a gradient `dout` of the output's shape; with
        `params` a pair of the gradient by x and a tree of the gradients by the parameters. It is
        called after ``forward(x)``.
    x : array_like, or a tree of arrays and numbers
        The input. A layer of two inputs has a tuple: ``lambda x: layer.forward(*x)``.
    params : tree of arrays and numbers, optional
        The parameters, as the layer has them: they are nudged in place.
    h : float or "auto", default 1e-4
        The step.
    rng : int or numpy.random.Generator, optional
        Where `dout` is drawn from.
    **options
        As for `check_gradient`.

    Returns
    -------
    GradientCheck
        Its arrays are called "x" and "params" and what is within these.

    Raises
    ------
    TypeError, ValueError
        As `check_gradient`.
    Exception
        Whatever `forward` or `backward` raises.

    Notes
    -----
    What is checked is the gradient of ``np.sum(forward(x) * dout)`` with a random `dout`. Every
    mistake in a backward pass shows in that, but for those that only a certain `dout` would show.
    If the output is a number, as that of a loss is, `dout` is 1.

    A complex output has a complex `dout`, and what is checked is the gradient of the real part of
    ``np.sum(forward(x) * np.conj(dout))``. That is PyTorch's convention; a backward pass by JAX's,
    which does not conjugate, is checked as ``lambda dout: backward(np.conj(dout))``.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgrad import Affine
    >>> layer = Affine(np.ones((3, 2)), np.zeros(2))
    >>> def backward(dout):
    ...     dx = layer.backward(dout)
    ...     return dx, {"W": layer.dW, "b": layer.db}
    >>> params = {"W": layer.W, "b": layer.b}
    >>> check = check_backward(layer.forward, backward, np.eye(3), params, rng=0)
    >>> check.ok, list(check.arrays)
    (True, ['x', 'params.W', 'params.b'])
    """
    source = _generator(rng)
    if "args" in options:
        raise TypeError("`args` must be left out: let `forward` hold what else it needs.")
    for name, function in (("forward", forward), ("backward", backward)):
        if not callable(function):
            raise TypeError(f"`{name}` must be callable. Got {function!r}.")
    tree = {"x": real_array(x, "x", layout="K").copy() if not is_tree(x) else x}
    if params is not None:
        tree["params"] = params
    out = _output(forward(tree["x"]))
    dout = source.normal(size=out.shape).astype(out.dtype) if out.ndim else np.ones((), out.dtype)
    if out.dtype.kind == "c":
        dout = (dout + 1j * source.normal(size=out.shape)).astype(out.dtype)
    found = backward(dout.copy()[()])
    if params is None:
        grads = {"x": found}
    elif isinstance(found, tuple) and len(found) == 2:
        grads = dict(zip(("x", "params"), found, strict=True))
    else:
        raise TypeError(
            "`backward` must return a pair, the gradients by `x` and by `params`. "
            f"Got {type(found).__name__}."
        )

    def weighted(nudged: Any) -> Any:
        product = np.sum(np.multiply(forward(nudged["x"]), np.conj(dout)))
        return product.real if dout.dtype.kind == "c" else product

    return check_gradient(weighted, grads, tree, h, rng=source, **options)


def _output(out: Any) -> NDArray[Any]:
    """Return what a layer's forward pass returned as an array of numbers."""
    array = np.asarray(out) if not isinstance(out, tuple | dict) else np.asarray(None)
    if array.dtype.kind not in "biufc":
        raise TypeError(
            f"`forward` must return an array of numbers. Got {type(out).__name__}; join "
            "several outputs by np.concatenate."
        )
    return array


# ------------------------------------------------------------------------------------ arguments


def _tree(x: Any, name: str) -> Tree:
    """Take a tree apart, but for tables with labels: f would get a bare array instead."""
    if hasattr(x, "to_numpy"):
        raise TypeError(
            f"`{name}` must be an array, or a tree of arrays and numbers. Got "
            f"{type(x).__name__}; hand on {name}.to_numpy(), and let f put the labels back."
        )
    return Tree(x, name)


@contextmanager
def _objective(
    f: Function, tree: Tree, args: Any, workers: Workers | None, progress: Any, batched: Any
) -> Iterator[Objective]:
    objective = Objective(
        f, tree, args, workers, progress=flag(progress, "progress"), batched=batched
    )
    try:
        yield objective
    finally:
        objective.close()


def _order(order: Any) -> int:
    if not isinstance(order, int | np.integer) or order not in CENTRAL:
        raise ValueError(f"`order` must be 2, 4 or 6. Got {order!r}.")
    return int(order)


def _drawn(objective: Objective, sample: Any, rng: Any) -> IntArray:
    """Return the entries to look at: all, or so many of each array."""
    if sample is None:
        return objective.entries
    sample = whole_number(sample, "sample", minimum=1)
    source = _generator(rng)
    return np.concatenate(
        [
            np.sort(source.choice(part, min(sample, len(part)), replace=False))
            for part in objective.by_leaf(objective.entries)
        ]
        or [objective.entries]
    )


def _generator(rng: Any) -> np.random.Generator:
    """Return a generator: by default one of its own, not NumPy's global one."""
    if rng is None:
        return np.random.default_rng()
    source = as_generator(rng)
    if isinstance(source, np.random.Generator):
        return source
    return np.random.Generator(np.random.MT19937(source.randint(2**32, size=8, dtype=np.uint32)))


def _from_directions(objective: Objective, directions: Any, rng: Any) -> tuple[Any, Any]:
    """Return an estimate of the gradient from derivatives along directions, and its error."""
    count = whole_number(directions, "directions", minimum=1)
    noise = noise_of(objective, objective.here(), repeats=1)
    found = evidence.along_directions(
        objective, count, _generator(rng), noise, np.zeros(objective.size)
    )
    means, errors = [], []
    for vectors, derivatives in found:
        # The mean of v v^T is 1/n times the identity.
        each = vectors.shape[1] * vectors * derivatives.slope[:, None]
        means.append(each.mean(axis=0))
        spread = each.std(axis=0, ddof=1) if count > 1 else np.full(each.shape[1], np.inf)
        errors.append(3 * spread / np.sqrt(count))
    everything = objective.entries
    mean, error = (
        _result(objective, everything, np.concatenate([np.empty(0), *parts]))
        for parts in (means, errors)
    )
    return mean, error


def _shown(h: Any) -> Any:
    """Return the step as a check shows it."""
    if isinstance(h, str) or (np.ndim(h) == 0 and not is_tree(h)):
        return h
    leaves = Tree(h, "h").leaves
    return np.concatenate([np.empty(0), *(leaf.flat() for leaf in leaves)])


def _is_auto(h: Any) -> bool:
    return isinstance(h, str) and one_of(h, "h", ("auto",)) == "auto"


def _steps(h: Any, objective: Objective, entries: IntArray) -> FloatArray:
    """Return the step of each entry, or one for all."""
    leaves = objective.x.leaves
    if np.ndim(h) == 0 and not is_tree(h):
        dtypes = [leaf.array.dtype for leaf in leaves]
        narrowest = np.float32 if np.dtype(np.float32) in dtypes else np.float64
        return np.array(step_size(h, dtype=np.dtype(narrowest)))
    steps = objective.rounded(
        objective.entries, _flat(objective.x, leaves_like(h, objective.x, "h"))
    )
    if not (np.isfinite(steps) & (steps > 0)).all():
        raise ValueError(f"`h` must hold finite numbers above 0 only, in {leaves[0].array.dtype}.")
    return steps[entries]


def _limits(
    bounds: Any, objective: Objective, entries: IntArray
) -> tuple[FloatArray, FloatArray] | None:
    """Return the bounds of each entry."""
    if bounds is None:
        return None
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise TypeError(f"`bounds` must be a pair (low, high). Got {bounds!r:.60}.")
    low, high = (
        np.full(objective.size, float(bound))
        if isinstance(bound, numbers.Real)
        else _flat(objective.x, leaves_like(bound, objective.x, f"bounds[{i}]"))
        for i, bound in enumerate(bounds)
    )
    outside = ~((low <= objective.center) & (objective.center <= high) & (low < high))
    if outside.any():
        i = int(np.argmax(outside))
        raise ValueError(
            f"`bounds` must have `x` between them. Got {objective.center[i]} and "
            f"({low[i]}, {high[i]})."
        )
    objective.inward = np.where(high - objective.center >= objective.center - low, 1.0, -1.0)
    return low[entries], high[entries]


def _flat(tree: Tree, arrays: list[FloatArray]) -> FloatArray:
    """Return arrays of the leaves' shapes as numbers in the order of the entries, in float64."""
    return np.concatenate(
        [
            array.transpose(leaf.axes).reshape(-1)
            for leaf, array in zip(tree.leaves, arrays, strict=True)
        ]
        or [np.empty(0)],
        dtype=np.float64,
    )


def _result(objective: Objective, entries: IntArray, values: FloatArray) -> Any:
    """Return numbers of some entries as a tree of the same form; all others are NaN."""
    tree = objective.x
    if entries is not objective.entries:
        values = _spread(objective, entries, values)
    parts = zip(tree.leaves, objective.by_leaf(values), strict=True)
    return tree.rebuilt(
        [leaf.shaped(part).astype(leaf.array.dtype, copy=False) for leaf, part in parts]
    )


def _spread(objective: Objective, entries: IntArray, values: Any, rest: float = np.nan) -> Any:
    """Return numbers of some entries as numbers of all."""
    spread = np.full(objective.size, rest)
    spread[entries] = values
    return spread


def _warn_if_constant(around: Differences) -> None:
    """Warn if f is the same at all points, although these are not lost in rounding beside x."""
    values = around.values
    if values.size == 0 or not (values == values.flat[0]).all():
        return
    if np.max(np.abs(around.points - around.center) - 1e-9 * np.abs(around.center)) > 0:
        warnings.warn(
            "f does not depend on `x`, which was copied for it; does it read another array?",
            UserWarning,
            stacklevel=3,
        )
