"""The affine kernels against NumPy's matrix product."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import from_python

from fastgrad.kernels import affine
from fastgrad.runtime.programs import run


def ways(kernel):
    """Return ways to run a kernel, whose results are its last arguments."""
    return {
        "serial": lambda *arrays: kernel(*arrays, 0, 1),
        "parallel": lambda *arrays: run(kernel, 3, *arrays),
    }


def forward_passes():
    return ways(affine.affine_forward)


def backward_passes():
    return ways(affine.affine_backward)


def tolerances(dtype, terms):
    return {"rtol": 0, "atol": (1e-14 if dtype == "d" else 5e-6) * (1 + terms)}


SHAPES = {
    "n": st.integers(0, 11),
    "d": st.integers(0, 70),
    "h": st.integers(0, 70),
    "seed": st.integers(0, 2**32 - 1),
    "dtype": st.sampled_from("fd"),
}


@pytest.mark.parametrize("how", forward_passes())
@settings(max_examples=40)
@given(**SHAPES)
@example(n=5, d=3, h=16, seed=0, dtype="d")
@example(n=4, d=3, h=32, seed=0, dtype="d")
@example(n=1, d=1, h=1, seed=0, dtype="f")
@example(n=5, d=64, h=18, seed=0, dtype="f")
@example(n=7, d=70, h=9, seed=0, dtype="d")
@example(n=13, d=230, h=50, seed=0, dtype="f")  # several blocks of terms
@example(n=14, d=113, h=30, seed=0, dtype="d")
@example(n=9, d=130, h=69, seed=0, dtype="f")  # of two lengths, by the length of W's rows
def test_affine_forward(how, n, d, h, seed, dtype):
    rng = np.random.default_rng(seed)
    x, W, b = (rng.standard_normal(shape).astype(dtype) for shape in ((n, d), (d, h), (h,)))
    out = np.full((n, h), np.nan, dtype)
    forward_passes()[how](x, W, b, out)
    np.testing.assert_allclose(out, x @ W + b, **tolerances(dtype, d))


@pytest.mark.parametrize("how", backward_passes())
@settings(max_examples=40)
@given(**SHAPES)
@example(n=5, d=32, h=16, seed=0, dtype="d")
@example(n=1, d=1, h=1, seed=0, dtype="f")
@example(n=230, d=20, h=50, seed=0, dtype="f")  # several blocks of terms
@example(n=113, d=31, h=30, seed=0, dtype="d")
@example(n=70, d=130, h=18, seed=0, dtype="f")  # pixels enough for three threads
@example(n=226, d=101, h=115, seed=0, dtype="d")
def test_affine_backward(how, n, d, h, seed, dtype):
    rng = np.random.default_rng(seed)
    dout, x, W = (rng.standard_normal(shape).astype(dtype) for shape in ((n, h), (n, d), (d, h)))
    dx, dW, db = (np.full(shape, np.nan, dtype) for shape in ((n, d), (d, h), (h,)))
    backward_passes()[how](dout, x, W, dx, dW, db)
    np.testing.assert_allclose(dx, dout @ W.T, **tolerances(dtype, h))
    np.testing.assert_allclose(dW, x.T @ dout, **tolerances(dtype, n))
    np.testing.assert_allclose(db, dout.sum(axis=0), **tolerances(dtype, n))


@pytest.mark.parametrize("how", forward_passes())
def test_writes_nothing_beside_the_result(how):
    frame = np.zeros(7 * 50 + 128)
    out = frame[64 : 64 + 7 * 50].reshape(7, 50)
    forward_passes()[how](np.ones((7, 3)), np.ones((3, 50)), np.ones(50), out)
    assert np.all(out == 4)
    assert not frame[:64].any()
    assert not frame[-64:].any()


def test_nan_stays_in_its_row():
    x = np.ones((6, 40))
    x[3, 7] = np.nan
    out = np.empty((6, 50))
    forward_passes()["serial"](x, np.ones((40, 50)), np.zeros(50), out)
    assert np.isnan(out[3]).all()
    assert np.isfinite(np.delete(out, 3, axis=0)).all()


@pytest.mark.parametrize("dtype", ["f", "d"])
@pytest.mark.parametrize("kind", ["B", "f", "d"])
def test_left_factors_of_every_dtype_and_rows_that_are_longer(kind, dtype):
    rng = np.random.default_rng(0)
    x = (9 * rng.random((7, 90 + 3))).astype(kind)
    W, out = rng.standard_normal((90, 21)).astype(dtype), np.full((7, 24), np.nan, dtype)
    b, dout = rng.standard_normal(18).astype(dtype), rng.standard_normal((7, 21)).astype(dtype)
    from_python(affine.affine_rows)(x, W, b, out, 1, 6)
    want = x[1:6, :90] @ W[:, :18].astype("d") + b
    np.testing.assert_allclose(out[1:6, :18], want, **tolerances(dtype, 900))
    out[1:6, :18] = np.nan
    assert np.isnan(out).all()
    dW, db = np.full((93, 20), np.nan, dtype), np.empty(18, dtype)
    from_python(affine.weight_rows)(x, dout, 18, dW, 2, 93)
    from_python(affine.sum_rows)(dout, db)
    want = x.T[2:] @ dout[:, :18].astype("d")
    np.testing.assert_allclose(dW[2:, :18], want, **tolerances(dtype, 90))
    np.testing.assert_allclose(db, dout[:, :18].sum(axis=0), **tolerances(dtype, 7))
    dW[2:, :18] = np.nan
    assert np.isnan(dW).all()
