"""The book's networks as its modules hand them on give the book's numbers, compiled or not."""

import copy
import itertools
import pickle
from collections import OrderedDict

import numpy as np
import pytest

import fastgrad
from fastgrad import book
from fastgrad.book import layers
from fastgrad.book.convnets import BookDeepConvNet, BookSimpleConvNet
from fastgrad.book.networks import BookTwoLayerNet


def plain_gradient(params, x, t, activation, decay=0.0):
    """Loss and gradient by the book's formulas: (y - t) / N at the last layer."""
    depth = len(params) // 2
    values = [x]
    for n in range(1, depth + 1):
        a = values[-1] @ params[f"W{n}"] + params[f"b{n}"]
        if n < depth:
            a = np.maximum(a, 0) if activation == "relu" else 1 / (1 + np.exp(-a))
        values.append(a)
    y = np.exp(values[-1] - values[-1].max(axis=1, keepdims=True))
    y /= y.sum(axis=1, keepdims=True)
    penalty = decay / 2 * sum(np.sum(params[f"W{n}"] ** 2) for n in range(1, depth + 1))
    loss = -np.mean(np.log(y[np.arange(len(x)), t] + 1e-7)) + penalty
    da = (y - np.eye(y.shape[1])[t]) / len(x)
    grads = {}
    for n in range(depth, 0, -1):
        grads[f"W{n}"] = values[n - 1].T @ da + decay * params[f"W{n}"]
        grads[f"b{n}"] = da.sum(axis=0)
        z = values[n - 1]
        da = da @ params[f"W{n}"].T * ((z > 0) if activation == "relu" else z * (1 - z))
    return loss, grads


NETWORKS = {
    "chapter 4": (lambda: BookTwoLayerNet(6, 5, 4, 0.5), "sigmoid", 0.0),
    "chapter 5": (lambda: book.LayeredTwoLayerNet(6, 5, 4, 0.5), "relu", 0.0),
    "relu": (lambda: book.LayeredMultiLayerNet(6, [5, 3], 4, "relu", 0.7, 0.2), "relu", 0.2),
    "sigmoid": (
        lambda: book.LayeredMultiLayerNet(6, [5, 3], 4, "sigmoid", 0.7, 0.2),
        "sigmoid",
        0.2,
    ),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    """A network, its activation, and its weight decay."""
    np.random.seed(1)
    make, activation, decay = NETWORKS[request.param]
    return make(), activation, decay


@pytest.fixture(params=["chapter 5", "relu", "sigmoid"])
def layered(request):
    """A network with layers."""
    return NETWORKS[request.param][0]()


@pytest.fixture
def batch():
    rng = np.random.default_rng(2)
    return rng.normal(size=(7, 6)), rng.integers(0, 4, 7)


@pytest.mark.parametrize("compiled", [True, False])
def test_the_networks_give_the_books_numbers(network, batch, compiled, monkeypatch):
    net, activation, decay = network
    x, labels = batch
    t = np.eye(4)[labels]
    if not compiled:
        monkeypatch.setattr(type(net), "_is_usual", lambda *_: False)
    assert net._is_usual(x, t) == compiled
    loss, grads = plain_gradient(net.params, x, labels, activation, decay)
    assert net.loss(x, t) == pytest.approx(loss, rel=1e-12)
    found, numerical = net.gradient(x, t), net.numerical_gradient(x, t)
    for name, expected in grads.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-9, atol=1e-14)
        # The loss has 1e-7 under its logarithm, the gradient has not.
        np.testing.assert_allclose(numerical[name], expected, rtol=1e-5, atol=1e-6)
    hits = np.argmax(net.predict(x), axis=1) == labels
    assert net.accuracy(x, t) == hits.mean()


@pytest.mark.parametrize("kind", ["labels", "soft", "integers", "booleans", "images", "negative"])
def test_unusual_batches_go_by_the_formulas(layered, batch, kind):
    """What they give is what the layers give, one by one; `softmax_loss` has the book's formula."""
    x, t = batch
    t = {"soft": fastgrad.softmax(x[:, :4]), "negative": -t}.get(kind, t)
    x = {
        "integers": (10 * x).astype(int),
        "booleans": x > 0,
        "images": x.reshape(7, 1, 2, 3),
    }.get(kind, x)
    scores = x
    for layer in copy.deepcopy(layered).layers.values():
        scores = layer.forward(scores)
    expected = book.softmax_loss(scores, t) + layered._penalty()
    assert layered.loss(x, t) == pytest.approx(expected, rel=1e-12)
    grads = copy.deepcopy(layered).gradient(x, t)
    assert layered.layers  # from now on they are run
    by_layers = layered.gradient(x, t)
    for name, array in by_layers.items():
        np.testing.assert_allclose(grads[name], array, rtol=1e-9, atol=1e-14)


def test_chapter_4_fails_where_the_books_class_fails(batch):
    x, labels = batch
    net = BookTwoLayerNet(6, 5, 4)
    with pytest.raises(ValueError, match="broadcast"):
        net.gradient(x, labels)
    with pytest.raises(ValueError, match="axis"):
        net.accuracy(x, labels)
    assert net.loss(x, labels) == pytest.approx(net.loss(x, np.eye(4)[labels]))
    assert net.predict(x[0]).shape == (4,)
    soft = fastgrad.softmax(x[:, :4])
    one_hot = np.eye(4)[soft.argmax(axis=1)]
    assert net.loss(x, soft) == pytest.approx(net.loss(x, one_hot), rel=1e-12)


def test_chapter_4_returns_gradients_in_the_books_order(batch):
    x, labels = batch
    targets = np.eye(4)[labels]
    net = BookTwoLayerNet(6, 5, 4)
    assert list(net.gradient(x, targets)) == ["W2", "b2", "W1", "b1"]
    assert list(net.numerical_gradient(x, targets)) == ["W1", "b1", "W2", "b2"]


def test_layers_hold_the_arrays_that_they_were_made_with(layered, batch):
    """As in the book an array that is put into ``params`` later takes no effect."""
    x, t = batch
    before = layered.predict(x)
    layered.params["W1"] = np.ones((6, 5))
    np.testing.assert_array_equal(layered.predict(x), before)
    assert not layered.numerical_gradient(x, t)["W1"].any() or layered._decay
    layered.params["b2"][...] = 3
    assert (layered.predict(x) != before).any()


def test_an_exchanged_layer_takes_effect(batch):
    x, t = batch
    net = book.LayeredTwoLayerNet(6, 5, 4, 0.5)
    expected, _ = plain_gradient(net.params, x, t, "sigmoid")
    net.layers["Relu1"] = layers.Sigmoid()
    assert net.loss(x, t) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="`layers` must be as they were made"):
        net.fit(x, t, iterations=1)


def test_the_books_numbers_come_from_its_generator():
    np.random.seed(5)
    net = book.LayeredTwoLayerNet(6, 5, 4)
    np.random.seed(5)
    assert (net.params["W1"] == 0.01 * np.random.randn(6, 5)).all()
    assert (net.params["W2"] == 0.01 * np.random.randn(5, 4)).all()


def test_copies_pickles_and_files(layered, batch, tmp_path):
    x, t = batch
    for other in (
        copy.deepcopy(layered),
        pickle.loads(pickle.dumps(layered)),
        type(layered).load(layered.save(tmp_path / "net")),
    ):
        assert other._is_usual(x, t)
        assert other.loss(x, t) == layered.loss(x, t)
        assert isinstance(other.layers, OrderedDict)
        assert other.layers["Affine1"].W is other.params["W1"]
        assert other.params["W1"] is not layered.params["W1"]


def test_attributes_of_the_multi_layer_net():
    net = book.LayeredMultiLayerNet(6, [5, 3], 4, weight_decay_lambda=0.2)
    assert (net.input_size, net.hidden_size_list, net.output_size) == (6, [5, 3], 4)
    assert (net.hidden_layer_num, net.weight_decay_lambda) == (2, 0.2)
    x, t = np.random.default_rng(0).random((5, 6)), np.arange(5) % 4
    before = net.loss(x, t), net.gradient(x, t)["W1"]
    net.weight_decay_lambda = 0.4
    squares = sum(np.sum(net.params[f"W{n}"] ** 2) for n in (1, 2, 3))
    assert net.loss(x, t) == pytest.approx(before[0] + 0.1 * squares)
    np.testing.assert_allclose(net.gradient(x, t)["W1"], before[1] + 0.2 * net.params["W1"])


LAST_LAYERS = {
    "lastLayer": lambda: book.LayeredTwoLayerNet(6, 5, 4),
    "last_layer": lambda: book.LayeredMultiLayerNet(6, [5], 4, weight_decay_lambda=0.1),
}


@pytest.mark.parametrize("last", LAST_LAYERS)
def test_the_layers_hold_what_a_pass_leaves(last):
    net = LAST_LAYERS[last]()
    (first, second), t = np.random.default_rng(0).random((2, 7, 6)), np.arange(7) % 4
    grads = net.gradient(first, t)
    affine = net.layers["Affine1"]
    np.testing.assert_array_equal(affine.x, first)
    np.testing.assert_allclose(
        affine.dW + net._decay * affine.W, grads["W1"], rtol=1e-12, atol=1e-15
    )
    net.loss(second, t)
    dout = getattr(net, last).backward(1)
    np.testing.assert_array_equal(affine.x, second)
    for layer in reversed(net.layers.values()):
        dout = layer.backward(dout)
    by_hand = affine.dW + net._decay * affine.W
    np.testing.assert_allclose(net.gradient(second, t)["W1"], by_hand, rtol=1e-12, atol=1e-15)


def test_a_subclass_with_another_predict():
    class Doubled(book.LayeredTwoLayerNet):
        def predict(self, x):
            return 2 * super().predict(x)

    np.random.seed(0)
    net = Doubled(6, 5, 4)
    x, t = np.random.default_rng(0).random((7, 6)), np.arange(7) % 4
    assert net.loss(x, t) == book.softmax_loss(2 * book.LayeredTwoLayerNet.predict(net, x), t)
    plain = book.LayeredTwoLayerNet(6, 5, 4)
    for name in ("W1", "b1", "W2", "b2"):
        plain.params[name][...] = (2 if name.endswith("2") else 1) * net.params[name]
    numerical = net.numerical_gradient(x, t, 1e-5)
    for name, array in plain.numerical_gradient(x, t, 1e-5).items():
        factor = 2 if name.endswith("2") else 1
        np.testing.assert_allclose(numerical[name], factor * array, atol=1e-7)


# --- batch normalisation and dropout


class PlainExtend:
    """Chapter 6's network in NumPy, for the numbers of a seed."""

    def __init__(self, sizes, activation, decay, dropout, normalized):
        self.sizes, self.activation, self.decay = sizes, activation, decay
        self.dropout, self.normalized, self.params = dropout, normalized, {}
        for n, (n_in, n_out) in enumerate(itertools.pairwise(sizes), start=1):
            self.params[f"W{n}"] = np.sqrt(2 / n_in) * np.random.randn(n_in, n_out)
            self.params[f"b{n}"] = np.zeros(n_out)
            if normalized and n < len(sizes) - 1:
                self.params[f"gamma{n}"], self.params[f"beta{n}"] = np.ones(n_out), np.zeros(n_out)
        self.moving = {
            n: (np.zeros(sizes[n]), np.zeros(sizes[n])) for n in range(1, len(sizes) - 1)
        }

    def predict(self, x, training):
        last = len(self.sizes) - 1
        for n in range(1, last):
            x = x @ self.params[f"W{n}"] + self.params[f"b{n}"]
            if self.normalized:
                mean, variance = self.moving[n]
                if training:
                    mean, variance = x.mean(axis=0), x.var(axis=0)
                x = (x - mean) / np.sqrt(variance + 1e-6)
                x = self.params[f"gamma{n}"] * x + self.params[f"beta{n}"]
            x = np.maximum(x, 0) if self.activation == "relu" else 1 / (1 + np.exp(-x))
            if self.dropout is not None and training:
                x = x * (np.random.rand(*x.shape) > self.dropout)
            elif self.dropout is not None:
                x = x * (1 - self.dropout)
        return x @ self.params[f"W{last}"] + self.params[f"b{last}"]

    def loss(self, x, t, training):
        y = fastgrad.softmax(self.predict(x, training))
        decay = sum(np.sum(W**2) for name, W in self.params.items() if name[0] == "W")
        return -np.mean(np.log(y[np.arange(len(x)), t] + 1e-7)) + 0.5 * self.decay * decay


EXTENSIONS = [
    pytest.param(activation, decay, dropout, normalized, id=f"{activation}-{dropout}-{normalized}")
    for activation, decay in (("relu", 0.0), ("sigmoid", 0.1))
    for dropout, normalized in ((None, False), (None, True), (0.3, False), (0.3, True))
]


@pytest.mark.parametrize(("activation", "decay", "dropout", "normalized"), EXTENSIONS)
def test_the_extended_network_gives_the_books_numbers(activation, decay, dropout, normalized):
    sizes, x = (6, 5, 4, 3), np.random.default_rng(0).random((7, 6))
    t = np.arange(7) % 3
    np.random.seed(3)
    plain = PlainExtend(sizes, activation, decay, dropout, normalized)
    np.random.seed(3)
    net = book.MultiLayerNetExtend(
        6, [5, 4], 3, activation, "relu", decay,
        use_dropout=dropout is not None, dropout_ration=0.5 if dropout is None else dropout,
        use_batchnorm=normalized,
    )  # fmt: skip
    assert net.params.keys() == plain.params.keys()
    for n in (1, 2) if normalized else ():
        net.params[f"gamma{n}"] *= 1.5
        net.params[f"beta{n}"] += 0.1 * n
    for name, array in plain.params.items():
        if name[0] in "Wb" and len(name) == 2:
            np.testing.assert_array_equal(net.params[name], array)
    plain.params = net.params  # so that nudges reach both
    np.random.seed(4)
    expected = plain.loss(x, t, True)
    np.random.seed(4)
    assert net.loss(x, t, train_flg=True) == pytest.approx(expected, rel=1e-12)
    np.random.seed(4)
    numerical, state = net.numerical_gradient(x, t), np.random.get_state()
    assert list(numerical) == list(net.gradient(x, t))
    np.random.seed(4)
    for name in numerical:  # with other masks in every evaluation, as in the book
        want = fastgrad.numerical_gradient(lambda _: plain.loss(x, t, True), net.params[name])
        np.testing.assert_allclose(numerical[name], want, rtol=1e-6, atol=1e-8, err_msg=name)
    assert (np.random.get_state()[1] == state[1]).all()
    if normalized:
        for n in (1, 2):
            layer = net.layers[f"BatchNorm{n}"]
            plain.moving[n] = layer.running_mean, layer.running_var
            assert layer.running_mean.any()
    np.testing.assert_allclose(net.predict(x), plain.predict(x, False), atol=1e-12)
    assert net.loss(x, t) == pytest.approx(plain.loss(x, t, False), rel=1e-12)
    assert net.accuracy(x, t) == np.mean(plain.predict(x, False).argmax(axis=1) == t)


def test_the_extended_networks_backward_pass():
    net = book.MultiLayerNetExtend(6, [5, 4], 3, use_batchnorm=True, weight_decay_lambda=0.1)
    x, t = np.random.default_rng(0).random((7, 6)), np.arange(7) % 3
    numerical = net.numerical_gradient(x, t)
    for name, slopes in net.gradient(x, t).items():
        np.testing.assert_allclose(slopes, numerical[name], rtol=1e-5, atol=1e-6, err_msg=name)
    with pytest.raises(ValueError, match="without batch normalisation"):
        net.fit(x, t, iterations=1)
    net.layers["Activation_function1"] = layers.Relu()
    for name, slopes in net.numerical_gradient(x, t).items():
        np.testing.assert_allclose(slopes, numerical[name], atol=1e-9)


def test_the_extended_network_without_extensions_is_the_plain_one():
    x, t = np.random.default_rng(0).random((7, 6)), np.arange(7) % 3
    np.random.seed(0)
    net = book.MultiLayerNetExtend(6, [5, 4], 3, weight_decay_lambda=0.1)
    np.random.seed(0)
    plain = book.LayeredMultiLayerNet(6, [5, 4], 3, weight_decay_lambda=0.1)
    assert net._is_usual(x, t)
    for method in ("gradient", "numerical_gradient"):
        want = getattr(plain, method)(x, t)
        for name, array in getattr(net, method)(x, t).items():
            np.testing.assert_array_equal(array, want[name])
    assert net.loss(x, t) == net.loss(x, t, train_flg=True) == plain.loss(x, t)


# --- chapter 7's and 8's


def test_convolutional_networks_as_in_the_book(tmp_path):
    rng, param = (
        np.random.default_rng(0),
        {"filter_num": 2, "filter_size": 3, "pad": 0, "stride": 1},
    )
    x, t = rng.random((7, 1, 6, 6)), rng.integers(0, 3, 7)
    net = BookSimpleConvNet((1, 6, 6), param, 4, 3, 0.5)
    hits = net.predict(x).argmax(axis=1) == t
    assert net.accuracy(x, np.eye(3)[t], 3) == hits[:6].sum() / 7  # the last image left out
    net.loss(x, t)
    y = fastgrad.softmax(net.predict(x))
    np.testing.assert_allclose(net.last_layer.backward(), (y - np.eye(3)[t]) / 7, atol=1e-15)
    before = net.predict(x)
    net.save_params(tmp_path / "params.pkl")
    net.params["W1"] = np.zeros_like(net.params["W1"])  # no effect, in the book
    np.testing.assert_array_equal(net.predict(x), before)
    net.params["W1"] += 1
    net.load_params(tmp_path / "params.pkl")
    np.testing.assert_array_equal(net.predict(x), before)
    net.params["W1"][...] = 0
    assert (net.predict(x) != before).any()
    assert len(BookDeepConvNet().layers) == 20


# --- the trainer, and helpers


def test_trainer(capsys):
    x, t = np.random.default_rng(0).random((30, 6)), np.arange(30) % 3
    np.random.seed(0)
    net = book.LayeredMultiLayerNet(6, [5], 3)
    trainer = book.Trainer(net, x, t, x[:9], t[:9], 2, 10, "AdaGrad", {"lr": 0.1})
    trainer.train()
    printed = capsys.readouterr().out
    np.random.seed(0)
    other = book.LayeredMultiLayerNet(6, [5], 3)
    rule = fastgrad.AdaGrad(0.1)
    losses, accuracies = [], []
    for step in range(6):
        mask = np.random.choice(30, 10)
        rule.update(other.params, other.gradient(x[mask], t[mask]))
        losses.append(other.loss(x[mask], t[mask]))
        if step % 3 == 0:
            accuracies.append((other.accuracy(x, t), other.accuracy(x[:9], t[:9])))
    assert trainer.train_loss_list == losses
    assert list(zip(trainer.train_acc_list, trainer.test_acc_list, strict=True)) == accuracies
    lines = [f"train loss:{loss}" for loss in losses]
    for epoch, (train, test) in enumerate(accuracies):
        lines.insert(
            4 * epoch + 1, f"=== epoch:{epoch + 1}, train acc:{train}, test acc:{test} ==="
        )
    lines += [
        "=============== Final Test Accuracy ===============",
        f"test acc:{other.accuracy(x[:9], t[:9])}",
    ]
    assert printed.splitlines() == lines


def test_trainer_evaluates_where_whole_iterations_end_an_epoch():
    x, t = np.zeros((25, 2)), np.zeros(25, int)

    class Net:
        params, evaluated = {}, 0

        def gradient(self, x, t):
            return {}

        def loss(self, x, t):
            return 0.5

        def accuracy(self, x, t):
            assert len(x) == 7
            self.evaluated += 1
            return 0.25

    net = Net()
    trainer = book.Trainer(net, x, t, x, t, 4, 10, evaluate_sample_num_per_epoch=7, verbose=False)
    assert (trainer.iter_per_epoch, trainer.max_iter) == (2.5, 10)
    for _ in range(10):
        trainer.train_step()
    assert (net.evaluated, trainer.current_epoch) == (4, 2)  # at iterations 0 and 5, both sets


def test_smooth_curve():
    x = np.random.default_rng(0).normal(size=40)
    padded = np.r_[x[10:0:-1], x, x[-1:-11:-1]]
    window = np.kaiser(11, 2)
    expected = [padded[i : i + 11] @ window / window.sum() for i in range(5, 45)]
    np.testing.assert_allclose(book.smooth_curve(list(x)), expected, rtol=1e-12)


def test_shuffle_dataset():
    x = np.arange(24.0).reshape(6, 1, 2, 2)
    np.random.seed(0)
    shuffled, labels = book.shuffle_dataset(x, np.arange(6))
    np.random.seed(0)
    order = np.random.permutation(6)
    assert (labels == order).all()
    assert (shuffled == x[order]).all()


def test_numerical_gradients_of_rows_and_of_integers():
    from fastgrad.book.gradients import numerical_gradient

    x = np.array([[1.0, 2.0], [3.0, 4.0], [0.0, -1.0]])
    # The product of a row's entries: f of the whole array would be another number.
    np.testing.assert_allclose(book.numerical_gradient_2d(np.prod, x), x[:, ::-1], atol=1e-9)
    np.testing.assert_allclose(book.numerical_gradient_2d(np.prod, x[1]), [4, 3], atol=1e-9)
    # Entries of an array of integers lose the step where it is added, as in the book: (9 - 4) / 2h.
    whole = np.array([3])
    assert numerical_gradient(lambda x: float(np.sum(x**2)), whole).tolist() == [25_000]
    assert whole.tolist() == [3]


def test_an_entry_that_the_network_has_no_use_for_changes_nothing():
    net = BookTwoLayerNet(4, 3, 2)
    x, t = np.random.default_rng(0).random((2, 4)), np.eye(2)
    loss, names = net.loss(x, t), list(net.params)
    net.params["W3"] = np.ones((2, 2))
    assert net.loss(x, t) == pytest.approx(loss, rel=1e-14)
    assert list(net.numerical_gradient(x, t)) == names
    assert sorted(net.gradient(x, t)) == sorted(names)
