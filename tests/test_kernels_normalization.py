"""The kernels of batch normalisation against NumPy."""

import numpy as np
import pytest

from fastgrad.kernels import normalization


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (7, 3), (20, 33)])
@pytest.mark.parametrize("of_batch", [False, True])
def test_normalization(dtype, shape, of_batch):
    rng = np.random.default_rng(0)
    x, dout = rng.standard_normal((2, *shape)).astype(dtype)
    gamma, beta, mean, variance, dgamma, dbeta = rng.standard_normal((6, shape[1])).astype(dtype)
    precision = (
        {"rtol": 1e-4, "atol": 1e-4} if dtype is np.float32 else {"rtol": 1e-11, "atol": 1e-13}
    )
    normalization.batch_moments(x, mean, variance)
    np.testing.assert_allclose(mean, x.mean(axis=0), **precision)
    np.testing.assert_allclose(variance, x.var(axis=0), **precision)
    std = np.sqrt(variance + dtype(1e-2))
    xn, out, dx = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    normalization.normalize(x, gamma, beta, mean, std, xn, out)
    np.testing.assert_allclose(xn, (x - mean) / std, **precision)
    np.testing.assert_allclose(out, gamma * (x - mean) / std + beta, **precision)
    normalization.normalize_backward(dout, xn, gamma, std, of_batch, dx, dgamma, dbeta)
    np.testing.assert_allclose(dgamma, (dout * xn).sum(axis=0), **precision)
    np.testing.assert_allclose(dbeta, dout.sum(axis=0), **precision)
    through = dout - of_batch * (dbeta + xn * dgamma) / len(x)
    np.testing.assert_allclose(dx, gamma / std * through, **precision)
