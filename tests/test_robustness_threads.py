"""Eight Python threads at once, on every threading layer; results do not depend on threads."""

import os

import numba
import numpy as np
import pytest
from processes import answer, run
from strategies import NIGHTLY

import fastgrad
from fastgrad.runtime import threads

LAYERS = ["tbb", "omp", "workqueue"]

#: Every public function, small and large enough for several threads, and every method.
CALLS = """
import struct, tempfile, threading
from pathlib import Path
import numpy as np
import fastgrad as fg
from fastgrad.networks import engine
from numba import njit

# However little: on all threads.
engine.PASS = engine.SERIES = engine.GENERAL = engine.ParallelCost(1, 0)
rng = np.random.default_rng(0)
x, t = rng.random((12, 6)) * (rng.random((12, 6)) < 0.5), rng.integers(0, 3, 12)
large, scores = rng.standard_normal(70_000), rng.standard_normal((7_000, 10))
W, b = rng.standard_normal((6, 5)), rng.standard_normal(5)
wide_x, wide_W = rng.standard_normal((200, 300)), rng.standard_normal((300, 50))
nets = {
    (kind, dtype): fg.TwoLayerNet(6, 5, 3, activation=kind, dtype=dtype, rng=0)
    for kind in ("sigmoid", "relu") for dtype in (np.float64, np.float32)
}
deep = fg.MultiLayerNet(6, [5, 4], 3, rng=0)

@njit
def compiled(x):
    return np.sum(np.sin(x) * x)

def layer(make, *forward):
    layer = make()
    return layer.forward(*forward), layer.backward(*forward[:1])

def head():
    layer = fg.SoftmaxWithLoss()
    return layer.forward(scores, t_many), layer.backward()

def step(kind):
    params = {"W": large.copy().repeat(2), "b": b.copy()}
    optimizer = kind()
    for _ in range(2):
        optimizer.update(params, {"W": np.ones(140_000), "b": b})
    return params["W"][::1000], params["b"]

def fit(method):
    net = fg.TwoLayerNet(6, 5, 3, rng=0)
    history = net.fit(x, t, iterations=20, batch_size=4, method=method, rng=0)
    return history.loss, *net.params.values()

room = tempfile.TemporaryDirectory()
for name, count in (("train", 50), ("t10k", 30)):
    images = rng.integers(0, 256, (count, 28, 28), np.uint8).tobytes()
    labels = rng.integers(0, 10, count, np.uint8).tobytes()
    heads = struct.pack(">4I", 0x803, count, 28, 28), struct.pack(">2I", 0x801, count)
    Path(room.name, f"{name}-images-idx3-ubyte").write_bytes(heads[0] + images)
    Path(room.name, f"{name}-labels-idx1-ubyte").write_bytes(heads[1] + labels)

def saved_and_loaded():
    path = Path(room.name, f"{threading.get_ident()}.npz")
    deep.save(path)
    return tuple(fg.MultiLayerNet.load(path).params.values())

t_many = rng.integers(0, 10, 7_000)
calls = {
    "load_mnist": lambda: (*fg.load_mnist(path=room.name)[0], *fg.load_mnist(path=room.name)[1]),
    "save and load": saved_and_loaded,
    "identity": lambda: fg.identity_function(b),
    "step": lambda: fg.step_function(large),
    "sigmoid": lambda: (fg.sigmoid(large), fg.sigmoid(b)),
    "sigmoid_grad": lambda: (fg.sigmoid_grad(large), fg.sigmoid_grad(b)),
    "relu": lambda: (fg.relu(large), fg.relu(b)),
    "relu_grad": lambda: (fg.relu_grad(large), fg.relu_grad(b)),
    "softmax": lambda: (fg.softmax(scores), fg.softmax(W)),
    "squared": lambda: fg.sum_squared_error(large, large[::-1]),
    "entropy": lambda: fg.cross_entropy_error(np.abs(scores), t_many),
    "affine": lambda: (fg.affine_forward(x, W, b), fg.affine_forward(wide_x, wide_W, wide_W[0])),
    "backward": lambda: (
        *fg.affine_backward(x @ W, x, W), *fg.affine_backward(wide_x @ wide_W, wide_x, wide_W)
    ),
    "softmax_loss": lambda: fg.softmax_cross_entropy(scores, t_many),
    "softmax_loss_backward": lambda: fg.softmax_cross_entropy_backward(fg.softmax(scores), t_many),
    "diff": lambda: fg.numerical_diff(np.sin, b),
    "python": lambda: fg.numerical_gradient(lambda x: float(np.sum(x**2)), b.copy()),
    "compiled": lambda: fg.numerical_gradient(compiled, W),
    "descent": lambda: fg.gradient_descent(compiled, W, step_num=3),
    "check": lambda: fg.check_gradient(compiled, np.sin(W) + W * np.cos(W), W).ok,
    "Relu": lambda: layer(fg.Relu, W),
    "Sigmoid": lambda: layer(fg.Sigmoid, W),
    "Affine": lambda: layer(lambda: fg.Affine(wide_W @ wide_W.T, wide_x[0]), wide_x),
    "MulLayer": lambda: layer(fg.MulLayer, W, W),
    "AddLayer": lambda: layer(fg.AddLayer, W, W),
    "SoftmaxWithLoss": head,
    "BatchNormalization": lambda: layer(lambda: fg.BatchNormalization(b, b), W),
    **{kind.__name__: (lambda kind=kind: step(kind)) for kind in
       (fg.SGD, fg.Momentum, fg.Nesterov, fg.AdaGrad, fg.RMSprop, fg.Adam)},
    "fit": lambda: fit("gradient"),
    "fit numerically": lambda: fit("numerical_gradient"),
    "deep": lambda: (deep.predict(x), deep.loss(x, t), *deep.gradient(x, t).values(),
                     *deep.numerical_gradient(x, t).values()),
    **{f"net {key}": (lambda net=net: (
        net.predict(x), net.loss(x, t), net.accuracy(x, t), *net.gradient(x, t).values(),
        *net.numerical_gradient(x, t).values(), net.check_gradient(x, t, 1e-2).ok))
       for key, net in nets.items()},
}

def flat(result):
    parts = result if isinstance(result, tuple) else (result,)
    return [np.asarray(p) for part in parts for p in (part if isinstance(part, tuple) else (part,))]

def agree(got, wanted):
    for a, e in zip(flat(got), flat(wanted), strict=True):
        eps = 1e-4 if a.dtype == np.float32 else 1e-10
        np.testing.assert_allclose(a, e, rtol=eps, atol=eps * (1 + np.abs(e).max(initial=0)))
"""

EIGHT = (
    CALLS
    + """
import sys, numba
rounds = int(sys.argv[1])
numba.set_num_threads(1)
wanted = {name: call() for name, call in calls.items()}
numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
assert fg.runtime.threads.layer() == sys.argv[2], fg.runtime.threads.layer()
failures, begin = [], threading.Barrier(8)

def work(number):
    names = list(calls)
    try:
        for round in range(rounds):
            begin.wait(120)
            order = np.random.default_rng([number, round]).permutation(len(names))
            for i in order:
                agree(calls[names[i]](), wanted[names[i]])
    except BaseException as error:
        failures.append((names[i], error))
        begin.abort()

threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
if failures: raise SystemExit(str(failures))
print("all equal")
"""
)


@pytest.mark.parametrize("layer", LAYERS)
def test_eight_threads_at_once(layer):
    rounds = 1000 if NIGHTLY else 2
    code = f"import sys; sys.argv[1:] = ['{rounds}', '{layer}']\n{EIGHT}"
    process = run(
        code, "-W", "ignore", NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="4",
        timeout=36_000 if NIGHTLY else 240,
    )  # fmt: skip
    assert answer(process) == "all equal"


def trained(seed, method="gradient"):
    rng = np.random.default_rng(1)
    x, t = rng.random((60, 20)) * (rng.random((60, 20)) < 0.3), rng.integers(0, 4, 60)
    net = fastgrad.TwoLayerNet(20, 9, 4, 0.3, rng=seed)
    history = net.fit(x, t, iterations=50, batch_size=16, method=method, rng=seed)
    return {**net.params, "loss": history.loss}


@pytest.mark.parametrize("method", ["gradient", "numerical_gradient"])
def test_a_seed_repeats_bit_for_bit(method):
    first, second, other = trained(3, method), trained(3, method), trained(4, method)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
        if not name.startswith("b"):
            assert (first[name] != other[name]).any()


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
@pytest.mark.parametrize("method", ["gradient", "numerical_gradient"])
def test_thread_counts_agree_to_rounding(method):
    many = trained(3, method)
    mine = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        one = trained(3, method)
    finally:
        numba.set_num_threads(mine)
    for name in many:
        np.testing.assert_allclose(one[name], many[name], rtol=1e-9, atol=1e-11)


#: Launches of next to no work, each right after a product whose threads still spin, while other
#: processes keep all cores but one busy.
LAUNCHES = """
import os, statistics, subprocess, sys, time
import numpy as np
from fastgrad.runtime.programs import run
from fastgrad.kernels import activations

a, x, out = np.ones((300, 300)), np.ones(64), np.empty(64)
arguments = activations.activate, 2, activations.SIGMOID, x, out
run(*arguments)
busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range((os.cpu_count() or 2) - 1)]
try:
    times = []
    for _ in range(300):
        a @ a
        since = time.perf_counter()
        run(*arguments)
        times.append(time.perf_counter() - since)
finally:
    for process in busy:
        process.kill()
print(statistics.median(times))
"""


def test_a_launch_beside_products_and_busy_cores_is_short():
    if threads.layer() != "tbb":
        pytest.skip("no other layer keeps to it")
    # On OpenMP, whose threads spin against those of BLAS, it takes 8 ms. Up to five processes,
    # because other programs may run meanwhile.
    assert any(float(answer(run(LAUNCHES, NUMBA_NUM_THREADS="2"))) < 100e-6 for _ in range(5))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no way to take cores away")
def test_a_first_launch_in_a_thread_on_one_core_lets_the_process_end():
    process = run(
        """
import os, threading
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import numpy as np
from fastgrad import TwoLayerNet
from fastgrad.runtime import threads

def job():
    print(threads.layer(), TwoLayerNet(10, 8, 3, rng=0).loss(np.zeros((6, 10)), [0, 1, 2, 0, 1, 2]))

thread = threading.Thread(target=job)
thread.start()
thread.join()
"""
    )
    assert answer(process).startswith("tbb 1.")
