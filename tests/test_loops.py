"""The reader's own loops of numerical differentiation: found, computed, or left alone."""

import ast
import collections
import gc
import inspect
import linecache
import pickle
import signal
import sys
import textwrap
import threading
import traceback
import types
import warnings

import numpy as np
import pytest
import tqdm.std  # whose class one of the loops below stands in for

from fastgrad import numerical_gradient
from fastgrad.book import loop_syntax, loops, run_script

# Statements that the loops below have in common: the function f and the array x of a loop, h.
HEAD, TAIL = "def g(f, x, h=1e-4):\n    grad = np.zeros_like(x)\n", "    return grad\n"
NDITER = """
    it = np.nditer(x, flags=["multi_index"], op_flags=["readwrite"])
    while not it.finished:
        i = it.multi_index
        kept = x[i]
        {body}
        x[i] = kept
        it.iternext()
"""
CENTRAL = "x[i] = kept + h; a = f(x); x[i] = kept - h; b = f(x); grad[i] = (a - b) / (2 * h)"
COPIES = """
    for i in np.ndindex(x.shape):
        upper, lower = x.copy(), x.copy()
        upper[i] += h
        lower[i] -= h
        grad[i] = (f(upper) - f(lower)) / (2 * h)
"""


def nditer(body):
    return HEAD + NDITER.format(body=body.replace("; ", "\n        ")) + TAIL


def ndindex(body, over="np.ndindex(x.shape)"):
    lines = "\n        ".join(["kept = x[i]", *body.split("; "), "x[i] = kept"])
    return f"{HEAD}    for i in {over}:\n        {lines}\n{TAIL}"


#: Loops as they are written, by what is particular about each. All are understood.
LOOPS = {
    "the book's": nditer(CENTRAL),
    "lower point first": nditer(
        "x[i] = kept - h; b = f(x); x[i] = kept + h; a = f(x); grad[i] = (a - b) / (2 * h)"
    ),
    "reversed sign": nditer(CENTRAL.replace("a - b", "b - a")),
    "forgotten brackets": nditer(CENTRAL.replace("/ (2 * h)", "/ 2 * h")),
    "forgotten division": nditer(CENTRAL.replace(" / (2 * h)", "")),
    "forward": nditer("a = f(x); x[i] = kept + h; grad[i] = (f(x) - a) / h"),
    "backward": nditer("a = f(x); x[i] = kept - h; grad[i] = (a - f(x)) / h"),
    "another step": nditer("h = 1e-6; " + CENTRAL),
    "a relative step": nditer("h = 1e-4 * max(1.0, abs(kept)); " + CENTRAL),
    "float": nditer(CENTRAL.replace("kept + h", "float(kept) + h")),
    "four points": nditer(
        "x[i] = kept + 2 * h; a = f(x); x[i] = kept + h; b = f(x); "
        "x[i] = kept - h; c = f(x); x[i] = kept - 2 * h; d = f(x); "
        "grad[i] = (8 * (b - c) - (a - d)) / (12 * h)"
    ),
    "extrapolated": nditer(
        "x[i] = kept + h; a = f(x); x[i] = kept - h; b = f(x); coarse = (a - b) / (2 * h); "
        "x[i] = kept + h / 2; a = f(x); x[i] = kept - h / 2; b = f(x); "
        "grad[i] = (4 * (a - b) / h - coarse) / 3"
    ),
    "ndindex": ndindex(CENTRAL),
    "ndenumerate": ndindex(CENTRAL, "[i for i, _ in np.ndenumerate(x)]"),
    "one value before": HEAD
    + "    a = f(x)\n"
    + NDITER.format(body="x[i] = kept + h; grad[i] = (f(x) - a) / h".replace("; ", "\n        "))
    + TAIL,
    "an unused value before": HEAD
    + "    f(x)\n"
    + NDITER.format(body=CENTRAL.replace("; ", "\n        "))
    + TAIL,
    "an unused value after": HEAD
    + NDITER.format(body=CENTRAL.replace("; ", "\n        "))
    + "    f(x)\n"
    + TAIL,
    "copies": HEAD + COPIES + TAIL,
    "any number of arguments": nditer(CENTRAL)
    .replace("g(f, x, h=1e-4)", "g(f, *args, h=1e-4)")
    .replace("grad = np.zeros_like(x)", "x = args[0]\n    grad = np.zeros_like(*args)"),
    "flat": HEAD
    + """
    for i in range(x.size):
        kept = x.flat[i]
        x.flat[i] = kept + h
        a = f(x)
        x.flat[i] = kept - h
        b = f(x)
        x.flat[i] = kept
        grad.flat[i] = (a - b) / (2 * h)
"""
    + TAIL,
    "raveled": HEAD
    + """
    flat, out = x.ravel(), grad.reshape(-1)
    for i in range(flat.size):
        kept = flat[i]
        flat[i] = kept + h
        a = f(x)
        flat[i] = kept - h
        b = f(x)
        flat[i] = kept
        out[i] = (a - b) / (2 * h)
"""
    + TAIL,
    "rows and columns": HEAD
    + """
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            kept = x[i, j]
            x[i][j] = kept + h
            a = f(x)
            x[i][j] = kept - h
            b = f(x)
            x[i, j] = kept
            grad[i, j] = (a - b) / (2 * h)
"""
    + TAIL,
    "columns first": HEAD
    + """
    for j in range(x.shape[1]):
        for i in range(x.shape[0]):
            kept = x[i, j]
            x[i, j] = kept + h
            a = f(x)
            x[i, j] = kept - h
            b = f(x)
            x[i, j] = kept
            grad[i, j] = (a - b) / (2 * h)
"""
    + TAIL,
    "a list is returned": """
def g(f, x, h=1e-4):
    found = []
    for i in np.ndindex(*x.shape):
        kept = x[i]
        x[i] = kept + h
        a = f(x)
        x[i] = kept - h
        found.append((a - f(x)) / (2 * h))
        x[i] = kept
    return found
""",
    "single precision is returned": nditer(CENTRAL).replace(
        "np.zeros_like(x)", "np.zeros(x.shape, np.float32)"
    ),
    "columns are contiguous in what is returned": nditer(CENTRAL).replace(
        "np.zeros_like(x)", "np.zeros(x.shape, order='F')"
    ),
    "unit vectors": """
def g(f, x, h=1e-4):
    grad = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        e = np.zeros_like(x)
        e[i] = h
        grad[i] = (f(x + e) - f(x - e)) / (2 * h)
    return grad
""",
    "a perturbation": """
def g(f, x):
    e, nudge, grad = 1e-4, np.zeros(x.shape), np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        nudge[i] = e
        lower = f(x - nudge)
        upper = f(x + nudge)
        grad[i] = (upper - lower) / (2 * e)
        nudge[i] = 0
    return grad
""",
    "a comprehension": """
def g(f, x, h=1e-4):
    steps = [h * e.reshape(x.shape) for e in np.eye(x.size)]
    return np.array([(f(x + e) - f(x - e)) / (2 * h) for e in steps]).reshape(x.shape)
""",
    "a global step": "H = 1e-5\n"
    + nditer(CENTRAL)
    .replace(", h=1e-4", "")
    .replace("h)", "H)")
    .replace("+ h", "+ H")
    .replace("- h", "- H"),
    "a docstring": nditer(CENTRAL).replace("\n", '\n    """Differentiate f."""\n', 1),
    "verbose, but not": nditer(CENTRAL + "; \n        if verbose:\n            print(i)").replace(
        "h=1e-4", "h=1e-4, verbose=False"
    ),
    "other names": nditer(CENTRAL).replace("f(x", "loss(x").replace("def g(f,", "def g(loss,"),
    "array first": nditer(CENTRAL).replace("g(f, x", "g(x, f"),
    "annotated": nditer(CENTRAL).replace(
        "g(f, x, h=1e-4)", "g(f: object, x: np.ndarray, h: float = 1e-4)"
    ),
    "assert": nditer(CENTRAL).replace("    grad =", "    assert x.ndim\n    grad =", 1),
    "a helper": "def put(x, i, value):\n    x[i] = value\n"
    + nditer(CENTRAL.replace("x[i] = kept + h", "put(x, i, kept + h)")),
    "values are kept in an array": nditer(
        "values = np.zeros(2); x[i] = kept + h; values[0] = f(x); "
        "x[i] = kept - h; values[1] = f(x); grad[i] = (values[0] - values[1]) / (2 * h)"
    ),
    "no argument": nditer(CENTRAL.replace("f(x)", "f()")),
    "a keyword": nditer(CENTRAL.replace("f(x)", "f(x, scale=scale)")).replace(
        "h=1e-4", "h=1e-4, scale=2.0"
    ),
    "the nudge is undone by arithmetic": HEAD
    + """
    for i in np.ndindex(x.shape):
        x[i] += h
        a = f(x)
        x[i] -= 2 * h
        b = f(x)
        x[i] += h
        grad[i] = (a - b) / (2 * h)
"""
    + TAIL,
    "while": HEAD
    + """
    n = 0
    while n < x.size:
        i = np.unravel_index(n, x.shape)
        kept = x[i]
        x[i] = kept + h
        a = f(x)
        x[i] = kept - h
        b = f(x)
        x[i] = kept
        grad[i] = (a - b) / (2 * h)
        n += 1
"""
    + TAIL,
    "copied values": nditer(CENTRAL.replace("f(x)", "f(x).copy()")),
    "among other arguments": nditer(CENTRAL).replace(
        "x, h=1e-4):", "*args, h=1e-4):\n    x = args[0]"
    ),
    "a tuple": nditer(
        "x[i] = kept + h; a = f(x); x[i] = kept - h; b = f(x); "
        "grad[i], error = (a - b) / (2 * h), abs(a - b)"
    ),
}

#: Loops that are left alone, and why.
LEFT = {
    "it prints to another stream": (nditer(CENTRAL + "; out.write('.')").replace(
        "h=1e-4", "h=1e-4, out=sys.stdout"
    ), "write"),
    "an iterator that prints": (
        "class Progress:\n    def __init__(self, x):\n        self.shape = x.shape\n"
        "    def __iter__(self):\n        print('begins')\n        return np.ndindex(self.shape)\n"
        + ndindex(CENTRAL, "Progress(x)"), "print"
    ),
    "it asserts what made-up values violate": (
        nditer(CENTRAL + "; assert a > 0 and b > 0"), "not understood"
    ),
    "its own print": (
        nditer(CENTRAL + "; print(i)") + "def print(*values):\n    sys.stdout.write('x')\n", "write"
    ),
    "it counts": ("n = [0]\n" + nditer(CENTRAL + "; n[0] += 1"), "n"),
    "x is not restored": (
        nditer(CENTRAL).replace("x[i] = kept\n", "x[i] = kept + 1e-9\n"), "more than one entry"
    ),
    "x is left elsewhere": (
        nditer(CENTRAL).replace("    return", "    x[0, 0] += 1\n    return"), "does not restore"
    ),
    "points depend on values": (
        nditer("a = f(x); x[i] = kept + h * a; grad[i] = f(x) - a"), "depend on the values"
    ),
    "all entries move": (
        HEAD + "    for i in np.ndindex(x.shape):\n"
        "        grad[i] = (f(x + h) - f(x - h)) / (2 * h)\n" + TAIL,
        "more than one entry",
    ),
}  # fmt: skip


def define(text, *, plain=False, name="their_loops", **names):
    """Return a module of this text, as a reader's module is compiled; or as plain Python does."""
    file = f"/nowhere/{name}.py"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    tree = ast.parse(text)
    module = types.ModuleType(name)
    module.__dict__.update(np=np, sys=sys, **names)
    exec(compile(tree if plain else loop_syntax.transformed(tree), file, "exec"), module.__dict__)
    return module


@pytest.fixture(autouse=True)
def everything_is_worth_it(monkeypatch):
    """Let loops of a few microseconds count, and forget what was computed."""
    monkeypatch.setattr(loops, "_MOMENT", 0.0)
    monkeypatch.setattr(loops, "_LONG", 1e9)
    monkeypatch.setattr(loops, "_records", {})
    monkeypatch.setattr(loops, "_paces", {})
    monkeypatch.setattr(loops, "_in_vain", collections.Counter())
    monkeypatch.setattr(loops, "_recognition", None)
    monkeypatch.setattr(loops, "_TRIED", (400, 400))
    monkeypatch.setitem(sys.modules, "their_loops", types.ModuleType("their_loops"))


WEIGHTS = np.random.default_rng(0).standard_normal((30, 200))


def loss_of(x, module):
    """Return a loss over an array of the reader's, in their module."""
    text = (
        "def loss(x=None, scale=1.0):\n"
        "    return scale * np.sum(np.tanh(A.dot(X if x is None else x)) ** 2)\n"
    )
    return define(text, name="their_loss", A=WEIGHTS, X=x).loss


def called(text, x, *, plain):
    module = define(text, plain=plain)
    f = loss_of(x, module)
    return module.g(x, f) if "g(x, f" in text else module.g(f, x)


@pytest.mark.parametrize("name", LOOPS)
def test_loops_are_understood(name):
    x = np.random.default_rng(1).standard_normal((200, 2))
    kept = x.copy()
    found = called(LOOPS[name], x, plain=False)
    after, x = x, kept
    expected = called(LOOPS[name], x, plain=True)
    np.testing.assert_array_equal(x, after)
    assert "all points at once" in " ".join(loops.lines()), loops._paces
    assert type(found) is type(expected)
    assert getattr(found, "dtype", None) == getattr(expected, "dtype", None)
    assert getattr(found, "strides", None) == getattr(expected, "strides", None)
    scale = np.abs(np.asarray(expected)).max()
    np.testing.assert_allclose(found, expected, atol=1e-6 * scale, rtol=1e-6)


#: Loops within a function, over arrays that are no parameters or of functions that are none. Each
#: is called by ``gradients(X, B)``, which are two parameters of a loss.
LOSS = "np.sum((np.tanh(A.dot({W})) + {b} - t) ** 2)"
NET = (
    """
class Net:
    def __init__(self, W, b):
        self.W, self.b, self.params, self.layers = W, b, {"W": W, "b": b}, [W, b]
    def loss(self, t, scale=1.0):
        return scale * """
    + LOSS.format(W="self.W", b="self.b")
    + """
"""
)
OVER = """for i in np.ndindex(x.shape):
    kept = x[i]
    x[i] = kept + h
    a = f
    x[i] = kept - h
    b = f
    x[i] = kept
    grad[i] = (a - b) / (2 * h)
"""


def over(x, f, by):
    """Return the lines of a loop, indented by so many spaces."""
    return textwrap.indent(OVER.replace("= f", f"= {f}").replace("x[", f"{x}["), " " * by).replace(
        "x.shape", f"{x}.shape"
    )


PARTS = {
    "a method, and a dict": NET + """
    def gradients(self, t, h=1e-4):
        grads = {}
        for key in self.params:
            x = self.params[key]
            grad = np.zeros_like(x)
""" + over("x", "self.loss(t)", 12) + """
            grads[key] = grad
        return grads
def gradients(W, b):
    return Net(W, b).gradients(0.5)
""",
    "an item that is named in the loop": NET + """
    def gradients(self, t, h=1e-4):
        grads = {}
        for key in self.params:
            grad = np.zeros(self.params[key].shape)
""" + over("self.params[key]", "self.loss(t, scale=0.5)", 12) + """
            grads[key] = grad
        return grads
def gradients(W, b):
    return Net(W, b).gradients(0.5)
""",
    "an attribute": NET + """
    def gradients(self, t, h=1e-4):
        grad = np.zeros_like(self.W)
""" + over("self.W", "self.loss(t)", 8) + """
        return grad
def gradients(W, b):
    return Net(W, b).gradients(0.5)
""",
    "a list": NET + """
def gradients(W, b):
    h, net, found = 1e-4, Net(W, b), []
    for x in net.layers:
        grad = np.zeros_like(x)
""" + over("x", "net.loss(0.5)", 8) + """
        found.append(grad)
    return found
""",
    "a parameter, and a dict": """
def g(f, params, h=1e-4):
    grads = {}
    for key in params:
        x = params[key]
        grad = np.zeros_like(x)
""" + over("x", "f(params)", 8) + """
        grads[key] = grad
    return grads
def loss(params, t=0.5):
    return """ + LOSS.format(W="params['W']", b="params['b']") + """
def gradients(W, b):
    return g(loss, {"W": W, "b": b})
""",
    "arrays of the module": "def loss(t=0.5):\n    return " + LOSS.format(W="W", b="C") + """
def gradients(*arrays):
    global W, C
    W, C = arrays
    return gradient()
def gradient(h=1e-4):
    found = []
    for x in (W, C):
        grad = np.zeros_like(x)
""" + over("x", "loss()", 8) + """
        found.append(grad)
    return found
""",
    "a function": "def loss(x, t=0.5):\n    return " + LOSS.format(W="x", b="0.5") + """
def gradient(x, h=1e-4):
    grad = np.zeros_like(x)
""" + over("x", "loss(x)", 4) + """
    return grad
def gradients(W, b):
    return gradient(W)
""",
    "one loop after another": NET + """
def gradients(W, b):
    h, t, net, found = 1e-4, 0.5, Net(W, b), []
    x = net.W
    grad = np.zeros_like(x)
""" + over("x", "net.loss(t)", 4) + """
    found.append(grad)
    x = net.b
    grad = np.zeros_like(x)
""" + over("x", "net.loss(t)", 4) + """
    return found + [grad, kept, i, a]
""",
    "the step that was taken, by another name": NET + """
def gradients(W, b):
    h, net = 1e-4, Net(W, b)
    x = net.W
    grad = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        kept = x[i]
        a = net.loss(0.5)
        x[i] = kept + h
        grad[i] = (net.loss(0.5) - a) / (net.W[i] - kept)
        x[i] = kept
    return grad
""",
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_loops_within_a_function_are_understood(name):
    given = np.random.default_rng(1).standard_normal((2, 13, 30))
    results = []
    for plain in (False, True):
        module = define(PARTS[name], plain=plain, A=WEIGHTS[:, :13])
        sys.modules["their_loops"] = module
        W, b = given[0].copy(), given[1, 0].copy()
        results.append((module.gradients(W, b), W, b))
    assert "all points at once" in " ".join(loops.lines()), loops._paces
    assert "left" not in " ".join(loops.lines())
    (found, *after), (expected, *points) = results
    np.testing.assert_array_equal(after[0], points[0])
    np.testing.assert_array_equal(after[1], points[1])
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        found, expected = list(found.values()), list(expected.values())
    for one, other in zip(found, expected, strict=True):
        assert type(one) is type(other)
        np.testing.assert_allclose(one, other, atol=1e-6, rtol=1e-6)


TQDM = """
class tqdm:
    def __init__(self, iterable, total=0, desc=""):
        self.iterable, self.desc = iterable, desc
    def __iter__(self):
        for value in self.iterable:
            print(self.desc, end=" ")
            yield value
tqdm.__module__ = "tqdm.std"
"""


@pytest.mark.parametrize(
    "text",
    [
        nditer(CENTRAL + "; print(i, round(float(grad[i]), 3))"),
        nditer(CENTRAL + "; \n        if i[0] % 10 == 0:\n            print(f'{i}', end='.')"),
        TQDM + ndindex(CENTRAL, "tqdm(list(np.ndindex(x.shape)), total=x.size, desc='at')"),
        "def loss():\n    return np.sum(np.tanh(A.dot(W)))\ndef g(f, x, h=1e-4):\n"
        "    global W\n    W = x\n    return slopes(x)\ndef slopes(x, h=1e-4):\n"
        "    grad = np.zeros_like(x)\n"
        + over("x", "loss()", 4)
        + "        print(i)\n    return grad\n",
    ],
)
def test_what_a_loop_prints_is_printed_once(text, capsys):
    assert tqdm.std.__name__ in sys.modules
    x = np.random.default_rng(1).standard_normal((200, 2))
    printed = []
    for plain in (False, True):
        module = define(text, plain=plain, A=WEIGHTS)
        sys.modules["their_loops"] = module
        found = module.g(loss_of(x, module), x)
        printed.append((capsys.readouterr().out, found))
    assert "all points at once" in " ".join(loops.lines()), loops._paces
    assert printed[0][0] == printed[1][0] != ""
    np.testing.assert_allclose(printed[0][1], printed[1][1], atol=1e-6)


def test_rounding_that_the_function_notices():
    text = "def loss(x):\n    return np.sum(np.where(x == x[-1], 1.0, 0.0))\n" + HEAD + """
    before = f(x)
    for i in np.ndindex(x.shape):
        x[i] += h
        after = f(x)
        x[i] -= h
        grad[i] = (after - before) / h
""" + TAIL  # fmt: skip
    results = []
    for plain in (False, True):
        module, x = define(text, plain=plain), np.full(20, 0.125)
        results.append((module.g(module.loss, x), x))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert "it does not restore x" in str(loops._paces)


def test_a_loop_within_a_loop_that_is_left_says_nothing(monkeypatch):
    monkeypatch.setattr(loops, "_LONG", 0.0)
    text = NET + """
def gradients(W, b):
    h, net, seen = 1e-4, Net(W, b), []
    x = net.W
    grad = np.zeros_like(x)
    for row in range(x.shape[0]):
        for column in range(x.shape[1]):
            i = row, column
""" + over("x", "net.loss(0.5)", 8).split("\n", 1)[1] + """
            grad[i] = a - b
            counts.append(i)
    return grad
"""  # fmt: skip
    module = define(text, A=WEIGHTS[:, :13], counts=[])
    sys.modules["their_loops"] = module
    module.gradients(np.ones((13, 30)), np.ones(30))
    assert len(module.counts) == 13 * 30
    assert len(loops._records) == 1
    assert "left to your loop: their_loops.py:12 appends to counts" in " ".join(
        " ".join(loops.lines()).split()
    )


NETWORK = """
def sigmoid(a):
    return 1 / (1 + np.exp(-a))
def softmax(a):
    exp = np.exp(a - a.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)
def loss(W):
    y = softmax(sigmoid(X @ params["W1"] + params["b1"]) @ params["W2"] + params["b2"])
    return -np.sum(T * np.log(y + 1e-7)) / len(y)
"""


@pytest.mark.parametrize(
    ("first", "body", "last", "is_compiled"),
    [
        ("pass", CENTRAL, "pass", True),
        ("c = f(x)", CENTRAL, "pass", True),
        ("c = f(x)", CENTRAL + "; grad[i] = (a - c) / h", "pass", False),
        ("h, c = 1e-2, f(x)", CENTRAL + "; grad[i] = (a - 2 * c + b) / h**2", "pass", False),
        ("pass", CENTRAL + "; grad[i] *= (a + b) / 2", "pass", False),
        ("pass", CENTRAL + "; print('%.6f' % a)", "pass", False),
        ("m = 0", CENTRAL + "; m = max(m, a)", "print('%.6f' % m)", False),
        ("seen = []", CENTRAL + "; seen.append(a)", "print('%.6f' % sum(seen))", False),
    ],
)
def test_only_differences_come_from_the_compiled_kernels(
    first, body, last, is_compiled, monkeypatch, capsys
):
    monkeypatch.setattr(loops, "_LONG", 0.0)
    nested = NDITER.format(body=body.replace("; ", "\n        "))
    text = f"{NETWORK}{HEAD}    {first}\n{nested}    {last}\n{TAIL}"
    rng = np.random.default_rng(0)
    params = {"W1": rng.normal(size=(12, 7)), "b1": rng.normal(size=7)}
    params |= {"W2": rng.normal(size=(7, 3)), "b2": rng.normal(size=3)}
    names = {"X": rng.random((9, 12)), "T": np.eye(3)[rng.integers(0, 3, 9)], "params": params}
    found = []
    for plain in (False, True):
        module = define(text, plain=plain, **names)
        found.append((module.g(module.loss, params["W1"]), capsys.readouterr().out))
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-9 if is_compiled else 1e-8)
    assert found[0][1] == found[1][1]
    assert ("compiled" in " ".join(loops.lines())) == is_compiled


def test_a_loop_that_is_none_asks_no_more_than_a_thousand_times():
    module = define("""
def half(x):
    return x / 2
def halved(x):
    for i in range(x.size):
        x[i] = half(x[i])
        x[i] = half(x[i])
    return x
""")
    for _ in range(1200):
        found = module.halved(np.ones(8))
    np.testing.assert_array_equal(found, np.full(8, 0.25))
    assert list(loops._in_vain.values()) == [1000]
    assert loops._running.loops == []


def test_a_property_is_evaluated_as_often_as_written():
    text = NET + """
    @property
    def weights(self):
        seen.append(1)
        return self.W
def gradients(W, b):
    h, net = 1e-4, Net(W, b)
    grad = np.zeros_like(W)
""" + over("net.weights", "net.loss(0.5)", 4) + """
    return grad
"""  # fmt: skip
    counts = []
    for plain in (False, True):
        seen = []
        module = define(text, plain=plain, A=WEIGHTS[:, :13], seen=seen)
        module.gradients(np.ones((13, 3)), np.ones(3))
        counts.append(len(seen))
    assert counts[0] == counts[1] > 0


LAYOUTS = {
    "columns": lambda x: np.array(x, order="F"),
    "every second column": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "every second row": lambda x: np.repeat(x, 2, axis=0)[::2],
    "one of a stack": lambda x: np.stack([x, x], axis=-1)[..., 0],
}


@pytest.mark.parametrize("name", ["the book's", "ndindex", "copies", "flat", "a perturbation"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_order(name, layout):
    found, expected = (
        called(LOOPS[name], LAYOUTS[layout](WEIGHTS.reshape(-1, 2)[:200]), plain=plain)
        for plain in (False, True)
    )
    assert "all points at once" in " ".join(loops.lines()), loops._paces
    assert found.strides == expected.strides
    np.testing.assert_allclose(found, expected, atol=1e-6 * abs(expected).max(), rtol=1e-6)


def test_a_loop_that_goes_another_way_over_a_large_array_is_left():
    found, expected = (
        called(LOOPS["the book's"], WEIGHTS.reshape(-1, 2)[199::-1].copy()[::-1], plain=plain)
        for plain in (False, True)
    )
    np.testing.assert_array_equal(found, expected)
    assert "goes another way" in str(loops._paces)


@pytest.mark.parametrize("name", LEFT)
def test_loops_are_left_alone(name, monkeypatch, capsys):
    monkeypatch.setattr(loops, "_LONG", 0.0)
    text, why = LEFT[name]
    x = np.random.default_rng(1).standard_normal((200, 2))
    before = x.copy()
    found = called(text, x, plain=False)
    output, after = capsys.readouterr().out, x.copy()
    x[...] = before
    np.testing.assert_array_equal(found, called(text, x, plain=True))
    np.testing.assert_array_equal(x, after)
    assert capsys.readouterr().out == output
    assert "left to your loop" in loops.lines()[0]
    assert why in " ".join(loops.lines())


def test_a_function_stays_what_it_is():
    text = nditer(CENTRAL).replace("h=1e-4", "h=1e-4, *, order='C'")
    text = text.replace("\n", '\n    """Differentiate f."""\n', 1)
    ours, plain = define(text).g, define(text, plain=True).g
    for name in ("__name__", "__qualname__", "__doc__", "__defaults__", "__kwdefaults__"):
        assert getattr(ours, name) == getattr(plain, name)
    assert inspect.signature(ours) == inspect.signature(plain)
    assert not hasattr(ours, "__wrapped__")
    sys.modules["their_loops"].g = ours
    ours.__module__ = "their_loops"
    assert pickle.loads(pickle.dumps(ours)) is ours


def test_tracebacks_are_those_of_plain_python():
    def tracebacks(plain):
        def f(x):
            raise LookupError("no")

        try:
            define(nditer(CENTRAL), plain=plain).g(f, np.ones(20))
        except LookupError as error:
            return traceback.format_exception(error)[2:]

    assert tracebacks(plain=False) == tracebacks(plain=True)


@pytest.mark.parametrize(
    "text",
    [
        "@decorated\n" + nditer(CENTRAL),
        nditer(CENTRAL).replace("return", "yield"),
        "def g(f, x):\n    return f(x) + f(x)\n",
        "def g(f, x):\n    return [f(y) for y in x]\n",
        "class A:\n    def g(self, x):\n        return [self(x) for _ in x] + [self]\n",
    ],
)
def test_other_functions_do_not_ask(text):
    assert "computed" not in ast.unparse(loop_syntax.transformed(ast.parse(text)))


@pytest.mark.parametrize("kind", ["", "@staticmethod\n", "@classmethod\n"])
def test_methods(kind):
    first = {"": "self, ", "@staticmethod\n": "", "@classmethod\n": "cls, "}[kind]
    text = nditer(CENTRAL).replace("g(f,", f"g({first}f,")
    text = "class A:\n" + textwrap.indent(kind + text, "    ")
    x = np.random.default_rng(1).standard_normal((200, 2))
    module = define(text)
    found = module.A().g(loss_of(x, module), x)
    assert "all points at once" in loops.lines()[0]
    np.testing.assert_allclose(found, called(LOOPS["the book's"], x, plain=True), atol=1e-5)


def test_closures_and_defaults():
    text = "def make(h):\n" + textwrap.indent(
        nditer(CENTRAL).replace(", h=1e-4", ""), "    "
    ) + "    return g\n"  # fmt: skip
    x = np.random.default_rng(1).standard_normal((200, 2))
    module = define(text)
    g = module.make(1e-3)
    found = g(loss_of(x, module), x)
    assert "all points at once" in loops.lines()[0]
    expected = define(text, plain=True).make(1e-3)(loss_of(x, module), x)
    np.testing.assert_allclose(found, expected, atol=1e-7 * abs(expected).max())


def test_float32_points_are_those_of_the_loop():
    x = np.random.default_rng(1).standard_normal((200, 2)).astype(np.float32)
    text = nditer(CENTRAL).replace("1e-4", "1e-2")
    found = called(text, x, plain=False)
    assert "all points at once" in loops.lines()[0]
    expected = called(text, x, plain=True)
    np.testing.assert_allclose(found, expected, atol=1e-4 * abs(expected).max())


def test_whole_numbers_are_truncated_as_in_plain_python():
    x = np.arange(400).reshape(200, 2)
    np.testing.assert_array_equal(
        called(LOOPS["the book's"], x, plain=False), np.zeros((200, 2), int)
    )


def test_f_is_evaluated_as_often_as_written_where_it_keeps_a_record():
    text = "calls = []\ndef loss(x):\n    calls.append(1)\n    return np.sum(x * x)\n"
    module = define(text + nditer(CENTRAL))
    module.g(module.loss, np.ones(20))
    assert len(module.calls) == 40


def test_a_python_function_is_called_as_often_by_a_ufunc():
    calls = []

    def square(value):
        calls.append(value)
        return value * value

    text = nditer(CENTRAL) + "def loss(x):\n    return np.mean(square(A.dot(x)).astype(float))\n"
    module = define(text, square=np.frompyfunc(square, 1, 1), A=WEIGHTS)
    module.g(module.loss, np.ones((200, 2)))
    assert len(calls) == 2 * 400 * 60


def test_floating_point_errors_are_reported_as_often():
    errors = []
    module = define(nditer(CENTRAL) + "def loss(x):\n    return np.sum(np.sqrt(x))\n")
    with np.errstate(call=lambda *error: errors.append(error), invalid="call"):
        module.g(module.loss, -np.ones((4, 5)))
    assert len(errors) == 2 * 20


def test_a_warning_that_is_an_error_is_raised_by_the_loop():
    x = np.ones((4, 5))
    x[2, 3] = 5e-5
    points = []
    for plain in (False, True):
        text = nditer(CENTRAL) + "def loss(x):\n    return np.sum(np.sqrt(x))\n"
        module, point = define(text, plain=plain), x.copy()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(RuntimeWarning, match="invalid value"):
                module.g(module.loss, point)
        points.append(point)
    assert points[0][2, 3] != x[2, 3]
    np.testing.assert_array_equal(*points)


@pytest.mark.parametrize("error", [AssertionError, RuntimeError, ValueError])
@pytest.mark.parametrize("seconds", [0.005, 0.1])
@pytest.mark.parametrize("whose", ["the reader's loop", "numerical_gradient"])
def test_a_time_limit_of_the_readers_is_raised(error, seconds, whose, monkeypatch):
    def end(number, frame):
        raise error("the time is up")

    text = nditer(CENTRAL) + "def loss(x):\n    return np.sum(np.tanh(np.dot(A, x)) ** 2)\n"
    small = define(text, A=np.ones((5, 20)))
    small.g(small.loss, np.ones((20, 8)))  # imports swallow what is raised meanwhile
    module = define(text, A=np.ones((5, 20_000)))
    x = np.ones((20_000, 8))
    differentiate = module.g if whose == "the reader's loop" else numerical_gradient
    swallowed = []
    monkeypatch.setattr(sys, "unraisablehook", swallowed.append)
    before = signal.signal(signal.SIGTERM, end)
    gc.disable()
    message = ""
    for _ in range(20):
        timer = threading.Timer(seconds, signal.raise_signal, [signal.SIGTERM])
        timer.start()
        try:
            differentiate(module.loss, x)
        except error as reason:
            message = str(reason)
            break
        finally:
            timer.cancel()
        # Python itself swallows what is raised while an object's end is told to others.
        assert swallowed
        swallowed.clear()
    gc.enable()
    signal.signal(signal.SIGTERM, before)
    assert message == "the time is up"


def test_what_layers_remember_is_as_the_loop_leaves_it():
    text = (
        "class Net:\n"
        "    def loss(self, x):\n"
        "        self.last = np.tanh(A.dot(x))\n"
        "        return np.sum(self.last ** 2)\n"
    )
    remembered = []
    for plain in (False, True):
        x = np.random.default_rng(1).standard_normal((200, 2))
        module = define(text + nditer(CENTRAL), plain=plain, A=WEIGHTS)
        net = module.Net()
        module.g(net.loss, x)
        remembered.append(net.last)
    assert "all points at once" in loops.lines()[0]
    np.testing.assert_array_equal(*remembered)


RECORDS = """
class Norm:
    mean = None

    def forward(self, a):
        if self.mean is None:
            self.mean = np.zeros(a.shape[1])
        mean = a.mean(axis=0)
        self.mean = 0.9 * self.mean + 0.1 * mean
        return a - mean

class Net:
    def __init__(self):
        self.norm = Norm()
        self.best = self.total = 0.0
        self.calls = 1.0

    def loss(self, x):
        a = self.norm.forward(A.dot(x))
        value = np.mean(np.tanh(a) ** 2)
        {}
        return value
"""


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("loop", ["the book's", "columns first", "an unused value after"])
def test_averages_are_as_the_loop_leaves_them(loop, rounds):
    averages = []
    for plain in (False, True):
        module = define(RECORDS.format("") + LOOPS[loop], plain=plain, A=WEIGHTS + 3)
        x, net = np.random.default_rng(1).standard_normal((200, 5)), module.Net()
        for _ in range(rounds):
            found = module.g(net.loss, x)
        averages.append((net.norm.mean, found))
    assert "all points at once" in loops.lines()[0], loops._paces
    for found, expected in zip(*averages, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "statement"),
    [
        ("calls", "self.calls = self.calls + 1"),
        ("total", "self.total = self.total + value"),
        ("best", "self.best = min(self.best, -value)"),
        ("best", "self.best = max(self.best, value)"),
        ("best", "self.best = 0.99 * self.best + value"),  # remembers for too long
        ("total", "self.total = 0.5 * self.total + value; value = value + 1e-9 * self.total"),
    ],
)
def test_other_records_are_left_to_the_loop(name, statement):
    states = []
    for plain in (False, True):
        text = RECORDS.format(statement.replace("; ", "\n        ")) + LOOPS["the book's"]
        module = define(text, plain=plain, A=WEIGHTS + 3)
        x, net = np.random.default_rng(1).standard_normal((200, 5)), module.Net()
        found = module.g(net.loss, x)
        states.append((getattr(net, name), net.norm.mean, found))
    assert not any("at once" in line for line in loops.lines())
    for found, expected in zip(*states, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_averages_after_a_short_loop_are_those_of_the_loop():
    averages = []
    for plain in (False, True):
        module = define(RECORDS.format("") + LOOPS["the book's"], plain=plain, A=WEIGHTS)
        x, net = np.random.default_rng(1).standard_normal((200, 1)), module.Net()
        module.g(net.loss, x)
        averages.append(net.norm.mean)
    np.testing.assert_array_equal(*averages)


def test_a_loop_within_the_function_of_a_loop():
    text = (
        nditer(CENTRAL)
        + "def inner(x):\n    return np.sum(np.sin(x) ** 2)\n"
        + "def outer(x):\n    return np.sum(g(inner, x) ** 2)\n"
    )
    x = np.random.default_rng(1).standard_normal(12)
    found = define(text)
    expected = define(text, plain=True)
    np.testing.assert_allclose(found.g(found.outer, x), expected.g(expected.outer, x), atol=1e-5)


def test_threads():
    x = np.random.default_rng(1).standard_normal((200, 2))
    expected = called(LOOPS["the book's"], x, plain=True)
    found = {}

    def run(i):
        found[i] = called(LOOPS["the book's"], x.copy(), plain=False)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        np.testing.assert_allclose(found[i], expected, atol=1e-6 * abs(expected).max())


def test_cheap_loops_are_left_without_a_line(monkeypatch):
    monkeypatch.setattr(loops, "_MOMENT", 10.0)
    x = np.random.default_rng(1).standard_normal((200, 2))
    np.testing.assert_array_equal(
        called(LOOPS["the book's"], x, plain=False), called(LOOPS["the book's"], x, plain=True)
    )
    assert loops.lines() == []


def test_lines_are_short_and_counted():
    x = np.random.default_rng(1).standard_normal((200, 2))
    module = define(LOOPS["the book's"].replace("def g", "def a_numerical_gradient_of_long_name"))
    f = loss_of(x, module)
    for _ in range(3):
        module.a_numerical_gradient_of_long_name(f, x)
    assert max(map(len, loops.lines())) <= 80
    assert "(3 calls)" in " ".join(loops.lines())


def test_cells_of_a_notebook(monkeypatch):
    shell = types.SimpleNamespace(ast_transformers=["another"])
    module = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", module)
    loop_syntax.install()
    loop_syntax.install()
    assert len(shell.ast_transformers) == 2
    tree = shell.ast_transformers[1].visit(ast.parse(nditer(CENTRAL)))
    assert "computed('f')" in ast.unparse(tree)
    loop_syntax.uninstall()
    assert shell.ast_transformers == ["another"]


def test_a_script_with_a_loop_of_its_own(tmp_path, capsys):
    (tmp_path / "numgrad.py").write_text("import numpy as np\n" + nditer(CENTRAL))
    script = tmp_path / "train.py"
    script.write_text(
        "import numpy as np\nfrom numgrad import g\n"
        "A = np.random.default_rng(0).standard_normal((30, 200))\n"
        "def loss(x):\n    return np.sum(np.tanh(A.dot(x)) ** 2)\n"
        "print(g(loss, np.ones((200, 2))).shape)\n"
    )
    assert run_script(script) == 0
    captured = capsys.readouterr()
    assert captured.out == "(200, 2)\n"
    assert "numgrad.py: g of loss: all points at once" in captured.err
    assert loops.lines() == []
