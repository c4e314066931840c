"""The book's optimizers against their formulas in NumPy, over several steps."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reference import Optimizer

from fastgrad.nn.optimizers import SGD, AdaGrad, Adam, Momentum, Nesterov, RMSprop

KINDS = [SGD, Momentum, Nesterov, AdaGrad, RMSprop, Adam]
MEMORY = {SGD: "", Momentum: "v", Nesterov: "v", AdaGrad: "h", RMSprop: "h", Adam: "mv"}


def in_layout(array, layout):
    """Return a writeable array of the same values in another layout of memory."""
    if layout == "F":
        return np.array(array, order="F")
    if layout == "strided":
        wide = np.zeros((*array.shape, 2), array.dtype)
        wide[..., 1] = array
        return wide[..., 1]
    if layout == "unaligned":
        memory = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype)
        memory[:] = array.reshape(-1)
        return memory.reshape(array.shape)
    return array.copy()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(
    shapes=st.lists(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6), max_size=3),
    dtype=st.sampled_from("fd"),
    layouts=st.tuples(*[st.sampled_from(["C", "F", "strided", "unaligned"])] * 2),
    seed=st.integers(0, 2**32 - 1),
)
def test_five_steps(kind, shapes, dtype, layouts, seed):
    rng = np.random.default_rng(seed)
    params = {
        i: in_layout(rng.standard_normal(shape).astype(dtype), layouts[0])
        for i, shape in enumerate(shapes)
    }
    arrays = dict(params)
    expected = {key: np.array(array, np.float64) for key, array in params.items()}
    optimizer, reference = kind(lr=0.1), Optimizer(kind.__name__, lr=0.1)
    for _ in range(5):
        grads = {
            key: in_layout(rng.standard_normal(array.shape).astype(dtype), layouts[1])
            for key, array in params.items()
        }
        before = copy.deepcopy(grads)
        optimizer.update(params, grads)
        reference.update(expected, grads)
        for key, gradient in grads.items():
            np.testing.assert_array_equal(gradient, before[key])
    tolerance = 1e-12 if dtype == "d" else 1e-4
    for key, array in params.items():
        assert array is arrays[key]
        np.testing.assert_allclose(array, expected[key], rtol=tolerance, atol=tolerance)
        for name in MEMORY[kind]:
            assert getattr(optimizer, name)[key].shape == array.shape


@pytest.mark.parametrize("kind", KINDS)
def test_an_array_that_goes_to_all_threads(kind):
    rng = np.random.default_rng(0)
    params = {"W": rng.standard_normal((784, 50))}
    expected = dict(params)
    optimizer, reference = kind(), Optimizer(kind.__name__)
    params["W"] = params["W"].copy()
    for _ in range(2):
        grads = {"W": rng.standard_normal((784, 50))}
        optimizer.update(params, grads)
        reference.update(expected, grads)
    np.testing.assert_allclose(params["W"], expected["W"], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_plain_numbers_as_in_the_book(kind):
    params, expected = {"x": -7.0, "y": 2}, {"x": -7.0, "y": 2.0}
    optimizer, reference = kind(lr=0.3), Optimizer(kind.__name__, lr=0.3)
    for _ in range(30):
        optimizer.update(params, {"x": params["x"] / 10, "y": 2 * params["y"]})
        reference.update(expected, {"x": expected["x"] / 10, "y": 2 * expected["y"]})
        assert type(params["x"]) is type(params["y"]) is float
        assert params == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("number", [np.float32(1), np.float64(1)])
def test_numpy_numbers_keep_their_type(number):
    params = {"x": number}
    SGD(lr=0.5).update(params, {"x": 1})
    assert params["x"] == 0.5
    assert type(params["x"]) is type(number)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_has_the_books_names_and_starts_empty(kind):
    optimizer = kind()
    for name in MEMORY[kind]:
        assert getattr(optimizer, name) is None
    assert optimizer.lr == (0.001 if kind is Adam else 0.01)
    optimizer.update({"W": np.ones((2, 3))}, {"W": np.ones((2, 3))})
    for name in MEMORY[kind]:
        assert getattr(optimizer, name)["W"].shape == (2, 3)


def test_adam_counts_its_steps():
    optimizer = Adam()
    for count in range(3):
        assert optimizer.iter == count
        optimizer.update({"x": 1.0}, {"x": 1.0})


BAD_CALLS = {
    "no gradient": ({}, KeyError, "`grads` must have an entry for 'b', as `params` has."),
    "shape": ({"b": np.zeros(3)}, ValueError, r"`grads\['b'\]` must have shape \(2,\). Got \(3,\)"),
    "number": ({"b": 1.0}, ValueError, r"`grads\['b'\]` must have shape \(2,\). Got \(\)"),
    "complex": ({"b": np.zeros(2, complex)}, TypeError, r"`grads\['b'\]` must be an array of real"),
    "text": ({"b": "ab"}, TypeError, r"`grads\['b'\]` must be an array of real numbers"),
}
BAD_PARAMETERS = {
    "integers": (np.zeros(2, int), TypeError, r"`params\['b'\]` must be float32 or float64. Got i"),
    "half": (np.zeros(2, "e"), TypeError, r"`params\['b'\]` must be float32 or float64"),
    "a string": ("ab", TypeError, r"`params\['b'\]` must be a real number. Got 'ab'."),
    "read-only": (np.broadcast_to(1.0, 2), ValueError, r"`params\['b'\]` must be writeable."),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", [*BAD_CALLS, *BAD_PARAMETERS])
def test_a_call_that_raises_changes_nothing(kind, case):
    params = {"a": np.ones(2), "b": np.ones(2), "c": 1.0}
    grads = {"a": np.ones(2), "b": np.ones(2), "c": 1.0}
    optimizer = kind()
    optimizer.update(params, grads)
    if case in BAD_CALLS:
        change, error, message = BAD_CALLS[case]
        del grads["b"]
        grads.update(change)
    else:
        params["b"], error, message = BAD_PARAMETERS[case]
    before, state = copy.deepcopy(params), copy.deepcopy(vars(optimizer))
    with pytest.raises(error, match=message):
        optimizer.update(params, grads)
    for key, value in before.items():
        np.testing.assert_array_equal(params[key], value)
    np.testing.assert_equal(vars(optimizer), state)


def test_a_parameter_keeps_its_shape():
    optimizer = Momentum()
    optimizer.update({"W": np.ones(2)}, {"W": np.ones(2)})
    with pytest.raises(ValueError, match=r"`params\['W'\]` must keep its shape \(2,\). Got \(3,"):
        optimizer.update({"W": np.ones(3)}, {"W": np.ones(3)})


@pytest.mark.parametrize("kind", KINDS)
def test_a_parameter_may_change_its_layout_and_a_new_one_may_come(kind):
    rng = np.random.default_rng(0)
    params, expected = {"W": rng.standard_normal((3, 4))}, {}
    expected["W"] = params["W"].copy()
    optimizer, reference = kind(), Optimizer(kind.__name__)
    for step in range(4):
        grads = {"W": rng.standard_normal((3, 4)), "late": rng.standard_normal(2)}
        if step == 2:
            params["W"] = np.asfortranarray(params["W"])
            if kind is not Adam:  # whose reference counts the steps for all parameters alike
                params["late"], expected["late"] = np.ones(2), np.ones(2)
        optimizer.update(params, grads)
        reference.update(expected, grads)
    for key, value in expected.items():
        np.testing.assert_allclose(params[key], value, rtol=1e-12)


def test_a_gradient_in_the_parameters_own_memory():
    memory = np.arange(1.0, 12.0)
    params = {"W": memory[1:]}
    expected = memory[1:] - 0.5 * memory[:-1]
    SGD(lr=0.5).update(params, {"W": memory[:-1]})
    np.testing.assert_array_equal(params["W"], expected)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SGD(lr="0.1"), TypeError, "`lr` must be a real number. Got '0.1'."),
        (lambda: SGD(lr=np.nan), ValueError, "`lr` must be a finite number, at least 0. Got nan."),
        (lambda: Momentum(momentum=None), TypeError, "`momentum` must be a real number"),
        (lambda: Nesterov(momentum=np.inf), ValueError, "`momentum` must be a finite number"),
        (lambda: AdaGrad(lr=True), TypeError, "`lr` must be a real number. Got True."),
        (lambda: RMSprop(decay_rate=1), ValueError, "`decay_rate` must be below 1. Got 1."),
        (lambda: Adam(beta1=-0.1), ValueError, "`beta1` must be a finite number, at least 0."),
        (lambda: SGD(-1), ValueError, "`lr` must be a finite number, at least 0. Got -1."),
        (lambda: Momentum(momentum=2), ValueError, "`momentum` must be below 1. Got 2."),
        (lambda: Adam(beta2=1.0), ValueError, "`beta2` must be below 1. Got 1.0."),
    ],
)
def test_bad_coefficients(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("kind", KINDS)
def test_nan_reaches_the_parameter(kind):
    params = {"W": np.ones(3)}
    kind().update(params, {"W": np.array([1.0, np.nan, 1.0])})
    assert np.isnan(params["W"]).tolist() == [False, True, False]


def test_a_step_that_fails_is_not_counted():
    optimizer = Adam()
    optimizer.lr = None
    with pytest.raises(TypeError):
        optimizer.update({"W": np.ones(2)}, {"W": np.ones(2)})
    assert optimizer.iter == 0


@pytest.mark.parametrize("lr", [-1.0, np.nan, np.inf])
def test_a_learning_rate_set_later_is_checked_too(lr):
    optimizer, params = Adam(), {"W": np.ones(2)}
    optimizer.lr = lr
    with pytest.raises(ValueError, match="`lr` must be a finite number, at least 0"):
        optimizer.update(params, {"W": np.ones(2)})
    assert optimizer.iter == 0
    np.testing.assert_array_equal(params["W"], np.ones(2))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_dict_is_refused(kind):
    with pytest.raises(TypeError, match=r"`params` must be a dict\. Got None\."):
        kind().update(None, {})
    with pytest.raises(TypeError, match=r"`grads` must be a dict\. Got None\."):
        kind().update({}, None)
