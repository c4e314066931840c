"""The convolutional networks of chapters 7 and 8."""

import copy
import pickle

import numpy as np
import pytest

import fastgrad
from fastgrad import book
from fastgrad.book import pickles
from fastgrad.book.convnets import DeepConvNet, SimpleConvNet

SMALL = {"filter_num": 3, "filter_size": 3, "pad": 0, "stride": 1}
DEEP = [
    {"filter_num": number, "filter_size": 3, "pad": pad, "stride": 1}
    for number, pad in ((2, 1), (3, 1), (2, 1), (3, 2), (4, 1), (3, 1))
]


@pytest.fixture
def simple():
    np.random.seed(0)
    return SimpleConvNet((1, 10, 10), SMALL, 5, 4, 0.5)


@pytest.fixture
def deep():
    np.random.seed(0)
    return DeepConvNet((1, 12, 12), *DEEP, hidden_size=6, output_size=4)


def batch(n=6, size=10, classes=4, dtype=np.float64):
    rng = np.random.default_rng(1)
    return rng.random((n, 1, size, size)).astype(dtype), rng.integers(0, classes, n)


def layer_by_layer(net, x, t):
    """Compute loss and gradient as the book's methods do."""
    layers = net._parts()[0]
    for layer in layers:
        x = layer.forward(x)
    loss = net.last_layer.forward(x, t)
    dout = net.last_layer.backward(1)
    for layer in reversed(layers):
        dout = layer.backward(dout)
    return loss, net._gradients()


def assert_close(got, expected, rtol=1e-12):
    assert list(got) == list(expected)
    for name in expected:
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=rtol * scale)


def test_initial_values_are_drawn_as_the_book_draws_them():
    np.random.seed(3)
    net = SimpleConvNet()
    np.random.seed(3)
    for name, shape in (("W1", (30, 1, 5, 5)), ("W2", (4320, 100)), ("W3", (100, 10))):
        np.testing.assert_array_equal(net.params[name], 0.01 * np.random.randn(*shape))
        assert not net.params["b" + name[1]].any()
    np.random.seed(3)
    net = DeepConvNet()
    np.random.seed(3)
    fan_ins = [9, 144, 144, 288, 288, 576, 1024, 50]
    for number, fan_in in enumerate(fan_ins, 1):
        W = net.params[f"W{number}"]
        np.testing.assert_array_equal(W, np.sqrt(2 / fan_in) * np.random.randn(*W.shape))


@pytest.mark.parametrize("name", ["simple", "deep"])
@pytest.mark.parametrize("dtype", ["d", "f"])
def test_gradient_is_that_of_the_layers_one_by_one(name, dtype, request):
    net = request.getfixturevalue(name)
    for key in net.params:
        net.params[key] = net.params[key].astype(dtype)
    x, t = batch(size=10 if name == "simple" else 12, dtype=dtype)
    np.random.seed(2)
    loss, expected = layer_by_layer(net, x, t)
    np.random.seed(2)
    grads = net.gradient(x, t)
    assert {array.dtype for array in grads.values()} == {np.dtype(dtype)}
    assert_close(grads, expected, 1e-12 if dtype == "d" else 1e-5)
    np.random.seed(2)
    assert net.loss(x, t) == pytest.approx(float(loss), rel=1e-12 if dtype == "d" else 1e-6)
    layer = net._parts()[0][0]
    assert layer.dW is grads["W1"]
    assert layer.db is grads["b1"]


def test_training_learns(simple):
    x, t = batch(20)
    optimizer, before = fastgrad.Adam(lr=0.01), simple.loss(x, t)
    for _ in range(30):
        optimizer.update(simple.params, simple.gradient(x, t))
    assert simple.loss(x, t) < before / 2


def test_parameters_that_a_callback_replaces_are_trained_on(simple):
    x, t = batch()
    other = copy.deepcopy(simple)

    def replace(iteration, loss):
        other.params = {name: array.copy() for name, array in other.params.items()}

    simple.fit(x, t, iterations=3, batch_size=4, rng=0)
    other.fit(x, t, iterations=3, batch_size=4, rng=0, callback=replace)
    assert_close(other.params, simple.params, 0)


def test_replaced_parameters_and_layers_take_effect(simple):
    x, t = batch()
    simple.params["b3"] = np.array([9.0, 0, 0, 0])
    assert set(simple.predict(x).argmax(axis=1)) == {0}
    before = simple.predict(x)

    class Doubled(fastgrad.Relu):
        def forward(self, x):
            return 2 * super().forward(x)

        def backward(self, dout):
            return 2 * super().backward(dout)

    simple.layers["Relu1"] = Doubled()
    assert not np.allclose(simple.predict(x), before)
    _, expected = layer_by_layer(simple, x, t)
    assert_close(simple.gradient(x, t), expected)
    simple.layers["Pool1"] = fastgrad.Pooling(3, 3, 1)
    with pytest.raises(ValueError, match="must have shape"):
        simple.predict(x)


def test_accuracy_counts_the_last_images_too(simple):
    x, t = batch(7)
    expected = np.mean(simple.predict(x).argmax(axis=1) == t)
    for size in (1, 3, 7, 100):
        assert simple.accuracy(x, t, size) == pytest.approx(expected)
    assert simple.accuracy(x, np.eye(4)[t]) == pytest.approx(expected)
    for wrong in (t[:6], np.eye(4)):
        with pytest.raises(ValueError, match="`t` must be"):
            simple.accuracy(x, wrong)
    with pytest.raises(ValueError, match="`x` must have"):
        simple.accuracy(x[:0], t[:0])


def test_dropout_is_for_training_only(deep):
    x, t = batch(size=12)
    np.testing.assert_array_equal(deep.predict(x), deep.predict(x))
    np.random.seed(0)
    losses = {deep.loss(x, t) for _ in range(3)}
    assert len(losses) == 3


def test_half_precision_parameters_and_images(deep):
    x, t = batch(size=12)
    for array in deep.params.values():
        array[...] = array.astype(np.float16)
    rounded = deep.predict(x.astype(np.float16))
    assert rounded.dtype == np.float64
    for name, array in deep.params.items():
        deep.params[name] = array.astype(np.float16)
    np.testing.assert_allclose(deep.predict(x.astype(np.float16)), rounded, rtol=1e-3, atol=1e-4)
    assert deep.accuracy(x.astype(np.float16), t) == np.mean(rounded.argmax(axis=1) == t)


def test_parameters_are_saved_and_loaded_as_the_book_does(simple, tmp_path):
    file = tmp_path / "params.pkl"
    simple.save_params(file)
    plain = pickle.loads(file.read_bytes())  # what the book's load_params reads
    assert_close(plain, simple.params, 0)
    other = SimpleConvNet((1, 10, 10), SMALL, 5, 4)
    other.load_params(file)
    x, _ = batch()
    np.testing.assert_array_equal(other.predict(x), simple.predict(x))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        file.write_bytes(pickle.dumps(plain, protocol))
        assert_close(pickles.load(file), plain, 0)


class Malicious:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"W1": Malicious()}),
        pickle.dumps({"W1": np.array([Malicious()], dtype=object)}),
        pickle.dumps([np.zeros(3)]),
        pickle.dumps({"W1": "text"}),
        pickle.dumps({1: np.zeros(3)}),
        pickle.dumps({"W1": np.zeros(3, np.complex128)}),
        b"no pickle",
        b"",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    ],
    ids=["call", "call in an array", "list", "text", "number", "complex", "bytes", "empty", "os"],
)
def test_other_pickles_are_refused(simple, tmp_path, capsys, content):
    file = tmp_path / "params.pkl"
    file.write_bytes(content)
    before = dict(simple.params)
    with pytest.raises(ValueError, match=r"params\.pkl"):
        simple.load_params(file)
    assert "must not run" not in capsys.readouterr().out
    assert all(simple.params[name] is array for name, array in before.items())


def test_parameters_of_another_network_are_refused(simple, tmp_path):
    SimpleConvNet((1, 12, 12), SMALL, 5, 4).save_params(tmp_path / "other.pkl")
    with pytest.raises(ValueError, match="the file must hold"):
        simple.load_params(tmp_path / "other.pkl")


def test_filters_that_do_not_fit():
    for argument in ((28, 28), 3, (1, 0, 9), (1.0, 9, 9)):
        with pytest.raises(ValueError, match="`input_dim` must be channels, height and width"):
            SimpleConvNet(argument)
    good = {"filter_num": 3, "filter_size": 3, "pad": 0, "stride": 1}
    for wrong in (3, {"filter_num": 3}, {**good, "dilation": 2}):
        with pytest.raises(ValueError, match="`conv_param` must be a dict with the keys"):
            SimpleConvNet((1, 9, 9), wrong)
    with pytest.raises(ValueError, match=r"`conv_param_2\['stride'\]` must be at least 1. Got 0."):
        DeepConvNet((1, 9, 9), conv_param_2={**good, "stride": 0})
    with pytest.raises(ValueError, match="`conv_param` must leave"):
        SimpleConvNet((1, 3, 3), SMALL)
    with pytest.raises(ValueError, match="`conv_param_6` must leave"):
        DeepConvNet((1, 3, 3))
    with pytest.raises(ValueError, match=r"`x` must have shape \(N, 1, H, W\)"):
        SimpleConvNet().predict(np.zeros((1, 784)))


def test_the_networks_are_served(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    book.install()
    try:
        names = {}
        exec("from simple_convnet import *; from deep_convnet import DeepConvNet", names)
        exec("from common.layers import *; from common.util import conv_output_size", names)
    finally:
        book.uninstall()
    assert issubclass(names["SimpleConvNet"], SimpleConvNet)
    assert issubclass(names["DeepConvNet"], DeepConvNet)
    assert issubclass(names["Convolution"], fastgrad.Convolution)
    assert names["conv_output_size"](28, 5) == 24


def textbook_differences(net, x, t, h):
    """Compute central differences as the book does: two losses for each parameter."""
    grads = {}
    for name, array in net.params.items():
        grads[name] = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            held, losses = array[index], []
            for step in (h, -h):
                array[index] = held + step
                np.random.seed(5)
                losses.append(net.loss(x, t))
            array[index] = held
            grads[name][index] = (losses[0] - losses[1]) / (2 * h)
    return grads


@pytest.mark.parametrize("name", ["simple", "deep"])
@pytest.mark.parametrize("targets", ["labels", "soft"])
def test_numerical_gradient_evaluates_the_loss_at_perturbed_parameters(name, targets, request):
    """With a large step, at which no derivative would do."""
    net = request.getfixturevalue(name)
    x, t = batch(2, 10 if name == "simple" else 12)
    if targets == "soft":
        t = np.random.default_rng(3).random((2, 4))
    expected = textbook_differences(net, x, t, 0.3)
    np.random.seed(5)
    got = net.numerical_gradient(x, t, 0.3)
    for key, array in expected.items():
        np.testing.assert_allclose(got[key], array, rtol=0, atol=1e-12 * np.abs(array).max())
    assert any(np.abs(got[k] - net.numerical_gradient(x, t)[k]).max() > 1e-3 for k in got)


def test_numerical_gradient_by_the_compiled_affine_layers(simple, monkeypatch):
    x, t = batch()
    got, differences = simple.numerical_gradient(x, t), book.layer_differences.LayerDifferences
    monkeypatch.setattr(differences, "_two_affine_layers", lambda *_: None)
    assert_close(got, simple.numerical_gradient(x, t), 1e-10)


def test_numerical_gradient_with_other_layers(simple):
    class Halved(fastgrad.Relu):
        def forward(self, x):
            return super().forward(x) / 2

    x, t = batch(2)
    simple.layers["Relu2"] = Halved()
    got = simple.numerical_gradient(x, t)
    expected = textbook_differences(simple, x, t, 1e-4)
    assert_close(got, expected, 1e-7)
    with pytest.raises(ValueError, match="`layers` must be"):
        simple.check_gradient(x, t)


@pytest.mark.parametrize(("name", "h"), [("simple", 1e-4), ("deep", 1e-6)])
def test_check_gradient(name, h, request, monkeypatch):
    net = request.getfixturevalue(name)
    x, t = batch(3, 10 if name == "simple" else 12)
    rng = np.random.default_rng(4)
    for key, array in net.params.items():
        if key.startswith("b"):  # at 0 many a unit that sees zeros only is at its kink
            array += 0.3 * rng.standard_normal(array.shape)
    check = net.check_gradient(x, t, h)
    assert check.ok, check
    assert check.resolved, check
    gradient = type(net).gradient

    def wrong(self, x, t):
        grads = gradient(self, x, t)
        grads["W2"] = grads["W2"] * 1.001
        return grads

    monkeypatch.setattr(type(net), "gradient", wrong)
    assert not net.check_gradient(x, t, h).ok


def test_a_predict_or_loss_of_a_subclass_counts():
    class Tempered(SimpleConvNet):
        def predict(self, x):  # the book's has no further parameter
            return super().predict(x) / 2

    class Penalized(SimpleConvNet):
        def loss(self, x, t):
            return super().loss(x, t) + 0.1 * np.sum(self.params["W3"] ** 2)

    rng = np.random.default_rng(0)
    x, t = rng.random((2, 1, 8, 8)), np.array([1, 0])
    small = {"filter_num": 2, "filter_size": 3, "pad": 0, "stride": 1}
    for kind in (Tempered, Penalized):
        net = kind((1, 8, 8), small, hidden_size=3, output_size=2, weight_init_std=0.3)
        numerical = net.numerical_gradient(x, t)
        for name in ("W1", "W3"):
            array = net.params[name]
            loop = fastgrad.numerical_gradient(lambda _, net=net: net.loss(x, t), array)
            np.testing.assert_allclose(numerical[name], loop, rtol=1e-6, atol=1e-8)
        with pytest.raises(ValueError, match="must be the book's for `check_gradient`"):
            net.check_gradient(x, t)
