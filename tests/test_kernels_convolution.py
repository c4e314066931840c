"""Convolution with its pool against NumPy, small enough for kernels that are not compiled."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fastgrad.nn import convolution


def test_convolution_relu_and_pool():
    rng = np.random.default_rng(3)
    x, W, b = rng.standard_normal((2, 2, 5, 5)), rng.standard_normal((3, 2, 2, 2)), np.ones(3)
    seen = sliding_window_view(x, (2, 2), axis=(2, 3))
    outputs = np.maximum(np.einsum("ncpqij,fcij->nfpq", seen, W) + 1, 0)
    pools = outputs.reshape(2, 3, 2, 2, 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(2, 3, 2, 2, 4)
    out, arg_max = convolution.forward(x, W, b, 1, 0, True, np.array([2, 2, 2]))
    np.testing.assert_allclose(out, pools.max(-1), rtol=1e-13)

    dout = rng.standard_normal(out.shape)
    dpools = dout[..., None] * (np.arange(4) == pools.argmax(-1)[..., None]) * (pools > 0)
    doutputs = dpools.reshape(2, 3, 2, 2, 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(outputs.shape)
    dx, dW, db = convolution.backward(dout, x, W, 1, 0, True, out, arg_max)
    np.testing.assert_allclose(dW, np.einsum("ncpqij,nfpq->fcij", seen, doutputs), atol=1e-13)
    np.testing.assert_allclose(db, doutputs.sum((0, 2, 3)), atol=1e-13)
    want = np.zeros_like(x)
    for i, j in np.ndindex(2, 2):
        want[:, :, i : i + 4, j : j + 4] += np.einsum("nfpq,fc->ncpq", doutputs, W[:, :, i, j])
    np.testing.assert_allclose(dx, want, atol=1e-13)
