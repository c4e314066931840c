"""Finding the reader's own loops of numerical differentiation in their syntax trees.

A function that calls one of its parameters in a loop may be a numerical differentiation. It gets a
first statement that asks `fastgrad.book.loops` for the result, and goes on with what its author
wrote if there is none. So does a loop that assigns to items of an array and calls one function, by
whatever name both are found: ``self.loss(x, t)`` and ``self.params[key]``. The function stays what
it is: its name, signature, closure, lines and tracebacks do not change, and no call is added around
it.
"""

from __future__ import annotations

import ast
import builtins
import collections
import copy
import sys
import types
from collections.abc import Iterable, Iterator
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
        if isinstance(node, ast.FunctionDef) and _is_plain(node):
            name = _called_in_a_loop(node)
            _let_loops_ask(node, node.body)
            if name:
                start = ast.get_docstring(node, clean=False) is not None
                body = node.body[start:]
                node.body[start:] = [_asking(f"computed({name!r})", "return {}", body, node)]
    return tree


def _is_plain(function: ast.FunctionDef) -> bool:
    """Return whether a function is no generator, and what decorators ask of it is known."""
    decorators = [getattr(node, "id", "") for node in function.decorator_list]
    return set(decorators) <= {"staticmethod", "classmethod"} and not any(
        isinstance(node, ast.Yield | ast.YieldFrom) for node, _ in _walk(function.body, False)
    )


def _parameters(function: ast.FunctionDef) -> list[str]:
    return [a.arg for a in (*function.args.posonlyargs, *function.args.args)]


def _called_in_a_loop(function: ast.FunctionDef) -> str | None:
    """Return the parameter that a function calls in a loop, and more than once in its text."""
    calls: dict[str, list[bool]] = {name: [] for name in _parameters(function)}
    for node, in_loop in _walk(function.body, False):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            calls.get(node.func.id, []).append(in_loop)
    return next((name for name, found in calls.items() if len(found) > 1 and any(found)), None)


_LOOPS = (ast.For, ast.While, ast.ListComp, ast.GeneratorExp, ast.DictComp, ast.SetComp)


def _walk(nodes: Any, in_loop: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Yield the nodes of a function's own code, and whether each is inside a loop."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        yield node, in_loop
        yield from _walk(ast.iter_child_nodes(node), in_loop or isinstance(node, _LOOPS))


def _asking(question: str, answer: str, body: list[ast.stmt], at: ast.stmt) -> ast.stmt:
    """Return a statement that asks, and goes on with a body if there is no answer."""
    here = f"__import__({_RUNTIME!r}, fromlist=[''])"
    text = (
        f"if {here}.{question}:\n    {answer.format(f'{here}.result()')}\n"
        f"else:\n    try:\n        pass\n    finally:\n        {here}.ended()\n"
    )
    (ask,) = ast.parse(text).body
    # All on one line: of a call that is spread over several, Python names the last.
    place = {"lineno": at.lineno, "end_lineno": at.lineno, "col_offset": 0, "end_col_offset": 0}
    for node in ast.walk(ask):
        ast.copy_location(node, ast.Pass(**place))
    ask.orelse[0].body = body  # type: ignore[attr-defined]
    return ask


# ------------------------------------------------------------------------ loops within a function

#: What is never the function that is differentiated, and what cannot be computed apart.
_KNOWN = frozenset({"np", "numpy", "math", *dir(builtins)})
_BOUND_TO_ITS_PLACE = (
    ast.Return, ast.Global, ast.Nonlocal, ast.Delete, ast.Lambda, ast.FunctionDef, ast.ClassDef,
    ast.AsyncFunctionDef, ast.NamedExpr,
)  # fmt: skip
_TELLING = frozenset({"super", "locals", "vars", "eval", "exec", "globals", "dir", "__class__"})


def _let_loops_ask(function: ast.FunctionDef, block: list[ast.stmt]) -> None:
    """Let the loops in a block ask that differentiate what is no parameter."""
    at = len(block)
    while at:
        at -= 1
        statement = block[at]
        found = _differentiation(function, block, at)
        if isinstance(statement, ast.For | ast.While | ast.If | ast.With):
            _let_loops_ask(function, statement.body)
            _let_loops_ask(function, getattr(statement, "orelse", []))
        if found is not None:
            begin, asking = found
            block[begin : at + 1] = [asking]
            at = begin


def _differentiation(
    function: ast.FunctionDef, block: list[ast.stmt], at: int
) -> tuple[int, ast.stmt] | None:
    """Return where a differentiation begins that ends with a loop, and what is to ask for it."""
    loop = block[at]
    if not isinstance(loop, ast.For | ast.While):
        return None
    in_loop = set(_names([loop], ast.Store))
    targets: collections.Counter[str] = collections.Counter()
    for node in ast.walk(loop):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            value = node.value
            while isinstance(value, ast.Subscript) and not in_loop.isdisjoint(_names([value])):
                value = value.value  # x in x[i][j]
            if in_loop.isdisjoint(_names([value])):
                targets[ast.unparse(value)] += 1
    array = next((text for text, count in targets.items() if count > 1), None)
    if array is None or not _is_a_place(ast.parse(array, mode="eval").body):
        return None
    kept = _names([ast.parse(array)])
    begin = at
    while begin and _is_a_preparation(block[begin - 1], kept):
        begin -= 1
    part = block[begin : at + 1]
    stored = set(_names(part, ast.Store))
    calls: collections.Counter[str] = collections.Counter()
    for node in (n for statement in part for n in ast.walk(statement)):
        if isinstance(node, _BOUND_TO_ITS_PLACE) or getattr(node, "id", "") in _TELLING:
            return None
        if isinstance(node, ast.Call) and _is_a_place(node.func):
            text = ast.unparse(node.func)
            is_known = not (_KNOWN | stored).isdisjoint(_names([node.func]))
            calls[text] += not (is_known or text.startswith(f"{array}."))
    repeated = [text for text, count in calls.items() if count > 1]
    if len(repeated) != 1 or {repeated[0], array} <= set(_parameters(function)):
        return None
    outside = collections.Counter(_names([function])) - collections.Counter(_names(part))
    names = sorted(stored & outside.keys())
    renamed = _Renamed(repeated[0], array)
    body = [renamed.visit(copy.deepcopy(statement)) for statement in part]
    end = f"\nreturn ({', '.join(names)}{',' * bool(names)})"
    text = "\n".join(map(ast.unparse, body)) + end
    question = f"computed_part({repeated[0]!r}, {array!r}, {text!r})"
    answer = f"({', '.join(names)},) = {{}}" if names else "{}"
    return begin, _asking(question, answer, part, loop)


class _Renamed(ast.NodeTransformer):
    """Puts ``_f`` and ``_x`` in the places of a function and an array."""

    def __init__(self, function: str, array: str) -> None:
        self.names = {function: "_f", array: "_x"}

    def visit(self, node: ast.AST) -> Any:
        """Replace a node, or what is in it."""
        if isinstance(node, ast.Name | ast.Attribute | ast.Subscript):
            name = self.names.get(ast.unparse(node))
            if name is not None:
                return ast.Name(name, node.ctx)
        return self.generic_visit(node)


def _names(nodes: Iterable[ast.AST], context: Any = ast.expr_context) -> list[str]:
    """Return the names in nodes, or those that are assigned to, as often as they occur."""
    found = [n for node in nodes for n in ast.walk(node) if isinstance(n, ast.Name)]
    return [name.id for name in found if isinstance(name.ctx, context)]


def _is_a_place(node: ast.expr) -> bool:
    """Return whether an expression is a name, an attribute of one, or an item by a plain key."""
    if isinstance(node, ast.Subscript):
        return isinstance(node.slice, ast.Name | ast.Constant) and _is_a_place(node.value)
    return isinstance(node, ast.Name) or (
        isinstance(node, ast.Attribute) and _is_a_place(node.value)
    )


def _is_a_preparation(statement: ast.stmt, kept: list[str]) -> bool:
    """Return whether a statement only assigns to names, but not to those that are kept."""
    targets = getattr(statement, "targets", [getattr(statement, "target", None)])
    return (
        isinstance(statement, ast.Assign | ast.AnnAssign)
        and all(isinstance(target, ast.Name) for target in targets)
        and set(kept).isdisjoint(_names([statement], ast.Store))
    )


#: What IPython lets visit the syntax tree of each cell.
_transformer = types.SimpleNamespace(visit=transformed)


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
