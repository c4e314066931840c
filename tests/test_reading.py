"""What a function does besides returning a number, as its code says."""

import copy
import dataclasses
import functools
import queue
import random
import time
import types

import numpy as np
import pytest

from fastgrad.nn import layers
from fastgrad.numdiff import reading
from fastgrad.numdiff.reading import read

HISTORY, COUNT, RNG, NUMBERS = [], np.zeros(1), np.random.default_rng(0), iter([1.0] * 9)
X, GROWING = np.ones(3), [1.0]


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


LAYER, OURS = Layer(np.eye(3)), layers.Affine(np.eye(3), np.zeros(3))
LAYERS = {"one": LAYER, "two": Layer(np.eye(3))}


def through_layers(x):
    for layer in LAYERS.values():
        x = layer.forward(x)
    return np.sum(x)


class Private:
    """Keeps its weights and a method to itself."""

    def __init__(self):
        self.__W = np.eye(3)

    def __scores(self, x, __scale=2.0):
        return __scale * x.dot(self.__W)

    def loss(self, x):
        return np.sum(self.__scores(x, __scale=3.0))


@dataclasses.dataclass
class Fields:
    """Has methods that nobody wrote."""

    W: np.ndarray

    def loss(self, x):
        return np.sum(x.dot(self.W))


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


def changed_copy(*args):
    x = args[0].copy()
    x[0] = 1
    return np.sum(x)


def changed_argument(*args):
    x = args[0]
    x[0] = 1
    return np.sum(x)


@pytest.mark.parametrize(
    ("f", "stores"),
    [
        (lambda x: x[0] ** 2 + x[1] ** 2, False),
        (lambda x: np.sum(np.exp(-x) @ np.ones((3, 2))), False),
        (own_arrays, False),
        (fresh_copy, False),
        (through_layers, True),
        (Private().loss, False),
        (Fields(np.eye(3)).loss, False),
        (lambda x: sum(v for v in [1.0, 2.0]) + max(x, key=lambda v: -v), False),
        (lambda x: np.sum(copy.copy(x) * copy.deepcopy(x)), False),
        (lambda x: np.sum(x) if x.__class__.__name__ == "ndarray" else 0.0, False),
        (lambda *args: np.sum(np.multiply(*args, 2.0)), False),
        (lambda *args: changed_copy(*args), False),
    ],
    ids=[
        "powers",
        "NumPy",
        "own arrays",
        "copy",
        "layers",
        "private names",
        "dataclass",
        "built-in",
        "copy module",
        "name of a class",
        "starred",
        "starred, handed on",
    ],
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


def logged(value, log=False):
    if log:
        HISTORY.append(value)
    return value


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
        (lambda x: OURS.params, "uses params of a Affine"),
        (global_statement, "global statement"),
        (by_an_alias, "changes place in place"),
        (changed_argument, "changes x"),
        (lambda *args: copy.copy([COUNT]), "calls copy.copy"),
        (item_of_a_new_list, "changes place in place"),
        (counts, "keeps a record in calls"),
        (keeps_the_best, "keeps a record in best"),
        (keeps_on_one_path, "appends to HISTORY"),
        (tries, "try statement"),
        (imports, "import statement"),
        (changes_x, "changes x"),
        (lambda x: logged(*GROWING), "appends to HISTORY"),
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


def local_imports(x):
    import math
    from math import exp

    import numpy as numeric

    return math.exp(x[0]) + exp(x[1]) + numeric.linalg.slogdet(np.eye(2) + x[0])[1]


def applied_partially(x):
    return functools.partial(np.dot, x)(x) + functools.partial(fresh_copy)(x)


def text_and_assertion(x):
    text = f"{x[0]:.3f}"
    assert len(text) > 2, text
    return sum(v**2 for v in x) + sum([v for v in x if v > 0])


class Deeper(Layer):
    name = "deeper"

    def __str__(self):
        return self.name

    def forward(self, x):
        return super().forward(x) + 1


def by_super(x):
    return np.sum(DEEPER.forward(x))


DEEPER = Deeper(np.eye(3))


@pytest.mark.parametrize("f", [local_imports, applied_partially, text_and_assertion, by_super])
def test_harmless_in_other_ways(f):
    assert read(f, X).obstacle == ""


def leaves_a_loop(x):
    for _ in range(2):
        place = np.zeros(1)
        if x[0] > 0:
            place = COUNT
            break
        place = np.zeros(1)
    place += 1
    return 1.0


def generates_later(x):
    place = []
    later = (place.append(1) for _ in [0])
    place = HISTORY
    return float(len(list(later)))


def calls_later(x):
    place = []

    def note():
        place.append(1)

    place = HISTORY
    note()
    return 1.0


def compares_in_a_chain(x):
    _ = 1 > 2 > counts(x)
    return 1.0


def renames_in_a_comprehension(x):
    place = COUNT
    _ = [place for place in [np.zeros(1)] if True]
    place += 1
    return 1.0


def swaps(x):
    place, other = [], HISTORY
    place, other = other, place
    place.append(1)
    return 1.0


def asserts(x):
    assert x[0] < 9, HISTORY.append(1)
    return 1.0


def imports_a_generator(x):
    from numpy.random import rand

    return rand()


def writes_by_an_iterator(x):
    iterator = np.nditer(x, op_flags=[["readwrite"]])
    iterator[0] = 5
    return 1.0


class Summed:
    def sum(self, **_):
        HISTORY.append(1)
        return 1.0


class Updated:
    def __init__(self, update):
        self.update = update


SUMMED, QUEUES = Summed(), [queue.Queue()]


@pytest.mark.parametrize(
    "f",
    [
        leaves_a_loop, generates_later, calls_later, compares_in_a_chain,
        renames_in_a_comprehension, swaps, asserts, imports_a_generator, writes_by_an_iterator,
        lambda x: np.sum(SUMMED),
        lambda x: QUEUES[0].get(),
        lambda x: Updated(HISTORY.append).update(1) or 1.0,
        lambda x: x.round(2, COUNT)[0],
        lambda x: np.exp(*[x, COUNT])[0],
        lambda x: np.median(COUNT, overwrite_input=True),
        lambda x: np.nan_to_num(COUNT, copy=False)[0],
        lambda x: np.pad(x, 1, lambda *_: HISTORY.append(1))[0],
        lambda x: max([1.0, 2.0], key=HISTORY.append),
        lambda x: np.vectorize(HISTORY.append)(x),
        lambda x: functools.partial(HISTORY.append, 1)() or 1.0,
        lambda x, note=HISTORY.append: note(1) or 1.0,
        lambda x: np.ravel(a=COUNT).fill(1) or 1.0,
        lambda x: np.einsum("i->i", COUNT).fill(1) or 1.0,
    ],
    ids=str,
)  # fmt: skip
def test_obstacles_that_hide(f):
    assert read(f, X).obstacle.startswith("test_reading.py:")


def test_an_array_of_objects():
    place = np.array([HISTORY, None], dtype=object)
    assert read(lambda x: place[0].append(1), X).obstacle


def test_a_flag_decides_what_is_read():
    def f(x):
        if LAYER.noisy:
            HISTORY.append(1)
        return 1.0

    LAYER.noisy = False
    assert read(f, X).obstacle == ""
    LAYER.noisy = True
    assert "appends to HISTORY" in read(f, X).obstacle
    del LAYER.noisy


def test_a_module_that_an_object_holds():
    module = types.ModuleType("held")
    module.quiet, holder = True, types.SimpleNamespace(held=module)

    def f(x):
        if not holder.held.quiet:
            HISTORY.append(1)
        return 1.0

    assert read(f, X).obstacle


ARRAYS = (np.arange(9.0).reshape(3, 3), np.arange(9).reshape(3, 3), np.arange(4.0), np.arange(2),
          np.array([[2.0]]), np.array(2.0), np.array([True, False]))  # fmt: skip


def arrays_in(value):
    if isinstance(value, np.ndarray):
        yield value
    for part in value if isinstance(value, tuple | list) else ():
        yield from arrays_in(part)


@pytest.mark.filterwarnings("ignore")
def test_numpys_functions_change_nothing_and_return_what_is_new():
    for function in reading._NUMPYS.values():
        name, is_ufunc = function.__name__, isinstance(function, np.ufunc)
        for array in ARRAYS:
            kept = array.copy()
            for args in (
                (array,),
                (array, array),
                (array, 0),
                (array, 1),
                ([array],),
                (array,) * 3,
            ):
                if len(args) > reading._inputs(function) or (name == "nan_to_num" and args[1:]):
                    continue
                try:
                    found = function(*args)
                except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
                    continue
                assert array.tobytes() == kept.tobytes(), name
                if is_ufunc or name not in reading._VIEWS:
                    assert not any(np.shares_memory(a, array) for a in arrays_in(found)), name
