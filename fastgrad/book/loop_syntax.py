"""Finding the reader's own loops of numerical differentiation in their syntax trees.

A function that calls one of its parameters in a loop may be a numerical differentiation. It gets a
first statement that asks `fastgrad.book.loops` for the result, and goes on with what its author
wrote if there is none. It stays the function that it is: its name, signature, closure, lines and
tracebacks do not change, and no call is added around it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["install", "transformed", "uninstall"]

#: What the functions ask. It is imported at their first call: others may not need NumPy.
_RUNTIME = "fastgrad.book.loops"


def transformed(tree: ast.Module) -> ast.Module:
    """Let each function of a module that may be a numerical differentiation ask `computed` first.

    Parameters
    ----------
    tree : ast.Module
        Changed in place. Names, signatures, closures, decorators and lines stay as they are.

    Returns
    -------
    ast.Module

    Examples
    --------
    >>> tree = ast.parse('''
    ... def slopes(f, x):
    ...     grad = np.zeros_like(x)
    ...     for i in range(x.size):
    ...         kept = x[i]
    ...         x[i] = kept + 1e-4
    ...         upper = f(x)
    ...         x[i] = kept - 1e-4
    ...         grad[i] = (upper - f(x)) / 2e-4
    ...         x[i] = kept
    ...     return grad
    ... ''')
    >>> "computed('f')" in ast.unparse(transformed(tree))
    True
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (name := _called_in_a_loop(node)):
            _let_it_ask(node, name)
    return tree


def _called_in_a_loop(function: ast.FunctionDef) -> str | None:
    """Return the parameter that a function calls in a loop, and more than once in its text."""
    decorators = [getattr(node, "id", "") for node in function.decorator_list]
    if not set(decorators) <= {"staticmethod", "classmethod"}:
        return None  # what another decorator asks of the function is not known
    parameters = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
    calls: dict[str, list[bool]] = {name: [] for name in parameters}
    for node, in_loop in _walk(function.body, False):
        if isinstance(node, ast.Yield | ast.YieldFrom | ast.Await):
            return None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            calls.get(node.func.id, []).append(in_loop)
    return next((name for name in parameters if len(calls[name]) > 1 and any(calls[name])), None)


_LOOPS = (ast.For, ast.While, ast.ListComp, ast.GeneratorExp, ast.DictComp, ast.SetComp)


def _walk(nodes: Any, in_loop: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Yield the nodes of a function's own code, and whether each is inside a loop."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        yield node, in_loop
        yield from _walk(ast.iter_child_nodes(node), in_loop or isinstance(node, _LOOPS))


def _let_it_ask(function: ast.FunctionDef, name: str) -> None:
    """Put the questions around a function's body, after its docstring."""
    here = f"__import__({_RUNTIME!r}, fromlist=[''])"
    text = (
        f"if {here}.computed({name!r}):\n    return {here}.result()\n"
        f"try:\n    pass\nfinally:\n    {here}.ended()\n"
    )
    ask, body = ast.parse(text).body
    assert isinstance(body, ast.Try)
    for statement in (ask, *body.finalbody, body):
        for node in ast.walk(statement):
            if isinstance(node, ast.expr | ast.stmt):
                node.lineno = node.end_lineno = function.lineno
                node.col_offset = node.end_col_offset = function.col_offset
    has_docstring = ast.get_docstring(function, clean=False) is not None
    body.body = function.body[has_docstring:] or body.body
    function.body[has_docstring:] = [ask, body]


class _Transformer:
    """What IPython calls with the syntax tree of each cell."""

    def visit(self, tree: Any) -> Any:
        return transformed(tree)


_transformer = _Transformer()


def _transformers() -> list[Any]:
    """Return the list of the running IPython shell; an empty one if there is no shell."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return shell.ast_transformers if shell is not None else []


def install() -> None:
    """Let functions that are defined in the cells of IPython or Jupyter from now on ask, too."""
    uninstall()
    _transformers().append(_transformer)


def uninstall() -> None:
    """Undo `install`; functions that were defined meanwhile stay as they are."""
    found = _transformers()
    found[:] = [one for one in found if one is not _transformer]
