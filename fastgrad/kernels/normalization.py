"""Batch normalisation: each unit's inputs over a batch, shifted and scaled to mean 0, variance 1.

S. Ioffe and C. Szegedy (2015), arXiv:1502.03167. Loops run over samples first, so that the inner
ones are contiguous and vectorise.
"""

from __future__ import annotations

from fastgrad.runtime.compile import kernel


@kernel
def batch_moments(x, mean, variance):
    """Compute the mean and the (biased) variance of each column.

    Parameters
    ----------
    x : ndarray, shape (N, D)
    mean, variance : ndarray of x's dtype, shape (D,)
        Out.
    """
    n_samples = x.dtype.type(x.shape[0])
    mean[:] = 0
    for n in range(x.shape[0]):
        for j in range(x.shape[1]):
            mean[j] += x[n, j]
    mean /= n_samples
    variance[:] = 0
    for n in range(x.shape[0]):
        for j in range(x.shape[1]):
            deviation = x[n, j] - mean[j]
            variance[j] += deviation * deviation
    variance /= n_samples


@kernel
def normalize(x, gamma, beta, mean, std, xn, out):
    """Compute xn = (x - mean) / std and out = gamma xn + beta.

    Parameters
    ----------
    x : ndarray, shape (N, D)
    gamma, beta, mean, std : ndarray of x's dtype, shape (D,)
    xn, out : ndarray of x's dtype, shape (N, D)
        Out.
    """
    for n in range(x.shape[0]):
        for j in range(x.shape[1]):
            xn[n, j] = (x[n, j] - mean[j]) / std[j]
            out[n, j] = gamma[j] * xn[n, j] + beta[j]


@kernel
def normalize_backward(dout, xn, gamma, std, of_batch, dx, dgamma, dbeta):
    """Compute the gradients of `normalize`.

    Parameters
    ----------
    dout : ndarray, shape (N, D)
        Gradient of the loss with respect to out.
    xn : ndarray, shape (N, D)
    gamma, std : ndarray, shape (D,)
    of_batch : bool
        Whether mean and std are those of this batch, and so depend on x: then
        dx = gamma / std (dout - dbeta / N - xn dgamma / N), else dx = gamma / std dout.
    dx : ndarray, shape (N, D)
        Out.
    dgamma, dbeta : ndarray, shape (D,)
        Out: sums of dout xn and of dout over samples.
    """
    dgamma[:] = 0
    dbeta[:] = 0
    for n in range(dout.shape[0]):
        for j in range(dout.shape[1]):
            dgamma[j] += dout[n, j] * xn[n, j]
            dbeta[j] += dout[n, j]
    weight = dout.dtype.type(1.0 / dout.shape[0] if of_batch else 0.0)
    for n in range(dout.shape[0]):
        for j in range(dout.shape[1]):
            through = dout[n, j] - weight * (dbeta[j] + xn[n, j] * dgamma[j])
            dx[n, j] = gamma[j] / std[j] * through
