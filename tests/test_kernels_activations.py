"""The activation kernels against NumPy, and the sigmoid against 50 digits."""

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastgrad.kernels import activations
from fastgrad.runtime.programs import run


def maps():
    return {
        "serial": lambda *arguments: activations.activate(*arguments, 0, 1),
        "parallel": lambda *arguments: run(activations.activate, 3, *arguments),
    }


def arrays(low=-1000, high=1000):
    return st.sampled_from([np.float32, np.float64]).flatmap(
        lambda dtype: hnp.arrays(
            dtype,
            st.integers(0, 40),
            elements=st.floats(low, high, width=np.dtype(dtype).itemsize * 8),
        )
    )


def exact_sigmoid(x):
    return mpmath.mpf(1) / (1 + mpmath.exp(-mpmath.mpf(float(x))))


@pytest.mark.parametrize("how", maps())
@settings(max_examples=25)
@given(x=arrays(-80, 80))
def test_sigmoid_and_its_derivative_to_the_last_digits(how, x):
    ulps = 4 * np.finfo(x.dtype).eps
    value, slope = np.empty_like(x), np.empty_like(x)
    maps()[how](activations.SIGMOID, x, value)
    maps()[how](activations.SIGMOID_GRAD, x, slope)
    with mpmath.workdps(50):
        exact = [exact_sigmoid(v) for v in x]
        np.testing.assert_allclose(value, np.array([float(s) for s in exact]), rtol=ulps)
        np.testing.assert_allclose(
            slope, np.array([float(s * (1 - s)) for s in exact]), rtol=2 * ulps
        )


@pytest.mark.parametrize("how", maps())
@settings(max_examples=25)
@given(x=arrays())
def test_relu_and_its_derivative(how, x):
    value, slope = np.empty_like(x), np.empty_like(x)
    maps()[how](activations.RELU, x, value)
    maps()[how](activations.RELU_GRAD, x, slope)
    np.testing.assert_array_equal(value, np.maximum(x, 0))
    np.testing.assert_array_equal(slope, (x > 0).astype(x.dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_special_values(dtype):
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e5, -1e5], dtype)
    out = np.empty_like(x)
    activations.activate(activations.SIGMOID, x, out, 0, 1)
    np.testing.assert_array_equal(out, np.array([np.nan, 1, 0, 0.5, 0.5, 1, 0], dtype))
    activations.activate(activations.SIGMOID_GRAD, x, out, 0, 1)
    np.testing.assert_array_equal(out, np.array([np.nan, 0, 0, 0.25, 0.25, 0, 0], dtype))
    activations.activate(activations.RELU, x, out, 0, 1)
    np.testing.assert_array_equal(out, np.array([np.nan, np.inf, 0, 0, 0, 1e5, 0], dtype))


@settings(max_examples=25)
@given(x=arrays(), seed=st.integers(0, 2**32 - 1))
def test_layers_backward(x, seed):
    dout = np.random.default_rng(seed).standard_normal(x.size).astype(x.dtype)
    dx, mask = np.empty_like(x), x <= 0
    activations.relu_backward(dout, mask, dx)
    np.testing.assert_array_equal(dx, np.where(mask, 0, dout))
    y = np.abs(np.sin(x))
    activations.sigmoid_backward(dout, y, dx)
    np.testing.assert_allclose(dx, dout * (1 - y) * y, rtol=4 * np.finfo(x.dtype).eps)
