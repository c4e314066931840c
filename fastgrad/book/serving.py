"""Serving the book's module names: finding and making the modules, and running a script."""

from __future__ import annotations

import ast
import builtins
import concurrent.futures.thread
import importlib
import importlib.abc
import importlib.machinery
import os
import re
import symtable
import sys
import threading
import time
import tokenize
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from fastgrad.arrays import step_size
from fastgrad.book import comparison, recognition
from fastgrad.book.contents import CONTENTS, SERVED, TWO_LAYER_NETS

__all__ = ["install", "report", "run_script", "uninstall"]

#: The names by which the book's modules, or the packages around them, are imported.
_PACKAGES = frozenset(name.partition(".")[0] for name in SERVED)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds and makes the served modules.

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
        self, keep: frozenset[str], renamed: Mapping[str, str], script: Path | None = None
    ) -> None:
        self.keep = keep
        self.renamed = renamed
        self.script = script
        #: Packages that need no folder: those around the modules that are asked for.
        self.packages = {"common", "dataset"}
        for name in (*renamed, *_imported_inside_packages(script)):
            self.packages.update(_packages_around(name))
        #: What has been imported, with a remark in brackets where there is one.
        self.served: list[str] = []
        #: What recognises the reader's networks, unless the reader's own loop is kept.
        self.recognition = None if "common.gradient" in keep else recognition.Recognition()

    def report(self) -> str:
        """Return what was served and recognised."""
        lines = [f"fastgrad served {', '.join(self.served) or 'no module'}."]
        if self.recognition is not None:
            lines += self.recognition.report()
        return "\n".join(lines)

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        """Find a served module, or a package around one."""
        title = self._title(fullname, path)
        if title is not None and title not in self.keep:
            spec = importlib.machinery.ModuleSpec(fullname, self, origin="fastgrad")
            spec.loader_state = title
            return spec
        if fullname in self.packages or self._may_hold_the_book(fullname, path):
            if importlib.machinery.PathFinder.find_spec(fullname, path) is not None:
                return None  # the reader's own package; the modules in it pass by here again
            return importlib.machinery.ModuleSpec(
                fullname, self, origin="fastgrad", is_package=True
            )
        if fullname.partition(".")[0] in ("common", "dataset"):
            return self._own(fullname, path)
        return None

    def _title(self, fullname: str, path: Sequence[str] | None) -> str | None:
        """Return the book's name for a module, if it has one."""
        if fullname in self.renamed:
            return self.renamed[fullname]
        if fullname in CONTENTS:
            return fullname
        parts = fullname.split(".")
        title = ".".join(parts[-2:])
        inside = len(parts) > 2 and title in CONTENTS and _is_the_readers(path)
        return title if inside else None

    def _may_hold_the_book(self, fullname: str, path: Sequence[str] | None) -> bool:
        """Return whether a package within one of the reader's has the name of one of the book's."""
        inside = path is not None and fullname.rpartition(".")[2] in ("common", "dataset")
        return inside and _is_the_readers(path)

    def _own(
        self, fullname: str, path: Sequence[str] | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find the book's own file: on the path, or in the folder that the script's lies in."""
        package, _, name = fullname.rpartition(".")
        if not package:
            return importlib.machinery.PathFinder.find_spec(name)
        if not path:
            places = list(sys.path)
            if self.script is not None:
                places.append(str(self.script.parent.parent))
            path = [os.path.join(place, package) for place in places]
        return importlib.machinery.PathFinder.find_spec(fullname, path)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        """Leave the making of the module object to Python."""
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        """Fill a served module."""
        name = module.__name__
        assert module.__spec__ is not None
        title = module.__spec__.loader_state
        if title is None:
            module.__doc__ = f"The package {name}, found without its folder."
            return
        remark = "" if title == name else f" (as {title})"
        parent = sys.modules.get(name.rpartition(".")[0])
        own = self._own(name, getattr(parent, "__path__", None))
        contents = CONTENTS[title]
        if title == "two_layer_net":
            chapter = self._chapter(own)
            contents = TWO_LAYER_NETS[chapter]
            remark += f" (chapter {chapter}'s)"
        module.__doc__ = f"{title} of the book, served by fastgrad."
        if own is not None and own.origin is not None:
            self._add_own(module, own.origin, contents)
        module.__dict__.update(contents)
        self.served.append(name + remark)

    def _add_own(self, module: types.ModuleType, file: str, contents: Mapping[str, Any]) -> None:
        """Run the book's own file in the module if it defines what fastgrad does not.

        What a reader has added comes in this way: functions, classes and constants. Ours then takes
        the place of what they share.
        """
        try:
            source = _source(file)
            symbols = symtable.symtable(source, file, "exec").get_symbols()
            # Functions and classes count as assigned, imports do not.
            defined = {symbol.get_name() for symbol in symbols if symbol.is_assigned()}
            if any(name[0] != "_" for name in defined - set(contents)):
                module.__file__ = file
                exec(compile(source, file, "exec", dont_inherit=True), module.__dict__)
        except Exception as error:  # noqa: BLE001 - whatever a file of the reader's may raise
            warnings.warn(
                f"{module.__name__} hands on fastgrad's names only: {file} failed with "
                f"{type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )

    def _chapter(self, own: importlib.machinery.ModuleSpec | None) -> int:
        """Tell chapter 5's ``two_layer_net`` from chapter 4's.

        By the file that is shadowed; without one by the name of the folder, or by whether the
        script uses layers.
        """
        if own is not None and own.origin is not None:
            return 5 if _mentions_layers(Path(own.origin)) else 4
        folder = self.script.parent if self.script is not None else Path.cwd()
        match = re.search(r"ch(?:ap(?:ter)?)?[-_ ]?0?([45])(?!\d)", folder.name.lower())
        if match:
            return int(match[1])
        return 5 if self.script is not None and _mentions_layers(self.script) else 4


def _packages_around(name: str) -> Iterator[str]:
    """Yield the packages that a module lies in, the outermost first."""
    parts = name.split(".")
    return (".".join(parts[:depth]) for depth in range(1, len(parts)))


def _imported_inside_packages(script: Path | None) -> Iterator[str]:
    """Yield modules of the book's names that a script imports from some package.

    The package may be missing: a submodule that was never fetched.
    """
    if script is None:
        return
    try:
        tree = ast.parse(_source(script))
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (name for name in names if ".".join(name.split(".")[-2:]) in CONTENTS)


def _is_the_readers(path: Sequence[str] | None) -> bool:
    """Return whether a package's folders belong to no installed package."""
    folders = {part for folder in path or () for part in Path(folder).parts}
    return folders.isdisjoint({"site-packages", "dist-packages"})


def _source(file: str | Path) -> str:
    """Return a script's text, in the encoding that it declares."""
    with tokenize.open(file) as stream:
        return stream.read()


def _mentions_layers(file: Path) -> bool:
    """Return whether code uses chapter 5's names."""
    try:
        tree = ast.parse(_source(file))
    except (OSError, SyntaxError, ValueError):
        return False
    names = {getattr(node, "attr", getattr(node, "id", None)) for node in ast.walk(tree)}
    return not names.isdisjoint({"layers", "lastLayer", "last_layer", "OrderedDict"})


_installed: _Finder | None = None


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
    >>> install(serve={"ch4.functions": "common.gradient"})
    >>> from ch4.functions import numerical_gradient
    >>> numerical_gradient(lambda x: x[0]**2 + x[1]**2, np.array([3.0, 4.0])).round(8)
    array([6., 8.])
    >>> uninstall()
    """
    global _installed
    finder = _Finder(_kept(keep), _renamed(serve))
    uninstall()
    _forget(finder)
    _installed = finder
    sys.meta_path.insert(0, finder)
    recognition.use(finder.recognition)


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
        recognition.use(None)
        finder, _installed = _installed, None
        _forget(finder)


def report() -> str:
    """Say what has been served since `install`, and which networks were recognised.

    Returns
    -------
    str
        A line each; for a function with a network that was left to the loop the line says why.

    Raises
    ------
    RuntimeError
        If nothing is installed.

    Examples
    --------
    >>> install()
    >>> import common.gradient
    >>> report()
    'fastgrad served common.gradient.'
    >>> uninstall()
    """
    if _installed is None:
        raise RuntimeError("`report` needs `install` first.")
    return _installed.report()


def _strings(value: Sequence[str], name: str) -> list[str]:
    """Return a sequence of str as a list. A string would pass as one of its letters."""
    if isinstance(value, Iterable) and not isinstance(value, str):
        strings = list(value)
        if all(isinstance(string, str) for string in strings):
            return strings
    raise TypeError(f"`{name}` must be a sequence of str, such as a list. Got {value!r}.")


def _kept(keep: Sequence[str]) -> frozenset[str]:
    """Return the served names that `keep` names, itself or by their package."""
    kept: set[str] = set()
    for name in _strings(keep, "keep"):
        found = {served for served in SERVED if served == name or served.startswith(f"{name}.")}
        if not found:
            raise ValueError(f"`keep` must name modules among {', '.join(SERVED)}. Got {name!r}.")
        kept |= found
    return frozenset(kept)


def _renamed(serve: Mapping[str, str]) -> dict[str, str]:
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


def _forget(finder: _Finder) -> None:
    """Drop the served modules from the modules known to Python."""
    for name, module in list(sys.modules.items()):
        made_here = _made_here(module)
        if not made_here and name not in SERVED and name not in finder.renamed:
            continue  # also somebody's own package around them
        del sys.modules[name]
        package, _, attribute = name.rpartition(".")
        if getattr(sys.modules.get(package), attribute, None) is module:
            delattr(sys.modules[package], attribute)


def _made_here(module: types.ModuleType) -> bool:
    """Return whether a module is served, or a package found without its folder."""
    return isinstance(getattr(getattr(module, "__spec__", None), "loader", None), _Finder)


def run_script(
    path: str | os.PathLike[str],
    args: Sequence[str] = (),
    keep: Sequence[str] = (),
    serve: Mapping[str, str] = types.MappingProxyType({}),
    compare: float | None = None,
) -> int:
    """Run a script of the book with its modules served by fastgrad.

    It runs as ``python SCRIPT ARGS`` would in its own folder: as ``__main__``, with that folder as
    the current one and first on the path. ``np.int`` and ``np.float``, which the book uses, are
    lent to it where NumPy no longer has them. At the end, when its threads have ended too, the
    modules served, the networks recognised and the time taken are written to stderr.

    Parameters
    ----------
    path : path_like
        The script.
    args : sequence of str, optional
        What it finds in ``sys.argv[1:]``.
    keep : sequence of str, optional
        Names, such as ``"two_layer_net"``, that stay the book's own.
    serve : dict of str to str, optional
        As for `install`.
    compare : float, optional
        Afterwards run the script's own way as well, without input, for that many seconds at most,
        and say how many times faster it was here: by the time that it took, or that its lines of
        output took.

    Returns
    -------
    int
        The exit status: that of the script; 1 after an exception, whose traceback has been
        printed; 130 after Ctrl-C.

    Raises
    ------
    OSError
        If the script cannot be read.
    TypeError
        If `args` or `keep` is no sequence of str, a single str included, `serve` no dict of str to
        str, or `compare` no number.
    ValueError
        If fastgrad does not serve a name of `keep` anyway, has no module of a name in `serve`, or
        `compare` is not above 0.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> script = Path(folder.name, "hello.py")
    >>> _ = script.write_text("from common.functions import *; print(relu(np.arange(-1, 2)))")
    >>> run_script(script)
    [0. 0. 1.]
    0
    >>> folder.cleanup()
    """
    script = Path(path).absolute()
    finder = _Finder(_kept(keep), _renamed(serve), script)
    args = _strings(args, "args")
    limit = None if compare is None else step_size(compare, "compare")
    with open(path, "rb") as stream:
        source = stream.read()
    stderr = sys.stderr
    with _as_main(finder, args) as main, comparison.lines_timed(limit is not None) as lines:
        begin = time.perf_counter()
        status = _execute(source, str(script), main)
        seconds = time.perf_counter() - begin
    _flush_stdout()
    _say(f"\n{finder.report()}\nThe script took {seconds:.2f} s.", stderr)
    if limit is not None:
        own = comparison.run_own_way(script, args, limit)
        ours = comparison.Timing([at - begin for at in lines], seconds, status)
        _say(comparison.verdict(own, ours), stderr)
    return status


def _flush_stdout() -> None:
    """Flush stdout, unless the script has closed it or put something else in its place."""
    with suppress(AttributeError, ValueError):
        sys.stdout.flush()


def _say(text: str, stderr: TextIO | None) -> None:
    """Write a line to what was stderr before the script, unless nothing can be written there."""
    if stderr is not None:  # which print would take for stdout
        with suppress(OSError, ValueError):
            print(text, file=stderr, flush=True)


def _execute(source: bytes, file: str, main: types.ModuleType) -> int:
    """Run code in a module; return the exit status once its threads have ended as well."""
    before = threading.enumerate()
    status = 0
    try:
        exec(compile(source, file, "exec", dont_inherit=True), main.__dict__)
    except BaseException as error:  # noqa: BLE001 - whatever the script raises
        status = _end_by(error)
    with suppress(KeyboardInterrupt):  # ends the waiting, as at Python's own end
        while threads := outliving(before):
            threads[0].join()
    return status


def outliving(before: Sequence[threading.Thread]) -> list[threading.Thread]:
    """Return the threads that Python waits for at its end, without those that were there before.

    Threads of an executor are left out: they wait for work until Python tells them that it ends.
    """
    executors = getattr(concurrent.futures.thread, "_threads_queues", ())
    leave = {*before, threading.current_thread(), *executors}
    return [thread for thread in threading.enumerate() if not (thread.daemon or thread in leave)]


def _end_by(error: BaseException) -> int:
    """Do with an uncaught exception what Python would; return the exit status."""
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        _say(str(error.code), sys.stderr)
        return 1
    _flush_stdout()
    shown = _without_our_frames(error)
    try:
        sys.excepthook(*shown)
    except SystemExit as request:
        return _end_by(request)
    except BaseException as another:  # noqa: BLE001 - whatever the script's own hook raises
        _say("Error in sys.excepthook:", sys.stderr)
        sys.__excepthook__(*_without_our_frames(another))
        _say("\nOriginal exception was:", sys.stderr)
        sys.__excepthook__(*shown)
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _without_our_frames(
    error: BaseException,
) -> tuple[type[BaseException], BaseException, types.TracebackType | None]:
    """Return what an exception hook takes, without the frames that ran the script."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return type(error), error.with_traceback(frames), frames


@contextmanager
def _as_main(finder: _Finder, args: Sequence[str]) -> Iterator[types.ModuleType]:
    """Make a module for a script to run in, and the surroundings that it expects.

    Afterwards everything is as before, so that scripts can follow each other, and a notebook's own
    modules of the book's names are back.
    """
    assert finder.script is not None
    script, here = str(finder.script), str(finder.script.parent)
    main = types.ModuleType("__main__")
    main.__file__ = script
    main.__dict__["__builtins__"] = __builtins__
    known = set(sys.modules)
    before = sys.modules["__main__"], sys.argv, sys.path, sys.excepthook
    path = list(sys.path)
    if path and path[0] in ("", _current_folder()):  # `python -m` put it there, not the script
        del path[0]
    set_aside = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_book(name)}
    # Names that the book uses, gone since NumPy 1.24.
    lent = [name for name in ("int", "float") if not hasattr(np, name)]
    with _in_folder(here), warnings.catch_warnings():
        # plt.show() where there is no display.
        warnings.filterwarnings("ignore", ".*non-interactive.*cannot be shown", UserWarning)
        if _installed is not None:
            sys.meta_path.remove(_installed)
        sys.meta_path.insert(0, finder)
        recognised_before = recognition.use(finder.recognition)
        sys.modules["__main__"] = main
        sys.argv = [script, *args]
        sys.path = [here, *path]
        sys.excepthook = sys.__excepthook__  # a notebook's own does not show what a script raises
        for name in lent:
            setattr(np, name, getattr(builtins, name))
        try:
            yield main
        finally:
            for name in lent:
                delattr(np, name)
            sys.modules["__main__"], sys.argv, sys.path, sys.excepthook = before
            sys.meta_path.remove(finder)
            recognition.use(recognised_before)
            if _installed is not None:
                sys.meta_path.insert(0, _installed)
            new = {name: module for name, module in sys.modules.items() if name not in known}
            own = {name for name, module in new.items() if _lies_in(module, here)}
            for name, module in list(sys.modules.items()):
                within = name in new and name.partition(".")[0] in own
                if _is_book(name) or within or (name in new and _made_here(module)):
                    del sys.modules[name]
            sys.modules.update(set_aside)


def _lies_in(module: types.ModuleType, folder: str) -> bool:
    """Return whether a module, or a package, lies in a folder itself."""
    places = [*getattr(module, "__path__", ()), getattr(module, "__file__", None) or ""]
    return any(os.path.dirname(place) == folder for place in places)


def _current_folder() -> str | None:
    """Return the current folder, or None if it has been deleted."""
    try:
        return os.getcwd()
    except OSError:
        return None


@contextmanager
def _in_folder(folder: str) -> Iterator[None]:
    """Make a folder the current one for a while."""
    before = _current_folder() or folder  # into a deleted one there is no way back
    os.chdir(folder)
    _forget_relative_places()
    try:
        yield
    finally:
        os.chdir(before)
        _forget_relative_places()


def _is_book(name: str) -> bool:
    """Return whether a module goes by a name of the book's."""
    return name.partition(".")[0] in _PACKAGES


def _forget_relative_places() -> None:
    """Make Python look again for what ``..`` is; it remembers the folder of the first time."""
    for place in list(sys.path_importer_cache):
        if not os.path.isabs(place):
            del sys.path_importer_cache[place]
