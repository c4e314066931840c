"""Code of a function rewritten where NumPy does not ask an argument what to do.

NumPy asks its arguments' types in functions and operators: ``np.dot(x, W)`` and ``x @ W`` reach a
`BatchedArray` W. A method of a plain array does not ask (``x.dot(W)``), nor does an assignment into
one (``columns[:, i] = W[i]``), nor ``float(W)``. Where a function meets one of these it is run from
a copy of its code, compiled from its source, in which

- ``a.dot(b)`` calls `dot_method`, ``float(a)`` calls `to_float`, and
- ``np.zeros(...)``, and other calls that make an array to be filled, go through `to_be_filled`.

The copy takes the place of the function's code for the time of an evaluation. That one mechanism
serves all three, for the arrays that the function makes itself as for those that it reads; the
alternative, arrays of a subclass in the place of every plain array, would serve only the first and
slow every operation down.
"""

from __future__ import annotations
import __future__

import ast
import functools
import inspect
import operator
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastgrad.numdiff.batched_array import BatchedArray, unchanged

__all__ = ["Rewriting"]

#: Calls that make arrays to be filled.
_MAKERS = {"zeros", "ones", "empty", "full", "zeros_like", "ones_like", "empty_like", "full_like",
           "pad", "copy", "array"}  # fmt: skip

#: Flags of code that imports from the future.
_FUTURE = [getattr(__future__, name).compiler_flag for name in __future__.all_feature_names]

#: What stands in the compiled copy for a function of this module, until it is put in.
_MARK = "fastgrad rewrites to "


class Rewriting:
    """Rewritten copies of the functions that need them in one evaluation.

    Parameters
    ----------
    functions : list of functions
        Those that may be rewritten.
    """

    def __init__(self, functions: list[types.FunctionType]) -> None:
        self._functions = functions
        self._copies = {
            function: copy
            for function in functions
            if function.__code__ in _needed and (copy := rewritten(function.__code__))
        }
        self._seen: set[types.CodeType] = set()

    def extend(self, error: BaseException) -> bool:
        """Rewrite the function in which an exception was raised; return whether that was new."""
        code = _innermost_code(error)
        if code is None or code in self._seen or code in self._copies.values():
            return False
        self._seen.add(code)
        functions = [function for function in self._functions if function.__code__ is code]
        copy = rewritten(code) if functions else None
        if copy is None:
            return False
        self._copies.update(dict.fromkeys(functions, copy))
        _needed.add(code)
        return True

    @contextmanager
    def in_place(self, batch: Any) -> Iterator[None]:
        """Let the functions run from their copies for a while."""
        originals = {function: function.__code__ for function in self._copies}
        _current.batch = batch
        try:
            for function, copy in self._copies.items():
                function.__code__ = copy
            yield
        finally:
            for function, code in originals.items():
                function.__code__ = code
            _current.batch = None


class _Current(threading.local):
    """The batch that a thread evaluates, for arrays that the function makes."""

    batch: Any = None


_current = _Current()

#: Code that has needed a copy in some evaluation, and gets one at once in the next.
_needed: set[types.CodeType] = set()


def _innermost_code(error: BaseException) -> types.CodeType | None:
    """Return the code of the caller's function in which an exception began."""
    found = None
    traceback = error.__traceback__
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "")
        if module.partition(".")[0] not in ("fastgrad", "numpy"):
            found = traceback.tb_frame.f_code
        traceback = traceback.tb_next
    return found


# ------------------------------------------------------------------------------------ at run time


def dot_method(array: Any, *args: Any, **kwargs: Any) -> Any:
    """Return ``array.dot(...)``; a plain array asks its argument."""
    if type(array) is np.ndarray and args and isinstance(args[0], BatchedArray):
        return np.dot(array, *args, **kwargs)
    return array.dot(*args, **kwargs)


def to_float(function: Any, *args: Any) -> Any:
    """Return ``float(...)``; a number at all points stays one."""
    if function is float and args and isinstance(args[0], BatchedArray):
        return args[0].astype(np.float64).item()
    return function(*args)


def to_be_filled(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Return a new array as one that can take values which differ between points."""
    result = function(*args, **kwargs)
    if type(result) is not np.ndarray or result.dtype.kind != "f" or _current.batch is None:
        return result
    is_maker = getattr(np, getattr(function, "__name__", ""), None) is function
    is_method = isinstance(getattr(function, "__self__", None), np.ndarray)
    return unchanged(result, _current.batch) if is_maker or is_method else result


_HELPERS: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (dot_method, to_float, to_be_filled)
}

# ------------------------------------------------------------------------------------ the source


class _Rewriter(ast.NodeTransformer):
    def visit_Call(self, node: ast.Call) -> ast.Call:
        """Have calls of some names go through a helper."""
        self.generic_visit(node)
        function = node.func
        if isinstance(function, ast.Attribute) and function.attr == "dot":
            return _through("dot_method", function.value, node)
        if isinstance(function, ast.Attribute | ast.Name):
            name = function.attr if isinstance(function, ast.Attribute) else function.id
            if name in _MAKERS:
                return _through("to_be_filled", function, node)
            if name == "float":
                return _through("to_float", function, node)
        return node


def _through(helper: str, first: ast.expr, node: ast.Call) -> ast.Call:
    return ast.Call(ast.Constant(_MARK + helper), [first, *node.args], node.keywords)


@functools.lru_cache(maxsize=256)
def rewritten(code: types.CodeType) -> types.CodeType | None:
    """Return code with calls that go through helpers; None if its source is not to be had.

    The source is compiled as it is as well: only if that gives the code itself is it the source.
    """
    try:
        source = "".join(inspect.findsource(code)[0])
        whole = ast.parse(source)
    except (OSError, SyntaxError, TypeError):
        return None
    # A notebook compiles the statements of a cell one by one.
    alone = [
        node
        for node in whole.body
        if node.lineno <= code.co_firstlineno <= (node.end_lineno or node.lineno)
    ]
    for tree in (whole, *(ast.Module([node], []) for node in alone)):
        same = [other == code for other in _alike(_compiled(tree, code), code)]
        if not any(same):
            continue
        changed = ast.fix_missing_locations(_Rewriter().visit(tree))
        copies = _alike(_compiled(changed, code), code)
        copy = copies[same.index(True)] if len(copies) == len(same) else None
        if copy is not None and copy.co_freevars == code.co_freevars:
            return _with_helpers(copy)
    return None


def _compiled(tree: ast.Module, like: types.CodeType) -> types.CodeType:
    future = like.co_flags & functools.reduce(operator.or_, _FUTURE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a string is called, until the helper is put in
        code: types.CodeType = compile(tree, like.co_filename, "exec", future, dont_inherit=True)
        return code


def _alike(code: types.CodeType, like: types.CodeType) -> list[types.CodeType]:
    """Return the functions within code that have the name and the line of another."""
    found = []
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            if (constant.co_qualname, constant.co_firstlineno) == (
                like.co_qualname, like.co_firstlineno
            ):  # fmt: skip
                found.append(constant)
            found += _alike(constant, like)
    return found


def _with_helpers(code: types.CodeType) -> types.CodeType:
    """Return code in which the helpers stand where the marks do."""
    constants = tuple(
        _with_helpers(constant) if isinstance(constant, types.CodeType)
        else _HELPERS[constant.removeprefix(_MARK)]
        if isinstance(constant, str) and constant.startswith(_MARK) else constant
        for constant in code.co_consts
    )  # fmt: skip
    return code.replace(co_consts=constants)
