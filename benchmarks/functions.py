"""Measure functions, layers and optimizers against NumPy: ``python benchmarks/functions.py``.

Each pair works on a batch of 100 with the shapes of a 784-50-10 network. The NumPy side is what the
book writes, or, where the book's code computes something else (soft targets, the small number under
the logarithm in the gradient), the same formula in NumPy. Prints how many times as fast each is
beside its goal; exits with 1 if one misses it.
"""

import sys

import numpy as np

from fastgrad.nn import functions, layers, optimizers

if __package__:  # imported as a part of the folder, by asv
    from . import measuring, reports
else:
    import measuring
    import reports

GOAL = 0.8
#: Of the first layer's products, which take long enough that a call's own time is lost in them.
PRODUCT_GOAL = 0.95


def plain_softmax(a):
    a = a - np.max(a, axis=-1, keepdims=True)
    e = np.exp(a)
    return e / np.sum(e, axis=-1, keepdims=True)


def plain_cross_entropy(y, t):
    if t.size == y.size:
        t = t.argmax(axis=1)
    return -np.sum(np.log(y[np.arange(y.shape[0]), t] + 1e-7)) / y.shape[0]


def plain_relu_grad(x):
    gradient = np.zeros_like(x)
    gradient[x >= 0] = 1
    return gradient


def plain_label_gradient(y, t):
    da = y.copy()
    da[np.arange(y.shape[0]), t] -= 1
    return da / y.shape[0]


def plain_target_gradient(y, t):
    q = y / (y + 1e-7)
    tq = t * q
    return (y * tq.sum(axis=1, keepdims=True) - tq) / y.shape[0]


def plain_sigmoid(x):
    return 1 / (1 + np.exp(-x))


def plain_relu_forward(x):
    mask = x <= 0
    out = x.copy()
    out[mask] = 0
    return out


def plain_relu_backward(dout, mask):
    dout = dout.copy()
    dout[mask] = 0
    return dout


def plain_normalization(x, gamma, beta):
    mean = x.mean(axis=0)
    xc = x - mean
    std = np.sqrt(np.mean(xc**2, axis=0) + 1e-6)
    return gamma * (xc / std) + beta, xc, std


def plain_normalization_backward(dout, xc, std, gamma):
    dbeta, dgamma = dout.sum(axis=0), np.sum(xc / std * dout, axis=0)
    dxc = gamma * dout / std
    dstd = -np.sum(gamma * dout * xc / (std * std), axis=0)
    dxc += 2.0 / len(dout) * xc * (0.5 * dstd / std)
    return dxc - np.sum(dxc, axis=0) / len(dout), dgamma, dbeta


def plain_step(name, p, g, a, b, lr=1e-9):
    if name == "SGD":
        p -= lr * g
    elif name == "Momentum":
        a[:] = 0.9 * a - lr * g
        p += a
    elif name == "Nesterov":
        p += 0.9 * 0.9 * a
        p -= (1 + 0.9) * lr * g
        a *= 0.9
        a -= lr * g
    elif name in ("AdaGrad", "RMSprop"):
        if name == "RMSprop":
            a *= 0.99
        a += (0.01 if name == "RMSprop" else 1) * g * g
        p -= lr * g / (np.sqrt(a) + 1e-7)
    else:
        a += (1 - 0.9) * (g - a)
        b += (1 - 0.999) * (g**2 - b)
        p -= lr * a / (np.sqrt(b) + 1e-7)


def function_pairs(dtype):
    """Return functions against the book's expressions."""
    rng = np.random.default_rng(0)
    h, a = (rng.standard_normal((100, n)).astype(dtype) for n in (50, 10))
    t = rng.integers(0, 10, 100)
    hot, soft = np.eye(10, dtype=dtype)[t], rng.random((100, 10)).astype(dtype)
    y = plain_softmax(a)
    f = functions
    pairs = {
        "sigmoid": (lambda: f.sigmoid(h), lambda: plain_sigmoid(h)),
        "sigmoid_grad": (
            lambda: f.sigmoid_grad(h), lambda: (1 - plain_sigmoid(h)) * plain_sigmoid(h)),
        "relu": (lambda: f.relu(h), lambda: np.maximum(0, h)),
        "relu_grad": (lambda: f.relu_grad(h), lambda: plain_relu_grad(h)),
        "step_function": (lambda: f.step_function(h), lambda: np.array(h > 0, dtype=int)),
        "softmax": (lambda: f.softmax(a), lambda: plain_softmax(a)),
        "cross_entropy_error, labels": (
            lambda: f.cross_entropy_error(y, t), lambda: plain_cross_entropy(y, t)),
        "cross_entropy_error, one-hot": (
            lambda: f.cross_entropy_error(y, hot), lambda: plain_cross_entropy(y, hot)),
        "sum_squared_error": (
            lambda: f.sum_squared_error(y, hot), lambda: 0.5 * np.sum((y - hot) ** 2)),
        "softmax_cross_entropy, labels": (
            lambda: f.softmax_cross_entropy(a, t),
            lambda: plain_cross_entropy(plain_softmax(a), t)),
        "softmax_cross_entropy_backward, labels": (
            lambda: f.softmax_cross_entropy_backward(y, t), lambda: plain_label_gradient(y, t)),
        "softmax_cross_entropy_backward, soft": (
            lambda: f.softmax_cross_entropy_backward(y, soft),
            lambda: plain_target_gradient(y, soft)),
        "softmax_cross_entropy_backward, one-hot, against (y - t) / N": (
            lambda: f.softmax_cross_entropy_backward(y, hot), lambda: (y - hot) / 100),
    }  # fmt: skip
    for name, n_inputs, n_outputs in (("first layer", 784, 50), ("second layer", 50, 10)):
        x, W, dout = (
            rng.standard_normal(shape).astype(dtype)
            for shape in ((100, n_inputs), (n_inputs, n_outputs), (100, n_outputs))
        )
        b = np.zeros(n_outputs, dtype)
        pairs[f"affine_forward, {name}"] = (
            lambda x=x, W=W, b=b: f.affine_forward(x, W, b),
            lambda x=x, W=W, b=b: x @ W + b,
        )
        pairs[f"affine_backward, {name}"] = (
            lambda x=x, W=W, dout=dout: f.affine_backward(dout, x, W),
            lambda x=x, W=W, dout=dout: (dout @ W.T, x.T @ dout, np.sum(dout, axis=0)))  # fmt: skip
    return pairs


def layer_pairs(dtype):
    """Return layers against the book's."""
    rng = np.random.default_rng(0)
    x, W, h, dout, a = (
        rng.standard_normal(shape).astype(dtype)
        for shape in ((100, 784), (784, 50), (100, 50), (100, 50), (100, 10))
    )
    b, t = np.zeros(50, dtype), rng.integers(0, 10, 100)
    hot = np.eye(10, dtype=dtype)[t]
    relu, sigmoid, affine_layer = layers.Relu(), layers.Sigmoid(), layers.Affine(W, b)
    last, last_hot = layers.SoftmaxWithLoss(), layers.SoftmaxWithLoss()
    relu.forward(h), affine_layer.forward(x), last.forward(a, t), last_hot.forward(a, hot)
    out, mask, y = sigmoid.forward(h), h <= 0, plain_softmax(a)
    gamma, beta = np.ones(50, dtype), np.zeros(50, dtype)
    normalization, dropout = layers.BatchNormalization(gamma, beta), layers.Dropout()
    normalization.forward(h), dropout.forward(h)
    _, xc, std = plain_normalization(h, gamma, beta)
    return {
        "Relu.forward": (lambda: relu.forward(h), lambda: plain_relu_forward(h)),
        "Relu.backward": (lambda: relu.backward(dout), lambda: plain_relu_backward(dout, mask)),
        "Sigmoid.forward": (lambda: sigmoid.forward(h), lambda: plain_sigmoid(h)),
        "Sigmoid.backward": (lambda: sigmoid.backward(dout), lambda: dout * (1 - out) * out),
        "Affine.forward": (lambda: affine_layer.forward(x), lambda: x @ W + b),
        "Affine.backward": (
            lambda: affine_layer.backward(dout),
            lambda: (dout @ W.T, x.T @ dout, np.sum(dout, axis=0))),
        "SoftmaxWithLoss.forward": (
            lambda: last.forward(a, t), lambda: plain_cross_entropy(plain_softmax(a), t)),
        "SoftmaxWithLoss.backward, labels": (last.backward, lambda: plain_label_gradient(y, t)),
        "SoftmaxWithLoss.backward, one-hot, against (y - t) / N": (
            last_hot.backward, lambda: (y - hot) / 100),
        "BatchNormalization.forward": (
            lambda: normalization.forward(h), lambda: plain_normalization(h, gamma, beta)),
        "BatchNormalization.backward": (
            lambda: normalization.backward(dout),
            lambda: plain_normalization_backward(dout, xc, std, gamma)),
        "Dropout.forward": (
            lambda: dropout.forward(h),
            lambda: h * (np.random.rand(*h.shape) > 0.5)),  # noqa: NPY002
        "Dropout.backward": (lambda: dropout.backward(dout), lambda: dout * dropout.mask),
    }  # fmt: skip


def optimizer_pairs(dtype):
    """Return one step of each optimizer on a 784-50-10 network against the book's."""
    rng = np.random.default_rng(0)
    shapes = {"W1": (784, 50), "b1": 50, "W2": (50, 10), "b2": 10}
    pairs = {}
    for name in ("SGD", "Momentum", "Nesterov", "AdaGrad", "RMSprop", "Adam"):
        params, mine, grads, first, second = (
            {key: rng.standard_normal(n).astype(dtype) ** power for key, n in shapes.items()}
            for power in (1, 1, 1, 2, 2)
        )
        # A tiny rate: the parameters stay what they are over a million steps.
        optimizer = getattr(optimizers, name)(lr=1e-9)

        def book(name=name, params=params, grads=grads, first=first, second=second):
            for key in params:
                plain_step(name, params[key], grads[key], first[key], second[key])

        pairs[f"{name}.update"] = (
            lambda optimizer=optimizer, mine=mine, grads=grads: optimizer.update(mine, grads),
            book,
        )
    return pairs


def main():
    parser = reports.options(__doc__, rounds=5)
    parser.add_argument("--only", default="", help="measure pairs with this text in their name")
    settings = parser.parse_args()
    measuring.limit_threads(settings.threads)
    reports.machine()
    goals = reports.Goals(settings)
    for dtype in (np.float32, np.float64):
        pairs = function_pairs(dtype) | layer_pairs(dtype) | optimizer_pairs(dtype)
        for name, (ours, plain) in pairs.items():
            what = f"{dtype.__name__} {name}"
            if settings.only in what:
                goal = PRODUCT_GOAL if "first layer" in name else GOAL
                goals.speed_up(what, measuring.calls(ours), measuring.calls(plain), goal)
    return goals.finish()


if __name__ == "__main__":
    sys.exit(main())
