"""What in a reader's file is the book's, and what is the reader's own.

A file of the book's name is run as it is. Then a definition in it gives way to fastgrad's if it is
the book's: its fingerprint is one of those published, and so is everything that it uses. Functions
that only compute may be written in another way: they are compared by their values.

A fingerprint is a hash of the syntax tree without comments, docstrings and annotations, and with
numbers for the names of local variables. Those of all editions are in ``editions.txt``, a line
for each module; ``python -m fastgrad.book.own_files MODULE FILE ..`` prints such lines.
"""

from __future__ import annotations

import ast
import builtins
import functools
import hashlib
import sys
import types
import warnings
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastgrad.book import functions, modules, source
from fastgrad.numdiff.reading import read
from fastgrad.runtime.interrupt import raised_by_a_signal_handler

__all__ = ["adopt", "fingerprint"]

_Definition = ast.FunctionDef | ast.ClassDef | ast.Assign
_FUNCTION = ast.FunctionDef | ast.Lambda

#: Functions and classes of readers' files that were found to be the book's.
_same: weakref.WeakSet[Any] = weakref.WeakSet()


def adopt(module: types.ModuleType, title: str, file: str) -> tuple[list[str], list[str]]:
    """Put fastgrad's definitions in the place of the book's in a module that has been run.

    Parameters
    ----------
    module : module
        Of a reader's file.
    title : str
        The book's name for it.
    file : str

    Returns
    -------
    served, own : list of str
        The names that are fastgrad's now, and those of the book's that are the reader's own.
    """
    definitions = _definitions(source.tree_of(Path(file).read_bytes(), file))
    names = vars(module)
    same = _the_books(definitions, _published().get(title, {}), names)
    for name in same:
        if isinstance(names[name], type | types.FunctionType):
            _same.add(names[name])
    contents = _contents(title, definitions)
    served = [
        name
        for name, place in contents.items()
        if name in same and place.partition(":")[0] not in modules.FORMULAS
    ]
    folder = Path(file).parent
    if "load_mnist" in served and [*folder.glob("*.gz"), *folder.glob("*.pkl")]:
        served.remove("load_mnist")  # there are data, which need not be those of MNIST
    own = {name: names[name] for name in served}
    names.update((name, modules.found(name, contents[name], module.__name__)) for name in served)
    if own:
        module.__class__ = _watching(own)
    return served, [name for name in contents if name in definitions and name not in same]


def _watching(own: Mapping[str, Any]) -> type[types.ModuleType]:
    """Return a class for a module that gives the reader's definitions back when a name is replaced.

    What uses the name is then to use the new one, as in plain Python.
    """

    class Watched(types.ModuleType):
        def __setattr__(self, name: str, value: Any) -> None:
            names = vars(self)
            if name in names and not name.startswith("__") and value is not names[name]:
                self.__class__ = types.ModuleType  # type: ignore[assignment]
                for key, definition in own.items():
                    if getattr(names[key], "__module__", "") == self.__name__:
                        _become(names[key], definition)
                    names[key] = definition
            types.ModuleType.__setattr__(self, name, value)

    return Watched


def _become(served: Any, definition: Any) -> None:
    """Have a served class, which a script may have imported, do what the reader's does."""
    for name, member in vars(definition).items():
        if name not in ("__dict__", "__weakref__", "__init__"):
            setattr(served, name, member)

    def new(cls: Any, *args: Any, **keywords: Any) -> Any:
        is_made = cls is served and (args or keywords)  # and not copied
        return definition(*args, **keywords) if is_made else object.__new__(cls)

    served.__new__ = new


def _contents(title: str, definitions: Mapping[str, _Definition]) -> Mapping[str, str]:
    """Return what a module of the book has; of ``two_layer_net`` that of the right chapter."""
    if title != "two_layer_net":
        return modules.CONTENTS[title]
    node = definitions.get("TwoLayerNet")
    return modules.TWO_LAYER_NETS[5 if node is not None and source.mentions_layers(node) else 4]


def _definitions(tree: ast.Module) -> dict[str, _Definition]:
    """Return functions, classes and constants by name, those aside that are defined twice."""
    found: dict[str, list[_Definition]] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found.setdefault(node.targets[0].id, []).append(node)
    return {name: nodes[0] for name, nodes in found.items() if len(nodes) == 1}


def _the_books(
    definitions: Mapping[str, _Definition],
    published: Mapping[str, set[str]],
    names: Mapping[str, Any],
) -> set[str]:
    """Return the names of the definitions that are the book's, with all that they use."""
    alike = {
        name
        for name, node in definitions.items()
        if _has_stayed(name, node, names)
        and (
            fingerprint(node) in published.get(name, ())
            or _returns_the_same(name, definitions, names)
        )
    }
    while unknown := {
        name
        for name in alike
        if not all(_is_known(used, alike, definitions, names) for used in _used(definitions[name]))
    }:
        alike -= unknown
    return alike


def _has_stayed(name: str, node: _Definition, names: Mapping[str, Any]) -> bool:
    """Return whether a name still stands for its definition, and that is as it was made."""
    value = names.get(name)
    if isinstance(node, ast.Assign):
        return not isinstance(value, type | types.FunctionType)
    body = node.body if isinstance(node, ast.ClassDef) else [node]
    expected = [item.name for item in body if isinstance(item, ast.FunctionDef)]
    members = vars(value).values() if isinstance(value, type) else [value]
    codes = [item.__code__ for item in members if isinstance(item, types.FunctionType)]
    return sorted(expected) == sorted(code.co_name for code in codes) and all(
        node.lineno <= code.co_firstlineno <= (node.end_lineno or 0)
        and code.co_filename == names.get("__file__")
        for code in codes
    )


def _used(node: ast.AST) -> set[str]:
    """Return the names of others that code reads."""
    names = [item for item in ast.walk(node) if isinstance(item, ast.Name)]
    arguments = {item.arg for item in ast.walk(node) if isinstance(item, ast.arg)}
    return {item.id for item in names} - {item.id for item in names if _is_stored(item)} - arguments


def _is_stored(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Store)


def _is_known(
    name: str, alike: set[str], definitions: Mapping[str, _Definition], names: Mapping[str, Any]
) -> bool:
    """Return whether a name that code of the book's uses stands for what it does in the book."""
    if name in definitions:
        return name in alike
    if name not in names or name == "__file__":
        return hasattr(builtins, name) or name == "__file__"
    value = names[name]
    if isinstance(value, types.ModuleType):
        return value is np if name == "np" else value.__name__.split(".")[0] == name
    home = str(getattr(value, "__module__", "")).partition(".")[0]
    return home in ("fastgrad", "collections") or (
        isinstance(value, type | types.FunctionType) and value in _same
    )


# ----------------------------------------------------------------------------- fingerprints


@functools.cache
def _published() -> dict[str, dict[str, set[str]]]:
    """Return the fingerprints of the book's definitions, by module and name."""
    found: dict[str, dict[str, set[str]]] = {}
    text = Path(__file__).with_name("editions.txt").read_text(encoding="ascii")
    for line in text.splitlines():
        title, name, *hashes = line.split()
        found.setdefault(title, {})[name] = set(hashes)
    return found


def fingerprint(node: ast.AST) -> str:
    r"""Return a hash of code by what it does.

    Parameters
    ----------
    node : ast.AST
        A definition.

    Returns
    -------
    str
        16 hexadecimal digits.

    Examples
    --------
    >>> one = ast.parse("def f(x):\n    y = x + 1  # more\n    return y").body[0]
    >>> two = ast.parse("def f(x: float):\n    'Add 1.'\n    z = x + 1\n    return z").body[0]
    >>> fingerprint(one) == fingerprint(two)
    True
    """
    return hashlib.sha256(repr(_plain(node, {})).encode()).hexdigest()[:16]


def _plain(node: Any, local: Mapping[str, str]) -> Any:
    """Return a syntax tree as tuples, without what does not matter to what it computes."""
    if isinstance(node, list):
        return tuple(_plain(item, local) for item in node if not _is_text(item))
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, _FUNCTION):
        local = {**local, **_locals(node, len(local))}
    fields: list[Any] = []
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "type_comment", "type_params", "kind", "ctx"):
            continue
        if field in ("id", "arg") and value in local:
            fields.append(local[value])
        elif value is not None and value != []:
            fields.append((field, _plain(value, local)))
    return type(node).__name__, *fields


def _is_text(node: Any) -> bool:
    """Return whether a statement is a docstring, or another text that nobody reads."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _locals(function: _FUNCTION, known: int) -> dict[str, str]:
    """Return numbers for a function's local variables, in the order in which they appear.

    The arguments of a ``def`` keep their names, by which they may be passed; those of a lambda do
    not.
    """
    names: dict[str, None] = {}
    kept = {item.arg for item in ast.walk(function.args) if isinstance(item, ast.arg)}
    if isinstance(function, ast.Lambda):
        names, kept = dict.fromkeys(kept), set()
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and _is_stored(node) and node.id not in kept:
            names.setdefault(node.id)
    return {name: f"local {known + number}" for number, name in enumerate(names)}


# ----------------------------------------------------- functions that are compared by values


def _returns_the_same(
    name: str, definitions: Mapping[str, _Definition], names: Mapping[str, Any]
) -> bool:
    """Return whether a function that only computes returns what the book's of its name returns."""
    own, book = names.get(name), getattr(functions, name, None)
    if not (isinstance(own, types.FunctionType) and isinstance(book, types.FunctionType)):
        return False
    if any(isinstance(item, ast.While) for item in ast.walk(definitions[name])):
        return False  # it might never return
    if read(own, *next(_cases(own)))[:2] != ("", False):
        return False
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return all(_equal(own(*_copies(case)), book(*_copies(case))) for case in _cases(own))
    except Exception as error:  # whatever a function of the reader's may raise
        if raised_by_a_signal_handler(error):
            raise
        return False


def _cases(function: types.FunctionType) -> Iterator[tuple[Any, ...]]:
    """Yield arguments to compare a function at: rows, batches, images, integers, large, zero."""
    rng = np.random.default_rng(0)
    rows = 4 * rng.standard_normal((3, 5))
    arrays = [rows[0], rows, 50 * rows, 0 * rows, rows.astype(np.float32), np.arange(-2, 3)]
    if function.__code__.co_argcount == 1:
        if function.__name__ != "softmax":  # some editions' takes rows and batches only
            arrays.append(rng.standard_normal((2, 3, 4, 2)))
        yield from ((array,) for array in arrays)
        return
    labels = np.array([4, 0, 2])
    for scores in (rows, 50 * rows, rows.astype(np.float32)):
        y = functions.softmax(scores)
        for t in (np.eye(5)[labels], np.eye(5, dtype=int)[labels], functions.softmax(rows[::-1])):
            yield y, t
            yield y[0], t[0]
        if function.__name__ != "sum_squared_error" and function.__name__ != "mean_squared_error":
            yield y, labels
            yield y, labels.astype(np.uint8)


def _copies(case: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(array.copy() for array in case)


def _equal(one: Any, other: Any) -> bool:
    """Return whether two results agree in shape and dtype, and in value to rounding."""
    if np.shape(one) != np.shape(other) or np.asarray(one).dtype != np.asarray(other).dtype:
        return False
    precision = 1e-6 if np.asarray(one).dtype == np.float32 else 1e-12
    return bool(np.allclose(one, other, precision, precision, equal_nan=True))


if __name__ == "__main__":
    title, *files = sys.argv[1:]
    hashes: dict[str, set[str]] = {}
    for text in files:
        for name, node in _definitions(source.tree_of(Path(text).read_bytes(), text)).items():
            hashes.setdefault(name, set()).add(fingerprint(node))
    for name in sorted(hashes):
        print(title, name, *sorted(hashes[name]))
