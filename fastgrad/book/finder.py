"""Finding and loading the book's modules, those that the reader has and those that are missing."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.abc
import importlib.machinery
import itertools
import os
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastgrad.book import loop_syntax, source
from fastgrad.book.modules import CONTENTS, SERVED, TWO_LAYER_NETS, found

__all__ = ["Finder", "install", "kept", "made_here", "renamed", "report", "strings", "uninstall"]


_Action = Callable[[types.ModuleType], None]


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the book's modules, and all others of the reader's.

    A file of the reader's is loaded by its source code, and what in it is the book's gives way to
    fastgrad's, see `fastgrad.book.own_files`. What is missing is served as a whole.

    Parameters
    ----------
    keep : frozenset of str
        Served names to leave to the book's own files.
    renamed : dict of str to str
        Modules of the reader's, by the book's names for what is in them.
    script : Path, optional
        The script that is run.
    """

    def __init__(
        self,
        keep: frozenset[str] = frozenset(),
        renamed: Mapping[str, str] = types.MappingProxyType({}),
        script: Path | None = None,
    ) -> None:
        self.keep = keep
        self.renamed = dict(renamed)
        self.script = script
        #: Packages that need no folder: those around the modules that are asked for.
        self.packages = {"common", "dataset"}
        for name in (*renamed, *_imported(script)):
            packages = name.split(".")[:-1]
            self.packages.update(itertools.accumulate(packages, "{}.{}".format))
        #: What has been imported, with a remark in brackets where there is one.
        self.served: list[str] = []
        #: A line for each file with definitions of the book's names that are the reader's own.
        self.own: list[str] = []
        #: Whether a module of the book's second volume has been imported, which is left alone.
        self.is_second = False
        #: What is done to a module of a library when a script has imported it.
        self.afterwards: dict[str, _Action] = {}

    def lines(self) -> list[str]:
        """Return what there is to say at the end of a run."""
        served = f"fastgrad served {', '.join(self.served) or 'no module'}."
        is_silent = self.is_second and not self.served
        return [*([] if is_silent else [served, *self.own]), *self._loop_lines()]

    @property
    def is_used(self) -> bool:
        """Whether anything has been served or computed."""
        return bool(self.served or self._loop_lines())

    def _loop_lines(self) -> list[str]:
        """Return what was computed how, if any loop has asked: what computes it needs NumPy."""
        loops = sys.modules.get("fastgrad.book.loops")
        return loops.lines() if loops is not None else []

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        """Find a module of the reader's, one that is served, or a package around one."""
        first = fullname.partition(".")[0]
        if first == "fastgrad" or (path is None and first in sys.stdlib_module_names):
            return None
        if path and source.is_installed(path) and fullname not in self.afterwards:
            return None
        title = self._title(fullname, path)
        package, _, name = fullname.rpartition(".")
        if package in self.packages and not path:  # it was served without its folder
            path = [os.path.join(place, *package.split(".")) for place in sys.path]
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None:
            self._let_it_be_served(spec, title)
        elif title is not None and title not in self.keep:
            spec = importlib.machinery.ModuleSpec(fullname, self, origin="fastgrad")
            spec.loader_state = title
        elif fullname in self.packages or (path is not None and name in ("common", "dataset")):
            spec = importlib.machinery.ModuleSpec(
                fullname, self, origin="fastgrad", is_package=True
            )
        return spec

    def _title(self, fullname: str, path: Sequence[str] | None) -> str | None:
        """Return the book's name for a module, if it has one."""
        if fullname in self.renamed:
            return self.renamed[fullname]
        last = _last_two(fullname)
        return last if last in CONTENTS and (path is not None or last == fullname) else None

    def _let_it_be_served(self, spec: importlib.machinery.ModuleSpec, title: str | None) -> None:
        """Have a module loaded by its source code if it is the reader's; note what is to follow."""
        file = spec.origin
        if type(spec.loader) is not importlib.machinery.SourceFileLoader or file is None:
            return
        action = self.afterwards.get(spec.name)
        if action is None and not source.is_installed([file]):
            if title is not None and _is_of_the_second_volume(file):
                self.is_second, title = True, None
            if title in self.keep:
                title = None
            if title is not None or self._lies_beside_the_script(file):
                spec.loader = source.SourceLoader(spec.name, file)
            if title is not None:
                action = functools.partial(self._adopt, title=title, file=file)
        if action is not None:
            _then(spec.loader, action)

    def _lies_beside_the_script(self, file: str) -> bool:
        return self.script is not None and Path(file).is_relative_to(self.script.parent.parent)

    def exec_module(self, module: types.ModuleType) -> None:
        """Fill a module that the reader does not have."""
        assert module.__spec__ is not None
        title = module.__spec__.loader_state
        if title is None:
            module.__doc__ = f"The package {module.__name__}, found without its folder."
            return
        remark, contents = "", CONTENTS[title]
        if title == "two_layer_net":
            chapter = self._chapter()
            remark, contents = f" (chapter {chapter}'s)", TWO_LAYER_NETS[chapter]
        module.__doc__ = f"{title} of the book, served by fastgrad."
        module.__dict__.update(
            {name: found(name, place, module.__name__) for name, place in contents.items()}
        )
        self._note(module.__name__, title, remark)

    def _adopt(self, module: types.ModuleType, title: str, file: str) -> None:
        """Serve in a module of the reader's what is the book's."""
        from fastgrad.book import own_files  # which needs NumPy

        served, own = own_files.adopt(module, title, file)
        if served:
            self._note(module.__name__, title, "")
        if own:
            *most, last = own
            place = module.__name__.replace(".", "/") + ".py"
            listed = f"{', '.join(most)} and {last}" if most else last
            self.own.append(f"{place}: your own {listed}")

    def _note(self, name: str, title: str, remark: str) -> None:
        """Note a module that has been served."""
        self.served.append(name + (f" (as {title})" if title != name else "") + remark)

    def stop(self) -> None:
        """Forget the reader's loops."""
        if (loops := sys.modules.get("fastgrad.book.loops")) is not None:
            loops.forget()

    def _chapter(self) -> int:
        """Return which chapter's ``two_layer_net`` is meant where there is no such file.

        By the name of the folder, or by whether the script uses layers.
        """
        folder = self.script.parent if self.script is not None else Path.cwd()
        match = re.search(r"ch(?:ap(?:ter)?)?[-_ ]?0?([45])(?!\d)", folder.name.lower())
        if match:
            return int(match[1])
        tree = _tree(self.script)
        return 5 if tree is not None and source.mentions_layers(tree) else 4


def _then(loader: Any, action: _Action) -> None:
    """Let a loader do something to the module that it has loaded."""
    load = loader.exec_module

    def exec_module(module: types.ModuleType) -> None:
        load(module)
        action(module)

    loader.exec_module = exec_module


def _is_of_the_second_volume(file: str | None) -> bool:
    """Return whether a file lies in or beside a package ``common`` that is the second volume's."""
    return any((above / "common" / "np.py").is_file() for above in Path(file or "").parents[:2])


def _tree(script: Path | None) -> ast.Module | None:
    """Return the syntax tree of a script, if it can be read."""
    if script is None:
        return None
    try:
        return source.tree_of(script.read_bytes(), str(script))
    except (OSError, SyntaxError, ValueError):
        return None


def _imported(script: Path | None) -> Iterator[str]:
    """Yield what a script imports by a name of the book's, perhaps inside some package.

    The package may be missing: a submodule that was never fetched.
    """
    tree = _tree(script)
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            names = [f"{module}.{alias.name}" if module else alias.name for alias in node.names]
            yield from (name for name in (module, *names) if name and _last_two(name) in CONTENTS)


def _last_two(name: str) -> str:
    """Return the name of a module within the innermost package around it."""
    return ".".join(name.split(".")[-2:])


_installed: Finder | None = None


def install(
    keep: Sequence[str] = (), serve: Mapping[str, str] = types.MappingProxyType({})
) -> None:
    """Serve the book's module names in this process, from the next ``import`` on.

    For notebooks; `run_script` does it for a script. Modules of these names that have been
    imported already are forgotten, names taken from them are not: begin with it.

    Parameters
    ----------
    keep : sequence of str, optional
        Names, such as ``"common.layers"`` or ``"common"``, that stay the book's own.
    serve : dict of str to str, optional
        Modules of other names to serve as well, with the book's names for what is in them:
        ``{"lib.two_layer_net": "two_layer_net"}``. The book's names inside a package, such as
        ``examples.common.gradient``, are served without being told.

    Raises
    ------
    TypeError
        If `keep` is no sequence of str, a single str included, or `serve` no dict of str to str.
    ValueError
        If fastgrad does not serve a name of `keep` anyway, or has no module of a name in `serve`.

    Examples
    --------
    >>> import numpy as np
    >>> install(serve={"ch4.functions": "common.gradient"})
    >>> from ch4.functions import numerical_gradient
    >>> numerical_gradient(lambda x: x[0]**2 + x[1]**2, np.array([3.0, 4.0])).round(8)
    array([6., 8.])
    >>> uninstall()
    """
    global _installed
    finder = Finder(kept(keep), renamed(serve))
    uninstall()
    _forget(finder)
    _installed = finder
    sys.meta_path.insert(0, finder)
    loop_syntax.install()


def uninstall() -> None:
    """Undo `install`: the next ``import`` finds the book's own files again, if there are any.

    Examples
    --------
    >>> install()
    >>> uninstall()
    >>> import common.functions
    Traceback (most recent call last):
    ModuleNotFoundError: No module named 'common'
    """
    global _installed
    if _installed is not None:
        sys.meta_path.remove(_installed)
        _installed.stop()
        loop_syntax.uninstall()
        finder, _installed = _installed, None
        _forget(finder)


def report() -> str:
    """Say what has been served since `install`, and how numerical gradients were computed.

    Returns
    -------
    str
        A line each; for a function that was left to its loop the line says why.

    Raises
    ------
    RuntimeError
        If nothing is installed.

    Examples
    --------
    >>> install()
    >>> import common.gradient
    >>> report()
    fastgrad served common.gradient.
    >>> uninstall()
    """
    if _installed is None:
        raise RuntimeError("`report` needs `install` first.")
    return _Report("\n".join(_installed.lines()))


class _Report(str):
    """A text that a notebook shows in its lines, not as a string in quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def strings(value: Sequence[str], name: str) -> list[str]:
    """Return a sequence of str as a list. A string would pass as one of its letters."""
    if isinstance(value, Iterable) and not isinstance(value, str):
        strings = list(value)
        if all(isinstance(string, str) for string in strings):
            return strings
    raise TypeError(f"`{name}` must be a sequence of str, such as a list. Got {value!r}.")


def kept(keep: Sequence[str]) -> frozenset[str]:
    """Return the served names that `keep` names, itself or by their package."""
    kept: set[str] = set()
    for name in strings(keep, "keep"):
        found = {served for served in SERVED if served == name or served.startswith(f"{name}.")}
        if not found:
            raise ValueError(f"`keep` must name modules among {', '.join(SERVED)}. Got {name!r}.")
        kept |= found
    return frozenset(kept)


def renamed(serve: Mapping[str, str]) -> dict[str, str]:
    """Return the modules of other names, and what they are in the book."""
    if not isinstance(serve, Mapping) or not all(
        isinstance(text, str) for pair in serve.items() for text in pair
    ):
        raise TypeError(f"`serve` must be a dict of str to str. Got {serve!r}.")
    for name, title in serve.items():
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"`serve` must have names of modules as keys. Got {name!r}.")
        if title not in CONTENTS:
            raise ValueError(
                f"`serve` must give modules among {', '.join(SERVED)}. Got {title!r} for {name!r}."
            )
    return dict(serve)


def _forget(finder: Finder) -> None:
    """Drop the served modules from the modules known to Python."""
    for name, module in list(sys.modules.items()):
        served = made_here(module)
        if not served and name not in SERVED and name not in finder.renamed:
            continue  # also somebody's own package around them
        del sys.modules[name]
        package, _, attribute = name.rpartition(".")
        if getattr(sys.modules.get(package), attribute, None) is module:
            delattr(sys.modules[package], attribute)


def made_here(module: types.ModuleType) -> bool:
    """Return whether a module is served, or a package found without its folder."""
    return isinstance(getattr(getattr(module, "__spec__", None), "loader", None), Finder)
