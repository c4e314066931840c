"""Models as trees: arrays and numbers in dicts, lists, tuples, named tuples and dataclasses.

A tree is flattened into its leaves, each of which has a path (``layers[0].W``) for a name, and is
perturbed where it stands, so that a function which reads the live model sees it. `rebuild` makes a
tree of the same form, of gradients for example.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import numbers
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from fastgrad.validation import FloatArray, IntArray, real_array

__all__ = ["Leaf", "RestoredOnExit", "Tree", "is_tree", "like_tuple", "memory_order"]


class Leaf:
    """An array or a number in a tree.

    Attributes
    ----------
    path : str
        Where it stands: "layers[0].W"; the name of the tree itself if that is the only leaf.
    keys : tuple
        The keys, indices and names that lead to it from the root.
    value : object
        What the caller has there.
    array : ndarray of float32 or float64
        The caller's own array where it can be perturbed in place, else a converted copy.
    axes : tuple of int
        The array's axes from the slowest to the fastest in memory: the order of the book's loop.
    is_live : bool
        Whether perturbing the array perturbs what the caller has.
    is_number : bool
        Whether it is a number inside of a tree: it stays one when it is perturbed.
    """

    def __init__(self, path: str, keys: tuple[Any, ...], value: Any, array: FloatArray) -> None:
        self.path, self.keys, self.value, self.array = path, keys, value, array
        self.axes = memory_order(array)
        self.is_live = array is value
        self.is_number = not self.is_live and isinstance(value, numbers.Real)

    def shaped(self, entries: FloatArray) -> FloatArray:
        """Return numbers that stand in memory order in the leaf's shape and layout."""
        if self.array.flags.c_contiguous:
            return entries.reshape(self.array.shape)
        ordered = entries.reshape(self.array.transpose(self.axes).shape)
        return ordered.transpose(np.argsort(self.axes))


class Tree:
    """A tree and its leaves, whose entries are counted leaf by leaf in memory order.

    Parameters
    ----------
    value : object
        An array, anything that converts to one, or a tree of such.
    name : str
        How the argument is called in messages.

    Attributes
    ----------
    root : object
        The tree as a function is to see it: the caller's own. Within `RestoredOnExit`, leaves
        that cannot be perturbed in place are replaced by arrays that can.
    leaves : list of Leaf
    begins : list of int
        Where each leaf's entries begin, and the last one's end.
    is_single : bool
        Whether the value is an array itself. A bare number is one without dimensions.
    converted : bool
        Whether arrays are copies of what the caller has, which no closure can read.

    Raises
    ------
    TypeError
        If a leaf does not hold real numbers.
    ValueError
        If writing one entry would change another, because arrays overlap in memory.
    """

    def __init__(self, value: Any, name: str) -> None:
        self._name = name
        self.is_single = not is_tree(value)
        if self.is_single:
            self.root = real_array(value, name, layout="K")
            self.leaves = [Leaf(name, (), self.root, self.root)]
        else:
            self.root = value
            self.leaves = list(_walk(value, name))
        self.converted = self.root is not value
        self.begins = [0, *itertools.accumulate(leaf.array.size for leaf in self.leaves)]
        _require_distinct_memory([leaf for leaf in self.leaves if leaf.is_live])

    def put(self, leaf: Leaf, value: Any) -> Any:
        """Replace what stands at a leaf's place; return the root, which may be a new one."""
        self.root = _with_leaf(self.root, leaf.keys, value)
        return self.root

    def rebuilt(self, leaves: Iterable[Any]) -> Any:
        """Return a tree of the same form with other leaves; numbers stay numbers."""
        pairs = zip(self.leaves, leaves, strict=True)
        return _rebuilt(self.root, (float(new) if leaf.is_number and not np.ndim(new) else new
                                    for leaf, new in pairs))  # fmt: skip

    def copied(self) -> Tree:
        """Return a copy, every leaf of which can be perturbed in place."""
        copied = Tree(self.rebuilt(leaf.array.copy(order="K") for leaf in self.leaves), self._name)
        copied.converted = True
        return copied

    def flattened(self, arrays: Iterable[FloatArray] | None = None) -> FloatArray:
        """Return arrays of the leaves' shapes, or the leaves', as the entries' float64 numbers."""
        if arrays is None:
            arrays = (leaf.array for leaf in self.leaves)
        pairs = zip(self.leaves, arrays, strict=True)
        flat = [array.transpose(leaf.axes).reshape(-1) for leaf, array in pairs]
        return np.concatenate(flat or [np.empty(0)], dtype=np.float64)

    def by_leaf(self, values: FloatArray) -> list[FloatArray]:
        """Cut values of all entries into one array for each leaf."""
        return [values[a:b] for a, b in itertools.pairwise(self.begins)]

    def shaped(self, values: FloatArray) -> list[FloatArray]:
        """Return numbers of all entries as arrays of the leaves' shapes and layouts."""
        pairs = zip(self.leaves, self.by_leaf(values), strict=True)
        return [leaf.shaped(part) for leaf, part in pairs]

    def split(self, entries: IntArray) -> Iterator[tuple[Leaf, IntArray, slice]]:
        """Yield each leaf with some of the entries, their numbers within it, and where they are."""
        if len(self.leaves) == 1:  # which needs no search
            yield self.leaves[0], entries, slice(0, len(entries))
            return
        places = np.searchsorted(entries, self.begins).tolist()
        for leaf, begin, first, last in zip(self.leaves, self.begins, places, places[1:]):  # noqa: B905 - one begin more
            if last > first:
                yield leaf, entries[first:last] - begin, slice(first, last)

    def leaves_like(self, value: Any, name: str) -> list[FloatArray]:
        """Return the leaves of a second tree, a gradient for example, in the order of this one.

        Raises
        ------
        TypeError
            If a leaf does not hold real numbers.
        ValueError
            If paths or shapes differ; the message lists all that do.
        """
        if self.is_single:
            return [real_array(value, name, shape=self.leaves[0].array.shape, layout="K")]
        wanted = {leaf.path: leaf.array.shape for leaf in self.leaves}
        if not is_tree(value):
            listed = ", ".join(f"`{path}` {shape}" for path, shape in wanted.items())
            raise ValueError(
                f"`{name}` must have the form of `{self._name}`, with {listed}. "
                f"Got {type(value).__name__}."
            )
        other = {leaf.path: leaf.array for leaf in _walk(value, name)}
        faults = [f"`{path}` is missing" for path in wanted if path not in other]
        faults += [f"`{path}` is too much" for path in other if path not in wanted]
        faults += [
            f"`{path}` must have shape {shape}, not {other[path].shape}"
            for path, shape in wanted.items()
            if path in other and other[path].shape != shape
        ]
        if faults:
            raise ValueError(f"`{name}` must have the form of `{self._name}`: {'; '.join(faults)}.")
        return [other[path] for path in wanted]


class RestoredOnExit:
    """A context that puts converted arrays into a tree, and restores the tree and all entries.

    It gives the root. If the tree is to be read only, other entries in the end are an error.
    """

    def __init__(self, tree: Tree, *, is_read_only: bool = False) -> None:
        self.tree, self.root, self.is_read_only = tree, tree.root, is_read_only
        self.kept = [leaf.array.copy("K") for leaf in tree.leaves]

    def __enter__(self) -> Any:
        """Put converted arrays in; return the root."""
        for leaf in self.tree.leaves:
            if not leaf.is_live:
                self.tree.put(leaf, float(leaf.array) if leaf.is_number else leaf.array)
        return self.tree.root

    def __exit__(self, error: object, *_: object) -> None:
        """Put everything back, whatever has happened."""
        changed = False
        for leaf, original in zip(self.tree.leaves, self.kept, strict=True):
            if self.is_read_only and leaf.array.tobytes() != original.tobytes():
                changed = True
            leaf.array[...] = original
            if not leaf.is_live:
                self.tree.put(leaf, leaf.value)
        self.tree.root = self.root
        if changed and error is None:
            raise ValueError("`f` must not change `x`.")


def is_tree(value: Any) -> bool:
    """Return whether a value is a container of leaves, and not itself an array or array_like.

    Lists and tuples of numbers, however nested, are arrays to NumPy and stay such.
    """
    if isinstance(value, np.ndarray | numbers.Number | str | bytes):
        return False
    if isinstance(value, dict) or _field_names(value) is not None:
        return True
    return isinstance(value, list | tuple) and any(
        element is None or isinstance(element, np.ndarray) or is_tree(element) for element in value
    )


def _walk(value: Any, name: str, path: str = "", keys: tuple[Any, ...] = ()) -> Iterator[Leaf]:
    """Yield the leaves of a tree, or of a part of one at a path."""
    if is_tree(value):
        for key, suffix, child in _children(value):
            yield from _walk(child, name, path + suffix, (*keys, key))
    elif value is not None:  # as in a layer without a bias
        array = real_array(value, name + path, layout="K")
        yield Leaf(path.removeprefix("."), keys, value, array)


def _rebuilt(tree: Any, leaves: Iterator[Any]) -> Any:
    """Return a tree of the same form with other leaves, given in the order of `Tree.leaves`."""
    if tree is None:
        return None
    if not is_tree(tree):
        return next(leaves)
    result = tree if isinstance(tree, tuple) else copy.copy(tree)
    for key, _, child in _children(tree):
        result = _with_child(result, key, _rebuilt(child, leaves))
    return result


def _with_leaf(tree: Any, keys: tuple[Any, ...], leaf: Any) -> Any:
    """Put a leaf into a tree; return the tree, or a new one in place of what cannot be changed."""
    if not keys:
        return leaf
    old = tree[keys[0]] if _field_names(tree) is None else getattr(tree, keys[0])
    child = _with_leaf(old, keys[1:], leaf)
    return tree if child is old else _with_child(tree, keys[0], child)


def _with_child(container: Any, key: Any, child: Any) -> Any:
    """Put a child into a container, or into a copy of one that cannot be changed; return it."""
    if isinstance(container, tuple):
        elements = [child if k == key else old for k, _, old in _children(container)]
        return like_tuple(container, elements)
    if isinstance(container, dict | list):
        container[key] = child
        return container
    try:
        setattr(container, key, child)
    except dataclasses.FrozenInstanceError:
        container = copy.copy(container)
        object.__setattr__(container, key, child)
    return container


def _children(value: Any) -> list[tuple[Any, str, Any]]:
    """Return the key, the path's next part and the value of each child."""
    names = _field_names(value)
    pairs: Iterable[tuple[Any, Any]]
    if names is not None:
        pairs = [(name, getattr(value, name)) for name in names]
    elif isinstance(value, dict):
        pairs = value.items()
    else:
        pairs = enumerate(value)
    return [
        (key, f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]", child)
        for key, child in pairs
    ]


def _field_names(value: Any) -> list[str] | None:
    """Return the names of a dataclass's or a named tuple's fields; None of anything else."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [field.name for field in dataclasses.fields(value)]
    return list(value._fields) if isinstance(value, tuple) and hasattr(value, "_fields") else None


def like_tuple(old: Any, elements: list[Any]) -> Any:
    """Return a tuple of the type of another one, with other elements."""
    return type(old)(*elements) if hasattr(old, "_fields") else type(old)(elements)


def memory_order(x: FloatArray) -> tuple[int, ...]:
    """Return the axes of x from the slowest to the fastest."""
    if x.flags.c_contiguous:
        return tuple(range(x.ndim))
    return tuple(sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis])))


def _require_distinct_memory(leaves: list[Leaf]) -> None:
    """Raise an error if two entries of some arrays share memory, as in a sliding window view."""
    if len(leaves) == 1 and leaves[0].array.flags.forc:
        return
    leaves = sorted(leaves, key=lambda leaf: np.lib.array_utils.byte_bounds(leaf.array))
    addresses = np.concatenate([np.empty(0, np.int64), *map(_addresses, leaves)])
    owners = np.repeat(np.arange(len(leaves)), [leaf.array.size for leaf in leaves])
    in_order = np.argsort(addresses, kind="stable")
    sizes = np.array([leaf.array.itemsize for leaf in leaves])[owners[in_order]]
    touching = np.flatnonzero(np.diff(addresses[in_order]) < sizes[:-1])
    if touching.size:
        first, second = sorted(owners[in_order][touching[0] : touching[0] + 2])
        path, other = leaves[first].path, leaves[second].path
        if path == other:
            raise ValueError(
                f"`{path}` must not overlap itself in memory: a nudge of one entry would move "
                "others. Pass a copy."
            )
        raise ValueError(
            f"`{path}` and `{other}` must not share memory: a nudge of one would move the other. "
            "Pass copies, or leave one out."
        )


def _addresses(leaf: Leaf) -> IntArray:
    """Return where each entry of an array lies in memory."""
    array = leaf.array
    offsets = (stride * np.arange(n) for stride, n in zip(array.strides, array.shape, strict=True))
    return np.ravel(functools.reduce(np.add.outer, offsets, np.array(array.ctypes.data)))
