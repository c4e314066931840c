"""The affine kernels against NumPy's matrix product."""

import functools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastgrad.kernels import affine


def python_of(kernel):
    return getattr(kernel, "py_func", kernel)


def forward_passes():
    """Return ways to compute the affine map, into an array that is the last argument."""

    def serial(x, *arrays):
        affine.affine_forward(affine.forward_body(x.dtype), x, *arrays)

    def parallel(x, *arrays):
        affine.affine_forward_parallel(affine.forward_body(x.dtype), x, *arrays, 3)

    return ways(serial, parallel, affine.forward_share)


def backward_passes():
    def serial(dout, *arrays):
        affine.affine_backward(affine.backward_body(dout.dtype), dout, *arrays)

    def parallel(dout, *arrays):
        affine.affine_backward_parallel(affine.backward_body(dout.dtype), dout, *arrays, 3)

    return ways(serial, parallel, affine.backward_share)


def ways(serial, parallel, body):
    def in_python(shares, *arrays):
        for share in range(shares):
            python_of(body)(*arrays, share, shares)

    return {
        "serial": serial,
        "serial, in Python": functools.partial(in_python, 1),
        "parallel": parallel,
        "parallel, in Python": functools.partial(in_python, 3),
    }


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
@settings(deadline=None, max_examples=40)
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
@settings(deadline=None, max_examples=40)
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


@pytest.mark.parametrize("size", [0, 1, 6, 7, 20, 100, 784])
@pytest.mark.parametrize("unit", [1, 4, 6, 16, 24])
@pytest.mark.parametrize("shares", [1, 2, 3])
def test_shares_are_neighbours_of_whole_units(size, unit, shares):
    part = python_of(affine.part)
    ends = [part(size, unit, share, shares) for share in range(shares)]
    assert [begin for begin, _ in ends] == [0, *(end for _, end in ends[:-1])]
    assert ends[-1][1] == size
    assert all(begin % unit == 0 or begin == end == size for begin, end in ends)
    lengths = [-(-(end - begin) // unit) for begin, end in ends]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)
