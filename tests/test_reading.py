"""What a function does besides returning a number, as its code says."""

import random
import time

import numpy as np
import pytest

from fastgrad.numdiff.reading import read

HISTORY, COUNT, RNG, NUMBERS = [], np.zeros(1), np.random.default_rng(0), iter([1.0] * 9)
X = np.ones(3)


class Layer:
    """Remembers what it computed."""

    calls, best = 0, np.inf

    def __init__(self, W):
        self.W, self.out = W, None

    def forward(self, x):
        self.out = np.maximum(np.dot(x, self.W), 0)
        return self.out

    @property
    def noted(self):
        HISTORY.append(1)
        return 1.0


LAYER = Layer(np.eye(3))
LAYERS = {"one": LAYER, "two": Layer(np.eye(3))}


def through_layers(x):
    for layer in LAYERS.values():
        x = layer.forward(x)
    return np.sum(x)


def own_arrays(x):
    out, parts = np.zeros(3), []
    for n in range(3):
        out[n] = x[n] ** 2
        parts.append(float(out[n]))
    out += 1
    return max(parts) + out.sum()


def fresh_copy(x):
    y = x.copy()
    y[y < 0] = 0
    y *= 2
    return float(np.mean(y))


@pytest.mark.parametrize(
    ("f", "stores"),
    [
        (lambda x: x[0] ** 2 + x[1] ** 2, False),
        (lambda x: np.sum(np.exp(-x) @ np.ones((3, 2))), False),
        (own_arrays, False),
        (fresh_copy, False),
        (through_layers, True),
        (lambda x: sum(v for v in [1.0, 2.0]) + max(x, key=lambda v: -v), False),
    ],
    ids=["powers", "NumPy", "own arrays", "copy", "layers", "built-in"],
)
def test_harmless(f, stores):
    found = read(f, X)
    assert (found.obstacle, found.stores) == ("", stores)


def global_statement(x):
    global HISTORY
    HISTORY = []
    return 1.0


def by_an_alias(x):
    place = COUNT
    place += 1
    return 1.0


def item_of_a_new_list(x):
    for place in [COUNT]:
        place *= 2
    return 1.0


def counts(x):
    LAYER.calls = LAYER.calls + 1
    return 1.0


def keeps_the_best(x):
    LAYER.best = min(LAYER.best, x[0])
    return 1.0


def keeps_on_one_path(x):
    if x[0] > 1e9:
        HISTORY.append(x[0])
    return 1.0


def tries(x):
    try:
        return 1.0
    finally:
        pass


def imports(x):
    import time

    return time.time()


def changes_x(x):
    x[0] = 0.0
    return 1.0


def keyword(**options):
    return options


@pytest.mark.parametrize(
    ("f", "what"),
    [
        (lambda x: HISTORY.append(x) or 1.0, "appends to HISTORY"),
        (lambda x: print(x) or 1.0, "calls print"),
        (lambda x: np.random.rand(), "calls np.random.rand"),
        (lambda x: random.random(), "calls random"),
        (lambda x: RNG.random(), "uses random of a Generator"),
        (lambda x: next(NUMBERS), "takes items from a list_iterator"),
        (lambda x: sum(NUMBERS), "takes items from a list_iterator"),
        (lambda x: time.time(), "calls time"),
        (lambda x: np.exp(x, x)[0], "writes into an argument"),
        (lambda x: np.exp(x, out=x)[0], "writes into an argument"),
        (lambda x: np.add.at(x, 0, 1) or 1.0, "uses at of a ufunc"),
        (lambda x: np.copyto(x, 1) or 1.0, "calls np.copyto"),
        (lambda x: x.fill(1) or 1.0, "changes x"),
        (lambda x: float(open("a")), "calls open"),  # noqa: SIM115
        (lambda x: id(x), "calls id"),
        (lambda x: LAYER.noted, "appends to HISTORY"),
        (global_statement, "global statement"),
        (by_an_alias, "changes place in place"),
        (item_of_a_new_list, "changes place in place"),
        (counts, "keeps a record in calls"),
        (keeps_the_best, "keeps a record in best"),
        (keeps_on_one_path, "appends to HISTORY"),
        (tries, "try statement"),
        (imports, "import statement"),
        (changes_x, "changes x"),
    ],
    ids=str,
)
def test_obstacles(f, what):
    obstacle = read(f, X).obstacle
    assert what in obstacle
    assert obstacle.startswith("test_reading.py:")


def test_a_class_that_computes_by_operators():
    class Sly(np.ndarray):
        def __add__(self, other):
            HISTORY.append(1)
            return 0.0

    y = np.zeros(3).view(Sly)
    assert "appends to HISTORY" in read(lambda x: y + x, X).obstacle


def test_without_source():
    names = {}
    exec("f = lambda x: 1.0", names)
    assert "source" in read(names["f"], X).obstacle


def test_a_function_rebound_since_is_read_again():
    def value(x):
        return 1.0

    def f(x):
        return value(x)

    assert read(f, X).obstacle == ""

    def value(x):  # noqa: F811 - as in a notebook
        HISTORY.append(x)
        return 1.0

    assert "appends" in read(f, X).obstacle


def test_lambdas_on_one_line_are_told_apart():
    f, g = lambda x: 1.0, lambda x: HISTORY.append(x)
    assert read(f, X).obstacle == ""
    assert "appends" in read(g, X).obstacle


def test_nothing_is_evaluated():
    def f(x):
        raise AssertionError

    assert read(f, X).obstacle == ""


def test_what_is_in_reach():
    found = read(lambda x: LAYERS["one"].forward(x), X).objects
    assert any(value is LAYER.W for value in found)


def test_an_output_that_only_a_keyword_names():
    A = np.ones((3, 3))
    assert not read(lambda x: np.einsum("i,ij,j", x, A, x)).obstacle
    assert read(lambda x: np.sum(np.einsum("i,ij", x, A, out=A[0]))).obstacle
