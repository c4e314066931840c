"""Models as trees: arrays and numbers in dicts, lists, tuples, named tuples and dataclasses.

A tree is flattened into its leaves, each of which has a path (``layers[0].W``) for a name, and is
nudged where it stands, so that a function which reads the live model sees it. `rebuild` makes a
tree of the same form, of gradients for example.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import numbers
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from fastgrad.validation import FloatArray, real_array

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
        Whether that array is a copy of what the caller has, which no closure can read.

    Raises
    ------
    TypeError
        If a leaf does not hold real numbers.
    ValueError
        If writing one entry would change another, because arrays overlap in memory.
    """

    def __init__(self, value: Any, name: str) -> None:
        self.root = value
        self.leaves: list[Leaf] = []
        self._name = name
        self.is_single = not is_tree(value)
        if self.is_single:
            # A bare number counts as an array without dimensions.
            array = self.root = real_array(value, name, layout="K")
            self.leaves.append(Leaf(name, array, memory_order(array), array, self._put_root))
            self.converted = array is not value
        else:
            self._walk(value, "", self._put_root)
            self.converted = False
        self._require_distinct_memory()

    def _put_root(self, value: Any) -> None:
        self.root = value

    def _walk(self, value: Any, path: str, put: Callable[[Any], None]) -> None:
        if value is None:  # as in a layer without a bias
            return
        if is_tree(value):
            node = _Node(value, put)
            for key, suffix, child in _children(value):
                name = path + suffix if path else suffix.removeprefix(".")
                self._walk(child, name, node.setter(key))
            return
        shown = self._name + (path if path.startswith("[") else f".{path}")
        array = real_array(value, shown, layout="K")
        is_number = isinstance(value, numbers.Real)
        self.leaves.append(Leaf(path, array, memory_order(array), value, put, is_number))

    def _require_distinct_memory(self) -> None:
        if self.is_single and self.leaves[0].array.flags.forc:
            return
        bounds = []
        for leaf in self.leaves:
            if _overlaps_itself(leaf.array):
                raise ValueError(
                    f"`{leaf.path}` must not overlap itself in memory: a nudge of one entry would "
                    "move others. Pass a copy."
                )
            if leaf.is_live and leaf.array.size:
                bounds.append((*_byte_bounds(leaf.array), leaf))
        bounds.sort(key=lambda item: item[:2])
        for i, (_, high, leaf) in enumerate(bounds):
            for low, _, other in bounds[i + 1 :]:
                if low >= high:
                    break
                if np.shares_memory(leaf.array, other.array):
                    raise ValueError(
                        f"`{leaf.path}` and `{other.path}` must not share memory: a nudge of one "
                        "would move the other. Pass copies, or leave one out."
                    )

    def rebuilt(self, leaves: Iterable[Any]) -> Any:
        """Return a tree of the same form with other leaves; numbers stay numbers."""
        pairs = zip(self.leaves, leaves, strict=True)
        if self.is_single:
            return next(iter(leaves))
        return rebuild(
            self.root, [float(new) if leaf.is_number and not np.ndim(new) else new
                        for leaf, new in pairs]
        )  # fmt: skip

    def copied(self) -> Tree:
        """Return a copy, every leaf of which can be nudged in place."""
        return Tree(self.rebuilt([leaf.array.copy(order="K") for leaf in self.leaves]), self._name)

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


class _Node:
    """A container on the way to a leaf; one that cannot be changed is replaced in its parent."""

    def __init__(self, value: Any, put: Callable[[Any], None]) -> None:
        self.value = value
        self.put = put

    def setter(self, key: Any) -> Callable[[Any], None]:
        def put(child: Any) -> None:
            if isinstance(self.value, dict | list):
                self.value[key] = child
                return
            if dataclasses.is_dataclass(self.value):
                with contextlib.suppress(dataclasses.FrozenInstanceError):
                    setattr(self.value, key, child)
                    return
                self.value = copy.copy(self.value)
                object.__setattr__(self.value, key, child)
            else:
                elements = list(self.value)
                elements[key] = child
                self.value = like_tuple(self.value, elements)
            self.put(self.value)

        return put


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
    return _rebuild(tree, iter(leaves))


def _rebuild(tree: Any, leaves: Iterator[Any]) -> Any:
    if tree is None:
        return None
    if not is_tree(tree):
        return next(leaves)
    children = [(key, _rebuild(child, leaves)) for key, _, child in _children(tree)]
    if isinstance(tree, tuple):
        return like_tuple(tree, [child for _, child in children])
    result = copy.copy(tree)
    for key, child in children:
        if isinstance(result, dict | list):
            result[key] = child
        else:
            object.__setattr__(result, key, child)
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
        raise ValueError(
            f"`{name}` must have the form of `{tree._name}`, with {_listed(tree.leaves)}. "
            f"Got {type(value).__name__}."
        )
    other = {leaf.path: leaf.array for leaf in _leaves(value, name)}
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


def _leaves(value: Any, name: str) -> list[Leaf]:
    """Return leaves that are only read: they may overlap."""
    tree = object.__new__(Tree)
    tree._name, tree.leaves, tree.root = name, [], value
    tree._walk(value, "", tree._put_root)
    return tree.leaves


def _listed(leaves: list[Leaf]) -> str:
    return ", ".join(f"`{leaf.path}` {leaf.array.shape}" for leaf in leaves)


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


def _byte_bounds(x: FloatArray) -> tuple[int, int]:
    """Return where the memory of x begins and ends."""
    if x.flags.forc:
        begin: int = x.__array_interface__["data"][0]
        return begin, begin + x.nbytes
    return np.lib.array_utils.byte_bounds(x)


def _overlaps_itself(x: FloatArray) -> bool:
    """Return whether two entries share memory, as in a sliding window view."""
    if x.flags.forc or x.size < 2:
        return False
    reach = x.itemsize
    for stride, size in sorted(zip(map(abs, x.strides), x.shape, strict=True)):
        if size > 1:
            if stride < reach:
                break
            reach += stride * (size - 1)
    else:
        return False
    places = np.zeros(x.shape, np.int64)
    for axis, (stride, size) in enumerate(zip(x.strides, x.shape, strict=True)):
        shape = [1] * x.ndim
        shape[axis] = size
        places += (stride * np.arange(size)).reshape(shape)
    ordered = np.sort(places, axis=None)
    return bool((np.diff(ordered) < x.itemsize).any())
