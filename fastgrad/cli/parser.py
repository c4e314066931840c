"""The command line: ``fastgrad`` or ``python -m fastgrad``.

Here are its arguments; what a command does is in `fastgrad.cli.commands`. That needs NumPy and
Numba, which take the better part of a second to import, and is imported once the arguments are
right and a first line has been written.

Wrong arguments, files that cannot be read or written, and numbers that the library refuses give
one sentence on stderr and exit status 2. Ctrl-C gives 130.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import math
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import fastgrad
from fastgrad.runtime import interrupt
from fastgrad.tables import wrapped

__all__ = ["INTERRUPTED", "OPTIMIZERS", "SGD_RATE", "argument_parser", "main", "version"]

#: What ``--optimizer`` takes: the classes' names, in lower case.
OPTIMIZERS = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam")

_DTYPES = ("float64", "float32")

#: Of plain gradient descent, as in the book's run; the other optimizers have their own defaults.
SGD_RATE = 0.1

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_BROKEN_PIPE = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; by default those of the process.

    Returns
    -------
    int
        The exit status.

    Raises
    ------
    SystemExit
        By `argparse`: with status 2 for wrong arguments, 0 after ``--help`` and ``--version``.

    Examples
    --------
    >>> main(["--version"])
    Traceback (most recent call last):
        ...
    SystemExit: 0
    """
    try:
        try:
            parser = argument_parser()
            options = parser.parse_args(argv)
            if options.command is None:
                parser.print_help()
                return 0
            return _run(options)
        finally:
            # A script that was run may have closed it or put something else in its place.
            with contextlib.suppress(AttributeError, ValueError):
                sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output (head, say) has gone. Python flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """Says what is wrong, and no more, where argparse prints the usage as well."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, wrapped(f"{self.prog}: error: {message}") + "\n")


def _run(options: argparse.Namespace) -> int:
    """Do what a command does. Its errors of input and of files end in one sentence."""
    is_script = options.command == "run"
    parser: _Parser = options.parser
    try:
        with interrupt.kept(may_be_caught=is_script):  # a script may handle Ctrl-C itself
            _say_that_it_runs(options)
            # A script that is run may need neither NumPy nor Numba.
            module = importlib.import_module(f"fastgrad.cli.{'run' if is_script else 'commands'}")
            return int(getattr(module, options.command)(options))
    except BrokenPipeError:
        raise
    except (ValueError, OSError, MemoryError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OSError) and error.strerror:  # without its number
            text = error.strerror + (f": {error.filename!r}" if error.filename else "")
        parser.error(text)


def _say_that_it_runs(options: argparse.Namespace) -> None:
    """Write a line before the imports, which somebody may be waiting for."""
    if options.command == "run":  # stdout belongs to the script, also where there is no stderr
        if sys.stderr is not None:
            print(f"fastgrad: running {options.script}", file=sys.stderr, flush=True)
    elif options.command != "info":
        print(
            f"fastgrad {fastgrad.__version__}, Python {platform.python_version()}, "
            f"NumPy {version('numpy')}, Numba {version('numba')}",
            flush=True,
        )


def version(package: str) -> str:
    """Return the version of an installed distribution.

    Parameters
    ----------
    package : str
        Its name.

    Returns
    -------
    str
        The version, or "not installed".

    Examples
    --------
    >>> version("no-such-package")
    'not installed'
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _number(convert: type, fits: Callable[[Any], bool], wanted: str) -> Callable[[str], Any]:
    """Return what reads an option's number, and refuses all that are not wanted."""

    def read(text: str) -> Any:
        with contextlib.suppress(ValueError):
            number = convert(text)
            if fits(number):
                return number
        raise argparse.ArgumentTypeError(f"must be {wanted}. Got {text!r}.")

    return read


_count = _number(int, lambda n: n >= 1, "a whole number from 1 on")
_count_from_0 = _number(int, lambda n: n >= 0, "a whole number from 0 on")
_seed = _number(int, lambda n: 0 <= n < 2**32, f"a whole number from 0 to {2**32 - 1}")
_rate = _number(float, lambda n: 0 <= n < math.inf, "a finite number from 0 on")
_step = _number(float, lambda n: 0 < n < math.inf, "a finite number above 0")


def _file(text: str) -> Path:
    """Read the path of a file to be written, and refuse where that certainly cannot be."""
    file = Path(text)
    folder = str(file.parent)
    if not file.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder {folder!r} does not exist.")
    if file.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder.")
    if not os.access(folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"the folder {folder!r} cannot be written.")
    return file


def _served(text: str) -> tuple[str, str]:
    """Read a module's name in the book and the name of the reader's module."""
    name, _, module = text.partition("=")
    if not (name and module):
        raise argparse.ArgumentTypeError(f"must be NAME=MODULE. Got {text!r}.")
    return name, module


def _command(commands: Any, name: str, text: str) -> Callable[..., Any]:
    """Add a command, and return what adds an option to it."""
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(parser=parser)
    return parser.add_argument  # type: ignore[no-any-return]


# An option is two lines: what it takes, and what its help says.
# fmt: off


def _add_network_options(option: Callable[..., Any], *, convnet: bool) -> None:
    """Add the options of a network; `convnet` says whether it can be a convolutional one."""
    option("--batch-size", type=_count, default=100, metavar="N",
           help="images in a mini-batch (default: %(default)s)")
    option("--hidden-size", type=_count, metavar="N",
           help=f"units of the hidden layer (default: 50{', or 100 of a convnet' * convnet})")
    option("--activation", choices=("sigmoid", "relu"), default=None if convnet else "sigmoid",
           help=f"of the hidden layer (default: sigmoid{'; a convnet has relu' * convnet})")
    option("--dtype", choices=_DTYPES, default="float64",
           help="of all numbers (default: %(default)s)")
    option("--seed", type=_seed, metavar="N",
           help="repeat a run: numpy.random.seed(N) (default: a new one, which is printed)")
    option("--data", metavar="FOLDER",
           help="four IDX files of another data set, Fashion-MNIST say (default: MNIST)")


def argument_parser() -> argparse.ArgumentParser:
    """Return what reads the arguments of all commands."""
    parser = _Parser(
        prog="fastgrad",
        description="Numerical gradients and two-layer networks at compiled speed.",
        epilog="'fastgrad COMMAND --help' lists the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"fastgrad {fastgrad.__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")

    option = _command(commands, "exercise",
        "time and check the numerical gradient of the book's network on a batch of MNIST")
    _add_network_options(option, convnet=False)
    option("--h", type=_step, nargs="+", default=(1e-4, 1e-6), metavar="STEP",
           help="steps of the central difference; times are those of the first "
                "(default: 1e-4 1e-6)")
    option = commands.choices["exercise"].add_mutually_exclusive_group().add_argument
    option("--sample", type=_count, default=1000, metavar="N",
           help="random parameters for which the textbook loop runs (default: %(default)s)")
    option("--full", action="store_true",
           help="run the textbook loop for every parameter")

    option = _command(commands, "train",
        "train the book's networks on MNIST, as in its chapters 4 to 7")
    option("--network", choices=("two-layer", "convnet"), default="two-layer",
           help="chapter 4's TwoLayerNet or chapter 7's SimpleConvNet (default: %(default)s)")
    _add_network_options(option, convnet=True)
    option("--iterations", type=_count_from_0, default=10_000, metavar="N",
           help="updates, each with a mini-batch (default: %(default)s)")
    option("--method", choices=("gradient", "numerical_gradient"), default="gradient",
           help="backpropagation, or numerical gradients alone (default: %(default)s)")
    option("--optimizer", choices=OPTIMIZERS,
           help="rule of the updates (default: sgd, and adam for a convnet)")
    option("--learning-rate", type=_rate, metavar="RATE",
           help=f"of the updates (default: {SGD_RATE} for sgd, else the optimizer's own)")
    option("--save", type=_file, metavar="FILE",
           help="write the trained network to an .npz file, which its class can load")
    option("--plot", type=_file, metavar="FILE",
           help="draw loss and accuracies into a picture, .png, .svg or .pdf say (extra: plot)")

    option = _command(commands, "run",
        "run a script as python does, with the book's modules and your networks computed faster")
    option("--keep", action="append", default=[], metavar="NAME",
           help="leave a module to the script's own file, two_layer_net say; may be repeated")
    option("--serve", type=_served, action="append", default=[], metavar="NAME=MODULE",
           help="serve a module of yours as one of the book's: lib.net=two_layer_net; may be "
                "repeated")
    option("--compare", type=_step, metavar="SECONDS",
           help="run the script's own way as well, that long at most, and say how much faster it "
                "was")
    option("script", metavar="SCRIPT", help="runs as by python SCRIPT ARGS")
    args = option("args", nargs=argparse.REMAINDER, metavar="ARGS",
                  help="what the script finds in sys.argv")
    args.required = False  # else argparse would ask for ARGS where SCRIPT is missing

    option = _command(commands, "warmup",
        "compile everything ahead, on all cores, for later processes")
    option("--dtype", choices=_DTYPES, nargs="+", default=_DTYPES,
           help="for networks of these numbers (default: both)")

    _command(commands, "info", "tell versions, threads, the cache and the processor")
    return parser
