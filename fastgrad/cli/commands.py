"""What the commands of `fastgrad.cli.parser` do. Each returns the exit status."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import platform
import statistics
import sys
import textwrap
import time
import timeit
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np

import fastgrad
from fastgrad import book
from fastgrad.cli import textbook
from fastgrad.cli.parser import INTERRUPTED, SGD_RATE, version
from fastgrad.cli.warmup import CALLS, compile_ahead, compile_everything
from fastgrad.nn import optimizers
from fastgrad.runtime import threads
from fastgrad.runtime.compile import cache_folder
from fastgrad.tables import WIDTH, text_table, wrapped
from fastgrad.validation import FloatArray

__all__ = ["exercise", "info", "train", "warmup"]

#: Vector units worth a mention, of the many features that LLVM lists.
_VECTOR_FEATURES = ("sse4.2", "avx", "avx2", "fma", "avx512f", "avx512dq", "avx10.1", "neon", "sve")

#: Seconds that the textbook loop may take before a progress bar shows.
_BAR_DELAY = 2.0

#: On a quiet machine the mean of many times is less than so many times the least of them.
_SCATTER = 1.5

# exercise --------------------------------------------------------------------------------------


def exercise(options: argparse.Namespace) -> int:
    """Time and check the numerical gradient."""
    (images, labels), _, compiling = _load_and_compile(options, "numerical_gradient", "gradient")
    seed = _seed_numpy(options.seed)
    chosen = np.random.choice(len(images), options.batch_size)  # noqa: NPY002 - as the book does
    # Once and for all: the textbook's matrix product would convert float32 images at each call.
    x, t = images[chosen].astype(options.dtype), labels[chosen].astype(np.int64)
    net = _two_layer_net(options, x.shape[1], 1 + int(labels.max()))
    total = sum(array.size for array in net.params.values())
    image = "MNIST digit" if options.data is None else "image"
    print(net)
    print(f"batch of {_plural(len(x), f'random {image}')}, seed {seed}")
    print(f"{_cpu_name()}, {_plural(numba.get_num_threads(), 'thread')} ({threads.layer()})")
    if compiling:
        print(f"Compiling took {_duration(compiling)}.")
    print(flush=True)

    quick, back = _times_in_turn(
        lambda: net.numerical_gradient(x, t, options.h[0]), lambda: net.gradient(x, t)
    )
    count = total if options.full else min(options.sample, total)
    positions = textbook.random_positions(net.params, count, np.random.default_rng(seed))
    looped, loop, blas = _textbook_loop(net.params, x, t, positions, options)
    if options.full:
        slow, how = loop.mean * total, "all parameters, start to end"
    else:
        slow = loop.least * total
        how = f"estimated: {total:,} times the fastest of {_plural(count, 'random parameter')}"
    busy = any(times.scattered for times in (quick, back, loop))
    rows = [
        (name, _duration(seconds), "–" if busy else _three_digits(seconds / back.least))
        for name, seconds in (
            ("textbook loop in NumPy", slow),
            ("numerical_gradient", quick.least),
            ("gradient (backpropagation)", back.least),
        )
    ]
    _print_table(("", "time", "× gradient"), rows)
    print(wrapped(f"Textbook loop: {how}{blas}. The others: fastest of many."))
    if busy:
        print(wrapped(
            "Times of the same call differ widely, as other programs keep this machine busy, so no "
            "ratio is printed."
        ))  # fmt: skip
    else:
        ratio = _three_digits(slow / quick.least)
        print(f"numerical_gradient is {ratio} times faster than the textbook.")
    print()

    print("Largest difference from backpropagation, relative to the array's largest entry:")
    backward = net.gradient(x, t)
    differences, kinks = [], 0
    for h, textbooks in zip(options.h, looped, strict=True):
        left_out = textbook.near_kinks(net.params, x, h) if options.activation == "relu" else {}
        kinks = max(kinks, sum(int(marks.sum()) for marks in left_out.values()))
        numerical = net.numerical_gradient(x, t, h)
        for name, gradient in (("textbook loop", textbooks), ("numerical_gradient", numerical)):
            cells = _difference_cells(gradient, backward, left_out)
            differences.append((f"h = {h:g}, {name}", *cells))
    _print_table(("", *backward, "digits"), differences)
    if kinks:
        print(f"Left out: up to {_plural(kinks, 'parameter')} whose ±h reaches a kink of ReLU.")
    if count < total:
        print(f"The rows of the textbook loop cover {_plural(count, 'random parameter')}.")
    print(wrapped(
        "The textbook loop loses digits to rounding, more with a smaller h. numerical_gradient "
        "differs by the error of any central difference, about h²: a smaller h gains digits."
    ))  # fmt: skip
    return 0


def _textbook_loop(
    params: Mapping[str, FloatArray],
    x: FloatArray,
    t: FloatArray,
    positions: Sequence[tuple[str, int]],
    options: argparse.Namespace,
) -> tuple[list[dict[str, FloatArray]], Times, str]:
    """Return the gradient for each step, NaN where it is unknown, the times, and BLAS's threads."""
    from tqdm.auto import tqdm

    copies = {name: array.copy() for name, array in params.items()}
    gradients = [
        {name: np.full(array.shape, np.nan) for name, array in params.items()} for _ in options.h
    ]
    seconds: list[float] = []

    def loss() -> Any:
        return textbook.loss(copies, x, t, options.activation)

    with textbook.faster_blas_threads(loss) as blas:
        steps = list(itertools.product(zip(options.h, gradients, strict=True), positions))
        for (h, gradient), (name, index) in tqdm(
            steps, delay=_BAR_DELAY, desc="textbook loop", dynamic_ncols=True
        ):
            begin = time.perf_counter()
            slope = textbook.central_difference(loss, copies[name], index, h)
            seconds.append(time.perf_counter() - begin)
            gradient[name].flat[index] = slope
    return gradients, Times.of(seconds), blas


def _difference_cells(
    gradient: Mapping[str, FloatArray],
    backward: Mapping[str, FloatArray],
    left_out: Mapping[str, FloatArray],
) -> list[str]:
    """Return the largest relative difference of each array, NaN apart, and the common digits."""
    cells, worst = [], 0.0
    for name, reference in backward.items():
        known = ~(np.isnan(gradient[name]) | left_out.get(name, False))
        if not known.any():
            cells.append("–")
            continue
        difference = np.abs(gradient[name] - reference)[known].max()
        relative = float(difference / (np.abs(reference).max() or 1))
        worst = max(worst, relative)
        cells.append(f"{relative:.1e}")
    return [*cells, f"{max(0.0, -math.log10(worst)):.1f}" if 0 < worst < math.inf else "–"]


class Times(NamedTuple):
    """How long a call took, in seconds: at its fastest, as `timeit` counts, and on average."""

    least: float
    mean: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        """Sum up the times of many calls."""
        return cls(min(seconds), statistics.mean(seconds))

    @property
    def scattered(self) -> bool:
        """Whether the times differ as they do on a busy machine."""
        return self.mean > _SCATTER * self.least


def _times_in_turn(*calls: Callable[[], object]) -> list[Times]:
    """Return the times of each call; they take turns for a second, five turns at least."""
    timers = [timeit.Timer(call) for call in calls]
    turns: list[list[float]] = []
    end = time.perf_counter() + 1
    while len(turns) < 5 or time.perf_counter() < end:
        turns.append([timer.timeit(1) for timer in timers])
    return [Times.of(seconds) for seconds in zip(*turns, strict=True)]


# train -----------------------------------------------------------------------------------------


def train(options: argparse.Namespace) -> int:
    """Train a network."""
    picture = _picture_file(options.plot)  # before an hour of training, not after it
    is_convnet = options.network == "convnet"
    if is_convnet and options.activation == "sigmoid":
        raise ValueError("--activation: must be relu for a convnet. Got 'sigmoid'.")
    fit, usual = ("fit of a convnet", "adam") if is_convnet else ("fit", "sgd")
    if options.method == "numerical_gradient" and not is_convnet:
        fit = "fit by numerical_gradient"
    name = options.optimizer or usual
    rate = SGD_RATE if name == "sgd" and options.learning_rate is None else options.learning_rate
    optimizer = optimizers.BY_NAME[name](*([] if rate is None else [rate]))

    (x_train, t_train), (x_test, t_test), _ = _load_and_compile(
        options, fit, *["optimizers"] * (name != usual)
    )
    # The book's own stream of numbers: initial weights, then batches.
    seed = _seed_numpy(options.seed)
    classes = 1 + max(int(t_train.max()), int(t_test.max()))
    net: Any
    if is_convnet:
        side = math.isqrt(x_train.shape[1])
        if side * side != x_train.shape[1]:
            raise ValueError("--network convnet: images must be square.")
        x_train, x_test = (images.reshape(-1, 1, side, side) for images in (x_train, x_test))
        net = book.SimpleConvNet(
            (1, side, side), hidden_size=options.hidden_size or 100, output_size=classes
        )
        for key, array in net.params.items():
            net.params[key] = array.astype(options.dtype)
    else:
        net = _two_layer_net(options, x_train.shape[1], classes)
    print(net)
    print(wrapped(
        f"{_plural(options.iterations, 'iteration')} of {options.method}, batches of "
        f"{options.batch_size:,} out of {_plural(len(x_train), 'image')}, "
        f"{name}, learning rate {optimizer.lr:g}, seed {seed}"
    ), flush=True)  # fmt: skip
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
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
        table = zip(history.epochs, history.train_accuracy, history.test_accuracy, strict=True)
        rows = [(f"{epoch:.0f}", f"{train:.2%}", f"{test:.2%}") for epoch, train, test in table]
        _print_table(("epoch", "training", "test"), rows)
    done = _plural(len(history.loss), "iteration")
    print(f"{done} in {_duration(history.seconds)}, evaluation included")
    print(f"test accuracy {net.accuracy(x_test, t_test):.2%}")
    if picture is not None:
        history.plot(picture)
        print(f"drawn: {picture}")
    if history.interrupted:
        print(f"fastgrad: interrupted after {done}", file=sys.stderr)
        return INTERRUPTED
    return 0


def _save(net: Any, path: Path | None) -> None:
    if path is not None:
        print(f"saved: {net.save(path)}", flush=True)


def _picture_file(file: Path | None) -> Path | None:
    """Return where a picture goes, once it is certain that it can be drawn."""
    if file is None:
        return None
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        text = "--plot needs matplotlib. Install it: pip install 'fastgrad[plot]'"
        raise ValueError(text) from None
    if not file.suffix:
        file = file.with_name(f"{file.name}.png")
    kinds = FigureCanvasBase.get_supported_filetypes()
    if file.suffix[1:].lower() not in kinds:
        raise ValueError(f"--plot: must end in one of {', '.join(kinds)}. Got {str(file)!r}.")
    return file


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Show a warning in one line, without the source that it came from."""
    print(f"fastgrad: warning: {message}", file=sys.stderr)


# warmup ----------------------------------------------------------------------------------------


def warmup(options: argparse.Namespace) -> int:
    """Compile everything ahead."""
    from tqdm.auto import tqdm

    folder = cache_folder()
    if folder is None:
        raise ValueError("no folder can be written that would keep what is compiled.")
    begin = time.perf_counter()
    dtypes = " and ".join(options.dtype)
    total = len(CALLS) * len(options.dtype)
    compiling = 0.0
    with tqdm(total=total, desc="compiling", unit="call", dynamic_ncols=True) as bar:
        for name, seconds in compile_everything(options.dtype):
            bar.set_postfix_str(name, refresh=False)
            bar.update()
            compiling += seconds
    if compiling:
        print(f"compiled for {dtypes} in {_duration(time.perf_counter() - begin)}: {folder}")
    else:
        print(f"nothing to compile for {dtypes}: all is there, in {folder}")
    return 0


# info ------------------------------------------------------------------------------------------


def info(options: argparse.Namespace) -> int:
    """Tell versions and settings."""
    layer = threads.layer()
    rows = [("fastgrad", fastgrad.__version__), ("python", platform.python_version())]
    rows += [(name, version(name)) for name in ("numpy", "numba", "llvmlite", "tbb")]
    rows += [
        ("threading layer", layer),
        ("threads", str(numba.get_num_threads())),
        ("kernel cache", _cache()),
        ("processor", _cpu_name()),
        ("vector units", _vector_units()),
        ("system", platform.platform()),
    ]
    for name, value in rows:
        print(textwrap.fill(
            f"{name:16} {value}", WIDTH, subsequent_indent=" " * 17, break_long_words=False,
            break_on_hyphens=False, drop_whitespace=True,
        ))  # fmt: skip
    return 0


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


def _seed_numpy(seed: int | None) -> int:
    """Seed NumPy's global generator, as the book's scripts would, and return the seed."""
    if seed is None:
        seed = int(np.random.default_rng().integers(1_000_000))
    np.random.seed(seed)  # noqa: NPY002 - so that a seed gives the book's own numbers
    return seed


def _load_and_compile(options: argparse.Namespace, *calls: str) -> tuple[Any, Any, float]:
    """Load the data set, compile what calls need, and return the seconds which that took.

    What the package brings cannot fail, so it is loaded after the line that says what goes on.
    """
    data = None if options.data is None else fastgrad.load_mnist(path=options.data)
    what = "training" if options.command == "train" else options.command
    seconds = compile_ahead(calls, options.dtype, what)
    return (*(data or fastgrad.load_mnist()), seconds)


def _two_layer_net(options: argparse.Namespace, inputs: int, classes: int) -> fastgrad.TwoLayerNet:
    return fastgrad.TwoLayerNet(
        inputs,
        options.hidden_size or 50,
        classes,
        activation=options.activation or "sigmoid",
        dtype=options.dtype,
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
    """Print columns: those without a title to the left, figures to the right."""
    align = "".join("l" if title == "" else "r" for title in head)
    print(text_table(head, rows, align))
    print()
