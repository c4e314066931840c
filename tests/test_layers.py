"""The book's layers: forward, backward, and the traps of the book's own code."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastgrad.nn import functions
from fastgrad.nn.layers import (
    AddLayer,
    Affine,
    BatchNormalization,
    Dropout,
    MulLayer,
    Relu,
    Sigmoid,
    SoftmaxWithLoss,
)


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
@settings(max_examples=40)
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
    "layer",
    [
        MulLayer(),
        Relu(),
        Sigmoid(),
        Affine(np.eye(2), np.zeros(2)),
        SoftmaxWithLoss(),
        BatchNormalization(np.ones(2), np.zeros(2)),
        Dropout(),
    ],
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


# --- dropout


def test_dropout_draws_the_books_masks():
    x = np.arange(1.0, 13).reshape(3, 4)
    layer = Dropout(0.3)
    np.random.seed(7)
    out = layer.forward(x)
    np.random.seed(7)
    mask = np.random.rand(3, 4) > 0.3
    assert 0 < mask.sum() < 12
    np.testing.assert_array_equal(layer.mask, mask)
    np.testing.assert_array_equal(out, x * mask)
    np.testing.assert_array_equal(layer.backward(2 * x), 2 * x * mask)


@pytest.mark.parametrize("shape", [(), (0, 2), (3,), (2, 3, 1, 2)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dropout_at_test_time_scales(shape, dtype):
    x = np.ones(shape, dtype)
    layer = Dropout(0.25)
    layer.forward(np.ones((2, 5)))
    for through in (layer.forward(x, False), layer.backward(x)):  # and no old mask is used
        assert (through.shape, through.dtype) == (shape, dtype)
        np.testing.assert_array_equal(through, 0.75)
    assert layer.mask is None
    assert layer.forward(x).dtype == dtype


def test_dropout_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"`dropout_ratio` must be from 0 to 1. Got 1.5"):
        Dropout(1.5)
    with pytest.raises(ValueError, match="`dropout_ratio` must be a finite number, at least 0"):
        Dropout(-0.1)
    layer = Dropout()
    layer.forward(np.zeros((2, 3)))
    with pytest.raises(TypeError, match="`train_flg` must be True or False"):
        layer.forward(np.zeros((3, 3)), "yes")
    with pytest.raises(ValueError, match=r"`dout` must have shape \(2, 3\)"):
        layer.backward(np.zeros((3, 3)))


# --- batch normalisation


def plain_normalization(x, gamma, beta):
    """As the book has it."""
    xc = x - x.mean(axis=0)
    return gamma * xc / np.sqrt(np.mean(xc**2, axis=0) + 1e-6) + beta


@settings(max_examples=40)
@given(
    n=st.integers(1, 7),
    shape=st.sampled_from([(1,), (5,), (2, 3, 2)]),
    single=st.booleans(),
    layout=st.sampled_from("CF"),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_batch_normalization(n, shape, single, layout, scale, seed):
    rng = np.random.default_rng(seed)
    width, dtype = int(np.prod(shape)), "f" if single else "d"
    gamma, beta = rng.standard_normal((2, width)).astype(dtype)
    x = np.asarray(scale * rng.standard_normal((n, *shape)) + 3, dtype, order=layout)
    dout = rng.standard_normal(x.shape).astype(dtype)
    rows, before = np.float64(x).reshape(n, width), x.copy()
    layer = BatchNormalization(gamma, beta)
    out, dx = layer.forward(x), layer.backward(dout)
    assert out.dtype == dx.dtype == layer.dgamma.dtype == layer.dbeta.dtype == dtype
    assert out.shape == dx.shape == x.shape
    np.testing.assert_array_equal(x, before)
    rounding = {"rtol": 2e-3, "atol": 2e-3} if single else {"rtol": 1e-9, "atol": 1e-9}
    wanted = plain_normalization(rows, gamma, beta)
    np.testing.assert_allclose(out.reshape(n, width), wanted, **rounding)
    np.testing.assert_allclose(layer.running_mean, 0.1 * rows.mean(axis=0), **rounding)
    np.testing.assert_allclose(layer.running_var, 0.1 * rows.var(axis=0), **rounding)
    back = np.float64(dout).reshape(n, width)
    np.testing.assert_allclose(layer.dbeta, back.sum(axis=0), **rounding)
    normalised = plain_normalization(rows, 1, 0)
    np.testing.assert_allclose(layer.dgamma, (back * normalised).sum(axis=0), **rounding)


def test_batch_normalization_backward_is_the_derivative():
    rng = np.random.default_rng(0)
    x, dout = rng.standard_normal((2, 6, 3))
    gamma, beta = rng.standard_normal((2, 3))
    layer = BatchNormalization(gamma, beta)
    layer.forward(x)
    np.testing.assert_allclose(
        layer.backward(dout),
        numerical(lambda x: plain_normalization(x, gamma, beta), x, dout),
        atol=1e-8,
    )
    np.testing.assert_allclose(
        layer.dgamma,
        numerical(lambda gamma: plain_normalization(x, gamma, beta), gamma, dout),
        atol=1e-8,
    )
    layer.forward(x, train_flg=False)  # now mean and variance do not depend on x
    fixed = BatchNormalization(gamma, beta, 1.0, layer.running_mean, layer.running_var)
    np.testing.assert_allclose(
        layer.backward(dout), numerical(lambda x: fixed.forward(x, False), x, dout), atol=1e-8
    )


def test_batch_normalization_at_test_time_goes_by_moving_averages():
    rng = np.random.default_rng(0)
    layer = BatchNormalization(np.full(3, 2.0), np.ones(3), momentum=0.8)
    mean, var = np.zeros(3), np.zeros(3)
    for _ in range(4):
        x = rng.standard_normal((5, 3))
        layer.forward(x)
        mean, var = 0.8 * mean + 0.2 * x.mean(axis=0), 0.8 * var + 0.2 * x.var(axis=0)
    wanted = 2 * (x - mean) / np.sqrt(var + 1e-6) + 1
    np.testing.assert_allclose(layer.forward(x, False), wanted, rtol=1e-10)
    np.testing.assert_allclose(layer.running_mean, mean)
    given = BatchNormalization(np.full(3, 2.0), np.ones(3), running_mean=mean, running_var=var)
    np.testing.assert_allclose(given.forward(x, False), wanted, rtol=1e-10)


def test_batch_normalization_holds_references_and_keeps_its_state_when_it_raises():
    gamma, beta = np.ones(3), np.zeros(3)
    layer = BatchNormalization(gamma, beta)
    x = np.arange(6.0).reshape(2, 3)
    out = layer.forward(x)
    gamma *= 3
    beta += 1
    np.testing.assert_allclose(layer.forward(x), 3 * out + 1)
    running = layer.running_mean
    for wrong in (np.zeros((2, 4)), np.zeros((0, 3)), np.zeros(3), np.zeros((2, 3, 1))):
        with pytest.raises(ValueError, match=r"must have shape \("):
            layer.forward(wrong)
    with pytest.raises(TypeError, match="`x` must be an array of real numbers"):
        layer.forward("x")
    with pytest.raises(TypeError, match="`train_flg` must be"):
        layer.forward(x, None)
    with pytest.raises(ValueError, match=r"`dout` must have shape \(2, 3\)"):
        layer.backward(np.zeros((3, 2)))
    assert layer.running_mean is running
    assert layer.dgamma is None
    with pytest.raises(ValueError, match="`momentum` must be from 0 to 1"):
        BatchNormalization(gamma, beta, 1.1)
