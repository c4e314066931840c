"""Arguments of numerical gradients and checks: from what the caller gives to entries and steps."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from fastgrad.numdiff.entries import Entries
from fastgrad.numdiff.formulas import CENTRAL
from fastgrad.numdiff.objective import Function, Objective
from fastgrad.numdiff.trees import Tree, is_tree
from fastgrad.validation import (
    FloatArray,
    IntArray,
    as_generator,
    flag,
    step_size,
    whole_number,
)

Step = float | ArrayLike | Literal["auto"]
Workers = Callable[..., Iterable[Any]]
Batched = Literal["auto"] | bool


def tree_of(x: Any, name: str) -> Tree:
    """Take a tree apart, but for tables with labels: f would get a bare array instead."""
    if hasattr(x, "to_numpy"):
        raise TypeError(
            f"`{name}` must be an array, or a tree of arrays and numbers. Got "
            f"{type(x).__name__}; hand on {name}.to_numpy(), and let f put the labels back."
        )
    return Tree(x, name)


def array_of(x: Any, name: str) -> Tree:
    """Return an array as a tree of one leaf."""
    tree = tree_of(x, name)
    if not tree.is_single:
        raise TypeError(
            f"`{name}` must be an array, not a tree of arrays. Got {type(x).__name__}. Put the "
            "numbers into one array, and take them apart in f."
        )
    return tree


@contextmanager
def entries_of(
    f: Function, x: Any, h: Any, *, args: Any, workers: Workers | None, order: Any, sample: Any,
    bounds: Any, progress: Any, rng: Any, batched: Any,
) -> Iterator[Entries]:  # fmt: skip
    """Make the entries that a caller asks for; take the progress bar down in the end."""
    if not isinstance(order, int | np.integer) or order not in CENTRAL:
        raise ValueError(f"`order` must be 2, 4 or 6. Got {order!r}.")
    tree, progress = tree_of(x, "x"), flag(progress, "progress")
    objective = Objective(f, tree, args, workers, progress=progress, batched=batched)
    try:
        numbers = _sampled(objective, sample, rng)
        limits = _limits(bounds, objective, numbers)
        yield Entries(objective, numbers, int(order), steps_of(h, objective, numbers), limits)
    finally:
        objective.close()


def _sampled(objective: Objective, sample: Any, rng: Any) -> IntArray:
    """Return the entries to look at: all, or so many of each array."""
    if sample is None:
        return objective.entries
    sample = whole_number(sample, "sample", minimum=1)
    source = generator_of(rng)
    drawn = [
        np.sort(source.choice(part, min(sample, len(part)), replace=False))
        for part in objective.x.by_leaf(objective.entries)
    ]
    return np.concatenate(drawn or [objective.entries])


def step_for_display(h: Any) -> Any:
    """Return the step as a check shows it."""
    if isinstance(h, str) or (np.ndim(h) == 0 and not is_tree(h)):
        return h
    return Tree(h, "h").flattened()


def steps_of(h: Any, objective: Objective, entries: IntArray) -> FloatArray | None:
    """Return the step of each entry, or one for all; None for "auto"."""
    if isinstance(h, str):
        if h == "auto":
            return None
        raise ValueError(
            f'`h` must be "auto", a number above 0, or such numbers in the form of `x`. Got {h!r}.'
        )
    dtypes = [leaf.array.dtype for leaf in objective.x.leaves]
    if np.ndim(h) == 0 and not is_tree(h):
        return np.array(step_size(h, dtype=min(dtypes, default=np.dtype(float))))
    steps = objective.x.flattened(objective.x.leaves_like(h, "h"))
    steps = objective.rounded(objective.entries, steps)
    if not (np.isfinite(steps) & (steps > 0)).all():
        raise ValueError(f"`h` must hold finite numbers above 0 only, in {dtypes[0]}.")
    return steps[entries]


def _limits(bounds: Any, objective: Objective, entries: IntArray) -> FloatArray | None:
    """Return the bounds of each entry."""
    if bounds is None:
        return None
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise TypeError(f"`bounds` must be a pair (low, high). Got {bounds!r:.60}.")
    low, high = (
        np.full(objective.size, float(bound))
        if isinstance(bound, numbers.Real)
        else objective.x.flattened(objective.x.leaves_like(bound, f"bounds[{i}]"))
        for i, bound in enumerate(bounds)
    )
    for right, rule in (
        (low < high, "must have low < high"),
        ((low <= objective.center) & (objective.center <= high), "must have `x` between them"),
    ):
        if not right.all():
            i = int(np.argmin(right))
            raise ValueError(
                f"`bounds` {rule}. Got ({low[i]}, {high[i]}) for an entry {objective.center[i]}."
            )
    objective.inward = np.where(high - objective.center >= objective.center - low, 1.0, -1.0)
    return np.array([low, high])[:, entries]


def generator_of(rng: Any) -> np.random.Generator:
    """Return a generator: by default one of its own, not NumPy's global one."""
    if rng is None:
        return np.random.default_rng()
    source = as_generator(rng)
    if isinstance(source, np.random.Generator):
        return source
    return np.random.Generator(np.random.MT19937(source.randint(2**32, size=8, dtype=np.uint32)))
