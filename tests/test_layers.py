"""The book's layers: forward, backward, and the traps of the book's own code."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastgrad import functions
from fastgrad.layers import AddLayer, Affine, MulLayer, Relu, Sigmoid, SoftmaxWithLoss


def numerical(f, x, dout):
    """Return the gradient of sum(dout * f(x)) by central differences."""
    gradient = np.empty_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += 1e-5
        down[i] -= 1e-5
        gradient[i] = np.sum(dout * (f(up) - f(down))) / 2e-5
    return gradient


def test_two_apples_and_three_oranges_of_the_book():
    apples, oranges, fruit, tax = MulLayer(), MulLayer(), AddLayer(), MulLayer()
    price = tax.forward(fruit.forward(apples.forward(100, 2), oranges.forward(150, 3)), 1.1)
    assert price == pytest.approx(715)
    d_fruit, d_tax = tax.backward(1)
    d_apples, d_oranges = fruit.backward(d_fruit)
    assert d_tax == 650
    assert apples.backward(d_apples) == pytest.approx((2.2, 110))
    assert oranges.backward(d_oranges) == pytest.approx((3.3, 165))


def test_mul_and_add_layers_on_arrays():
    x, y, dout = np.random.default_rng(0).standard_normal((3, 2, 4))
    layer = MulLayer()
    np.testing.assert_array_equal(layer.forward(x, y), x * y)
    np.testing.assert_array_equal(layer.backward(dout), (dout * y, dout * x))
    np.testing.assert_array_equal(AddLayer().forward(x, y), x + y)
    np.testing.assert_array_equal(AddLayer().backward(dout), (dout, dout))


@pytest.mark.parametrize("layer", [Relu(), Sigmoid()])
@settings(deadline=None, max_examples=40)
@given(
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    dtypes=st.tuples(st.sampled_from("fdi"), st.sampled_from("fdi")),
    seed=st.integers(0, 2**32 - 1),
)
def test_activations(layer, shape, dtypes, seed):
    rng = np.random.default_rng(seed)
    x, dout = ((3 * rng.standard_normal(shape)).astype(dtype) for dtype in dtypes)
    x, dout = np.asarray(x, order="F"), np.asarray(dout, order="F")
    before = dout.copy()
    out = layer.forward(x)
    dx = layer.backward(dout)
    assert out.shape == dx.shape == shape
    if isinstance(layer, Relu):
        expected = np.maximum(x, 0), np.where(x > 0, dout, 0)
    else:
        s = 1 / (1 + np.exp(-np.float64(x)))
        expected = s, dout * (1 - s) * s
    single = "f" in dtypes
    np.testing.assert_allclose(out, expected[0], rtol=1e-5 if single else 1e-12)
    # As in the book the derivative is taken from the output, so 1 - s is only absolutely accurate.
    precision = {"rtol": 1e-5, "atol": 1e-5} if single else {"rtol": 1e-12, "atol": 1e-14}
    np.testing.assert_allclose(dx, expected[1], **precision)
    np.testing.assert_array_equal(dout, before)


@pytest.mark.parametrize("layer", [Relu(), Sigmoid()])
def test_activations_backward_is_the_derivative(layer):
    x, dout = np.random.default_rng(3).standard_normal((2, 4, 5))
    layer.forward(x)
    got = layer.backward(dout)
    np.testing.assert_allclose(got, numerical(type(layer)().forward, x, dout), atol=1e-8)


@pytest.mark.parametrize("layer", [Relu(), Sigmoid()])
def test_activations_refuse_what_does_not_fit(layer):
    layer.forward(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"`dout` must have shape \(2, 3\). Got \(3, 2\)."):
        layer.backward(np.zeros((3, 2)))
    with pytest.raises(TypeError, match="`dout` must be an array of real numbers"):
        layer.backward("dout")
    with pytest.raises(TypeError, match="`x` must be an array of real numbers"):
        layer.forward("x")
    assert layer.backward(np.zeros((2, 3))).shape == (2, 3)


@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 2), (4, 3, 1, 2), (6,), (0, 6), (1, 6)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_affine(shape, dtype):
    rng = np.random.default_rng(0)
    W, b = rng.standard_normal((6, 5)), rng.standard_normal(5)
    x = (3 * rng.standard_normal(shape)).astype(dtype)
    layer = Affine(W, b)
    out = layer.forward(x)
    rows = x.reshape(-1, 6)
    np.testing.assert_allclose(out, (rows @ W + b).reshape(out.shape), rtol=1e-12)
    dout = rng.standard_normal(out.shape)
    dx = layer.backward(dout)
    assert dx.shape == shape
    np.testing.assert_allclose(dx.reshape(-1, 6), dout.reshape(-1, 5) @ W.T, atol=1e-12)
    np.testing.assert_allclose(layer.dW, rows.T @ dout.reshape(-1, 5), atol=1e-12)
    np.testing.assert_allclose(layer.db, dout.reshape(-1, 5).sum(axis=0), atol=1e-12)


def test_affine_holds_references():
    W, b = np.ones((2, 3)), np.zeros(3)
    layer = Affine(W, b)
    assert layer.W is W
    assert layer.b is b
    W *= 2
    b += 1
    np.testing.assert_array_equal(layer.forward([[1.0, 1.0]]), [[5.0, 5.0, 5.0]])


def test_a_failing_call_leaves_affine_as_it_was():
    layer = Affine(np.ones((2, 3)), np.zeros(3))
    layer.forward([[1.0, 2.0]])
    layer.backward([[1.0, 1.0, 1.0]])
    dW = layer.dW
    with pytest.raises(ValueError, match=r"`x` must have shape \(N, 2\) or"):
        layer.forward([[1.0, 2.0, 3.0]])
    with pytest.raises(ValueError, match=r"`dout` must have shape \(1, 3\)"):
        layer.backward([[1.0, 1.0]])
    assert layer.dW is dW
    np.testing.assert_array_equal(layer.x, [[1.0, 2.0]])


def targets_of(kind, labels, classes):
    rng = np.random.default_rng(9)
    return {
        "labels": labels,
        "column": labels[:, None],
        "one-hot": np.eye(classes)[labels],
        "soft": rng.random((labels.size, classes)),
    }[kind]


@pytest.mark.parametrize("kind", ["labels", "column", "one-hot", "soft"])
@pytest.mark.parametrize("dout", [1, 2.5, -1.0])
def test_softmax_with_loss(kind, dout):
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((4, 3)), np.array([2, 0, 1, 1])
    t = targets_of(kind, labels, 3)
    layer = SoftmaxWithLoss()
    loss = layer.forward(x, t)
    assert loss == layer.loss == functions.cross_entropy_error(layer.y, t)
    assert layer.t is t
    np.testing.assert_array_equal(layer.y, functions.softmax(x))
    expected = numerical(lambda scores: SoftmaxWithLoss().forward(scores, t), x, dout)
    np.testing.assert_allclose(layer.backward(dout), expected, atol=1e-9)


def test_softmax_with_loss_of_the_book():
    x, t = np.random.default_rng(0).standard_normal((5, 4)), np.array([0, 1, 2, 3, 0])
    layer = SoftmaxWithLoss()
    layer.forward(x, t)
    # The book's formula leaves the small number under the logarithm out.
    np.testing.assert_allclose(layer.backward(), (layer.y - np.eye(4)[t]) / 5, atol=1e-6)


def test_softmax_with_loss_of_one_sample():
    layer = SoftmaxWithLoss()
    layer.forward([0.0, 1.0, 2.0], [0, 0, 1])
    assert layer.y.shape == (3,)
    np.testing.assert_allclose(layer.backward(), layer.y - [0, 0, 1], atol=1e-6)


def test_softmax_with_loss_keeps_its_state_when_it_raises():
    layer = SoftmaxWithLoss()
    loss = layer.forward([[0.0, 1.0]], [1])
    with pytest.raises(ValueError, match="`t` must hold labels from 0 to 1"):
        layer.forward([[5.0, 1.0]], [2])
    assert layer.loss == loss
    with pytest.raises(TypeError, match="`dout` must be a real number"):
        layer.backward("1")
    with pytest.raises(TypeError, match="`x` must be an array"):
        layer.forward("x", [0])


@pytest.mark.parametrize(
    "layer", [MulLayer(), Relu(), Sigmoid(), Affine(np.eye(2), np.zeros(2)), SoftmaxWithLoss()]
)
def test_backward_needs_a_forward_pass(layer):
    name = type(layer).__name__
    with pytest.raises(RuntimeError, match=rf"^{name}.backward needs a forward pass first. Call"):
        layer.backward(np.zeros((1, 2)))


def test_layers_train_in_float32():
    rng = np.random.default_rng(0)
    x, W = rng.standard_normal((4, 6)).astype("f"), rng.standard_normal((6, 3)).astype("f")
    affine, relu, last = Affine(W, np.zeros(3, "f")), Relu(), SoftmaxWithLoss()
    assert type(last.forward(relu.forward(affine.forward(x)), [0, 1, 2, 0])) is np.float32
    dx = affine.backward(relu.backward(last.backward()))
    assert {dx.dtype, affine.dW.dtype, affine.db.dtype} == {np.dtype("f")}


def test_softmax_with_loss_after_labels_are_written_over():
    layer, t = SoftmaxWithLoss(), np.array([0, 1])
    layer.forward(np.eye(2), t)
    expected = layer.backward()
    t[:] = 5_000_000
    np.testing.assert_array_equal(layer.backward(), expected)
