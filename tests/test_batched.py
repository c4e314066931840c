"""Functions evaluated at all points at once, against the loop."""

import ast
import collections
import functools
import linecache
import math
import time

import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from fastgrad import (
    TwoLayerNet,
    check_backward,
    check_gradient,
    gradient_descent,
    numerical_gradient,
)
from fastgrad.book import convolutions
from fastgrad.numdiff import batched
from fastgrad.numdiff.batched_array import Batch, BatchedArray, NotCarried
from fastgrad.numdiff.reach import Reach
from fastgrad.numdiff.reading import Reading

H = 1e-4


def points_around(x, entries=None):
    entries = np.arange(x.size) if entries is None else entries
    center = x.reshape(-1)[entries]
    return entries, np.stack([center + H, center - H])


def looped(f, x, entries, points, root=None, args=()):
    """Return the values of f, one point after the other."""
    flat = x.reshape(-1)
    values = np.empty(points.shape)
    for i, entry in enumerate(entries):
        kept = flat[entry]
        for k, point in enumerate(points[:, i]):
            flat[entry] = point
            values[k, i] = f(x if root is None else root, *args)
        flat[entry] = kept
    return values


def assert_carried(f, x, root=None, args=()):
    """Compare the values at all points with those of the loop."""
    entries, points = points_around(x)
    before = x.copy()
    found = batched.evaluate(f, x if root is None else root, x, entries, points, args)
    np.testing.assert_array_equal(x, before)
    expected = looped(f, x, entries, points, root, args)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * scale)
    return found


def harmless(f, *args):
    """Stand for a reading that finds no obstacle."""
    return Reading("", stores=False, objects=Reach(f, args).objects)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


A = normal(6, 4, seed=1)
A[A < -0.3] = 0  # as the pixels of an image
OUT = np.empty((4, 3))


def softmax(a):
    e = np.exp(a - np.max(a, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def cross_entropy(y, t):
    if y.ndim == 1:
        y = y.reshape(1, y.size)
    return -np.sum(np.log(y[np.arange(len(y)), t] + 1e-7)) / len(y)


T = np.array([0, 2, 1, 1, 0, 2])


class Net:
    """Two layers, as a reader of the book types them."""

    def __init__(self, act):
        self.params = {
            "W1": normal(4, 5), "b1": normal(5, seed=3), "W2": normal(5, 3, seed=4),
            "b2": normal(3, seed=5),
        }  # fmt: skip
        self.act = act

    def loss(self, x, t):
        p = self.params
        z = self.act(np.dot(x, p["W1"]) + p["b1"])
        return cross_entropy(softmax(np.dot(z, p["W2"]) + p["b2"]), t)


def masked(a):
    out = a.copy()
    out[a <= 0] = 0
    return out


def batch_norm(a):
    centered = a - a.mean(axis=0)
    return centered / np.sqrt(np.mean(centered**2, axis=0) + 1e-6)


ACTIVATIONS = {
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "tanh": np.tanh,
    "relu": lambda a: np.maximum(0, a),
    "mask": masked,
    "where": lambda a: np.where(a > 0, a, 0.1 * a),
    "softplus": lambda a: np.log1p(np.exp(a)),
    "batch_norm": batch_norm,
    "variance": lambda a: (a - np.mean(a, 0)) / (np.std(a, axis=0) + np.var(a)),
}


class TestNetworks:
    @pytest.mark.parametrize("act", ACTIVATIONS.values(), ids=ACTIVATIONS)
    @pytest.mark.parametrize("key", ["W1", "b1", "W2", "b2"])
    def test_two_layers(self, key, act):
        net = Net(act)
        assert_carried(lambda _: net.loss(A, T), net.params[key])

    def test_one_hot_labels_and_decay(self):
        net, t = Net(np.tanh), np.eye(3)[T]

        def loss(_):
            y = softmax(np.tanh(A @ net.params["W1"]) @ net.params["W2"])
            decay = 0
            for W in net.params.values():
                decay += 0.05 * np.sum(W**2)
            return -np.sum(t * np.log(y)) / t.shape[0] + decay

        for W in net.params.values():
            assert_carried(loss, W)

    def test_inputs(self):
        net, x = Net(np.tanh), A.copy()
        assert_carried(lambda x: net.loss(x, T), x)

    def test_a_single_sample(self):
        net = Net(np.tanh)
        assert_carried(lambda _: net.loss(A[0], T[:1]), net.params["W1"])

    def test_weights_of_units_in_rows(self):
        W, V = normal(5, 4), normal(3, 5, seed=2)
        assert_carried(lambda _: cross_entropy(softmax(np.tanh(A @ W.T) @ V.T), T), W)
        assert_carried(lambda _: cross_entropy(softmax((V @ np.tanh(W @ A.T)).T), T), W)

    def test_float32(self):
        W = normal(4, 3).astype(np.float32)
        entries, points = points_around(W)
        found = batched.evaluate(lambda W: np.sum(np.tanh(A @ W)), W, W, entries, points)
        expected = looped(lambda W: np.sum(np.tanh(A @ W)), W, entries, points)
        np.testing.assert_allclose(found, expected, rtol=1e-14)


def im2col(images, size, stride=1, pad=0):
    n, channels, height, width = images.shape
    rows, columns = (height + 2 * pad - size) // stride + 1, (width + 2 * pad - size) // stride + 1
    img = np.pad(images, [(0, 0), (0, 0), (pad, pad), (pad, pad)], "constant")
    col = np.zeros((n, channels, size, size, rows, columns))
    for y in range(size):
        for x in range(size):
            col[:, :, y, x, :, :] = img[
                :, :, y : y + stride * rows : stride, x : x + stride * columns : stride
            ]
    return col.transpose(0, 4, 5, 1, 2, 3).reshape(n * rows * columns, -1), rows, columns


class Convolution:
    """The book's, which stores what its backward pass needs, a view of W among it."""

    def __init__(self, W, b, pad):
        self.W, self.b, self.pad = W, b, pad

    def forward(self, x):
        self.x = x
        self.col, rows, columns = im2col(x, self.W.shape[2], pad=self.pad)
        self.col_W = self.W.reshape(len(self.W), -1).T
        out = np.dot(self.col, self.col_W) + self.b
        return out.reshape(len(x), rows, columns, -1).transpose(0, 3, 1, 2)


class ConvNet:
    def __init__(self):
        self.images = normal(2, 2, 6, 6)
        self.conv = Convolution(normal(3, 2, 3, 3, seed=1), normal(3, seed=2), 1)
        self.W = normal(27, 3, seed=3) / 9

    def loss(self, _):
        out = self.conv.forward(self.images)
        self.mask = out <= 0
        out[self.mask] = 0
        col, rows, columns = im2col(out, 2, 2)
        col = col.reshape(-1, 4)
        self.winners = np.argmax(col, axis=1)
        out = np.max(col, axis=1).reshape(2, rows, columns, 3).transpose(0, 3, 1, 2)
        return cross_entropy(softmax(np.dot(out.reshape(2, -1), self.W)), T[:2])


class TestConvolution:
    @pytest.mark.parametrize("name", ["W", "b"])
    def test_filters(self, name):
        net = ConvNet()
        assert_carried(net.loss, getattr(net.conv, name))

    def test_images_and_what_lies_above(self):
        net = ConvNet()
        assert_carried(net.loss, net.images)
        assert_carried(net.loss, net.W)

    def test_what_is_stored_is_as_the_loop_leaves_it(self):
        net, expected = ConvNet(), ConvNet()
        numerical_gradient(net.loss, net.conv.W, batched=True)
        numerical_gradient(expected.loss, expected.conv.W, batched=False)
        for name in ("x", "col", "col_W"):
            found = getattr(net.conv, name)
            assert type(found) is np.ndarray, name
            np.testing.assert_array_equal(found, getattr(expected.conv, name))
        assert np.shares_memory(net.conv.col_W, net.conv.W)
        np.testing.assert_array_equal(net.winners, expected.winners)


class ServedConvNet:
    """A reader's own network of the layers that are served for the book's."""

    def __init__(self):
        self.images = normal(2, 2, 6, 6)
        self.conv = convolutions.Convolution(normal(3, 2, 3, 3, seed=1), normal(3, seed=2), 1, 1)
        self.pool = convolutions.Pooling(2, 2, 2)
        self.W = normal(27, 3, seed=3) / 9

    def loss(self, _):
        out = self.pool.forward(np.maximum(0, self.conv.forward(self.images)))
        return cross_entropy(softmax(np.dot(out.reshape(2, -1), self.W)), T[:2])

    def loss_by_hand(self, _):
        """Call the function within, as a layer of the reader's own does."""
        out = np.dot(convolutions.im2col(self.images, 3, 3, pad=1), self.conv.W.reshape(3, -1).T)
        patches = convolutions.im2col(out.reshape(2, 6, 6, 3).transpose(0, 3, 1, 2), 2, 2, 2)
        return np.sum(np.max(patches.reshape(-1, 4), axis=1) ** 2)


class TestServedLayers:
    @pytest.mark.parametrize("name", ["W", "b", "images", "V"])
    def test_values(self, name):
        net = ServedConvNet()
        arrays = {"W": net.conv.W, "b": net.conv.b, "images": net.images, "V": net.W}
        assert_carried(net.loss, arrays[name])
        if name in ("W", "images"):
            assert_carried(net.loss_by_hand, arrays[name])

    def test_what_they_keep_is_as_the_loop_leaves_it(self):
        net, expected = ServedConvNet(), ServedConvNet()
        found = numerical_gradient(net.loss, net.conv.W, batched=True)
        wanted = numerical_gradient(expected.loss, expected.conv.W, batched=False)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-11)
        np.testing.assert_array_equal(net.conv.x, expected.conv.x)
        np.testing.assert_array_equal(net.pool.x, expected.pool.x)
        np.testing.assert_array_equal(net.pool.arg_max, expected.pool.arg_max)

    def test_the_function_within(self):
        net = ServedConvNet()
        found = numerical_gradient(net.loss_by_hand, net.conv.W, batched=True)
        wanted = numerical_gradient(net.loss_by_hand, net.conv.W, batched=False)
        rounding = np.finfo(float).eps * net.loss_by_hand(net.conv.W) / H
        np.testing.assert_allclose(found, wanted, rtol=0, atol=8 * rounding)


class Averaging:
    """Keeps a running average, as batch normalisation does."""

    def __init__(self):
        self.W = normal(30, 40)
        self.average = np.ones(40)
        self.calls = 0.0

    def loss(self, _):
        a = A30.dot(self.W)
        mean = a.mean(axis=0)
        self.average = 0.8 * self.average + 0.2 * mean
        return np.sum((a - mean) ** 2)

    def counted_loss(self, _):
        self.calls = self.calls + 1.0
        return np.sum(A30.dot(self.W) ** 2)


A30 = normal(6, 30, seed=1)


def test_running_averages_are_as_the_loop_leaves_them():
    net, expected = Averaging(), Averaging()
    found = numerical_gradient(net.loss, net.W, batched=True)
    wanted = numerical_gradient(expected.loss, expected.W, batched=False)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-8)
    np.testing.assert_allclose(net.average, expected.average, rtol=1e-13, atol=1e-14)


def test_counters_are_left_to_the_loop():
    net = Averaging()
    with pytest.raises(ValueError, match="keeps a record in calls"):
        numerical_gradient(net.counted_loss, net.W, batched=True)
    assert net.calls == 0
    numerical_gradient(net.counted_loss, net.W)
    assert net.calls == 2 * net.W.size


def by_method(W):
    return float(np.sum(A.dot(W) ** 2))


def filled(W):
    out = np.zeros((2, 6, 3))
    out[0] = np.sin(A.dot(W))
    out[1, :, 1:] = out[0, :, :2] + 1
    return np.sum(out[:, ::2] * np.arange(3))


def into_out(W):
    h, y = np.empty((6, 3)), np.empty((6, 3))
    np.dot(A, np.ones((4, 3)), out=h)  # all of it plain
    np.dot(A, W, out=y)
    np.tanh(y, out=y)
    np.multiply(h, y, out=y)
    return np.sum(np.cumsum(y, axis=0, out=h) ** 2)


class Method:
    def __init__(self):
        self.__W = normal(4, 3)

    def array(self):
        return self.__W

    def loss(self, _):
        return float(A.dot(self.__W).max(axis=1).mean())


class Derived(Method):
    def loss(self, x):
        return super().loss(x) + float(A.dot(x).min())


class TestRewriting:
    def test_methods_of_plain_arrays(self):
        assert_carried(by_method, normal(4, 3))

    @pytest.mark.parametrize("f", [filled, into_out])
    def test_arrays_that_are_filled(self, f):
        assert_carried(f, normal(4, 3))

    def test_closures_lambdas_and_methods(self):
        W, scale = normal(4, 3), 2.0
        assert_carried(lambda _: float(A.dot(W).sum() * scale), W)
        net = Method()
        assert_carried(net.loss, net.array())
        net = Derived()
        assert_carried(net.loss, net.array())

    def test_code_is_restored(self):
        code = by_method.__code__
        assert_carried(by_method, normal(4, 3))
        assert by_method.__code__ is code

    def test_a_cell_of_a_notebook_that_awaits(self, monkeypatch):
        cell = "import numpy as np\ndef f(W): return np.sum(A.dot(W))\nawait other_work()\n"
        lines = cell.splitlines(keepends=True)
        monkeypatch.setitem(linecache.cache, "<cell>", (len(cell), None, lines, "<cell>"))
        space = {"A": A}
        for statement in ast.parse(cell).body[:2]:
            exec(compile(ast.Module([statement], []), "<cell>", "exec"), space)
        assert_carried(space["f"], normal(4, 3))

    def test_code_without_its_source(self, monkeypatch):
        monkeypatch.setattr(batched, "read", harmless)
        space = {"A": A, "np": np}
        exec("def f(W): return np.sum(A.dot(W))", space)
        W = normal(4, 3)
        with pytest.raises(NotCarried, match="plain number or array"):
            batched.evaluate(space["f"], W, W, *points_around(W))


GLOBAL = {"W": normal(4, 3)}


class Slots:
    __slots__ = ("W",)

    def __init__(self, W):
        self.W = W


def also(second):
    """Return a function that reads an array's first row, and all others by a second way."""
    return lambda W: np.sum(W[0]) + np.sum(second()[1:] ** 2)


def in_a_class(value):
    class Holder:
        W = value

    return also(lambda: Holder.W)


def in_objects(W):
    held = np.empty(1, object)
    held[0] = W
    return also(lambda: held[0])


def in_a_deque(W):
    held = collections.deque([0, W])
    return also(lambda: held[1])


def bound(W):
    total = W.sum
    return lambda W: np.sum(W[0] ** 2) + total()


def by_branches(W):
    return lambda W: np.sum(W**2) if W[2, 1] > 0 else np.sum(W**3)


def in_tuples(W):
    held = [((1, W), (W, W[1:]))]
    return also(lambda: held[0][1][0])


#: Functions that find the array by two ways, or a view of it.
HIDDEN = {
    "default": lambda W: lambda x, W=W: np.sum(x[0]) + np.sum(W[1:] ** 2),
    "keyword": lambda W: lambda x, *, W=W: np.sum(x[0]) + np.sum(W[1:] ** 2),
    "default view": lambda W: lambda x, V=W.T: np.sum(x[0]) + np.sum(V[:, 1:] ** 2),
    "keyword view": lambda W: lambda x, *, V=W[1:]: np.sum(x[0]) + np.sum(V**2),
    "class": in_a_class,
    "view in a class": lambda W: in_a_class(W[:]),
    "objects": in_objects,
    "deque": in_a_deque,
    "tuples": in_tuples,
    "bound method": bound,
    "partial": lambda W: functools.partial(lambda V, x: np.sum(x[0]) + np.sum(V[1:] ** 2), W),
    "keyword of a partial": lambda W: functools.partial(
        lambda x, V: np.sum(x[0]) + np.sum(V[1:] ** 2), V=W
    ),
    "view in a partial": lambda W: functools.partial(lambda V, x: x[0, 0] + np.sum(V**2), W[1:]),
    "memory": lambda W: also(functools.partial(np.asarray, memoryview(W))),
    "iterator": lambda W: lambda x, flat=W.flat: np.sum(x[0]) + np.sum(flat[3:] ** 2),
    "method of a view": lambda W: also(W[:].view),
    "first row": lambda W: lambda W: np.sum(W[0] ** 2),
    "branches": by_branches,
}
CARRIED = "default", "keyword", "keyword of a partial", "deque", "class", "tuples", "first row"


class TestPlaces:
    def test_where_the_function_finds_it(self):
        W = normal(4, 3)

        slots, nested = Slots(W), {"layers": [(W, 1.0)]}
        assert_carried(lambda W: np.sum(A @ W), W)
        assert_carried(lambda _: np.sum(A @ W), W)
        assert_carried(lambda _: np.sum(A @ slots.W), W)
        assert_carried(lambda _: np.sum(A @ nested["layers"][0][0]), W)
        assert_carried(lambda _: np.sum(A @ GLOBAL["W"]), GLOBAL["W"])
        assert_carried(lambda root: np.sum(A @ root["W"] + root["b"]), W, root={"W": W, "b": 1})
        assert nested["layers"][0][0] is W
        assert slots.W is W

    def test_further_arguments(self):
        W = normal(4, 3)
        assert_carried(lambda W, c, other: c * np.sum(A @ W + other.sum()), W, args=(3.0, W))

    def test_where_it_cannot_be_replaced(self):
        W = normal(4, 3)
        f = functools.partial(lambda V, W: np.sum(V * W), W)
        with pytest.raises(NotCarried, match="where it cannot be replaced"):
            batched.evaluate(f, W, W, *points_around(W))

    @pytest.mark.parametrize("name", HIDDEN)
    def test_the_array_found_a_second_time(self, name):
        W = normal(4, 3)
        f = HIDDEN[name](W)
        try:
            assert_carried(f, W)
        except NotCarried:
            assert name not in CARRIED
        found = numerical_gradient(f, W)
        np.testing.assert_allclose(found, numerical_gradient(f, W, batched=False), atol=1e-9)

    def test_views_are_not_missed(self):
        W = normal(4, 3)
        V = W.T
        with pytest.raises(NotCarried, match="view"):
            batched.evaluate(lambda W: np.sum(W) + np.sum(V**2), W, W, *points_around(W))

    def test_everything_is_restored_after_an_interruption(self, monkeypatch):
        monkeypatch.setattr(batched, "read", harmless)
        W = normal(4, 3)
        params = {"W": W}

        def loss(_):
            if isinstance(params["W"], BatchedArray):
                params["stored"] = 1
                raise KeyboardInterrupt
            return np.sum(params["W"])

        before = W.copy()
        with pytest.raises(KeyboardInterrupt):
            batched.evaluate(loss, W, W, *points_around(W))
        assert params == {"W": W}
        assert params["W"] is W
        np.testing.assert_array_equal(W, before)


REFUSED = {
    "condition": lambda W: np.sum(W) if W[0, 0] > 0 else np.sum(W**2),
    "float": lambda W: math.exp(W[0, 0]),
    "asarray": lambda W: np.asarray(W).sum(),
    "unknown": lambda W: np.sum(np.linalg.svd(W)[1]),
    "index": lambda W: A[0, np.argmax(W, axis=0)].sum() + np.sum(W),
    "a mask that differs": lambda W: np.sum(W[W > 0]),
    "a method": lambda W: W.searchsorted(0.3).sum() + np.sum(W),
    "a nested argument": lambda W: np.histogram([W])[0].sum() + np.sum(W),
    "swallowed": lambda W: swallowed(W),
    "out": lambda W: np.sum(np.exp(W, out=OUT)),
    "more than one number": lambda W: W[0],
    "a complex number": lambda W: np.sum(W * 1j),
}


def swallowed(W):
    try:
        return np.sum(W) * math.exp(W[0, 0])
    except Exception:  # noqa: BLE001
        return np.sum(W)


class TestRefusals:
    @pytest.mark.parametrize("name", REFUSED)
    def test_refused(self, name):
        W = np.full((4, 3), 0.25)
        W[0, 0] = 1e-5  # within h of zero
        with pytest.raises(NotCarried):
            batched.evaluate(REFUSED[name], W, W, *points_around(W))

    def test_a_condition_that_all_points_share(self):
        assert_carried(lambda W: np.sum(W) if W.sum() < 100 else 0.0, normal(4, 3))

    def test_a_function_that_disagrees(self):
        def loss(W):
            return np.sum(W) if type(W) is np.ndarray else np.sum(W) * (1 + 1e-9)

        W = normal(4, 3)
        with pytest.raises(NotCarried, match="agree"):
            batched.evaluate(loss, W, W, *points_around(W))

    def test_what_is_not_finite_is_evaluated_alone(self):
        W = np.array([H / 2, 1.0, 2.0, 3.0, *np.ones(30)])
        with np.errstate(invalid="ignore"):
            found = batched.evaluate(lambda W: np.sum(np.log(W)), W, W, *points_around(W))
        assert np.isnan(found[1, 0])
        assert np.isfinite(np.delete(found, 0, axis=1)).all()

    def test_a_function_that_changes_x(self):
        def loss(W):
            W += 1
            return np.sum(W)

        W = normal(4, 3)
        with pytest.raises(NotCarried):
            batched.evaluate(loss, W, W, *points_around(W))


# ------------------------------------------------------------------------------------ any function

UNARY = [
    np.sin, np.tanh, np.negative, np.abs, np.square, lambda a: a**3,
    lambda a: np.exp(np.minimum(a, 2)),
    lambda a: np.maximum(a, 0.1), lambda a: a.copy(), lambda a: a[::-1], lambda a: a.T.T,
    lambda a: np.where(a > 0, a, -0.5 * a), lambda a: np.clip(a, -1, 1), lambda a: a.astype(float),
    lambda a: a.reshape(-1).reshape(a.shape), lambda a: a / (1 + np.sum(a**2)),
    lambda a: a - a.max(axis=0), lambda a: a - np.mean(a, axis=-1, keepdims=True),
    lambda a: np.cumsum(a, axis=0), lambda a: np.concatenate([a[1:], a[:1]]),
    lambda a: a.swapaxes(0, -1).swapaxes(0, -1), lambda a: a * (a > 0.2),
    lambda a: np.pad(a, 1)[tuple(slice(1, -1) for _ in a.shape)],
    lambda a: np.stack([a, 2 * a]).sum(axis=0), lambda a: a + a[[0] * len(a)],
    lambda a: a[np.arange(len(a))], lambda a: np.prod(a, axis=0, keepdims=True) + a,
    lambda a: np.expand_dims(a, 0)[0], lambda a: np.moveaxis(a, 0, -1).T.T.sum() + a,
    lambda a: np.roll(a, 1, axis=-1), np.flip, lambda a: np.roll(a, 2),
    lambda a: np.sort(a, axis=0), lambda a: a + np.median(a, axis=-1, keepdims=True),
    lambda a: np.concatenate(np.array_split(a, 2, axis=-1)[::-1], axis=-1),
    lambda a: np.vstack([a, 2 * a])[len(a) :] if a.ndim > 1 else a,
    lambda a: np.pad(a, 1, "edge")[tuple(slice(2, None) for _ in a.shape)],
    lambda a: np.repeat(a, 2, axis=0)[1 : 1 + len(a)], lambda a: a + np.round(a, 1),
    lambda a: a * np.cumprod(a, axis=-1), lambda a: a[np.argsort(a.reshape(len(a), -1)[:, 0])],
    lambda a: a + a[a > 0].sum(), lambda a: a.reshape(-1, order="F").reshape(a.shape),
    lambda a: np.tril(a) if a.ndim > 1 else a, lambda a: a.reshape(len(a), -1).reshape(a.shape),
    lambda a: a.transpose().reshape(-1).reshape(a.shape),
]  # fmt: skip
BINARY = [
    np.add, np.subtract, np.multiply, np.maximum, lambda a, b: a / (2 + b**2), np.arctan2,
    lambda a, b: np.where(a > b, a, b),
]  # fmt: skip
FINAL = [
    np.sum, np.mean, np.max, np.std, np.linalg.norm, lambda a: np.sum(a[0]),
    lambda a: (a * a).sum(axis=0).mean(), lambda a: np.log(np.sum(np.exp(np.clip(a, -9, 9)))),
    lambda a: a.reshape(-1)[-1] + a.min(), lambda a: np.sum(a.T @ a if a.ndim < 3 else a),
    lambda a: np.einsum("ij->", a) if a.ndim == 2 else np.var(a),
    lambda a: np.sum(a.argmax(axis=0)) + np.sum(a),
    lambda a: np.nansum(np.where(a > 0, a, np.nan)),
    lambda a: np.sum(np.trace(a) if a.ndim > 1 else np.diag(a)),
]  # fmt: skip


CUBE = normal(2, 4, 3, seed=9)
OPERATIONS = {
    "vstack": lambda W: np.vstack([W, A[:, :3], W[0]]),
    "hstack": lambda W: np.hstack([W, 2 * W[:, :1]]),
    "hstack of vectors": lambda W: np.hstack([W[0], W[:, 1]]),
    "concatenate all": lambda W: np.concatenate([W, W * W], axis=None),
    "outer": lambda W: np.outer(W[0], W[:, 1]),
    "inner": lambda W: np.inner(W, W[:2]),
    "vdot": lambda W: np.vdot(W, W),
    "average": lambda W: np.average(W, axis=0),
    "norm along an axis": lambda W: np.linalg.norm(W, axis=1),
    "take": lambda W: np.take(W, [2, 0, 2], axis=1) + W.take([1, 1, 0], axis=1),
    "fill": lambda W: filled_copy(W),
    "einsum": lambda W: np.einsum("ij,kj->ik", W, A[:, :3]),
    "einsum without arrow": lambda W: np.einsum("ij,jk", A, W),
    "stacks of matrices": lambda W: CUBE @ W.T,
    "a stack at all points": lambda W: (CUBE * W) @ W.T,
    "vectors": lambda W: W[:, 0] @ A[0] + A[0] @ W[:, 1] + np.dot(W[0], W[1]),
    "numbers": lambda W: np.dot(W[0, 0], W) + W[1, 1].item(),
    "item": lambda W: W.sum().item() * W,
    "atleast": lambda W: np.atleast_2d(W[0]) + np.atleast_1d(W[0, 0]),
    "broadcast": lambda W: np.broadcast_to(W[0], (5, 3)) * np.arange(3),
    "new axes": lambda W: W[:, None, :] - W[None, :, 1:2],
    "ellipsis": lambda W: (CUBE * W)[..., 1:, ::-1],
    "integers": lambda W: W[-1] + W[1, 2] + (CUBE * W)[1, :, 0].sum(),
    "lists": lambda W: W[[0, 2, 3], [1, -1, 0]],
    "mask": lambda W: W[A[:4, :3] > 0],
    "rows and a slice": lambda W: W[[3, 0, 0], 1:],
    "a mask of rows": lambda W: W[np.array([True, False, True, True])],
    "two lists apart": lambda W: (CUBE * W)[[0, 1], :, [2, 0]],
    "a list of lists": lambda W: W[[[0, 1], [2, 3]]],
    "squeeze": lambda W: W[:, :1].squeeze() + W[:1].squeeze(axis=0)[0],
    "flatten": lambda W: W.flatten() * W.ravel(),
    "reshape of a part": lambda W: W[:, 1:].reshape(2, 2, 2).reshape(4, 2),
    "reshape of a transpose": lambda W: W.T.reshape(2, 6),
    "any and all": lambda W: W * np.any(W > 0.3, axis=0) + np.all(W > -9),
    "argmin": lambda W: np.argmin(W) + np.argmin(W, axis=1).sum() + W,
    "clip": lambda W: W.clip(-0.5, 0.5) + np.clip(W, a_min=0, a_max=None),
    "nan_to_num": lambda W: np.nan_to_num(W),
    "like": lambda W: np.ones_like(W) + np.full_like(W, 2.0) + W,
    "len and iteration": lambda W: sum(row * len(W) for row in W),
    "in place": lambda W: in_place(W),
    "reduce": lambda W: np.add.reduce(W) + np.maximum.reduce(W, axis=1, keepdims=True)[0],
    "sums along axes": lambda W: (CUBE * W).sum(axis=(0, 2)) + (CUBE * W).mean(axis=(1, -1))[0],
    "shapes": lambda W: W * np.shape(W)[0] * np.ndim(W) * np.size(W, 1),
    "empty": lambda W: W[:0].sum() + W[4:].sum() + W,
    "a mask that all points share": lambda W: W[W > 0] * np.sum(W[np.nonzero(W > 0.1)]),
    "a mask that is set": lambda W: masked_copy(W),
    "order": lambda W: np.sort(W, axis=0) + W[np.argsort(W[:, 0])] + np.sort(A[0]) @ W,
    "sorted in place": lambda W: sorted_copy(W),
    "median": lambda W: np.median(W, axis=0) + np.ptp(W, axis=0) + np.median(W),
    "moved": lambda W: np.roll(W, 1, axis=0) + np.flip(W) + np.roll(W, 2) + np.fliplr(W),
    "turned": lambda W: np.rot90(W) + np.flipud(W).T + np.rot90(W, 3),
    "moved units": lambda W: np.roll(np.tanh(A @ W), 1, axis=1) + np.tanh(A @ W)[::-1, ::-1],
    "diagonals": lambda W: np.diag(W) + np.trace(W) + np.diag(W[0]) + W.diagonal(1).sum(),
    "triangles": lambda W: np.tril(W) - np.triu(W, 1) ** 2,
    "split": lambda W: sum(np.split(W, 2)) * np.array_split(A @ W, 3, axis=0)[1],
    "split in columns": lambda W: np.hsplit(W, 3)[1] * np.array_split(W, 2, axis=1)[0],
    "repeated": lambda W: np.repeat(W, 2, axis=0)[:4] + np.tile(W, (1, 2))[:, 2:5] + W.repeat(2)[0],
    "embedded": lambda W: W[np.array([0, 0, 3, 1])] * W[[[0, 1], [2, 0]]].sum(axis=1)[0],
    "stacked": lambda W: np.column_stack([W[:, 0], W]) + np.append(W, W[:, :1], axis=1),
    "stacked numbers": lambda W: np.stack([W[0, 0], 2.0, np.sum(W)]),
    "columns of other lengths": lambda W: np.concatenate([A @ W, A, np.tanh(A @ W)], axis=1),
    "deleted": lambda W: np.delete(W, 1, axis=0),
    "padded": lambda W: sum(np.pad(W, 1, mode)[:, :3] for mode in ("edge", "reflect", "wrap")),
    "padded by a constant": lambda W: np.pad(W, ((1, 0), (0, 2)), constant_values=3.0),
    "rounded": lambda W: np.round(W, 1) + W.round() + W,
    "products up to each": lambda W: np.cumprod(W, axis=1) + np.diff(W, axis=0)[0] + W.cumsum()[2],
    "second differences": lambda W: np.diff(W, 2, axis=0) * W[1:3],
    "not a number": lambda W: np.nansum(W * NOT_ALL, axis=0) + np.nanmean(W * NOT_ALL) + W,
    "tensordot": lambda W: np.tensordot(CUBE, W, 2) + np.tensordot(W, CUBE, ([0, 1], [1, -1])),
    "order of memory": lambda W: W.reshape(3, 4, order="F").T + W.ravel(order="F")[0],
    "at labels": lambda W: at_labels(W),
    "merged and split axes": lambda W: merged(W),
    "moved axes": lambda W: np.moveaxis(CUBE * W, 0, -1).swapaxes(0, 1)[0] + W[0, :2],
}  # fmt: skip


NOT_ALL = np.where(A[:4, :3] > 1, np.nan, 1.0)


def masked_copy(W):
    out = W * 2
    out[W < 0] = W[W < 0] ** 2
    out[A[:4, :3] > 0.2] -= 1
    return out


def sorted_copy(W):
    out = W.copy()
    out.sort(axis=1)
    return out


def at_labels(W):
    y = softmax(A @ W)
    y[np.arange(6), T] -= 1
    return y[1:, ::2] + y[np.arange(1, 6), T[1:]][:, None]


def merged(W):
    images = (A @ W).reshape(2, 3, 1, 3).transpose(0, 3, 1, 2) * np.arange(1, 6)  # (2, 3, 3, 5)
    rows = np.tanh(images).transpose(0, 2, 1, 3).reshape(-1, 5)
    scores = images.reshape(2, -1) @ normal(45, 3, seed=6)
    return rows.max(axis=1).reshape(2, 3, 3)[:, 1:] * scores.sum(axis=1)[:, None, None]


def filled_copy(W):
    out = W.copy()
    out.fill(W[0, 0])
    out[1:3] = W[2:]
    out[0] = 5
    out[out > 4] = -1
    return out


def in_place(W):
    out = W * 2
    out += W
    out[1] *= W[0]
    out /= 1 + W[2] ** 2
    plain = A[:4, :3].copy()
    plain += out
    return plain


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name, monkeypatch):
    monkeypatch.setattr(batched, "read", harmless)
    factors = normal(99, seed=11)

    def f(W):
        out = np.reshape(np.sin(OPERATIONS[name](W)), -1)
        return np.sum(out * factors[: out.size])

    assert_carried(f, normal(4, 3))


@st.composite
def functions(draw):
    """Return a function of an array, composed of NumPy's operations, and the array."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    x = normal(*shape, seed=draw(st.integers(0, 99)))
    other = normal(*shape, seed=7)
    sparse = np.where(normal(6, shape[0], seed=8) > 0.3, 1.5, 0.0)
    steps = draw(st.lists(st.tuples(st.sampled_from(["unary", "x", "plain", "dot"]),
                                    st.integers(0, 99)), max_size=5))  # fmt: skip
    final = draw(st.sampled_from(FINAL))
    note(f"{steps}, {FINAL.index(final)}")

    def f(x):
        a = x
        for kind, number in steps:
            if kind == "unary":
                a = UNARY[number % len(UNARY)](a)
            elif kind == "dot":
                if a.ndim == 2 and len(a) == sparse.shape[1]:
                    a = sparse @ a
                elif a.ndim == 2:
                    a = a @ normal(a.shape[1], 3, seed=number)
            elif a.shape == x.shape:
                a = BINARY[number % len(BINARY)](a, x if kind == "x" else other)
        return final(a)

    return f, x


@settings(max_examples=1000)
@given(functions())
def test_functions_of_numpy(case):
    f, x = case
    entries, points = points_around(x)
    expected = looped(f, x, entries, points)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batched, "read", harmless)
            found = batched.evaluate(f, x, x, entries, points)
    except NotCarried:
        assert np.abs(expected).max() < 1e-12, "f is not mere rounding"
        return
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_arrays_are_not_larger_than_the_budget(monkeypatch):
    monkeypatch.setattr(batched, "_LIMIT", 1 << 20)
    W = normal(40, 50)
    largest = []
    spend = Batch.spend

    def noted(batch, nbytes):
        spend(batch, nbytes)
        largest.append(batch.nbytes)

    monkeypatch.setattr(Batch, "spend", noted)
    entries, points = points_around(W, np.arange(300))
    found = batched.evaluate(lambda W: np.sum(np.tanh(W / W.sum())), W, W, entries, points)
    expected = looped(lambda W: np.sum(np.tanh(W / W.sum())), W, entries, points)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert max(largest) <= 1 << 20
    x = np.ones(200_000)
    with pytest.raises(NotCarried, match="memory"):
        batched.evaluate(lambda x: np.sum(x / x.sum()), x, x, *points_around(x, np.arange(4)))


class TestOption:
    def test_insisting(self):
        net = Net(np.tanh)
        expected = numerical_gradient(lambda p: net.loss(A, T), net.params, batched=False)
        found = numerical_gradient(lambda p: net.loss(A, T), net.params, batched=True)
        for key, gradient in expected.items():
            np.testing.assert_allclose(found[key], gradient, atol=1e-10)

    def test_the_reason_of_a_refusal(self):
        with pytest.raises(ValueError, match=r"all points at once: .*plain number"):
            numerical_gradient(lambda x: math.exp(x[0]), np.ones(2), batched=True)

    @pytest.mark.parametrize("value", ["yes", 2, None])
    def test_other_values(self, value):
        with pytest.raises(ValueError, match='`batched` must be "auto", True or False'):
            numerical_gradient(np.sum, np.ones(2), batched=value)

    def test_workers(self):
        with pytest.raises(ValueError, match="workers"):
            numerical_gradient(np.sum, np.ones(2), batched=True, workers=map)

    @pytest.mark.parametrize(
        "options",
        [{"h": "auto"}, {"order": 4}, {"bounds": (-9.0, 9.0)}, {"error": True},
         {"sample": 5, "rng": 0}],
        ids=str,
    )  # fmt: skip
    def test_other_options(self, options):
        W = normal(4, 3)
        found = numerical_gradient(lambda W: np.sum(np.sin(A @ W)), W, batched=True, **options)
        expected = numerical_gradient(lambda W: np.sum(np.sin(A @ W)), W, batched=False, **options)
        for one, other in zip(np.atleast_3d(found), np.atleast_3d(expected), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-9)

    def test_gradient_descent_and_check_gradient(self):
        x = gradient_descent(lambda x: np.sum(x**2), [-3.0, 4.0], lr=0.1, batched=True)
        np.testing.assert_allclose(x, 0, atol=1e-9)
        W = normal(4, 3)
        exact = A.T @ np.cos(A @ W)
        assert check_gradient(lambda W: np.sum(np.sin(A @ W)), exact, W, batched=True)
        wrong = exact.copy()
        wrong[1, 2] *= 1.001
        assert not check_gradient(lambda W: np.sum(np.sin(A @ W)), wrong, W, batched=True)

    def test_where_the_loop_takes_longer(self, monkeypatch):
        monkeypatch.setattr("fastgrad.numdiff.objective._MOMENT", 0.0)
        calls, evaluate = [], batched.evaluate

        def noted(*args, **kwargs):
            calls.append(args)
            return evaluate(*args, **kwargs)

        monkeypatch.setattr(batched, "evaluate", noted)
        W = normal(4, 3)
        expected = numerical_gradient(lambda W: np.sum(np.sin(A @ W)), W, batched=False)
        assert calls == []
        found = numerical_gradient(lambda W: np.sum(np.sin(A @ W)), W)
        assert len(calls) == 1
        np.testing.assert_allclose(found, expected, atol=1e-10)

    def test_where_it_is_slower_than_the_loop(self, monkeypatch):
        monkeypatch.setattr("fastgrad.numdiff.objective._MOMENT", 0.0)
        x, run = normal(200), batched._Evaluation._run

        def loss(x):
            return 2.0 * x[0] * x[1]

        def slow_run(*args):
            time.sleep(0.01)
            return run(*args)

        monkeypatch.setattr(batched._Evaluation, "_run", slow_run)
        found = batched.evaluate(loss, x, x, *points_around(x), insist=False)
        assert found.shape == (2, 1)
        expected = [2 * x[1], 2 * x[0], *np.zeros(198)]
        np.testing.assert_allclose(numerical_gradient(loss, x), expected, atol=1e-9)

    def test_later_batches_are_compared(self, monkeypatch):
        monkeypatch.setattr(batched, "_ROW", 2)
        monkeypatch.setattr(batched, "_MOST", 8)
        monkeypatch.setattr(batched, "_COMPARING", 1.0)

        def loss(x):
            return np.sum(x) + (0.0 if type(x) is np.ndarray else np.sum(x[40:] - rest))

        x = normal(80)
        rest = x[40:].copy()
        with pytest.raises(NotCarried, match="at a point does not agree"):
            batched.evaluate(loss, x, x, *points_around(x))

    def test_what_somebody_could_notice(self):
        calls = []

        def loss(W):
            calls.append(1)
            return np.sum(W)

        with pytest.raises(ValueError, match="calls"):
            numerical_gradient(loss, np.ones(2), batched=True)
        assert calls == []

    def test_terms_that_cancel(self):
        weights = normal(6, 3, seed=3)
        W = normal(4, 3)
        weights[0, 0] -= np.sum(np.tanh(A @ W) * weights) / np.tanh(A @ W)[0, 0]

        def loss(W):
            return np.sum(np.tanh(A @ W) * weights)  # zero, but for the rounding of its terms

        found = numerical_gradient(loss, W, batched=True)
        assert abs(loss(W)) < 1e-14
        np.testing.assert_allclose(found, A.T @ (weights / np.cosh(A @ W) ** 2), atol=1e-7)

    def test_private_names(self):
        class Model:
            def __init__(self):
                self.__W = normal(4, 3)

            def __scores(self):
                return A.dot(self.__W)  # a copy of this function runs, as `dot` does not dispatch

            def loss(self, _):
                return np.sum(np.tanh(self.__scores()))

            def weights(self):
                return self.__W

        model = Model()
        found = numerical_gradient(model.loss, model.weights(), batched=True)
        expected = A.T @ (1 / np.cosh(A @ model.weights()) ** 2)
        np.testing.assert_allclose(found, expected, atol=1e-7)

    def test_layers(self, monkeypatch):
        monkeypatch.setattr(batched, "read", harmless)
        W = normal(4, 3)
        check = check_backward(
            lambda x: np.tanh(A @ W) * x,
            lambda dout: (
                np.sum(dout * np.tanh(A @ W), 0),
                A.T @ (dout * np.ones(3) / np.cosh(A @ W) ** 2),
            ),
            np.ones(3),
            W,
            batched=True,
            rng=0,
        )
        assert check


def test_an_array_at_many_points_is_used_as_an_array():
    base = normal(2, 3)
    values = base[..., None] + np.arange(4.0)
    batch = Batch(1 << 20)
    batch.begin(4)
    array = BatchedArray(base, values, (None, None), batch)
    assert (array.shape, array.ndim, array.size, len(array)) == ((2, 3), 2, 6, 2)
    assert array.dtype == np.float64
    assert array.nbytes == 48
    assert [row.shape for row in array] == [(3,), (3,)]
    assert "points=4" in repr(array)
    assert np.zeros_like(array).shape == (2, 3)


def test_a_backward_pass_is_checked_at_all_points_at_once():
    rng = np.random.default_rng(0)
    W, x = rng.normal(size=(6, 4)), rng.normal(size=(5, 6))

    def forward(x):
        return np.tanh(x @ W)

    def backward(dout):
        return (dout * (1 - forward(x) ** 2)) @ W.T

    for choice in (True, False):
        assert check_backward(forward, backward, x, rng=0, batched=choice).ok
    assert not check_backward(forward, lambda dout: 1.002 * backward(dout), x, batched=True).ok


def test_a_loop_that_will_take_long_is_left_after_two_entries(monkeypatch):
    tried = []

    def evaluate(f, root, array, entries, *_, **__):
        tried.append(int(entries[0]))
        raise NotCarried("it is enough to be asked")

    def slow(x):
        time.sleep(0.001)
        return np.sum(x**2)

    monkeypatch.setattr(batched, "evaluate", evaluate)
    numerical_gradient(slow, np.ones(50))
    numerical_gradient(slow, np.ones(50), batched=False)
    assert tried == [2]


def test_a_function_that_is_not_the_users_is_named():
    net = TwoLayerNet(4, 3, 2, rng=0)
    with pytest.raises(ValueError, match=r"at once: calls [A-Za-z_.<>]+loss\. Use"):
        net.check_gradient(np.ones((2, 4)), [0, 1], batched=True)
