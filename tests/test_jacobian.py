"""Jacobians of functions with arrays as results."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fastgrad import numerical_gradient, numerical_jacobian

INPUTS = np.random.default_rng(2).normal(size=(5, 3))
A = np.random.default_rng(0).normal(size=(3, 4))


def waves(x):
    return np.sin(A @ x)


def waves_jacobian(x):
    return np.cos(A @ x)[:, None] * A


@pytest.mark.parametrize(("h", "order", "limit"), [(1e-4, 2, 1e-6), (1e-2, 6, 1e-8),
                                                   ("auto", 2, 1e-10)])  # fmt: skip
def test_smooth_function(h, order, limit):
    x = np.array([0.3, -1.2, 0.7, 2.0])
    kept = x.copy()
    found, error = numerical_jacobian(waves, x, h, order=order, error=True)
    off = np.abs(found - waves_jacobian(x))
    assert found.shape == (3, 4)
    assert off.max() < limit
    assert (off <= error).all()
    np.testing.assert_array_equal(x, kept)


@pytest.mark.parametrize("h", [1e-4, "auto"])
@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_shapes(h, shape):
    x = np.array(np.linspace(1, 2, np.prod(shape, dtype=int)).reshape(shape), order="F")
    found = numerical_jacobian(lambda x: np.stack([x**2, x**3]), x, h)
    assert found.shape == (2, *shape, *shape)
    size = x.size
    exact = np.stack([np.diag(2 * x.reshape(-1)), np.diag(3 * x.reshape(-1) ** 2)])
    np.testing.assert_allclose(found.reshape(2, size, size), exact, atol=1e-7)


def test_one_number_is_the_gradient():
    x = np.array([0.5, 2.0])
    f = lambda x: np.sum(np.log(x))  # noqa: E731
    np.testing.assert_array_equal(numerical_jacobian(f, x), numerical_gradient(f, x))


@pytest.mark.parametrize("h", [1e-4, "auto"])
def test_complex_results(h):
    x = np.array([0.4, 1.1])
    found, error = numerical_jacobian(lambda x: np.exp(1j * x[0]) * x, x, h, error=True)
    turn = np.exp(0.4j)
    exact = np.array([[turn * (1 + 0.4j), 0], [1.1j * turn, turn]])
    assert found.dtype == np.complex128
    assert error.dtype == np.float64
    np.testing.assert_allclose(found, exact, atol=1e-8)


def test_each_point_is_evaluated_once():
    points = []

    def f(x):
        points.append(tuple(x))
        return np.array([np.sin(x[0]), np.exp(5 * x[0]), x[1] ** 2])

    numerical_jacobian(f, np.array([1.0, 2.0]))
    assert len(points) == 5
    points.clear()
    numerical_jacobian(f, np.array([1.0, 2.0]), "auto")
    assert len(points) == len(set(points))


def test_tree():
    tree = {"W": np.ones((2, 2)), "b": 3.0}
    found = numerical_jacobian(lambda p: p["W"] @ [1.0, 2.0] * p["b"], tree)
    assert found["W"].shape == (2, 2, 2)
    np.testing.assert_allclose(found["W"][0], [[3, 6], [0, 0]], atol=1e-7)
    np.testing.assert_allclose(found["b"], [3, 3], atol=1e-7)
    assert tree["b"] == 3.0


def test_bounds_and_sample():
    found = numerical_jacobian(
        lambda x: np.stack([np.sqrt(x), x]), np.array([0.0, 4.0]), order=4, bounds=(0, 9), sample=2
    )
    assert found[0, 1, 1] == pytest.approx(0.25)
    assert found[1, 0, 0] == pytest.approx(1)
    drawn = numerical_jacobian(waves, np.ones(4), sample=1, rng=0)
    assert np.isnan(drawn).sum() == 9


@pytest.mark.parametrize("h", [1e-4, "auto"])
def test_workers_give_the_same_numbers(h):
    x = np.array([0.3, -1.2, 0.7, 2.0])
    with ThreadPoolExecutor(2) as pool:
        found = numerical_jacobian(waves, x, h, workers=pool.map)
    np.testing.assert_array_equal(found, numerical_jacobian(waves, x, h))


@pytest.mark.parametrize("h", [1e-4, "auto"])
def test_all_points_at_once(h):
    def layer(W):
        return np.tanh(INPUTS @ W)

    W = np.random.default_rng(1).normal(size=(3, 4)) / 9
    kept = W.copy()
    found = numerical_jacobian(layer, W, h, batched=True)
    expected = numerical_jacobian(layer, W, h, batched=False)
    np.testing.assert_allclose(found, expected, atol=1e-10)
    np.testing.assert_array_equal(W, kept)


def test_what_cannot_be_evaluated_at_once():
    x = np.array([0.5, 2.0])
    for f in (lambda x: np.exp(1j * x), lambda x: [float(x[0]), float(x[1])]):
        with pytest.raises(ValueError, match="cannot be evaluated at all points at once"):
            numerical_jacobian(f, x, batched=True)
        assert numerical_jacobian(f, x).shape == (2, 2)
    with pytest.raises(ValueError, match='`batched` must be "auto", True or False'):
        numerical_jacobian(waves, np.ones(4), batched="yes")


def test_noise_is_in_the_estimate():
    found, error = numerical_jacobian(
        lambda x: np.sin(A.astype(np.float32) @ x.astype(np.float32)), np.ones(4), error=True
    )
    assert (np.abs(found - waves_jacobian(np.ones(4))) <= error).all()


def test_infinite_slopes_have_no_estimate():
    for h in (1e-4, "auto"):
        _, error = numerical_jacobian(np.sqrt, np.zeros(2), h, bounds=(0, 9), error=True)
        assert (np.diag(error) == np.inf).all()


def test_a_shape_that_changes_is_refused():
    x = np.array([1.0])
    with pytest.raises(ValueError, match="same shape at every point"):
        numerical_jacobian(lambda x: np.ones(2 if x[0] > 1 else 3), x)
    assert x[0] == 1.0


def test_what_f_raises_leaves_x_as_it_was():
    x = np.array([1.0, 2.0])

    def f(x):
        if x[1] > 2:
            raise RuntimeError("no")
        return x

    with pytest.raises(RuntimeError, match="no"):
        numerical_jacobian(f, x)
    np.testing.assert_array_equal(x, [1.0, 2.0])


def test_other_results_are_refused():
    with pytest.raises(TypeError, match="an array of numbers"):
        numerical_jacobian(lambda x: "1", np.ones(2))


@pytest.mark.parametrize("h", [1e-4, "auto"])
def test_empty(h):
    assert numerical_jacobian(lambda x: x, np.empty(0), h).shape == (0, 0)
    assert numerical_jacobian(lambda x: np.empty((2, 0)), np.ones(3), h).shape == (2, 0, 3)


def test_a_function_that_reads_another_array():
    x = [1, 2, 3]
    with pytest.warns(UserWarning, match="does not depend on `x`"):
        assert not numerical_jacobian(lambda _: np.array(x) ** 2, x).any()
