"""The affine map of samples most of whose entries are zero, such as MNIST's, read as they are.

Four of five pixels are zero and add nothing; the weights are taken to be finite. Samples may be of
another dtype than the weights: an entry is converted where it is used.
"""

from __future__ import annotations

from fastgrad.runtime.compile import helper
from fastgrad.runtime.programs import chunk_range

#: The fraction of non-zero entries below which this kernel beats the dense product.
SPARSE_BELOW = 0.3


@helper
def sparse_affine_forward(x, W, b, out, chunk, chunks):
    """Compute ``out = x @ W + b`` for a chunk of the samples.

    Parameters
    ----------
    x : ndarray, shape (N, D)
    W : ndarray, shape (D, H)
    b : ndarray, shape (H,)
    out : ndarray of the dtype of W and b, shape (N, H)
        Out.
    chunk, chunks : int
    """
    begin, end = chunk_range(x.shape[0], chunk, chunks)
    for n in range(begin, end):
        for j in range(b.size):
            out[n, j] = b[j]
        for i in range(x.shape[1]):
            if x[n, i] != 0:
                factor = W.dtype.type(x[n, i])
                for j in range(b.size):
                    out[n, j] += factor * W[i, j]
