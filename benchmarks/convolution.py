"""Measure convolutional networks against their alternatives: ``python benchmarks/convolution.py``.

The gradient of the book's ``SimpleConvNet`` and ``DeepConvNet`` on 100 images of MNIST: in NumPy as
the book has it and with fastgrad, and the former in PyTorch (eager) and JAX (jit), in turn and from
the same parameters. A gradient that differs from the book's is an error. PyTorch and JAX are named
and skipped where they are not installed. Exits with 1 if a figure misses its goal.
"""

# ruff: noqa: NPY002 - the networks draw from NumPy's global generator, as the book has it

import sys

import numpy as np

from fastgrad import Affine, Convolution, Dropout, Relu, load_mnist
from fastgrad.book import DeepConvNet, SimpleConvNet

if __package__:  # imported as a part of the folder, by asv
    from . import measuring, peers, reports, textbook
else:
    import measuring
    import peers
    import reports
    import textbook

BATCH = 100
SIMPLE_GOAL, DEEP_GOAL, PEERS_GOAL = 8.0, 6.0, 0.8
#: Largest difference between gradients, as a part of the largest entry.
TOLERANCE = {"float64": 1e-5, "float32": 1e-3}


def book_gradient(net, x, t):
    """Return the gradient of a network by the book's layers, in NumPy."""
    backwards, grads = [], {}
    layers = net.layers
    for layer in layers.values() if isinstance(layers, dict) else layers:
        if isinstance(layer, Convolution):
            W, b, pad = layer.W, layer.b, layer.pad
            images = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
            col, filters = textbook.im2col(images, *W.shape[2:]), W.reshape(len(W), -1).T
            sides = [images.shape[2 + axis] - W.shape[2 + axis] + 1 for axis in (0, 1)]
            x = (col @ filters + b).reshape(len(x), *sides, len(W)).transpose(0, 3, 1, 2)
            backwards.append((convolution_backward, (images.shape, col, filters, W.shape, pad)))
        elif isinstance(layer, Affine):
            rows, shape = x.reshape(len(x), -1), x.shape
            x = rows @ layer.W + layer.b
            backwards.append((affine_backward, (rows, layer.W, shape)))
        elif isinstance(layer, Relu):
            mask = x <= 0
            x = np.where(mask, 0, x)
            backwards.append((mask_backward, (~mask,)))
        elif isinstance(layer, Dropout):
            kept = np.random.rand(*x.shape) > layer.dropout_ratio
            x = x * kept
            backwards.append((mask_backward, (kept,)))
        else:
            shape = x.shape
            windows = x.reshape(*shape[:2], shape[2] // 2, 2, shape[3] // 2, 2)
            windows = windows.transpose(0, 1, 2, 4, 3, 5).reshape(-1, 4)
            arg_max = windows.argmax(axis=1)
            x = windows.max(axis=1).reshape(*shape[:2], shape[2] // 2, shape[3] // 2)
            backwards.append((pool_backward, (shape, arg_max)))
    dout = textbook.softmax(x)
    dout[np.arange(len(t)), t] -= 1
    dout /= len(t)
    number = len(net.params) // 2
    for backward, kept in reversed(backwards):
        dout, *by_params = backward(dout, *kept)
        if by_params:
            grads[f"W{number}"], grads[f"b{number}"] = by_params
            number -= 1
    return grads


def convolution_backward(dout, shape, col, filters, W_shape, pad):
    dout = dout.transpose(0, 2, 3, 1).reshape(-1, W_shape[0])
    dx = textbook.col2im(dout @ filters.T, shape, *W_shape[2:])
    dx = dx[:, :, pad : shape[2] - pad, pad : shape[3] - pad]
    return dx, (col.T @ dout).T.reshape(W_shape), dout.sum(axis=0)


def affine_backward(dout, rows, W, shape):
    return (dout @ W.T).reshape(shape), rows.T @ dout, dout.sum(axis=0)


def mask_backward(dout, kept):
    return (dout * kept,)


def pool_backward(dout, shape, arg_max):
    dwindows = np.zeros((dout.size, 4), dout.dtype)
    dwindows[np.arange(dout.size), arg_max] = dout.reshape(-1)
    half = shape[2] // 2, shape[3] // 2
    dwindows = dwindows.reshape(*shape[:2], *half, 2, 2).transpose(0, 1, 2, 4, 3, 5)
    return (dwindows.reshape(shape),)


def torch_gradient(net, x, t):
    """Return a function that computes the gradient of a `SimpleConvNet` with PyTorch."""
    torch = peers.import_torch()
    functional = torch.nn.functional
    params = {k: torch.from_numpy(v.copy()).requires_grad_() for k, v in net.params.items()}
    x, t = torch.from_numpy(x), torch.from_numpy(t.astype(np.int64))

    def gradient():
        W1, b1, W2, b2, W3, b3 = params.values()
        pooled = functional.max_pool2d(torch.relu(functional.conv2d(x, W1, b1)), 2)
        hidden = torch.relu(torch.addmm(b2, pooled.flatten(1), W2))
        loss = functional.cross_entropy(torch.addmm(b3, hidden, W3), t)
        return dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))

    return gradient


def jax_gradient(net, x, t):
    """Return a function that computes the gradient of a `SimpleConvNet` with JAX."""
    jax = peers.import_jax()
    jnp = jax.numpy

    def loss(params, x, t):
        maps = jax.lax.conv_general_dilated(x, params["W1"], (1, 1), "VALID")
        maps = jax.nn.relu(maps + params["b1"][:, None, None])
        n, channels, height, width = maps.shape
        pooled = maps.reshape(n, channels, height // 2, 2, width // 2, 2).max((3, 5))
        hidden = jax.nn.relu(pooled.reshape(n, -1) @ params["W2"] + params["b2"])
        logs = jax.nn.log_softmax(hidden @ params["W3"] + params["b3"])
        return -jnp.take_along_axis(logs, t[:, None], axis=1).mean()

    compiled = jax.jit(jax.grad(loss))
    params, x, t = jax.tree.map(jnp.asarray, (net.params, x, t.astype(np.int64)))
    return lambda: jax.block_until_ready(compiled(params, x, t))


def check(what, got, expected, dtype):
    """Raise an AssertionError if gradients differ."""
    for name, array in expected.items():
        error = np.abs(np.asarray(got[name]) - array).max() / np.abs(array).max()
        assert error < TOLERANCE[dtype], f"{what}: {name} differs by {error:.1e}"


def compare(goals, kind, dtype, x, t, others, goal):
    """Time a network's gradient with fastgrad, and others in turn, each against its goal."""
    np.random.seed(0)
    net = kind()
    for name, array in net.params.items():
        net.params[name] = array.astype(dtype)
    x = x.astype(dtype)
    np.random.seed(1)
    expected = book_gradient(net, x, t)
    np.random.seed(1)
    check("fastgrad", net.gradient(x, t), expected, dtype)
    for title, make in others.items():
        if title in ("torch", "jax") and not reports.is_installed(title):
            print(f"{title} is not installed")
            continue
        gradient = make(net, x, t)
        np.random.seed(1)
        check(title, {k: np.asarray(v) for k, v in gradient().items()}, expected, dtype)
        what = f"{kind.__name__}, gradient of {len(x)} images, {dtype}, {title}"
        goals.speed_up(what, measuring.calls(net.gradient, x, t), measuring.calls(gradient), goal)


def main():
    settings = reports.options(__doc__, rounds=5).parse_args()
    measuring.limit_threads(settings.threads)
    reports.machine()
    goals = reports.Goals(settings)
    (x, t), _ = load_mnist(flatten=False)
    x, t = x[:BATCH], t[:BATCH]
    book = {"NumPy": lambda net, x, t: lambda: book_gradient(net, x, t)}
    compare(goals, SimpleConvNet, "float64", x, t, book, SIMPLE_GOAL)
    compare(goals, DeepConvNet, "float64", x, t, book, DEEP_GOAL)
    both = {"torch": torch_gradient, "jax": jax_gradient}
    compare(goals, SimpleConvNet, "float32", x, t, both, PEERS_GOAL)
    return goals.finish()


if __name__ == "__main__":
    sys.exit(main())
