"""Odd and bad arguments of numerical gradients: NumPy's answer, or an error.

Hypothesis draws each case, and a plain NumPy reference says both what comes out and what is
refused, by an error that names the argument. `strategies.NIGHTLY` draws twenty times as many.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    Refused,
    arrays,
    close,
    eps_of,
    judge,
    number,
    numbers,
    real,
    robust,
    wide,
)

import fastgrad

pytestmark = pytest.mark.filterwarnings(
    "ignore:the loss is not finite:RuntimeWarning",
    "ignore:the numerical gradient of:fastgrad.GradientCheckWarning",
    "ignore:f does not depend on:UserWarning",  # an integer result may be the same everywhere
)

FUNCTIONS = {
    "sum of squares": lambda x: np.sum(x**2),
    "as float": lambda x: float(np.sum(np.sin(x))),
    "one element": lambda x: np.sum(x, keepdims=True),
    "integer": lambda x: int(x.size),
    "bool": lambda x: True,
    "NaN": lambda x: float("nan"),
}
BAD_FUNCTIONS = {
    "None": lambda x: None,
    "text": lambda x: "1.0",
    "complex": lambda x: 1j,
    "array": lambda x: np.zeros(2),
    "ragged": lambda x: [[1], [1, 2]],
    "nothing": lambda x: np.zeros(0),
    "not callable": 3.0,
    "no function": None,
}


def step(h, x):
    """Return the step or the steps as numbers. The reference of `h`."""
    if isinstance(h, str):
        if h != "auto":
            raise Refused
        return np.full(x.shape, 1e-4)
    if np.ndim(h) == 0:
        with np.errstate(over="ignore"):
            held = x.dtype.type(number(h))  # 5e-324 is 0 in float32
        if not 0 < held < np.inf:
            raise Refused
        return np.full(x.shape, number(h))
    steps = real(h)
    if steps.shape != x.shape or not (np.isfinite(steps) & (steps > 0)).all():
        raise Refused
    return steps


def plain_gradient(f, x, h):
    x = x.astype(np.float64)
    out = np.empty(x.shape)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += h[i]
        down[i] -= h[i]
        out[i] = (np.float64(np.squeeze(f(up))) - np.float64(np.squeeze(f(down)))) / (2 * h[i])
    return out


@robust(40)
@given(data=st.data())
def test_numerical_gradient(data):
    shape = data.draw(st.sampled_from([(3,), (2, 3), (0, 2), (), (2, 1, 2)]))
    x = data.draw(arrays(shape, high=3.0, specials=False))
    h = data.draw(st.one_of(st.just(1e-4), numbers, arrays(shape)))
    name = data.draw(st.sampled_from([*list(FUNCTIONS) * 3, *BAD_FUNCTIONS]))
    f = {**FUNCTIONS, **BAD_FUNCTIONS}[name]

    def expected():
        array = real(x)
        steps = step(h, array)
        if name in BAD_FUNCTIONS and (array.size or not callable(f)):
            raise Refused
        return array, steps

    def same(result, wanted):
        array, steps = wanted
        assert result.shape == array.shape
        assert result.dtype == array.dtype
        # Where rounding is small beside the step, and the step small beside x.
        sound = (steps > 1e-5) & (steps < 1) & (np.abs(array) < 1e3)
        if array.dtype == np.float64 and sound.all():
            plain = plain_gradient(f, array, steps)
            close(result, plain, 1e3 * (1 + np.abs(wide(array))) ** 2 / 1e-5)

    def call():
        with np.errstate(all="ignore"):  # warnings of f itself, at x + h
            return fastgrad.numerical_gradient(f, x, h)

    judge(call, x, expected, ["x", "h", "f"], same=same)


@robust(20)
@given(data=st.data())
def test_numerical_diff(data):
    shape = data.draw(st.sampled_from([(3,), (2, 3), (0, 2), ()]))
    x = data.draw(arrays(shape, high=3.0, specials=False))
    h = data.draw(st.one_of(st.just(1e-4), numbers))

    def expected():
        array = real(x)
        return wide(array), step(h, array)

    def same(result, wanted):
        array, steps = wanted
        if real(x).dtype == np.float64 and ((steps > 1e-5) & (steps < 1)).all():
            with np.errstate(all="ignore"):
                plain = (np.sin(array + steps) - np.sin(array - steps)) / (2 * steps)
            if np.abs(array).max(initial=0) < 1e3:
                close(result, plain, 1e9)

    call = fastgrad.numerical_diff

    def f(x):
        with np.errstate(all="ignore"):
            return np.sin(x)

    judge(lambda: call(f, x, h), x, expected, ["x", "h"], same=same)


@robust(20)
@given(data=st.data(), lr=numbers)
def test_gradient_descent(data, lr):
    x = data.draw(arrays((3,), specials=False))
    steps = data.draw(st.sampled_from([0, 1, 3, -1, 2.0, None, True, np.int64(2), "3"]))

    def expected():
        array = real(x)
        rate = number(lr)
        if isinstance(steps, bool | float | str) or steps is None or steps < 0:
            raise Refused
        point = wide(array)
        for _ in range(steps):
            point = point - rate * 2 * point
        return point

    def same(result, wanted):
        if real(x).dtype == np.float64 and np.abs(wanted).max(initial=0) < 1e3:
            scale = np.abs(wide(real(x))).max(initial=0) + np.abs(wanted).max(initial=0) + 1
            close(result, wanted, scale * 1e9)

    def f(x):
        with np.errstate(all="ignore"):
            return np.sum(x**2)

    def descend():
        with np.errstate(all="ignore"):  # a descent that diverges warns as NumPy does
            return fastgrad.gradient_descent(f, x, lr, steps)

    judge(
        descend,
        x, expected, ["init_x", "lr", "step_num"], same=same,
    )  # fmt: skip


@robust(20)
@given(data=st.data())
def test_check_gradient(data):
    x = data.draw(arrays((3,), specials=False))
    claimed = data.draw(arrays((3,)).filter(lambda value: not callable(value)))

    def f(x):
        with np.errstate(all="ignore"):
            return np.sum(x**2)

    h = data.draw(st.one_of(st.just(1e-4), numbers))

    def expected():
        array, gradient = real(x), real(claimed)
        step(h, array)
        if gradient.shape != array.shape:
            raise Refused
        return array, gradient

    def same(result, wanted):
        array, gradient = wanted
        if eps_of(array, np.zeros(1)) < 1e-15 and np.abs(array).max(initial=0) < 1e3:
            right = np.allclose(gradient, 2 * array, rtol=1e-5, atol=1e-5)
            wrong = not np.allclose(gradient, 2 * array, rtol=0.1, atol=0.1)
            if h == 1e-4 and right and array.dtype == np.float64:
                assert result.ok
            if h == 1e-4 and wrong:
                assert not result.ok
        assert isinstance(str(result), str)

    judge(
        lambda: fastgrad.check_gradient(f, claimed, x, h),
        (x, claimed), expected, ["x", "h", "grad"], same=same,
    )  # fmt: skip


@pytest.mark.parametrize("call", [fastgrad.numerical_jacobian, fastgrad.numerical_hessian])
def test_wrong_arguments_of_derivatives_of_arrays(call):
    for wrong in ("x", None, [[1.0], [1.0, 2.0]], 1j):
        with pytest.raises((TypeError, ValueError), match="`x"):
            call(np.sum, wrong)
    for wrong in (None, 3, "f"):
        with pytest.raises(TypeError, match="`f` must be callable"):
            call(wrong, np.ones(2))
    with pytest.raises(TypeError, match="`args` must be a tuple"):
        call(np.sum, np.ones(2), args=1)
