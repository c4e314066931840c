"""The syntax tree of a function, found in its file by the line and the name that its code has."""

from __future__ import annotations

import ast
import functools
import linecache
import types
from typing import Any

from fastgrad.numdiff.reach import names_in

__all__ = ["tree_of"]


@functools.lru_cache(128)
def _functions_in(lines: tuple[str, ...]) -> tuple[Any, ...]:
    """Return the syntax trees of all functions in a file."""
    tree = _Mangled().visit(ast.parse("".join(lines)))
    return tuple(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.Lambda))


class _Mangled(ast.NodeTransformer):
    """Gives private names the form that they have in code: ``__a`` in class C is ``_C__a``."""

    _class = ""

    def visit(self, node: Any) -> Any:
        """Rename what a node names, then visit what it consists of."""
        outer = self._class
        if isinstance(node, ast.ClassDef):
            self._class = node.name.lstrip("_")
        for field in ("attr", "id", "arg"):
            name = getattr(node, field, None)
            if self._class and name and name.startswith("__") and not name.endswith("__"):
                setattr(node, field, f"_{self._class}{name}")
        self.generic_visit(node)
        self._class = outer
        return node


@functools.lru_cache(1024)
def tree_of(code: types.CodeType) -> Any:
    """Return the syntax tree of a function.

    Parameters
    ----------
    code : code

    Returns
    -------
    ast.FunctionDef, ast.Lambda or None
        None if there is none, or it is another one's.
    """
    try:
        nodes = _functions_in(tuple(linecache.getlines(code.co_filename)))
    except (SyntaxError, ValueError):
        return None
    fitting = [node for node in nodes if _fits(node, code)]
    return fitting[-1] if fitting else None  # the innermost


def _fits(node: Any, code: types.CodeType) -> bool:
    """Return whether a tree is that of a function; its file may have been edited meanwhile."""
    first = min(n.lineno for n in (node, *getattr(node, "decorator_list", [])))
    if (getattr(node, "name", "<lambda>"), first) != (code.co_name, code.co_firstlineno):
        return False
    body = node.body
    if isinstance(node, ast.Lambda):
        begin, end = (body.lineno, body.col_offset), (body.end_lineno, body.end_col_offset)
        places = {(p[0], p[2]) for p in code.co_positions() if None not in p and p[1:3] != (0, 0)}
        if not all(begin <= place <= end for place in places - {(first, 0)}):
            return False
    parts = [n for part in (body if isinstance(body, list) else [body]) for n in ast.walk(part)]
    names = {getattr(n, "id", "") or getattr(n, "attr", "") for n in parts}
    return names <= {"", "__debug__", *names_in(code)}
