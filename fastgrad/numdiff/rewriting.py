"""Code of a function rewritten where NumPy does not ask an argument what to do.

NumPy asks its arguments' types in functions and operators: ``np.dot(x, W)`` and ``x @ W`` reach a
`BatchedArray` W. A method of a plain array does not ask (``x.dot(W)``), nor does an assignment into
one (``columns[:, i] = W[i]``), nor ``float(W)``. Where a function meets one of these it is run from
a copy of its code, compiled from its source, in which ``a.dot(b)``, ``float(a)``, ``np.zeros(...)``
and other calls that make an array to be filled go through `called`.

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
import traceback
import types
import warnings
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from fastgrad.numdiff.batched_array import BatchedArray, unchanged

__all__ = ["Rewriting"]

#: Functions and methods that make arrays to be filled.
_MAKERS = {"zeros", "ones", "empty", "full", "zeros_like", "ones_like", "empty_like", "full_like",
           "pad", "copy", "array"}  # fmt: skip

#: Flags of code that imports from the future.
_FUTURE = functools.reduce(
    operator.or_, [getattr(__future__, name).compiler_flag for name in __future__.all_feature_names]
)


class Rewriting:
    """Rewritten copies of the functions that need them in one evaluation.

    Parameters
    ----------
    functions : list of functions
        Those that may be rewritten.
    """

    def __init__(self, functions: list[types.FunctionType]) -> None:
        self._functions = functions
        self._copies: dict[types.FunctionType, types.CodeType] = {}
        self._rewrite(_needed)

    def _rewrite(self, codes: Set[types.CodeType | None]) -> bool:
        """Rewrite functions that have some code; return whether any was."""
        new = {
            function: copy
            for function in self._functions
            if function.__code__ in codes and function not in self._copies
            if (copy := rewritten(function.__code__))
        }
        self._copies.update(new)
        _needed.update(function.__code__ for function in new)
        return bool(new)

    def extend(self, error: BaseException) -> bool:
        """Rewrite the function in which an exception was raised; return whether that was new."""
        return self._rewrite({_innermost_code(error)})

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


#: The batch that a thread evaluates, for arrays that the function makes.
_current = threading.local()

#: Code that has needed a copy in some evaluation, and gets one at once in the next.
_needed: set[types.CodeType] = set()


def _innermost_code(error: BaseException) -> types.CodeType | None:
    """Return the code of the caller's function in which an exception began."""
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        found = found if package in ("fastgrad", "numpy") else frame.f_code
    return found


# ------------------------------------------------------------------------------------ at run time


def called(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Return ``function(*args, **kwargs)``, by asking what the arguments are."""
    holder = getattr(function, "__self__", None)
    name = getattr(function, "__name__", "")
    if args and isinstance(args[0], BatchedArray):
        if function is float:  # a number at all points stays one
            return args[0].astype(np.float64).item()
        if name == "dot" and type(holder) is np.ndarray:
            return np.dot(holder, *args, **kwargs)
    result = function(*args, **kwargs)
    if name in _MAKERS and (isinstance(holder, np.ndarray) or getattr(np, name) is function):
        batch = getattr(_current, "batch", None)
        if type(result) is np.ndarray and result.dtype.kind == "f" and batch is not None:
            return unchanged(result, batch)  # which can take values that differ between points
    return result


# ------------------------------------------------------------------------------------ the source

#: What names `called` wherever a copy runs.
_CALLED = f"__import__({__name__!r}, fromlist=['']).called"


class _Rewriter(ast.NodeTransformer):
    def visit_Call(self, node: ast.Call) -> ast.Call:
        """Have calls of some names go through `called`."""
        self.generic_visit(node)
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name not in _MAKERS | {"dot", "float"}:
            return node
        call = ast.Call(ast.parse(_CALLED, mode="eval").body, [], [])
        for part in ast.walk(call):
            ast.copy_location(part, node)
        call.args, call.keywords = [node.func, *node.args], node.keywords
        return call


@functools.lru_cache(maxsize=256)
def rewritten(code: types.CodeType) -> types.CodeType | None:
    """Return code with calls that go through `called`; None if its source is not to be had.

    The source is compiled as it is as well: only if that gives the code itself is it the source.
    """
    try:
        source = "".join(inspect.findsource(code)[0])
        whole = ast.parse(source)
    except (OSError, SyntaxError, TypeError):
        return None
    # A notebook compiles the statements of a cell one by one.
    for tree in (whole, *(ast.Module([statement], []) for statement in whole.body)):
        originals = _compiled(tree, code)
        if code in originals:
            copies = _compiled(_Rewriter().visit(tree), code)
            copy = copies[originals.index(code)]
            return copy if copy.co_freevars == code.co_freevars else None
    return None


def _compiled(tree: ast.Module, like: types.CodeType) -> list[types.CodeType]:
    """Return the code of a tree, and all code inside it; none if it cannot stand in a file."""
    found: list[types.CodeType] = []
    with warnings.catch_warnings(), suppress(SyntaxError):  # a cell that awaits
        warnings.simplefilter("ignore")  # which were given when it was compiled first
        future = like.co_flags & _FUTURE
        found.append(compile(tree, like.co_filename, "exec", future, dont_inherit=True))
    for code in found:
        found += [inner for inner in code.co_consts if isinstance(inner, types.CodeType)]
    return found
