"""The gradient checker: a gradient, or a layer's backward pass, against the numerical gradient.

`fastgrad.checking.evidence` finds out what is known of each entry, `fastgrad.checking.verdicts`
judges it, and `fastgrad.checking.result` tells the outcome.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgrad.checking import evidence, result, verdicts
from fastgrad.checking.result import GradientCheck
from fastgrad.numdiff.arguments import (
    Batched,
    Step,
    Workers,
    flattened,
    generator_of,
    is_auto,
    limits_of,
    objective_of,
    order_of,
    sampled_entries,
    scattered,
    step_for_display,
    steps_of,
    tree_of,
)
from fastgrad.numdiff.directions import along_directions
from fastgrad.numdiff.noise import Noise, noise_of
from fastgrad.numdiff.objective import Function, Objective
from fastgrad.numdiff.trees import is_tree, leaves_like
from fastgrad.validation import (
    FloatArray,
    IntArray,
    real_array,
    whole_number,
)

__all__ = ["check_backward", "check_gradient"]


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
    `fastgrad.checking.verdicts.judge` has the rules, `fastgrad.numdiff.noise.noise_of` how noise is
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
    order = order_of(order)
    tree = tree_of(x, "x")
    with objective_of(f, tree, args, workers, progress, batched) as objective:
        if callable(grad):
            grad = grad(tree.rebuilt([leaf.array.copy(order="K") for leaf in tree.leaves]), *args)
        claimed = leaves_like(grad, tree, "grad")
        analytic = flattened(tree, claimed)
        source = generator_of(rng)
        noise = noise_of(objective, objective.value())
        found = GradientCheck(
            {}, step_for_display(h), {}, {}, repeats=noise.repeats, noise=noise.level
        )
        if directions is None or sample is not None:
            entries = sampled_entries(objective, sample, source)
            limits = limits_of(bounds, objective, entries)
            steps = None if is_auto(h) else steps_of(h, objective, entries)
            seen, codes = evidence.gather(
                objective, entries, analytic[entries], noise, steps, order, limits
            )
            _record_entries(found, objective, entries, claimed, seen, codes)
        if directions is not None:
            count = whole_number(directions, "directions", minimum=1)
            _record_directions(found, objective, count, source, noise, analytic)
    if not noise.repeats:
        result.warn_if_unresolved(found)
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
        scattered(objective, entries, seen.numerical),
        scattered(objective, entries, seen.error),
        scattered(objective, entries, codes, verdicts.NOT_DRAWN),
    )
    parts = (objective.by_leaf(values) for values in everywhere)
    for leaf, a, n, e, c in zip(objective.x.leaves, claimed, *parts, strict=True):
        n, e, c = (leaf.shaped(part) for part in (n, e, c))
        result.record(
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
    derivatives = along_directions(objective, count, rng, noise, analytic)
    eps = float(np.max(objective.eps, initial=0))
    pairs = zip(objective.x.leaves, objective.by_leaf(analytic), derivatives, strict=True)
    for leaf, part, (directions, slopes) in pairs:
        along, seen = directions @ part, evidence.of_slopes(slopes)
        codes = verdicts.judge(along, seen, eps)
        name = f"{leaf.path} along {len(directions)} directions"
        result.record(found, name, along, seen.numerical, seen.error, codes)


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
    rng : int, Generator, SeedSequence or RandomState of numpy.random, optional
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

    Complex outputs have a complex `dout`, whose real and imaginary parts are the gradients by those
    of the output, and what is checked is the gradient of ``np.sum(forward(x) * dout.conj()).real``:
    the convention of PyTorch. JAX's is the complex conjugate: hand on ``dout.conj()`` to a function
    from `jax.vjp`. x and the parameters are real, and so are their gradients.

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
    source = generator_of(rng)
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

    if grads["x"] is None:
        raise TypeError("`backward` must return the gradient by `x`. Got None.")

    def weighted(nudged: Any) -> Any:
        product = np.sum(np.multiply(forward(nudged["x"]), np.conj(dout)))
        return product.real if dout.dtype.kind == "c" else product

    weighted.__module__ = getattr(forward, "__module__", weighted.__module__)  # read as the user's
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
