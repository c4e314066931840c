"""Memory: what is called often, made and dropped, or trained for long does not grow."""

import sys

import pytest
from processes import answer, run
from strategies import NIGHTLY

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

LIMIT = 5 * 2**20

MEASURE = """
import gc, os, sys
import numpy as np
import fastgrad as fg

page = os.sysconf("SC_PAGESIZE")

def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * page

def growth(work, rounds):
    # The first rounds fill caches and the allocator's pools; the least of several tries, because
    # something else in the process may grow once.
    for _ in range(max(3, rounds // 10)):
        work()
    found = []
    for _ in range(2):
        before = resident()
        for _ in range(rounds):
            work()
        found.append(resident() - before)
    return min(found)

rng = np.random.default_rng(0)
x, t = rng.random((20, 30)) * (rng.random((20, 30)) < 0.3), rng.integers(0, 4, 20)
"""

KERNELS = (
    MEASURE
    + """
large, scores = rng.standard_normal(40_000), rng.standard_normal((20, 4))
W, b = rng.standard_normal((30, 12)), rng.standard_normal(12)
params = {"W": W.copy(), "b": b.copy()}
optimizers = [fg.SGD(), fg.Momentum(), fg.Nesterov(), fg.AdaGrad(), fg.RMSprop(), fg.Adam()]
net = fg.TwoLayerNet(30, 12, 4, rng=0)

def kernels():
    fg.sigmoid(b), fg.sigmoid_grad(b), fg.relu(b), fg.relu_grad(b), fg.softmax(scores)
    fg.affine_backward(fg.affine_forward(x, W, b), x, W)
    loss, y = fg.softmax_cross_entropy(scores, t)
    fg.softmax_cross_entropy_backward(y, t)
    fg.cross_entropy_error(y, t), fg.sum_squared_error(y, scores)
    for optimizer in optimizers:
        optimizer.update(params, {"W": W, "b": b})
    for layer in (fg.Relu(), fg.Sigmoid()):
        layer.backward(layer.forward(W))
    net.loss(x, t), net.gradient(x, t), net.numerical_gradient(x, t), net.predict(x)

def shared():
    fg.sigmoid(large)

print(growth(kernels, int(sys.argv[1])), growth(shared, int(sys.argv[1])))
"""
)

NETS = (
    MEASURE
    + """
def make_and_drop():
    net = fg.TwoLayerNet(300, 40, 4, rng=0)
    net.fit(rng.random((20, 300)), t, iterations=3, batch_size=10, rng=0)
    net.numerical_gradient(rng.random((5, 300)), t[:5])

print(growth(make_and_drop, int(sys.argv[1])))
"""
)

FIT = (
    MEASURE
    + """
net = fg.TwoLayerNet(30, 12, 4, rng=0)
seconds = float(sys.argv[1])
sizes = []

def train(iterations):
    # The history is the caller's: 8 bytes an iteration that go with it.
    return net.fit(x, t, iterations=iterations, batch_size=10, rng=0, validation=(x, t)).seconds

train(2000)
rate = 2000 / train(2000)
before = resident()
for _ in range(4):
    train(max(2000, int(rate * seconds / 4)))
print(resident() - before)
"""
)

COMPILED = (
    MEASURE
    + """
from numba import njit

@njit
def f(x):
    return np.sum(x * x)

work = lambda: (fg.numerical_gradient(f, x), fg.numerical_gradient(lambda x: float(x[0, 0]), x))
print(growth(work, int(sys.argv[1])))
"""
)


@pytest.mark.parametrize(
    ("code", "short", "long"),
    [(KERNELS, 300, 100_000), (NETS, 60, 1_000), (FIT, 2, 600), (COMPILED, 200, 20_000)],
    ids=["every kernel", "networks", "fit", "functions"],
)
def test_memory_does_not_grow(code, short, long):
    argument = long if NIGHTLY else short
    process = run(
        f"import sys; sys.argv[1:] = ['{argument}']\n{code}",
        timeout=36_000 if NIGHTLY else 240,
    )
    grown = [int(number) for number in answer(process).split()]
    assert max(grown) < LIMIT, f"grew by {grown} bytes"
