"""Numerical Jacobians against exact ones: shapes, trees, complex results, every option."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgrad import check_backward, numerical_gradient, numerical_jacobian

RNG = np.random.default_rng(0)
A, X = RNG.normal(size=(4, 3)), RNG.normal(size=(3, 2))


def layer(x):
    return np.tanh(A @ x)


def exact(x):
    slopes = 1 - np.tanh(A @ x) ** 2
    return np.einsum("ij,ik,jl->ijkl", slopes, A, np.eye(x.shape[1]))


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [({}, 2e-8), ({"order": 4}, 1e-11), ({"h": 1e-3, "order": 6}, 1e-12), ({"h": "auto"}, 1e-12)],
)
def test_a_layer(options, tolerance):
    x = X.copy()
    found = numerical_jacobian(layer, x, **options)
    assert found.shape == (4, 2, 3, 2)
    np.testing.assert_allclose(found, exact(X), atol=tolerance)
    assert (x == X).all()


@pytest.mark.parametrize("h", [1e-3, "auto"])
def test_the_error_is_an_upper_estimate(h):
    found, error = numerical_jacobian(layer, X, h, error=True)
    assert (np.abs(found - exact(X)) <= error).all()
    assert error.max() < (1e-5 if h == 1e-3 else 1e-11)


@given(st.integers(0, 3), st.integers(0, 2), st.sampled_from("CF"))
def test_shapes_and_memory_order(rows, outputs, order):
    x = np.asarray(np.random.default_rng(rows).normal(size=(rows, 2)), order=order)
    found = numerical_jacobian(lambda x: np.arange(1.0, outputs + 1)[:, None] * x.sum(axis=0), x)
    assert found.shape == (outputs, 2, rows, 2)
    want = np.arange(1.0, outputs + 1)[:, None, None, None] * np.eye(2)[None, :, None, :]
    np.testing.assert_allclose(found, np.broadcast_to(want, found.shape), atol=1e-8)


def test_a_tree():
    found = numerical_jacobian(
        lambda p: p["a"] * np.array([1.0, 2.0]) + p["b"], {"a": 1.0, "b": np.ones(2)}
    )
    np.testing.assert_allclose(found["a"], [1, 2], atol=1e-9)
    np.testing.assert_allclose(found["b"], np.eye(2), atol=1e-9)


@pytest.mark.parametrize("h", [1e-4, "auto"])
def test_complex_results(h):
    w = np.array([0.3, -2.0])
    found = numerical_jacobian(lambda w: np.exp(1j * w), w, h)
    assert found.dtype == np.complex128
    np.testing.assert_allclose(found, np.diag(1j * np.exp(1j * w)), atol=1e-8)


def test_one_output_is_a_gradient():
    for h in (1e-4, "auto"):
        found = numerical_jacobian(lambda x: np.sum(np.sin(x)), X, h)
        np.testing.assert_allclose(
            found, numerical_gradient(lambda x: np.sum(np.sin(x)), X, h), rtol=1e-12, atol=1e-14
        )


def test_f_is_evaluated_once_at_each_point():
    calls = []

    def counted(x):
        calls.append(x.tobytes())
        return np.concatenate([np.sin(x), np.exp(x), x])

    numerical_jacobian(counted, [0.5, 1.5])
    assert len(calls) == 1 + 2 * 2
    calls.clear()
    numerical_jacobian(counted, [0.5, 1.5], "auto")
    assert len(calls) == len(set(calls)) <= 2 * 30


def test_bounds_and_sample():
    found = numerical_jacobian(np.sqrt, [1e-5, 2.0], "auto", bounds=(0, np.inf))
    np.testing.assert_allclose(found.diagonal(), 0.5 / np.sqrt([1e-5, 2.0]), rtol=1e-9)
    found = numerical_jacobian(np.sin, np.arange(5.0), sample=2, rng=0)
    assert np.isnan(found).all(axis=0).sum() == 3


def test_workers():
    with ThreadPoolExecutor(2) as pool:
        found = numerical_jacobian(layer, X, workers=pool.map)
    np.testing.assert_allclose(found, exact(X), atol=2e-8)


@pytest.mark.parametrize(
    ("f", "kind", "message"),
    [
        (lambda x: x[: 1 + int(x[0] > 1)], TypeError, "arrays of one shape"),
        (lambda x: "text", TypeError, "`f` must return an array of numbers"),
        (lambda x: x.fill(1) or x, ValueError, "`f` must not change `x`"),
        (lambda x: 1 / 0, ZeroDivisionError, "division"),
        (3, TypeError, "`f` must be callable"),
    ],
)
def test_bad_functions(f, kind, message):
    x = np.array([1.0, 2.0])
    with pytest.raises(kind, match=message):
        numerical_jacobian(f, x)
    assert x.tolist() == [1.0, 2.0]


def test_the_backward_pass_of_a_complex_layer():
    def forward(x):
        return np.exp(1j * np.array([1.0, 2, 3]) * x[0]) * x[1]

    def backward(dout):
        out = forward(x)
        by_phase = 1j * np.array([1.0, 2, 3]) * out
        return np.array([np.sum(np.conj(by_phase) * dout).real, np.sum(np.conj(out) * dout).real])

    x = np.array([0.4, 1.0])
    assert check_backward(forward, backward, x, rng=0).ok
    real_part_alone = check_backward(forward, lambda dout: backward(dout.real), x, rng=0)
    assert not real_part_alone.ok
