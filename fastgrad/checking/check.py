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
    entries_of,
    generator_of,
    step_for_display,
)
from fastgrad.numdiff.directions import along_directions
from fastgrad.numdiff.noise import noise_of
from fastgrad.numdiff.objective import Function
from fastgrad.numdiff.trees import is_tree
from fastgrad.validation import FloatArray, real_array, whole_number

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
    source = generator_of(rng)
    with entries_of(
        f, x, h, args=args, workers=workers, order=order, sample=sample, bounds=bounds,
        progress=progress, rng=source, batched=batched,
    ) as entries:  # fmt: skip
        objective, tree = entries.objective, entries.objective.x
        if callable(grad):
            grad = grad(tree.copied().root, *args)
        claimed = tree.leaves_like(grad, "grad")
        analytic = tree.flattened(claimed)
        noise = noise_of(objective, objective.value())
        found = GradientCheck(
            {}, step_for_display(h), {}, {}, repeats=noise.repeats, noise=noise.level
        )
        if directions is None or sample is not None:
            seen, codes = evidence.gather(entries, analytic[entries.numbers], noise)
            parts = (
                tree.shaped(entries.everywhere(seen.numerical)),
                tree.shaped(entries.everywhere(seen.error)),
                tree.shaped(entries.everywhere(codes, verdicts.NOT_DRAWN)),
            )
            for leaf, a, n, e, c in zip(tree.leaves, claimed, *parts, strict=True):
                n, c = n.astype(leaf.array.dtype), c.astype(np.int8)
                result.record(found, leaf.path, a, n, e, c, leaf.array)
        if directions is not None:
            count = whole_number(directions, "directions", minimum=1)
            derivatives = along_directions(objective, count, source, noise, analytic)
            eps = objective.largest_eps
            by_array = zip(tree.leaves, tree.by_leaf(analytic), derivatives, strict=True)
            for leaf, part, (vectors, slopes) in by_array:
                along, seen = vectors @ part, evidence.of_slopes(slopes)
                name = f"{leaf.path} along {len(vectors)} directions"
                codes = verdicts.judge(along, seen, eps)
                result.record(found, name, along, seen.numerical, seen.error, codes)
    if not noise.repeats:
        result.warn_if_unresolved(found)
    return found


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
        The parameters, as the layer has them: they are perturbed in place.
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

    def weighted(perturbed: Any) -> Any:
        product = np.sum(np.multiply(forward(perturbed["x"]), np.conj(dout)))
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
