"""A reader's source code: read, compiled, and loaded as a module.

All code of the reader's goes through `compiled`: the script, and the modules that lie beside it.
"""

from __future__ import annotations

import ast
import importlib.machinery
import sysconfig
import types
from collections.abc import Iterable
from pathlib import Path

from fastgrad.book import loop_syntax

__all__ = ["SourceLoader", "compiled", "is_installed", "mentions_layers", "tree_of"]

#: Folders of the standard library.
_STANDARD = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))


def compiled(source: bytes | str, file: str) -> types.CodeType:
    """Compile source code of the reader's, with its loops of numerical differentiation found.

    Parameters
    ----------
    source : bytes or str
        Bytes are decoded as the source code declares.
    file : str
        Where it was read, for tracebacks.

    Returns
    -------
    code
        As ``compile(source, file, "exec")`` returns it, without the flags of this module.

    Raises
    ------
    SyntaxError, ValueError
        If it is no Python.

    Examples
    --------
    >>> exec(compiled("print(6 * 7)", "answer.py"))
    42
    """
    tree = loop_syntax.transformed(tree_of(source, file))
    return compile(tree, file, "exec", dont_inherit=True)


def tree_of(source: bytes | str, file: str) -> ast.Module:
    """Return the syntax tree of source code, as `ast.parse` does without a frame of its own.

    Parameters
    ----------
    source : bytes or str
    file : str

    Returns
    -------
    ast.Module

    Raises
    ------
    SyntaxError, ValueError
        If it is no Python.

    Examples
    --------
    >>> len(tree_of("a = 1; b = 2", "two.py").body)
    2
    """
    tree = compile(source, file, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
    assert isinstance(tree, ast.Module)
    return tree


class SourceLoader(importlib.machinery.SourceFileLoader):
    """Loads a module of the reader's from its source code.

    Bytecode is neither read nor written: that of ``__pycache__`` belongs to plain Python, which
    compiles by another way.
    """

    def get_code(self, fullname: str) -> types.CodeType:
        """Compile the module."""
        file = self.get_filename(fullname)
        return compiled(self.get_data(file), file)


def is_installed(folders: Iterable[str]) -> bool:
    """Return whether some folder belongs to an installed package or to Python itself.

    Parameters
    ----------
    folders : iterable of str

    Returns
    -------
    bool

    Examples
    --------
    >>> import json, numpy
    >>> is_installed(json.__path__), is_installed(numpy.__path__), is_installed(["/home/me/ch04"])
    (True, True, False)
    """
    return any(
        not {"site-packages", "dist-packages"}.isdisjoint(folder.parts)
        or any(folder.is_relative_to(standard) for standard in _STANDARD)
        for folder in map(Path, folders)
    )


def mentions_layers(tree: ast.AST) -> bool:
    """Return whether code uses the names of chapter 5's ``TwoLayerNet``.

    Parameters
    ----------
    tree : ast.AST

    Returns
    -------
    bool

    Examples
    --------
    >>> mentions_layers(tree_of("net.lastLayer.forward(y, t)", "a.py"))
    True
    """
    names = {getattr(node, "attr", getattr(node, "id", None)) for node in ast.walk(tree)}
    return not names.isdisjoint({"layers", "lastLayer", "last_layer", "OrderedDict"})
