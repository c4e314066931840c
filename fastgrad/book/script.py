"""Running a script as ``python SCRIPT`` does, with the book's modules served."""

from __future__ import annotations

import builtins
import concurrent.futures.thread
import functools
import os
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

from fastgrad.book import comparison, finder, source
from fastgrad.book.finder import Finder
from fastgrad.book.modules import SERVED

__all__ = ["is_book", "outliving", "run_script"]

#: The names by which the book's modules, or the packages around them, are imported.
_PACKAGES = frozenset(name.partition(".")[0] for name in SERVED)
#: Names that the book uses, gone since NumPy 1.24.
_LENT = {"int": builtins.int, "float": builtins.float}
#: The folder of this package, whose frames are no part of a script's traceback.
_HERE = os.path.dirname(__file__)


def run_script(
    path: str | os.PathLike[str],
    args: Sequence[str] = (),
    keep: Sequence[str] = (),
    serve: Mapping[str, str] = types.MappingProxyType({}),
    compare: float | None = None,
) -> int:
    """Run a script of the book with its modules served by fastgrad.

    It runs as by ``python SCRIPT ARGS``: as ``__main__``, in the current folder, with its own
    folder first on the path. The folder above that is on the path as well. ``np.int`` and
    ``np.float``, which the book uses, are lent to it where NumPy no longer has them. Processes
    that it starts by `multiprocessing` find the served modules too. At the end, when its threads
    have ended, the modules served, the definitions that are the reader's own, how numerical
    gradients were computed, and the time taken are written to stderr.

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
    [0 0 1]
    0
    >>> folder.cleanup()
    """
    script = Path(path).absolute()
    served = Finder(finder.kept(keep), finder.renamed(serve), script)
    args = finder.strings(args, "args")
    limit = None if compare is None else comparison.time_limit(compare)
    with open(path, "rb") as stream:
        code = stream.read()
    stderr, lines = sys.stderr, comparison.TimedLines(sys.stdout)
    with (
        _as_main(served, [os.fspath(path), *args]) as main,
        nullcontext() if limit is None else redirect_stdout(lines),
    ):
        begin = time.perf_counter()
        status = _execute(code, str(script), main)
        seconds = time.perf_counter() - begin
        report, used = served.lines(), served.is_used
    _flush_stdout()
    _say("\n".join(["", *report, f"The script took {seconds:.2f} s."]), stderr)
    if limit is not None:
        own = comparison.run_own_way(script, args, limit)
        ours = comparison.Timing([at - begin for at in lines.times], seconds, status)
        _say(comparison.verdict(own, ours, used=used), stderr)
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


def _execute(code: bytes, file: str, main: types.ModuleType) -> int:
    """Run code in a module; return the exit status once its threads have ended as well."""
    before = threading.enumerate()
    status = 0
    try:
        exec(source.compiled(code, file), main.__dict__)
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
    try:
        _show(sys.excepthook, error)
    except SystemExit as request:
        return _end_by(request)
    except BaseException as another:  # noqa: BLE001 - whatever the script's own hook raises
        _say("Error in sys.excepthook:", sys.stderr)
        _show(sys.__excepthook__, another)
        _say("\nOriginal exception was:", sys.stderr)
        _show(sys.__excepthook__, error)
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _show(hook: Callable[..., Any], error: BaseException) -> None:
    """Hand an exception to a hook, without the frames that ran the script."""
    error = error.with_traceback(_own_frames(error.__traceback__))
    hook(type(error), error, error.__traceback__)


def _own_frames(frames: types.TracebackType | None) -> types.TracebackType | None:
    """Return a traceback without what ran the script, and loaded its modules."""
    if frames is None:
        return None
    rest = _own_frames(frames.tb_next)
    file = frames.tb_frame.f_code.co_filename
    if os.path.dirname(file) == _HERE or file.startswith("<frozen importlib."):
        return rest
    return types.TracebackType(rest, frames.tb_frame, frames.tb_lasti, frames.tb_lineno)


@contextmanager
def _as_main(served: Finder, argv: Sequence[str]) -> Iterator[types.ModuleType]:
    """Make a module for a script to run in, and the surroundings that it expects.

    Afterwards everything is as before, so that scripts can follow each other, and a notebook's own
    modules of the book's names are back.
    """
    assert served.script is not None
    file = str(served.script)
    here = os.path.dirname(os.path.realpath(file))
    main = types.ModuleType("__main__")
    main.__dict__.update(
        __builtins__=builtins,
        __cached__=None,
        __file__=file,
        __loader__=source.SourceLoader("__main__", file),
    )
    known = set(sys.modules)
    before = sys.modules["__main__"], sys.argv, sys.path, sys.excepthook
    path = list(sys.path)
    # What is there for the command itself: by `python -m`, or the folder of `fastgrad`.
    if path and path[0] in ("", _current_folder(), os.path.dirname(sys.argv[0])):
        del path[0]
    set_aside = {name: sys.modules.pop(name) for name in list(sys.modules) if is_book(name)}
    with _serving(served), warnings.catch_warnings():
        # plt.show() where there is no display.
        warnings.filterwarnings("ignore", ".*non-interactive.*cannot be shown", UserWarning)
        sys.modules["__main__"] = main
        sys.argv = list(argv)
        # The book's scripts append the folder above, which they take to be that of the current one.
        sys.path = [here, *path, os.path.dirname(here)]
        sys.excepthook = sys.__excepthook__  # a notebook's own does not show what a script raises
        try:
            yield main
        finally:
            sys.modules["__main__"], sys.argv, sys.path, sys.excepthook = before
            new = {name: module for name, module in sys.modules.items() if name not in known}
            own = {name for name, module in new.items() if _lies_in(module, here)}
            for name, module in list(sys.modules.items()):
                within = name in new and name.partition(".")[0] in own
                if is_book(name) or within or (name in new and finder.made_here(module)):
                    del sys.modules[name]
            sys.modules.update(set_aside)


@contextmanager
def _serving(served: Finder) -> Iterator[None]:
    """Serve by this finder alone, and lend libraries what scripts need, for a while."""
    others = [other for other in sys.meta_path if isinstance(other, Finder)]
    sys.meta_path[:] = [served, *(place for place in sys.meta_path if place not in others)]
    with ExitStack() as undo:
        served.afterwards = {
            "numpy": functools.partial(_acquire, undo),
            "multiprocessing.spawn": functools.partial(_serve_children, undo, served),
        }
        for name, action in served.afterwards.items():
            if sys.modules.get(name) is not None:
                action(sys.modules[name])
        try:
            yield
        finally:
            served.stop()
            sys.meta_path.remove(served)
            sys.meta_path[:0] = others


def _acquire(undo: ExitStack, numpy: types.ModuleType) -> None:
    """Lend NumPy the names that the book uses and that it has no longer."""
    for name, kind in _LENT.items():
        if not hasattr(numpy, name):
            setattr(numpy, name, kind)
            undo.callback(delattr, numpy, name)


def _serve_children(undo: ExitStack, served: Finder, spawn: Any) -> None:
    """Have the modules served in processes that are not forks, too.

    Such a process runs the script's file once more, to find functions there. What it gets to know
    before that is unpickled, and so takes the finder along.
    """
    undo.callback(setattr, spawn, "get_preparation_data", spawn.get_preparation_data)
    plain = spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, Any]:
        return {**plain(name), "fastgrad": _ServedInChild(served)}

    spawn.get_preparation_data = get_preparation_data


class _ServedInChild:
    """Unpickled, it serves the book's modules in the process where that happens."""

    def __init__(self, served: Finder) -> None:
        self._served = str(served.script), served.keep, served.renamed

    def __reduce__(self) -> tuple[Any, ...]:
        return _serve_for_good, self._served


def _serve_for_good(script: str, keep: frozenset[str], renamed: Mapping[str, str]) -> None:
    """Serve the book's modules until the process ends."""
    serving = _serving(Finder(keep, renamed, Path(script)))
    serving.__enter__()
    _kept_open.append(serving)


#: What `_serve_for_good` has begun.
_kept_open: list[Any] = []


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


def is_book(name: str) -> bool:
    """Return whether a module goes by a name of the book's.

    Parameters
    ----------
    name : str

    Returns
    -------
    bool

    Examples
    --------
    >>> is_book("common.functions"), is_book("numpy")
    (True, False)
    """
    return name.partition(".")[0] in _PACKAGES
