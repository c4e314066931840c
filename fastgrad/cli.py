"""The command line: ``fastgrad`` or ``python -m fastgrad``.

Wrong arguments, files that cannot be read or written, and numbers that the library refuses give
one line on stderr and exit status 2. Ctrl-C gives 130.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import math
import os
import platform
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numba
import numpy as np

import fastgrad
from fastgrad import book, optimizers, textbook, threads, warmup
from fastgrad.arrays import FloatArray
from fastgrad.kernels.compile import cache_folder

__all__ = ["main"]

#: By the names of ``--optimizer``.
_OPTIMIZERS = {
    "sgd": optimizers.SGD,
    "momentum": optimizers.Momentum,
    "nesterov": optimizers.Nesterov,
    "adagrad": optimizers.AdaGrad,
    "rmsprop": optimizers.RMSprop,
    "adam": optimizers.Adam,
}

#: Of plain gradient descent, as in the book's run; the other optimizers have their own defaults.
_SGD_RATE = 0.1

#: Vector units worth a mention, of the many features that LLVM lists.
_VECTOR_FEATURES = ("sse4.2", "avx", "avx2", "fma", "avx512f", "avx512dq", "avx10.1", "neon", "sve")

#: Seconds that the textbook loop may take before a progress bar shows.
_PATIENCE = 2.0

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
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
            parser = _parser()
            options = parser.parse_args(argv)
            if options.command is None:
                parser.print_help()
                return 0
            return int(options.run(options))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output (head, say) has gone. Python flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return _INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, where argparse prints the usage as well."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fastgrad",
        description="Numerical gradients and two-layer networks at compiled speed.",
        epilog="'fastgrad COMMAND --help' lists the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"fastgrad {fastgrad.__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    _add_exercise(commands)
    _add_train(commands)
    _add_run(commands)
    _add_warmup(commands)
    _add_info(commands)
    return parser


def _add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> Any:
    """Add a command whose errors of input and of files end in one line."""

    def guarded(options: argparse.Namespace) -> int:
        try:
            return run(options)
        except BrokenPipeError:
            raise
        except (ValueError, OSError, MemoryError) as error:
            text = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, OSError) and error.strerror:  # without its number
                text = error.strerror + (f": {error.filename!r}" if error.filename else "")
            parser.error(text)

    parser: _Parser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + "."
    )
    parser.set_defaults(run=guarded)
    return parser


def _add_network_options(parser: Any) -> None:
    parser.add_argument(
        "--batch-size", type=_count, default=100, metavar="N",
        help="images in a mini-batch (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--hidden-size", type=_count, metavar="N",
        help="units of the hidden layer (default: 50, or 100 of a convnet)",
    )  # fmt: skip
    parser.add_argument(
        "--activation", choices=("sigmoid", "relu"), default="sigmoid",
        help="of the hidden layer (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", choices=("float64", "float32"), default="float64",
        help="of all numbers (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=_seed, metavar="N",
        help="repeat a run: numpy.random.seed(N) (default: a new one, which is printed)",
    )  # fmt: skip
    parser.add_argument(
        "--data", metavar="FOLDER",
        help="four IDX files of another data set, Fashion-MNIST say (default: MNIST)",
    )  # fmt: skip


def _count(text: str) -> int:
    return _whole_number(text, 1, None)


def _count_from_0(text: str) -> int:
    return _whole_number(text, 0, None)


def _seed(text: str) -> int:
    return _whole_number(text, 0, 2**32 - 1)  # what numpy.random.seed takes


def _whole_number(text: str, low: int, high: int | None) -> int:
    wanted = f"from {low} to {high}" if high is not None else f"from {low} on"
    try:
        number = int(text)
    except ValueError:
        number = low - 1
    if number < low or (high is not None and number > high):
        raise argparse.ArgumentTypeError(f"must be a whole number {wanted}. Got {text!r}.")
    return number


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"must be a finite number. Got {text!r}.")
    return number


def _step(text: str) -> float:
    number = _finite(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"must be above 0. Got {text!r}.")
    return number


# exercise --------------------------------------------------------------------------------------


def _add_exercise(commands: Any) -> None:
    parser = _add_command(
        commands,
        "exercise",
        _exercise,
        "time and check the numerical gradient of the book's network on a batch of MNIST",
    )
    _add_network_options(parser)
    parser.add_argument(
        "--h", type=_step, nargs="+", default=(1e-4, 1e-6), metavar="STEP",
        help="steps of the central difference; times are those of the first (default: 1e-4 1e-6)",
    )  # fmt: skip
    how_many = parser.add_mutually_exclusive_group()
    how_many.add_argument(
        "--sample", type=_count, default=1000, metavar="N",
        help="random parameters for which the textbook loop runs (default: %(default)s)",
    )  # fmt: skip
    how_many.add_argument(
        "--full", action="store_true", help="run the textbook loop for every parameter"
    )


def _exercise(options: argparse.Namespace) -> int:
    (images, labels), _, compiling = _load_and_compile(options, "numerical_gradient", "gradient")
    rng, seed = _random_source(options.seed)
    chosen = rng.choice(len(images), options.batch_size)
    # Once and for all: the textbook's matrix product would convert float32 images at each call.
    x, t = images[chosen].astype(options.dtype), labels[chosen].astype(np.int64)
    net = _network(options, x.shape[1], _classes(labels))
    total = sum(array.size for array in net.params.values())
    image = "MNIST digit" if options.data is None else "image"
    print(net)
    print(f"batch of {_plural(len(x), f'random {image}')}, seed {seed}")
    print(f"{_cpu_name()}, {_plural(numba.get_num_threads(), 'thread')} ({threads.layer()})")
    _say_if_busy()
    if compiling:
        print(f"Compiling took {_duration(compiling)}.")
    print(flush=True)

    backward = net.gradient(x, t)
    quick, back = _fastest(
        lambda: net.numerical_gradient(x, t, options.h[0]), lambda: net.gradient(x, t)
    )

    count = total if options.full else min(options.sample, total)
    positions = textbook.random_positions(net.params, count, np.random.default_rng(seed))
    looped, per_parameter = _textbook_loop(net.params, x, t, positions, options)
    slow = per_parameter * total
    how = f"estimated: {total:,} times the fastest of {_plural(count, 'random parameter')}"
    if options.full:
        how = "all parameters, start to end"

    every = f"all {_plural(total, 'parameter')}, fastest of many"
    rows = [
        ("textbook loop in NumPy", _duration(slow), _three_digits(slow / back), how),
        ("numerical_gradient", _duration(quick), _three_digits(quick / back), every),
        ("gradient (backpropagation)", _duration(back), "1", every),
    ]
    _print_table(("", "time", "× gradient", ""), rows)
    print(f"numerical_gradient is {_three_digits(slow / quick)} times faster than the textbook.\n")

    print("Largest difference from backpropagation, relative to the array's largest entry:")
    differences, kinks = [], 0
    for h, textbooks in zip(options.h, looped, strict=True):
        left_out = {name: np.zeros(array.shape, np.bool_) for name, array in backward.items()}
        if options.activation == "relu":
            left_out = textbook.near_kinks(net.params, x, h)
            kinks = max(kinks, sum(int(marks.sum()) for marks in left_out.values()))
        numerical = net.numerical_gradient(x, t, h)
        differences += [
            (f"h = {h:g}, textbook loop", *_difference_cells(textbooks, backward, left_out)),
            (f"h = {h:g}, numerical_gradient", *_difference_cells(numerical, backward, left_out)),
        ]
    _print_table(("", *backward, "digits"), differences)
    if kinks:
        print(f"Left out: up to {_plural(kinks, 'parameter')} whose ±h reaches a kink of ReLU.")
    if count < total:
        print(f"Of the textbook loop these are {_plural(count, 'random parameter')}.")
    print(
        "The textbook loop loses digits to rounding, more with a smaller h. numerical_gradient\n"
        "differs by the error of any central difference, about h²: a smaller h gains digits."
    )
    return 0


def _textbook_loop(
    params: Mapping[str, FloatArray],
    x: FloatArray,
    t: FloatArray,
    positions: Sequence[textbook.Position],
    options: argparse.Namespace,
) -> tuple[list[dict[str, FloatArray]], float]:
    """Return the textbook's gradient for each step, NaN elsewhere, and the seconds a parameter."""
    from tqdm.auto import tqdm

    copies = {name: array.copy() for name, array in params.items()}
    gradients = [
        {name: np.full(array.shape, np.nan) for name, array in params.items()} for _ in options.h
    ]
    seconds: list[float] = []
    with tqdm(total=len(options.h) * len(positions), delay=_PATIENCE, desc="textbook loop") as bar:
        for h, gradient in zip(options.h, gradients, strict=True):
            for name, index in positions:
                begin = time.perf_counter()
                (slope,) = textbook.numerical_gradient(
                    copies, x, t, [(name, index)], h, options.activation
                )
                seconds.append(time.perf_counter() - begin)
                gradient[name].reshape(-1)[index] = slope
                bar.update()
    return gradients, statistics.mean(seconds) if options.full else min(seconds)


def _difference_cells(
    gradient: Mapping[str, FloatArray],
    backward: Mapping[str, FloatArray],
    left_out: Mapping[str, FloatArray],
) -> list[str]:
    """Return the largest relative difference of each array, NaN apart, and the common digits."""
    cells, worst = [], 0.0
    for name, reference in backward.items():
        known = ~np.isnan(gradient[name]) & ~left_out[name]
        if not known.any():
            cells.append("–")
            continue
        difference = np.abs(gradient[name] - reference)[known].max()
        scale = np.abs(reference).max()
        relative = float(difference / scale) if scale else float(difference)
        worst = max(worst, relative)
        cells.append(f"{relative:.1e}")
    return [*cells, f"{-math.log10(worst):.1f}" if 0 < worst < math.inf else "–"]


def _fastest(*calls: Callable[[], object], seconds: float = 1.0, least: int = 5) -> list[float]:
    """Return the seconds of each call at its fastest; they take turns.

    As `timeit` does, and likewise for the textbook loop: on a busy machine the threads of BLAS wait
    for each other, small matrix products become up to a hundred times slower, and any mean or
    median would flatter us.
    """
    taken = [math.inf] * len(calls)
    end = time.perf_counter() + seconds
    while least > 0 or time.perf_counter() < end:
        least -= 1
        for i, call in enumerate(calls):
            begin = time.perf_counter()
            call()
            taken[i] = min(taken[i], time.perf_counter() - begin)
    return taken


# train -----------------------------------------------------------------------------------------


def _add_train(commands: Any) -> None:
    parser = _add_command(
        commands, "train", _train, "train the book's networks on MNIST, as in its chapters 4 to 7"
    )
    parser.add_argument(
        "--network", choices=("two-layer", "convnet"), default="two-layer",
        help="chapter 4's TwoLayerNet or chapter 7's SimpleConvNet (default: %(default)s)",
    )  # fmt: skip
    _add_network_options(parser)
    parser.add_argument(
        "--iterations", type=_count_from_0, default=10_000, metavar="N",
        help="mini-batches (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--method", choices=("gradient", "numerical_gradient"), default="gradient",
        help="backpropagation, or numerical gradients alone (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--optimizer", choices=tuple(_OPTIMIZERS),
        help="(default: sgd, and adam for a convnet)",
    )  # fmt: skip
    parser.add_argument(
        "--learning-rate", type=_finite, metavar="RATE",
        help=f"(default: {_SGD_RATE} for sgd, else the optimizer's own)",
    )  # fmt: skip
    parser.add_argument(
        "--save", metavar="FILE",
        help="write the trained network to an .npz file, a convnet's parameters to the book's .pkl",
    )  # fmt: skip
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help="draw loss and accuracies into a picture, .png, .svg or .pdf say (extra: plot)",
    )


def _train(options: argparse.Namespace) -> int:
    # Before an hour of training, not after it.
    picture = _picture_file(options.plot)
    _require_writable(options.save, "--save")
    convnet = options.network == "convnet"
    if options.optimizer is None:
        options.optimizer = "adam" if convnet else "sgd"
    rate = options.learning_rate
    if rate is None and options.optimizer == "sgd":
        rate = _SGD_RATE
    optimizer = _OPTIMIZERS[options.optimizer](*([] if rate is None else [rate]))

    (x_train, t_train), (x_test, t_test), _ = _load_and_compile(options, *_calls_of_fit(options))
    # The book's own stream of numbers: initial weights, then batches.
    _, seed = _random_source(options.seed)
    net: Any
    if convnet:
        side = math.isqrt(x_train.shape[1])
        if side * side != x_train.shape[1]:
            raise ValueError("--network convnet: images must be square.")
        x_train, x_test = (images.reshape(-1, 1, side, side) for images in (x_train, x_test))
        net = _convnet(options, side, _classes(t_train, t_test))
    else:
        net = _network(options, x_train.shape[1], _classes(t_train, t_test))
    print(net)
    print(
        f"{_plural(options.iterations, 'iteration')} of {options.method}, batches of "
        f"{options.batch_size:,} out of {_plural(len(x_train), 'image')}, "
        f"{options.optimizer}, learning rate {optimizer.lr:g}, seed {seed}"
    )
    sys.stdout.flush()
    try:
        with _warnings_in_one_line():
            history = net.fit(
                x_train,
                t_train,
                iterations=options.iterations,
                batch_size=options.batch_size,
                method=options.method,
                optimizer=optimizer,
                validation=(x_test, t_test),
                progress=True,
            )
    except KeyboardInterrupt:  # the second Ctrl-C, which does not wait for the iteration's end
        _save(net, options.save)
        raise
    _save(net, options.save)
    if history.epochs.size:
        rows = [
            (f"{epoch:.0f}", f"{train:.2%}", f"{test:.2%}")
            for epoch, train, test in zip(
                history.epochs, history.train_accuracy, history.test_accuracy, strict=True
            )
        ]
        _print_table(("epoch", "training", "test"), rows)
    done = _plural(len(history.loss), "iteration")
    print(f"{done} in {_duration(history.seconds)}, evaluation included")
    print(f"test accuracy {net.accuracy(x_test, t_test):.2%}")
    if picture is not None:
        history.plot().savefig(picture, dpi=120)
        print(f"drawn: {picture}")
    if history.interrupted:
        print(f"fastgrad: interrupted after {done}", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _calls_of_fit(options: argparse.Namespace) -> list[str]:
    """Return what a run needs of `fastgrad.warmup.CALLS`."""
    if options.network == "convnet":
        return ["layers of convolutional networks"]
    if options.method == "numerical_gradient":
        return ["fit by numerical_gradient"]
    return ["fit"] if options.optimizer == "sgd" else ["fit", "optimizers"]


def _save(net: Any, path: str | None) -> None:
    if path is None:
        return
    if isinstance(net, book.SimpleConvNet):
        net.save_params(path)
    else:
        path = str(net.save(path))
    print(f"saved: {path}", flush=True)


def _picture_file(path: str | None) -> Path | None:
    """Return where a picture goes, once it is certain that it can be drawn."""
    if path is None:
        return None
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib. Install it: pip install 'fastgrad[plot]'")
    file = Path(path)
    _require_writable(file, "--plot")
    if not file.suffix:
        file = file.with_name(file.name + ".png")
        _require_writable(file, "--plot")
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if file.suffix[1:].lower() not in kinds:
        raise ValueError(f"--plot: must end in one of {', '.join(kinds)}. Got {str(file)!r}.")
    return file


def _require_writable(path: str | Path | None, option: str) -> None:
    """Raise an OSError where a file certainly cannot be written."""
    if path is None:
        return
    file = Path(path)
    if not file.parent.is_dir():
        raise FileNotFoundError(f"{option}: the folder {str(file.parent)!r} does not exist.")
    if file.is_dir():
        raise IsADirectoryError(f"{option}: {str(file)!r} is a folder.")
    if not os.access(file.parent, os.W_OK):
        raise PermissionError(f"{option}: the folder {str(file.parent)!r} cannot be written.")


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Show a warning as its text, without the line of source that it came from."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        print(f"fastgrad: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


# run -------------------------------------------------------------------------------------------


def _add_run(commands: Any) -> None:
    parser = _add_command(
        commands,
        "run",
        _run,
        "run a script of the book, unmodified, with its modules served by fastgrad",
    )
    parser.add_argument(
        "--keep", action="append", default=[], metavar="NAME",
        help="leave a module to the script's own file, two_layer_net say; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--serve", action="append", default=[], metavar="NAME=MODULE",
        help="serve a module of yours as one of the book's: lib.net=two_layer_net; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--compare", type=float, metavar="SECONDS",
        help="run the script's own way as well, that long at most, and say how much faster it was",
    )  # fmt: skip
    parser.add_argument("script", metavar="SCRIPT", help="runs in its own folder, as __main__")
    args = parser.add_argument(
        "args", nargs=argparse.REMAINDER, metavar="ARGS", help="what the script finds in sys.argv"
    )
    args.required = False  # else argparse would ask for ARGS where SCRIPT is missing


def _run(options: argparse.Namespace) -> int:
    serve = {}
    for pair in options.serve:
        name, equals, module = pair.partition("=")
        if not (name and equals and module):
            raise ValueError(f"--serve must be NAME=MODULE. Got {pair!r}.")
        serve[name] = module
    _compile_for(Path(options.script))
    return book.run_script(
        options.script, options.args, options.keep, serve=serve, compare=options.compare
    )


def _compile_for(script: Path) -> None:
    """Compile ahead what a script names; what it will call is not known."""
    words = set(re.findall(r"\w+", script.read_text(errors="replace"))) if script.is_file() else ()
    if "TwoLayerNet" in words:
        calls = ("numerical_gradient", "gradient", "accuracy")
        warmup.compile_ahead([name for name in calls if name in words], "float64")


# warmup ----------------------------------------------------------------------------------------


def _add_warmup(commands: Any) -> None:
    parser = _add_command(
        commands, "warmup", _warmup, "compile everything ahead, on all cores, for later processes"
    )
    parser.add_argument(
        "--dtype", choices=("float64", "float32"), nargs="+", default=("float64", "float32"),
        help="for networks of these numbers (default: both)",
    )  # fmt: skip


def _warmup(options: argparse.Namespace) -> int:
    from tqdm.auto import tqdm

    folder = cache_folder()
    if folder is None:
        raise ValueError("no folder can be written that would keep what is compiled.")
    begin = time.perf_counter()
    total = len(warmup.CALLS) * len(options.dtype)
    with tqdm(total=total, desc="compiling", unit="call", dynamic_ncols=True) as bar:

        def done(name: str) -> None:
            bar.set_postfix_str(name, refresh=False)
            bar.update()

        warmup.compile_everything(options.dtype, done)
    took = _duration(time.perf_counter() - begin)
    print(f"compiled for {' and '.join(options.dtype)} in {took}: {folder}")
    return 0


# info ------------------------------------------------------------------------------------------


def _add_info(commands: Any) -> None:
    _add_command(commands, "info", _info, "tell versions, threads, the cache and the processor")


def _info(options: argparse.Namespace) -> int:
    layer = threads.layer()
    rows = [("fastgrad", fastgrad.__version__), ("python", platform.python_version())]
    rows += [(name, _version(name)) for name in ("numpy", "numba", "llvmlite", "tbb")]
    rows += [
        ("threading layer", layer),
        ("threads", str(numba.get_num_threads())),
        ("kernel cache", _cache()),
        ("processor", _cpu_name()),
        ("vector units", _vector_units()),
        ("system", platform.platform()),
    ]
    for name, value in rows:
        print(f"{name:16} {value}")
    return 0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cache() -> str:
    """Tell where compiled kernels are kept."""
    if numba.config.DISABLE_JIT:
        return "none: compiling is switched off (NUMBA_DISABLE_JIT)"
    folder = cache_folder()
    if folder is None:
        return "none: no folder can be written, so each process compiles anew"
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return f"{folder} ({'writable' if os.access(existing, os.W_OK) else 'read-only'})"


def _cpu_name() -> str:
    """Return the name of the processor."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown processor"


def _vector_units() -> str:
    """Return the vector instructions that kernels are compiled for."""
    import llvmlite.binding

    features = llvmlite.binding.get_host_cpu_features()
    units = [name for name in _VECTOR_FEATURES if features.get(name)]
    return f"{' '.join(units) or 'unknown'} ({llvmlite.binding.get_host_cpu_name()})"


# what the commands share -----------------------------------------------------------------------


def _random_source(seed: int | None) -> tuple[Any, int]:
    """Seed NumPy's global generator, as the book's scripts would, and return it and the seed."""
    if seed is None:
        seed = int(np.random.default_rng().integers(1_000_000))
    np.random.seed(seed)  # noqa: NPY002 - so that a seed gives the book's own numbers
    return np.random, seed


def _load_and_compile(options: argparse.Namespace, *calls: str) -> tuple[Any, Any, float]:
    """Load the data set, compile what calls need, and return the seconds which that took.

    What the package brings cannot fail, so it is loaded after the line that says what goes on.
    """
    data = None if options.data is None else fastgrad.load_mnist(path=options.data)
    seconds = warmup.compile_ahead(calls, options.dtype)
    return (*(data or fastgrad.load_mnist()), seconds)


def _network(options: argparse.Namespace, inputs: int, classes: int) -> fastgrad.TwoLayerNet:
    return fastgrad.TwoLayerNet(
        inputs,
        options.hidden_size or 50,
        classes,
        activation=options.activation,
        dtype=options.dtype,
    )


def _convnet(options: argparse.Namespace, side: int, classes: int) -> book.SimpleConvNet:
    net = book.SimpleConvNet(
        (1, side, side), hidden_size=options.hidden_size or 100, output_size=classes
    )
    for name, array in net.params.items():
        net.params[name] = array.astype(options.dtype)
    return net


def _classes(*labels: Any) -> int:
    return 1 + max(int(array.max()) for array in labels)


def _say_if_busy() -> None:
    with contextlib.suppress(AttributeError, OSError):  # Windows does not know
        load = os.getloadavg()[0]
        if load > (os.cpu_count() or 1):
            print(
                f"Other programs keep this machine busy (load {load:.1f}): do not trust the times."
            )


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _duration(seconds: float) -> str:
    """Return a time with three digits and a fitting unit."""
    if seconds >= 600:
        return f"{seconds / 60:,.0f} min"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{_three_digits(seconds / size)} {unit}"
    return f"{_three_digits(seconds / 1e-6)} µs"


def _three_digits(number: float) -> str:
    """Return a number rounded to three digits: 0.0123, 1.23, 12,300."""
    rounded = float(f"{number:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:.3g}"


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns: the first to the left, figures to the right, a last without a title left."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if title == "" else cell.rjust(width)
            for cell, width, title in zip(row, widths, head, strict=True)
        ]
        print("  ".join(cells).rstrip())
    print()
