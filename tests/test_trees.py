"""Models as trees: every form is nudged in place, named by paths, and restored."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses

import numpy as np
import pytest
from numba import njit

from fastgrad import check_gradient, gradient_descent, numerical_gradient
from fastgrad.numdiff.trees import Tree

Layer = collections.namedtuple("Layer", "W b")


@dataclasses.dataclass
class Model:
    layers: list
    scale: float
    bias: object = None


@dataclasses.dataclass(frozen=True)
class Frozen:
    W: np.ndarray
    scale: float


X = np.random.default_rng(0).normal(size=(7, 3))


def numbers(shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape)


def network(W1, b1, W2, b2, scale):
    return float(scale * np.mean(np.tanh(X @ W1 + b1) @ W2 + b2))


def parts():
    return numbers((3, 4)), numbers(4, 2), numbers((4, 2), 3), numbers(2, 4), 1.5


def expected():
    """The gradients by all five parts, each from an array of its own."""
    all_parts = parts()
    return [
        numerical_gradient(lambda x, i=i: network(*all_parts[:i], x, *all_parts[i + 1 :]), part)
        for i, part in enumerate(all_parts)
    ]


def dictionary(W1, b1, W2, b2, s):
    return {"W1": W1, "b1": b1, "W2": W2, "b2": b2, "s": s}


FORMS = {
    "dict": (
        dictionary, lambda p: network(p["W1"], p["b1"], p["W2"], p["b2"], p["s"]),
        ["W1", "b1", "W2", "b2", "s"],
    ),
    "list": (lambda *p: list(p), lambda p: network(*p), ["[0]", "[1]", "[2]", "[3]", "[4]"]),
    "tuple": (lambda *p: p, lambda p: network(*p), ["[0]", "[1]", "[2]", "[3]", "[4]"]),
    "dataclass": (
        lambda W1, b1, W2, b2, s: Model([Layer(W1, b1), Layer(W2, b2)], s),
        lambda p: network(*p.layers[0], *p.layers[1], p.scale),
        ["layers[0].W", "layers[0].b", "layers[1].W", "layers[1].b", "scale"],
    ),
    "frozen": (
        lambda W1, b1, W2, b2, s: {"first": Layer(W1, b1), 2: (W2, b2), "a b": Frozen(b2[:0], s)},
        lambda p: network(*p["first"], *p[2], p["a b"].scale),
        ["first.W", "first.b", "[2][0]", "[2][1]", "['a b'].W", "['a b'].scale"],
    ),
}  # fmt: skip


@pytest.fixture(params=FORMS.values(), ids=FORMS)
def form(request):
    return request.param


def test_gradients_of_every_form(form):
    make, f, paths = form
    tree = make(*parts())
    gradient = numerical_gradient(f, tree)
    assert type(gradient) is type(tree)
    found = Tree(gradient, "gradient").leaves
    assert [leaf.path for leaf in found] == paths
    for leaf, want in zip([leaf for leaf in found if leaf.array.size], expected(), strict=True):
        np.testing.assert_array_equal(leaf.array, want)
    check = check_gradient(f, gradient, tree)
    assert check
    assert list(check.arrays) == paths
    for leaf, part in zip(
        [leaf for leaf in Tree(tree, "x").leaves if leaf.array.size], parts(), strict=True
    ):
        np.testing.assert_array_equal(leaf.value, part)
        assert type(leaf.value) is type(part)


def test_closures_over_the_live_model():
    model = Model([Layer(*parts()[:2]), Layer(*parts()[2:4])], 1.5)

    def f(_):
        return network(*model.layers[0], *model.layers[1], model.scale)

    found = Tree(numerical_gradient(f, model), "gradient").leaves
    for leaf, want in zip(found, expected(), strict=True):
        np.testing.assert_array_equal(leaf.array, want)


def test_integers_and_lists_in_a_tree_are_nudged_too():
    tree = {"n": np.array([1, 2]), "list": [3.0, 4.0], "one": 5}
    gradient = numerical_gradient(
        lambda _: float(
            np.sum(tree["n"] ** 2) + np.sum(np.square(tree["list"])) + tree["one"] ** 2
        ),
        tree,
    )
    np.testing.assert_allclose(gradient["n"], [2, 4])
    np.testing.assert_allclose(gradient["list"], [6, 8])
    assert gradient["one"] == pytest.approx(10)
    assert tree["one"] == 5
    assert tree["n"].dtype == np.int64
    assert tree["list"] == [3.0, 4.0]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_everything_is_restored_when_f_raises(kind):
    for after in range(12):
        tree = {"a": numbers(2), "b": (3.0, [numbers(2, 5)]), "c": 4}
        before = (tree["a"].copy(), tree["b"][1][0].copy(), tree["b"])
        calls = iter(range(100))

        def f(p, calls=calls, after=after):
            if next(calls) == after:
                raise kind("stop")
            return float(np.sum(p["a"]) + p["b"][0] * np.sum(p["b"][1][0]) + p["c"])

        with pytest.raises(kind, match="stop"):
            numerical_gradient(f, tree)
        np.testing.assert_array_equal(tree["a"], before[0])
        np.testing.assert_array_equal(tree["b"][1][0], before[1])
        assert tree["b"][0] == 3.0
        assert tree["c"] == 4
        assert type(tree["c"]) is int


@njit
def of_a_tuple(x, scale):
    W, (b, c) = x
    return scale * (np.sum(W**2) + np.sum(b**3) * c[0])


@pytest.mark.parametrize("dtypes", ["ddd", "fdf"])
@pytest.mark.parametrize("workers", [None, map])
def test_compiled_functions_of_tuples(dtypes, workers):
    W, b, c = (numbers(shape).astype(d) for shape, d in zip([(3, 2), 4, 1], dtypes, strict=True))
    W = np.asfortranarray(W)
    gradient = numerical_gradient(of_a_tuple, (W, (b, c)), 1e-2, args=(2.0,), workers=workers)
    np.testing.assert_allclose(gradient[0], 4 * W, atol=1e-3)
    np.testing.assert_allclose(gradient[1][0], 6 * b**2 * c[0], atol=2e-3)
    np.testing.assert_allclose(gradient[1][1], [2 * np.sum(b**3)], atol=2e-3)
    assert [gradient[0].dtype, gradient[1][0].dtype, gradient[1][1].dtype] == list(dtypes)
    right = (4 * W, (6 * b**2 * c[0], np.array([2 * np.sum(b**3)])))
    assert (
        check_gradient(of_a_tuple, right, (W, (b, c)), 1e-2, args=(2.0,)).arrays["[0]"].wrong == 0
    )


def of_a_dict(p):
    return float(np.sum(p["W"] ** 2) * p["s"])


def test_workers_get_the_whole_tree():
    tree = {"W": np.asfortranarray(numbers((4, 3))), "s": 2.0}
    alone = numerical_gradient(of_a_dict, tree)
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        shared = numerical_gradient(of_a_dict, tree, workers=executor.map)
    np.testing.assert_array_equal(shared["W"], alone["W"])
    assert shared["s"] == alone["s"]
    assert shared["W"].flags.f_contiguous


def test_gradient_descent_of_a_tree():
    start = {"a": np.array([3.0, -4.0]), "b": 2.0}
    x, history = gradient_descent(
        lambda p: np.sum(p["a"] ** 2) + p["b"] ** 2, start, 0.1, 60, return_history=True
    )
    np.testing.assert_allclose(x["a"], 0, atol=1e-4)
    assert x["b"] == pytest.approx(0, abs=1e-4)
    assert history["a"].shape == (61, 2)
    assert start["b"] == 2.0
    np.testing.assert_array_equal(start["a"], [3, -4])


class TestErrors:
    tree = {"W": np.ones((2, 2)), "b": np.ones(2)}  # noqa: RUF012

    @staticmethod
    def f(p):
        return float(np.sum(p["W"]) + np.sum(p["b"]))

    @pytest.mark.parametrize(
        ("grad", "message"),
        [
            ({"W": np.ones((2, 2))}, "`b` is missing"),
            ({"W": np.ones((2, 2)), "c": np.ones(2)}, "`b` is missing; `c` is too much"),
            ({"W": np.ones((2, 3)), "b": np.ones(2)}, r"`W` must have shape \(2, 2\), not"),
            (np.ones(6), r"must have the form of `x`, with `W` \(2, 2\), `b` \(2,\)"),
        ],
    )  # fmt: skip
    def test_gradients_of_another_form(self, grad, message):
        with pytest.raises(ValueError, match=message):
            check_gradient(self.f, grad, self.tree)

    def test_a_leaf_that_is_no_number(self):
        with pytest.raises(TypeError, match=r"`x\.name` must be an array of real numbers"):
            numerical_gradient(self.f, {"W": np.ones(2), "name": "relu"})

    def test_memory_that_overlaps(self):
        window = np.lib.stride_tricks.sliding_window_view(np.arange(5.0), 3, writeable=True)
        with pytest.raises(ValueError, match="`x` must not overlap itself"):
            numerical_gradient(np.sum, window)
        W = np.ones((3, 3))
        with pytest.raises(ValueError, match="`W` and `V` must not share memory"):
            numerical_gradient(self.f, {"W": W, "V": W[1:]})

    def test_views_that_do_not_overlap(self):
        base = np.zeros((4, 6))
        tree = {"even": base[:, ::2], "odd": base[:, 1::2], "turned": np.zeros((3, 2)).T[::-1]}
        gradient = numerical_gradient(
            lambda p: np.sum(p["even"]) + 2 * np.sum(p["odd"]) + p["turned"][0, 1], tree
        )
        np.testing.assert_allclose(gradient["even"], 1)
        np.testing.assert_allclose(gradient["odd"], 2)
        np.testing.assert_allclose(gradient["turned"], [[0, 1, 0], [0, 0, 0]], atol=1e-12)
