"""Softmax, the losses and their gradient against NumPy and against 50 digits."""

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import from_python

from fastgrad.kernels import losses
from fastgrad.runtime.programs import run

BATCHES = {
    "n": st.integers(1, 9),
    "classes": st.integers(1, 19),
    "seed": st.integers(0, 2**32 - 1),
    "dtype": st.sampled_from("fd"),
    "kind": st.sampled_from(["labels", "one-hot", "soft"]),
}


def batch(n, classes, seed, dtype, kind):
    """Return scores, labels and soft targets, one of the latter two empty, and targets (N, C)."""
    rng = np.random.default_rng(seed)
    a = (3 * rng.standard_normal((n, classes))).astype(dtype)
    labels = rng.integers(0, classes, n)
    dense = np.eye(classes)[labels]
    if kind == "soft":  # not summing to one, some of them 0
        dense = rng.uniform(0, 2, (n, classes)) * (rng.random((n, classes)) < 0.7)
    dense = dense.astype(dtype)
    if kind == "labels":
        return a, labels, np.empty((0, classes), dtype), dense
    return a, np.empty(0, np.int64), dense, dense


def softmax(a):
    e = np.exp(a - a.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("how", ["serial", "parallel"])
@settings(max_examples=25)
@given(**BATCHES)
def test_softmax(how, n, classes, seed, dtype, kind):
    a, *_ = batch(n, classes, seed, dtype, kind)
    y = np.full(a.shape, np.nan, dtype)
    if how == "serial":
        losses.softmax(a, y, 0, 1)
    else:
        run(losses.softmax, 3, a, y)
    np.testing.assert_allclose(y, softmax(a), rtol=1e-14 if dtype == "d" else 2e-6)


@pytest.mark.parametrize("delta", [1e-7, 1e-3])
@settings(max_examples=25)
@given(**BATCHES)
def test_cross_entropy(delta, n, classes, seed, dtype, kind):
    a, labels, soft, dense = batch(n, classes, seed, dtype, kind)
    y = softmax(a)
    unused = np.full_like(a, np.nan)
    loss = losses.cross_entropy(unused, y, labels, soft, delta)
    expected = -np.sum(dense * np.log(y + dense.dtype.type(delta)), dtype=np.float64) / n
    tolerance = 1e-13 if dtype == "d" else 2e-5
    assert loss == pytest.approx(expected, rel=tolerance, abs=tolerance)


@settings(max_examples=25)
@given(**BATCHES)
def test_log_softmax_loss_against_50_digits(n, classes, seed, dtype, kind):
    a, labels, soft, dense = batch(n, classes, seed, dtype, kind)
    a *= 30  # probabilities down to 1e-100
    loss = losses.cross_entropy(a, softmax(a), labels, soft, 0.0)
    with mpmath.workdps(50):
        expected = mpmath.mpf(0)
        for scores, targets in zip(a.tolist(), dense.tolist(), strict=True):
            total = mpmath.log(mpmath.fsum(mpmath.exp(v) for v in scores))
            expected -= mpmath.fsum(t * (v - total) for v, t in zip(scores, targets, strict=True))
        expected = float(expected / n)
    tolerance = 1e-13 if dtype == "d" else 1e-5
    assert loss == pytest.approx(expected, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("delta", [0.0, 1e-7, 1e-2])
@settings(max_examples=25)
@given(**BATCHES)
def test_gradient_follows_the_formula(delta, n, classes, seed, dtype, kind):
    a, labels, soft, dense = batch(n, classes, seed, dtype, kind)
    y = softmax(a)
    da = np.full(y.shape, np.nan, dtype)
    kernel = losses.logit_gradients
    middle = n // 2  # two stretches of rows
    kernel(y, labels, soft, delta, 0.5 / n, da, middle, n)
    assert np.isnan(da[:middle]).all()
    kernel(y, labels, soft, delta, 0.5 / n, da, 0, middle)
    y, dense = y.astype(np.float64), dense.astype(np.float64)
    g = -dense / (y + delta)
    expected = 0.5 / n * y * (g - np.sum(g * y, axis=1, keepdims=True))
    tolerance = 1e-13 if dtype == "d" else 2e-5
    np.testing.assert_allclose(da, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("delta", [0.0, 1e-7, 1e-2])
@pytest.mark.parametrize("kind", ["labels", "one-hot", "soft"])
def test_gradient_is_the_derivative_of_the_loss(delta, kind):
    a, labels, soft, _ = batch(3, 4, 0, "d", kind)

    def loss(scores):
        return losses.cross_entropy(scores, softmax(scores), labels, soft, delta)

    numerical = np.empty_like(a)
    for i in np.ndindex(a.shape):
        up, down = a.copy(), a.copy()
        up[i] += 1e-5
        down[i] -= 1e-5
        numerical[i] = (loss(up) - loss(down)) / 2e-5
    da = np.empty_like(a)
    losses.logit_gradients(softmax(a), labels, soft, delta, 1 / 3, da, 0, 3)
    np.testing.assert_allclose(da, numerical, atol=1e-9)


def test_gradient_where_a_probability_vanishes():
    y = np.array([[1.0, 0.0]])
    da = np.empty_like(y)
    nothing = np.empty((0, 2))
    losses.logit_gradients(y, np.array([1]), nothing, 0.0, 1.0, da, 0, 1)
    np.testing.assert_array_equal(da, [[1.0, -1.0]])
    soft = np.array([[0.0, 1.0]])
    losses.logit_gradients(y, np.empty(0, np.int64), soft, 0.0, 1.0, da, 0, 1)
    np.testing.assert_array_equal(da, [[1.0, -1.0]])


@pytest.mark.parametrize("position", range(3))
def test_nan_goes_on_as_in_numpy(position):
    a = np.array([[0.5, -1.0, 2.0], [0.0, 0.0, 0.0]])
    a[0, position] = np.nan
    y = np.empty_like(a)
    losses.softmax(a, y, 0, 1)
    assert np.isnan(y[0]).all()
    np.testing.assert_allclose(y[1], 1 / 3)
    no_labels, soft = np.empty(0, np.int64), np.zeros((2, 3))
    for delta in (1e-7, 0.0):
        assert np.isnan(losses.cross_entropy(a, y, no_labels, soft, delta))
        assert np.isnan(losses.cross_entropy(a, y, np.array([0, 0]), np.empty((0, 3)), delta))


@pytest.mark.parametrize("delta", [1e-7, 0.0])
@pytest.mark.parametrize("kind", ["labels", "soft"])
def test_the_loss_adds_up_from_stretches_of_rows(kind, delta):
    a, labels, soft, _ = batch(7, 4, 1, "d", kind)
    parts = [
        from_python(losses.cross_entropy_sum)(a, softmax(a), labels, soft, delta, begin, end)
        for begin, end in ((0, 3), (3, 3), (3, 7))
    ]
    assert parts[1] == 0
    whole = losses.cross_entropy(a, softmax(a), labels, soft, delta)
    assert sum(parts) / 7 == pytest.approx(whole, rel=1e-14)
    nothing = np.empty(0, np.int64), np.empty((0, 4))
    assert losses.cross_entropy(a, softmax(a), *nothing, delta) == 0


@settings(max_examples=25)
@given(size=st.integers(0, 40), seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from("fd"))
def test_squared_error(size, seed, dtype):
    y, t = np.random.default_rng(seed).standard_normal((2, size)).astype(dtype)
    got = losses.squared_error(y, t)
    assert got == pytest.approx(0.5 * np.sum((y - t) ** 2), rel=1e-13 if dtype == "d" else 1e-5)
