"""What benchmarks compare with: NumPy code, as a careful reader of the book would write it.

The two-layer network with matrix products through NumPy's BLAS, no temporary that can be written
over, and no compiled code; and the loop over the variables of a function. Formulas: Deep Learning
from Scratch, sections 3.5 (softmax), 4.2 (loss), 4.4 (numerical gradient) and 5.6
(backpropagation).
"""

import numpy as np

DELTA = 1e-7  #: keeps the logarithm of the loss finite (book, section 4.2)


def initial_params(input_size, hidden_size, output_size, dtype, *, std=0.03, seed=0):
    """Return new parameters: normal weights, zero biases."""
    rng = np.random.default_rng(seed)
    return {
        "W1": (std * rng.standard_normal((input_size, hidden_size))).astype(dtype),
        "b1": np.zeros(hidden_size, dtype),
        "W2": (std * rng.standard_normal((hidden_size, output_size))).astype(dtype),
        "b2": np.zeros(output_size, dtype),
    }


def sigmoid(a):
    """Return 1 / (1 + exp(-a)), written over `a`."""
    np.negative(a, out=a)
    np.exp(a, out=a)
    a += 1
    return np.reciprocal(a, out=a)


def softmax(a):
    """Return the softmax of each row, written over `a`."""
    a -= a.max(axis=1, keepdims=True)
    np.exp(a, out=a)
    a /= a.sum(axis=1, keepdims=True)
    return a


def forward(params, x):
    """Return the hidden units (N, H) and the class probabilities (N, C)."""
    a = x @ params["W1"]
    a += params["b1"]
    z = sigmoid(a)
    a = z @ params["W2"]
    a += params["b2"]
    return z, softmax(a)


def cross_entropy(y, t):
    """Return the mean cross entropy of probabilities `y` for labels `t`."""
    return -float(np.log(y[np.arange(len(t)), t] + DELTA).mean())


def loss(params, x, t):
    """Return the loss of the network."""
    return cross_entropy(forward(params, x)[1], t)


def gradient(params, x, t, *, exact=False):
    """Return the loss and its gradient by backpropagation.

    The book puts (y - t) / N at the output, which leaves DELTA out; `exact` does not.
    """
    z, y = forward(params, x)
    value = cross_entropy(y, t)
    rows = np.arange(len(t))
    right = y[rows, t]
    y[rows, t] -= 1
    y /= len(t)
    if exact:
        y *= (right / (right + DELTA))[:, None]
    da = y @ params["W2"].T
    da *= z
    da *= 1 - z
    return value, {"W1": x.T @ da, "b1": da.sum(axis=0), "W2": z.T @ y, "b2": y.sum(axis=0)}


def training_step(params, x, t, learning_rate, *, exact=False):
    """Take one step of gradient descent in place; return the loss before it."""
    value, grads = gradient(params, x, t, exact=exact)
    for key, grad in grads.items():
        grad *= learning_rate
        params[key] -= grad
    return value


def random_positions(params, count, *, seed=0):
    """Return `count` different parameters as pairs (name, flat index).

    Drawn over all parameters alike, so that each array has its share.
    """
    sizes = [array.size for array in params.values()]
    ends = np.cumsum(sizes)
    chosen = np.random.default_rng(seed).choice(ends[-1], min(count, ends[-1]), replace=False)
    which = np.searchsorted(ends, chosen, side="right")
    names = list(params)
    return [(names[k], int(i - ends[k] + sizes[k])) for k, i in zip(which, chosen, strict=True)]


def numerical_gradient(params, x, t, positions, h=1e-4, *, evaluate=loss):
    """Return the central differences of the loss at some parameters, one after the other.

    The book's loop: each parameter is nudged up and down in place and the whole network is
    evaluated twice. Every parameter costs the same, so a sample of them tells what all would cost.
    ``evaluate`` is the loss of another network.
    """
    result = np.empty(len(positions))
    for n, (name, i) in enumerate(positions):
        flat = params[name].reshape(-1)
        kept = flat[i]
        flat[i] = kept + h
        above = evaluate(params, x, t)
        flat[i] = kept - h
        below = evaluate(params, x, t)
        flat[i] = kept
        result[n] = (above - below) / (2 * h)
    return result


def im2col(x, height, width):
    """Return what a filter meets, a row for each position: the book's loop (section 7.4.3)."""
    N, C, H, W = x.shape
    rows, columns = H - height + 1, W - width + 1
    col = np.empty((N, C, height, width, rows, columns), x.dtype)
    for i in range(height):
        for j in range(width):
            col[:, :, i, j] = x[:, :, i : i + rows, j : j + columns]
    return col.transpose(0, 4, 5, 1, 2, 3).reshape(N * rows * columns, -1)


def col2im(col, shape, height, width):
    """Return the sums of such rows, each number where it was taken from."""
    N, C, H, W = shape
    rows, columns = H - height + 1, W - width + 1
    col = col.reshape(N, rows, columns, C, height, width).transpose(0, 3, 4, 5, 1, 2)
    x = np.zeros(shape, col.dtype)
    for i in range(height):
        for j in range(width):
            x[:, :, i : i + rows, j : j + columns] += col[:, :, i, j]
    return x


def convolution(x, W, b, dout):
    """Return a convolution and its gradients for x, W and b, as the book's layer has them."""
    col, filters = im2col(x, *W.shape[2:]), W.reshape(len(W), -1).T
    out = (col @ filters + b).reshape(len(x), *dout.shape[2:], len(W)).transpose(0, 3, 1, 2)
    dout = dout.transpose(0, 2, 3, 1).reshape(-1, len(W))
    dx = col2im(dout @ filters.T, x.shape, *W.shape[2:])
    return out, dx, (col.T @ dout).T.reshape(W.shape), dout.sum(axis=0)


def central_differences(f, x, h=1e-4):
    """Return the gradient of a function of an array, by the book's loop over its elements."""
    gradient = np.zeros_like(x)
    for i in range(x.size):
        kept = x[i]
        x[i] = kept + h
        upper = f(x)
        x[i] = kept - h
        lower = f(x)
        gradient[i] = (upper - lower) / (2 * h)
        x[i] = kept
    return gradient


def rosenbrock(x):
    """Return H. H. Rosenbrock's function (The Computer Journal 3, 1960), of n variables."""
    return np.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


def rosenbrock_loop(x):
    """Return the same by a loop, to be compiled."""
    total = 0.0
    for i in range(x.size - 1):
        total += 100.0 * (x[i + 1] - x[i] * x[i]) ** 2 + (1.0 - x[i]) ** 2
    return total
