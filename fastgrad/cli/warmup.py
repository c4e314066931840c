"""Compiling ahead: small calls that together need every kernel, distributed over processes.

Nothing here knows a kernel: a call of the public names compiles what it needs, and the processes
meet in the cache on disk. A kernel is compiled for the dtype of the network and, where it reads
samples, for theirs; which activation, kind of targets or optimizer it works with does not matter.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed, wait
from typing import Any

import numba
import numpy as np

import fastgrad
from fastgrad.book.convnets import SimpleConvNet
from fastgrad.nn.optimizers import BY_NAME
from fastgrad.runtime.compile import cache_folder
from fastgrad.runtime.compile_time import Watch, say

__all__ = ["CALLS", "call", "compile_ahead", "compile_everything"]

_CORES: int = numba.config.NUMBA_DEFAULT_NUM_THREADS


def _images(dtype: Any) -> tuple[Any, Any]:
    """Return what looks like a batch of MNIST, where four of five pixels are zero, and labels."""
    rng = np.random.default_rng(0)
    x = rng.random((100, 784)) * (rng.random((100, 784)) < 0.2)
    return x.astype(dtype), rng.integers(10, size=100)


def _net(dtype: Any) -> Any:
    return fastgrad.TwoLayerNet(784, 50, 10, dtype=dtype, rng=0)


def _fit(net: Any, x: Any, t: Any, **options: Any) -> None:
    """Train for two iterations. Ctrl-C, which ends a `fit` early, ends the compiling as well."""
    options = {"iterations": 2, "batch_size": len(x), "validation": (x, t), "rng": 0} | options
    if net.fit(x, t, **options).interrupted:
        raise KeyboardInterrupt


def _for_all_samples(dtype: Any, call: Callable[[Any, Any, Any], object]) -> None:
    """Call a function with each kind of fully connected network and of samples, and labels."""
    x, t = _images(dtype)
    nets = _net(dtype), fastgrad.MultiLayerNet(784, [6, 5], 10, dtype=dtype, rng=0)
    kinds = x, x.astype(np.float32), (255 * x).astype(np.uint8), x + 1
    for net, samples in itertools.product(nets, kinds):
        call(net, samples, t)


def _functions(dtype: Any) -> None:
    x, labels = np.linspace(-2, 2, 12, dtype=dtype).reshape(4, 3), np.arange(4) % 3
    for name in ("step_function", "sigmoid", "sigmoid_grad", "relu", "relu_grad", "softmax"):
        for argument in (x, x[0, 0]):
            getattr(fastgrad, name)(argument)
    soft = np.full((4, 3), 1 / 3, dtype)
    fastgrad.sum_squared_error(x, soft)
    fastgrad.cross_entropy_error(soft, labels)
    fastgrad.softmax_cross_entropy(x, labels)
    fastgrad.softmax_cross_entropy_backward(soft, labels)
    fastgrad.affine_forward(_images(dtype)[0], np.ones((784, 6), dtype), np.ones(6, dtype))


def _layers(dtype: Any) -> None:
    images = np.linspace(-1, 1, 216, dtype=dtype).reshape(2, 3, 6, 6)
    x = images.reshape(2, -1)
    for layer, samples in [
        (fastgrad.Affine(np.ones((108, 2), dtype), np.ones(2, dtype)), x),
        (fastgrad.Relu(), x),
        (fastgrad.Sigmoid(), x),
        (fastgrad.BatchNormalization(np.ones(108, dtype), np.zeros(108, dtype)), x),
        (fastgrad.Dropout(), x),
        (fastgrad.Convolution(np.ones((4, 3, 3, 3), dtype), np.ones(4, dtype), pad=1), images),
        (fastgrad.Pooling(2, 2), images),
    ]:
        layer.backward(layer.forward(samples))
    loss = fastgrad.SoftmaxWithLoss()
    loss.forward(x, np.arange(2))
    loss.backward()


def _update(dtype: Any) -> None:
    for optimizer in BY_NAME.values():
        optimizer().update({"b": np.ones(2, dtype)}, {"b": np.ones(2, dtype)})


def _fit_convnet(dtype: Any) -> None:
    """Train a network of the usual size, for which there are parallel kernels."""
    x, t = _images(np.float32)
    net = SimpleConvNet()
    for name, array in net.params.items():
        net.params[name] = array.astype(dtype)
    _fit(net, x.reshape(-1, 1, 28, 28), t)


#: Functions of a dtype, by name. Those that take long come first.
CALLS: dict[str, Callable[[Any], object]] = {
    "numerical_gradient": lambda dtype: _net(dtype).numerical_gradient(*_images(dtype)),
    "gradient": lambda dtype: _net(dtype).gradient(*_images(dtype)),
    "fit": lambda dtype: _fit(_net(dtype), *_images(np.float32)),
    "fit by numerical_gradient":
        lambda dtype: _fit(_net(dtype), *_images(np.float32), method="numerical_gradient"),
    "layers": _layers,
    "fit of a convnet": _fit_convnet,
    "all numerical gradients":
        lambda dtype: _for_all_samples(dtype, lambda net, x, t: net.numerical_gradient(x, t)),
    "all gradients": lambda dtype: _for_all_samples(dtype, lambda net, x, t: net.gradient(x, t)),
    "all fits": lambda dtype: _for_all_samples(dtype, _fit),
    "functions": _functions,
    "optimizers": _update,
}  # fmt: skip

#: How long the calls compile that commands make ahead, in seconds: measured with an empty cache
#: each on two cores.
_SECONDS = {
    "numerical_gradient": 5, "gradient": 4, "fit": 6, "fit by numerical_gradient": 6,
    "optimizers": 1, "fit of a convnet": 7,
}  # fmt: skip


def call(name: str, dtype: str) -> str:
    """Make one of the `CALLS` in this process; return its name."""
    with np.errstate(all="ignore"):
        CALLS[name](np.dtype(dtype))
    return f"{name} {dtype}"


def _call_quietly(name: str, dtype: str) -> tuple[str, float]:
    """Make a call in a process of the pool; return its name and the seconds of compiling.

    Nothing is written: the process that has this one has said already that it compiles.
    """
    with Watch(lambda: None) as compiling:
        return call(name, dtype), compiling.seconds


def compile_everything(dtypes: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Make all calls for these dtypes, on all cores.

    Parameters
    ----------
    dtypes : sequence of {"float64", "float32"}
        What to compile for.

    Yields
    ------
    str
        The name of each call, after it.
    float
        For how many seconds it compiled; 0 if nothing was to be done.
    """
    with _processes() as pool:
        for future in as_completed(
            pool.submit(_call_quietly, name, dtype) for name in CALLS for dtype in dtypes
        ):
            yield future.result()


def compile_ahead(names: Sequence[str], dtype: str, what: str) -> float:
    """Make some of the calls; if they have to compile, other processes make the later ones.

    Parameters
    ----------
    names : sequence of str
        Of `CALLS`.
    dtype : {"float64", "float32"}
        The dtype.
    what : str
        What the kernels are for; it is written on stderr if there is something to compile.

    Returns
    -------
    float
        Seconds taken, or 0 if nothing had to be compiled.
    """
    begin = time.perf_counter()
    with contextlib.ExitStack() as stack:
        ahead = list(names)
        others: list[Any] = []

        def distribute() -> None:
            say(f"{what} in {dtype}", sum(_SECONDS.get(name, 5) for name in names))
            if ahead and cache_folder() is not None and _CORES > 1:
                pool = stack.enter_context(_processes())
                others.extend(pool.submit(_call_quietly, name, dtype) for name in ahead)

        compiling = stack.enter_context(Watch(distribute))
        while ahead:
            call(ahead.pop(0), dtype)
            wait(others)  # what they compiled, this process loads
        return time.perf_counter() - begin if compiling.seconds else 0.0


@contextlib.contextmanager
def _processes() -> Iterator[Executor]:
    """Provide a process for each core. They end when this one is interrupted."""
    with ProcessPoolExecutor(
        _CORES,
        multiprocessing.get_context("spawn"),  # a fork of a process with threads may hang
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_DFL),  # without a traceback from each
    ) as pool:
        try:
            yield pool
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
