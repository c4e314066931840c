"""Models as trees: arrays and numbers in dicts, lists, tuples, named tuples and dataclasses.

A tree is flattened into its leaves, each of which has a path (``layers[0].W``) for a name, and is
nudged where it stands, so that a function which reads the live model sees it. `rebuild` makes a
tree of the same form, of gradients for example.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import numbers
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from fastgrad.validation import FloatArray, IntArray, real_array

__all__ = ["Leaf", "Tree", "is_tree", "leaves_like", "like_tuple", "memory_order", "rebuild"]


@dataclasses.dataclass
class Leaf:
    """An array or a number in a tree.

    Attributes
    ----------
    path : str
        Where it stands: "layers[0].W"; the name of the tree itself if that is the only leaf.
    array : ndarray of float32 or float64
        The caller's own array where it can be nudged in place, else a converted copy.
    axes : tuple of int
        The array's axes from the slowest to the fastest in memory: the order of the book's loop.
    value : object
        What the caller has there.
    put : callable
        ``put(value)`` replaces what stands in the tree.
    is_number : bool
        Whether it is a number inside of a tree: it stays one when it is nudged.
    """

    path: str
    array: FloatArray
    axes: tuple[int, ...]
    value: Any
    put: Callable[[Any], None]
    is_number: bool = False

    @property
    def is_live(self) -> bool:
        """Whether nudging the array nudges what the caller has."""
        return self.array is self.value

    def flat(self) -> FloatArray:
        """Return the entries in memory order."""
        return self.array.transpose(self.axes).reshape(-1)

    def shaped(self, entries: FloatArray) -> FloatArray:
        """Return numbers that stand in memory order in the leaf's shape and layout."""
        if self.array.flags.c_contiguous:
            return entries.reshape(self.array.shape)
        ordered = entries.reshape(self.array.transpose(self.axes).shape)
        return ordered.transpose(np.argsort(self.axes))


class Tree:
    """A tree and its leaves.

    Parameters
    ----------
    value : object
        An array, anything that converts to one, or a tree of such.
    name : str
        How the argument is called in messages.

    Attributes
    ----------
    root : object
        The tree as a function is to see it: the caller's own. Within `restored_on_exit`, leaves
        that cannot be nudged in place are replaced by arrays that can.
    leaves : list of Leaf
    is_single : bool
        Whether the value is an array itself.
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
        self.root = value
        self._name = name
        self.is_single = not is_tree(value)
        self.converted = False
        if self.is_single:
            # A bare number counts as an array without dimensions.
            array = self.root = real_array(value, name, layout="K")
            self.leaves = [Leaf(name, array, memory_order(array), array, self._put_root)]
            self.converted = array is not value
        else:
            self.leaves = [
                Leaf(path, array, memory_order(array), child, functools.partial(self._put, keys),
                     isinstance(child, numbers.Real))
                for path, keys, child, array in _walk(value, name)
            ]  # fmt: skip
        _require_distinct_memory([leaf for leaf in self.leaves if leaf.is_live])

    def _put_root(self, value: Any) -> None:
        self.root = value

    def _put(self, keys: tuple[Any, ...], value: Any) -> None:
        self.root = _with_leaf(self.root, keys, value)

    def rebuilt(self, leaves: Iterable[Any]) -> Any:
        """Return a tree of the same form with other leaves; numbers stay numbers."""
        pairs = zip(self.leaves, leaves, strict=True)
        return rebuild(self.root, [float(new) if leaf.is_number and not np.ndim(new) else new
                                   for leaf, new in pairs])  # fmt: skip

    def copied(self) -> Tree:
        """Return a copy, every leaf of which can be nudged in place."""
        leaves = [leaf.array.copy(order="K") for leaf in self.leaves]
        copied = Tree(self.rebuilt(leaves), self._name)
        copied.converted = True
        return copied

    def restored_on_exit(self) -> _RestoredOnExit:
        """Put converted arrays into the tree; take them out again, and restore all entries.

        Returns
        -------
        context manager
            It gives the root.
        """
        return _RestoredOnExit(self)


class _RestoredOnExit:
    """A tree while a function is called (see `Tree.restored_on_exit`)."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.root = tree.root
        self.kept = [leaf.array.copy("K") for leaf in tree.leaves]
        self.replaced = [leaf for leaf in tree.leaves if not leaf.is_live]

    def __enter__(self) -> Any:
        for leaf in self.replaced:
            leaf.put(float(leaf.array) if leaf.is_number else leaf.array)
        return self.tree.root

    def __exit__(self, *_: object) -> None:
        for leaf, original in zip(self.tree.leaves, self.kept, strict=True):
            leaf.array[...] = original
        for leaf in self.replaced:
            leaf.put(leaf.value)
        self.tree.root = self.root

    def is_unchanged(self) -> bool:
        """Return whether every entry is as it was."""
        return all(
            leaf.array.tobytes() == original.tobytes()
            for leaf, original in zip(self.tree.leaves, self.kept, strict=True)
        )


def _walk(tree: Any, name: str) -> Iterator[tuple[str, tuple[Any, ...], Any, FloatArray]]:
    """Yield the path and keys of each leaf, what stands there, and that as an array."""

    def walk(value: Any, path: str, keys: tuple[Any, ...]) -> Iterator[Any]:
        if is_tree(value):
            for key, suffix, child in _children(value):
                yield from walk(child, path + suffix, (*keys, key))
        elif value is not None:  # as in a layer without a bias
            yield path.removeprefix("."), keys, value, real_array(value, name + path, layout="K")

    return walk(tree, "", ())


def _with_leaf(tree: Any, keys: tuple[Any, ...], leaf: Any) -> Any:
    """Put a leaf into a tree; return the tree, or a new one in place of what cannot be changed."""
    if not keys:
        return leaf
    key, *rest = keys
    old = getattr(tree, key) if _is_dataclass(tree) else tree[key]
    child = _with_leaf(old, tuple(rest), leaf)
    return tree if child is old else _with_child(tree, key, child)


def _with_child(container: Any, key: Any, child: Any) -> Any:
    """Put a child into a container, or into a copy of one that cannot be changed; return it."""
    if isinstance(container, tuple):
        return like_tuple(container, [*container[:key], child, *container[key + 1 :]])
    if isinstance(container, dict | list):
        container[key] = child
        return container
    try:
        setattr(container, key, child)
    except dataclasses.FrozenInstanceError:
        container = copy.copy(container)
        object.__setattr__(container, key, child)
    return container


def is_tree(value: Any) -> bool:
    """Return whether a value is a container of leaves, and not itself an array or array_like.

    Lists and tuples of numbers, however nested, are arrays to NumPy and stay such.
    """
    if type(value) is np.ndarray or isinstance(value, np.ndarray | numbers.Number | str | bytes):
        return False
    if isinstance(value, dict) or _is_dataclass(value):
        return True
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return True
    if isinstance(value, list | tuple):
        return any(
            element is None or isinstance(element, np.ndarray) or is_tree(element)
            for element in value
        )
    return False


def rebuild(tree: Any, leaves: Iterable[Any]) -> Any:
    """Return a tree of the same form with other leaves, given in the order of `Tree.leaves`."""
    leaves = iter(leaves)
    if tree is None:
        return None
    if not is_tree(tree):
        return next(leaves)
    result = tree if isinstance(tree, tuple) else copy.copy(tree)
    for key, _, child in _children(tree):
        result = _with_child(result, key, rebuild(child, leaves))
    return result


def leaves_like(value: Any, tree: Tree, name: str) -> list[FloatArray]:
    """Return the leaves of a second tree, a gradient for example, in the order of the first.

    Raises
    ------
    TypeError
        If a leaf does not hold real numbers.
    ValueError
        If paths or shapes differ; the message lists all that do.
    """
    if tree.is_single:
        return [real_array(value, name, shape=tree.leaves[0].array.shape, layout="K")]
    if not is_tree(value):
        listed = ", ".join(f"`{leaf.path}` {leaf.array.shape}" for leaf in tree.leaves)
        raise ValueError(
            f"`{name}` must have the form of `{tree._name}`, with {listed}. "
            f"Got {type(value).__name__}."
        )
    other = {path: array for path, _, _, array in _walk(value, name)}
    wanted = {leaf.path: leaf.array for leaf in tree.leaves}
    faults = [f"`{path}` is missing" for path in wanted if path not in other]
    faults += [f"`{path}` is too much" for path in other if path not in wanted]
    faults += [
        f"`{path}` must have shape {array.shape}, not {other[path].shape}"
        for path, array in wanted.items()
        if path in other and other[path].shape != array.shape
    ]
    if faults:
        raise ValueError(f"`{name}` must have the form of `{tree._name}`: {'; '.join(faults)}.")
    return [other[path] for path in wanted]


def _children(value: Any) -> list[tuple[Any, str, Any]]:
    """Return the key, the path's next part and the value of each child."""
    if isinstance(value, dict):
        return [
            (key, f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]", child)
            for key, child in value.items()
        ]
    if _is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return [(name, f".{name}", getattr(value, name)) for name in names]
    if hasattr(value, "_fields"):
        pairs = zip(value._fields, value, strict=True)
        return [(i, f".{name}", child) for i, (name, child) in enumerate(pairs)]
    return [(i, f"[{i}]", child) for i, child in enumerate(value)]


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


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
