"""Compiling ahead: small calls that together need every kernel, distributed over processes.

Nothing here knows a kernel: a call of the public names compiles what it needs, and the processes
meet in the cache on disk.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed, wait
from typing import Any

import numpy as np

import fastgrad
from fastgrad.book.convnets import SimpleConvNet
from fastgrad.book.networks import MultiLayerNetExtend
from fastgrad.nn.optimizers import BY_NAME
from fastgrad.runtime.compile import cache_folder
from fastgrad.runtime.compile_time import Watch, say

__all__ = ["CALLS", "call", "compile_ahead", "compile_everything"]

_OPTIMIZERS = tuple(BY_NAME.values())


def _images(dtype: Any, n: int = 100) -> tuple[Any, Any]:
    """Return what looks like a batch of MNIST, where four of five pixels are zero, and labels."""
    rng = np.random.default_rng(0)
    x = rng.random((n, 784)) * (rng.random((n, 784)) < 0.2)
    return x.astype(dtype), rng.integers(10, size=n)


def _batches(dtype: Any) -> Iterator[tuple[Any, Any]]:
    """Yield a usual batch, some of other dtypes, targets and sizes, and one without zeros."""
    x, labels = _images(dtype)
    yield x, labels
    yield x.astype(np.float32), labels
    yield (255 * x).astype(np.uint8), labels
    yield x, np.eye(10, dtype=dtype)[labels] * 0.9 + 0.01
    yield x[:5], labels[:5]
    yield x + 1, labels


def _net(dtype: Any, activation: str = "sigmoid") -> Any:
    return fastgrad.TwoLayerNet(784, 50, 10, activation=activation, dtype=dtype, rng=0)


def _deep_net(dtype: Any) -> Any:
    return fastgrad.MultiLayerNet(784, [6, 5], 10, dtype=dtype, rng=0)


def _convnet(dtype: Any, filters: int = 3, hidden: int = 5) -> Any:
    net = SimpleConvNet(
        (1, 28, 28), {"filter_num": filters, "filter_size": 5, "pad": 0, "stride": 1}, hidden
    )
    for name, array in net.params.items():
        net.params[name] = array.astype(dtype)
    return net


def _evaluate(dtype: Any, *methods: str) -> None:
    """Call methods of every kind of network with every kind of batch."""
    nets = (_net(dtype), _net(dtype, "relu"), _deep_net(dtype))
    for net, (x, t), method in itertools.product(nets, _batches(dtype), methods):
        getattr(net, method)(x, t)


def _fit(
    net: Any, x: Any, t: Any, optimizers: Sequence[Any] = (fastgrad.SGD,), method: str = "gradient"
) -> None:
    """Train for two iterations. Ctrl-C, which ends a `fit` early, ends the compiling as well."""
    for optimizer in optimizers:
        history = net.fit(
            x, t, iterations=2, batch_size=len(x), method=method, optimizer=optimizer(),
            validation=(x, t), rng=0,
        )  # fmt: skip
        if history.interrupted:
            raise KeyboardInterrupt


def _fit_images(dtype: Any, optimizers: Sequence[Any], method: str = "gradient") -> None:
    """Train chapter 4's network with images as `load_mnist` has them."""
    _fit(_net(dtype), *_images(np.float32), optimizers, method)


def _fit_convnet(dtype: Any, n: int, filters: int, hidden: int, *options: Any) -> None:
    x, t = _images(np.float32, n)
    _fit(_convnet(dtype, filters, hidden), x.reshape(-1, 1, 28, 28), t, *options)


def _long_steps(dtype: Any) -> None:
    """Compute numerical gradients beyond the range of the series."""
    x, t = _images(dtype, 5)
    for activation in ("sigmoid", "relu"):
        _net(dtype, activation).numerical_gradient(x + 1, t, h=0.5)


def _fits(dtype: Any) -> None:
    _fit(_net(dtype, "relu"), *_images(np.float32))
    for x, t in _batches(dtype):
        _fit(_net(dtype), x, t)
        _fit(_deep_net(dtype), x, t)


def _functions(dtype: Any) -> None:
    x, labels = np.linspace(-2, 2, 12, dtype=dtype).reshape(4, 3), np.arange(4) % 3
    for name in ("step_function", "sigmoid", "sigmoid_grad", "relu", "relu_grad", "softmax"):
        for argument in (x, x[0], x[0, 0]):
            getattr(fastgrad, name)(argument)
    soft = np.full((4, 3), 1 / 3, dtype)
    fastgrad.sum_squared_error(x, soft)
    for t in (labels, soft):
        fastgrad.cross_entropy_error(soft, t)
        fastgrad.softmax_cross_entropy(x, t)
        fastgrad.softmax_cross_entropy_backward(soft, t)


def _layers(dtype: Any) -> None:
    x = np.linspace(-1, 1, 216, dtype=dtype).reshape(2, 3, 6, 6)
    flat = x.reshape(2, -1)
    last = fastgrad.SoftmaxWithLoss()
    last.forward(flat, np.arange(2))
    last.backward()
    layers: list[tuple[Any, Any]] = [
        (fastgrad.Affine(np.ones((108, 2), dtype), np.ones(2, dtype)), flat),
        (fastgrad.Relu(), flat),
        (fastgrad.Sigmoid(), flat),
        (fastgrad.Convolution(np.ones((4, 3, 3, 3), dtype), np.ones(4, dtype), pad=1), x),
        (fastgrad.Pooling(2, 2), x),
    ]
    of_training: list[Any] = [
        fastgrad.BatchNormalization(np.ones(108, dtype), np.zeros(108, dtype)),
        fastgrad.Dropout(),
    ]
    for layer in of_training:
        layer.forward(flat, False)
        layers.append((layer, flat))
    for layer, images in layers:
        layer.backward(layer.forward(images))
    for optimizer in _OPTIMIZERS:
        optimizer().update({"b": np.ones(2, dtype)}, {"b": np.ones(2, dtype)})


def _networks_of_the_book(dtype: Any) -> None:
    if dtype != np.float64:  # the only one that they have
        return
    extended = MultiLayerNetExtend(784, [6, 5], 10, use_batchnorm=True, use_dropout=True)
    x, t = _images(np.float32, 5)
    for net, images in [(extended, x), (_convnet(dtype), x.reshape(-1, 1, 28, 28))]:
        for method in ("loss", "accuracy", "gradient", "numerical_gradient"):
            getattr(net, method)(images, t)


#: Functions of a dtype, by name. Those that take long come first.
CALLS: dict[str, Callable[[Any], object]] = {
    "numerical_gradient": lambda dtype: _net(dtype).numerical_gradient(*_images(dtype)),
    "gradient": lambda dtype: _net(dtype).gradient(*_images(dtype)),
    "fit": lambda dtype: _fit_images(dtype, _OPTIMIZERS[:1]),
    "fit by numerical_gradient":
        lambda dtype: _fit_images(dtype, _OPTIMIZERS, "numerical_gradient"),
    "optimizers": lambda dtype: _fit_images(dtype, _OPTIMIZERS[1:]),
    "all numerical gradients": lambda dtype: _evaluate(dtype, "numerical_gradient"),
    "all gradients": lambda dtype: _evaluate(dtype, "gradient"),
    "all fits": _fits,
    "accuracy": lambda dtype: _evaluate(dtype, "loss", "accuracy"),
    "long steps": _long_steps,
    "functions": _functions,
    "layers": _layers,
    "networks of the book": _networks_of_the_book,
    # Of the usual size, for which there are parallel kernels; numerical gradients take too long.
    "fit of a convnet": lambda dtype: _fit_convnet(dtype, 100, 30, 100, _OPTIMIZERS),
    "fit of a convnet by numerical_gradient":
        lambda dtype: _fit_convnet(dtype, 5, 3, 5, [fastgrad.Adam], "numerical_gradient"),
}  # fmt: skip

#: How long the calls compile that commands make ahead, in seconds: measured with an empty cache
#: each on two cores, those of convolutional networks and optimizers beside other programs.
_SECONDS = {
    "numerical_gradient": 5, "gradient": 4, "fit": 6, "fit by numerical_gradient": 6, "accuracy": 4,
    "optimizers": 4, "fit of a convnet": 15, "fit of a convnet by numerical_gradient": 8,
}  # fmt: skip


def call(name: str, dtype: str) -> str:
    """Make one of the `CALLS` in this process; return its name."""
    with np.errstate(all="ignore"):
        CALLS[name](np.dtype(dtype))
    return f"{name} {dtype}"


def _call_quietly(name: str, dtype: str) -> tuple[str, float]:
    """Make a call in a process of the pool, and return for how many seconds it compiled.

    Nothing is written: the process that has this one has said already that it compiles.
    """
    with Watch(lambda: None) as compiling:
        return call(name, dtype), compiling.seconds


def compile_everything(dtypes: Sequence[str], done: Callable[[str], object]) -> float:
    """Make all calls for these dtypes, on all cores.

    Parameters
    ----------
    dtypes : sequence of {"float64", "float32"}
        What to compile for.
    done : callable
        Called with the name of each call after it.

    Returns
    -------
    float
        For how many seconds the processes compiled, taken together; 0 if nothing was to be done.
    """
    seconds = 0.0
    with _processes() as pool:
        for future in as_completed(
            pool.submit(_call_quietly, name, dtype) for name in CALLS for dtype in dtypes
        ):
            name, compiling = future.result()
            done(name)
            seconds += compiling
    return seconds


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
        others: list[Any] = []
        ahead = list(names)

        def distribute() -> None:
            say(f"{what} in {dtype}", sum(_SECONDS.get(name, 5) for name in names))
            if ahead and not others and cache_folder() is not None and _cores() > 1:
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
        _cores(),
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


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
