"""``h="auto"``: steps that look at the function."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from numba import njit

from fastgrad import check_gradient, numerical_diff, numerical_gradient
from fastgrad.numdiff.extrapolation import _romberg, extrapolate

EPS = np.finfo(np.float64).eps

#: In NumPy, and in mpmath.
ELEMENTARY = {
    "exp": (np.exp, mpmath.exp),
    "sin": (np.sin, mpmath.sin),
    "log": (np.log, mpmath.log),
    "sqrt": (np.sqrt, mpmath.sqrt),
    "1 / x": (lambda x: 1 / x, lambda x: 1 / x),
    "x**5": (lambda x: x**5, lambda x: x**5),
    "tanh": (np.tanh, mpmath.tanh),
    "sin(100 x)": (lambda x: np.sin(100 * x), lambda x: mpmath.sin(100 * x)),
    "Runge": (lambda x: 1 / (1 + 25 * x**2), lambda x: 1 / (1 + 25 * x**2)),
    "x sin x": (lambda x: x * np.sin(x), lambda x: x * mpmath.sin(x)),
    "sin(1 / x)": (lambda x: np.sin(1 / x), lambda x: mpmath.sin(1 / x)),
    "cos(log x)": (lambda x: np.cos(np.log(x)), lambda x: mpmath.cos(mpmath.log(x))),
    "exp(sin x)": (lambda x: np.exp(np.sin(x)), lambda x: mpmath.exp(mpmath.sin(x))),
}


def count_evaluations(f, x):
    """Extrapolate at each of the points; return the result, and the evaluations of each."""
    x = np.asarray(x, float)
    evaluations = np.zeros(x.shape, int)

    def values(which, offsets):
        np.add.at(evaluations, which, len(offsets))
        points = x[which] + offsets
        return f(points), points

    with np.errstate(all="ignore"):
        return extrapolate(values, x, f(x), np.full(x.shape, EPS)), evaluations


@pytest.mark.parametrize("name", ELEMENTARY)
def test_elementary_functions_against_mpmath(name):
    f, exact = ELEMENTARY[name]
    x = 10.0 ** np.arange(-3, 5)
    with np.errstate(all="ignore"):
        x = x[np.isfinite(f(x)) & (np.abs(f(x)) < 1e200)]
    found, evaluations = count_evaluations(f, x)
    with mpmath.workdps(50):
        true = [float(mpmath.diff(exact, mpmath.mpf(v), h=mpmath.mpf("1e-20"))) for v in x]
    error = np.abs(found.slope - true)
    # The argument of sin(100 x) is rounded: that is 1e-10 of a wave at 1e4.
    limit = 1e-8 if name == "sin(100 x)" else 1e-10
    # Where tanh is 1, so is its rounding.
    assert (error <= limit * np.abs(true) + 300 * EPS * np.abs(f(x))).all()
    assert (error <= 2 * found.error).all()
    assert np.count_nonzero(error > found.error) <= 1
    assert not found.kink.any()
    assert evaluations.mean() <= 20
    assert evaluations.max() <= 30


def test_easy_entries_cost_six_evaluations():
    found, evaluations = count_evaluations(lambda x: x**2, [0.5, 1.0, 3.0])
    np.testing.assert_allclose(found.slope, [1, 2, 6], rtol=1e-12)
    assert (evaluations <= 8).all()


@pytest.mark.parametrize(
    ("f", "x", "true"),
    [
        (np.log, 1e-5, 1e5),
        (np.arccos, -0.9, -1 / math.sqrt(0.19)),
        (lambda x: np.where(x >= 0, np.sin(x), np.nan), 0.0, 1.0),
        (lambda x: np.where(x <= 1, np.exp(x), np.nan), 1.0, math.e),
    ],
    ids=["log near 0", "arccos", "edge at 0", "edge at 1"],
)
def test_edges_of_a_domain(f, x, true):
    found, _ = count_evaluations(f, [x])
    assert abs(found.slope[0] - true) <= 1e-10 * abs(true)
    assert abs(found.slope[0] - true) <= found.error[0]


@pytest.mark.parametrize("x", [1.0, -1.0, 1e-3, -1e-6, 1e-12])
def test_beside_a_kink(x):
    found, _ = count_evaluations(np.abs, [x])
    assert found.slope[0] == pytest.approx(np.sign(x), rel=1e-9)
    assert not found.kink[0]


def test_at_a_kink():
    found, _ = count_evaluations(lambda x: 3 + np.maximum(x, 0), [0.0])
    assert found.kink[0]
    assert found.half_slope_jump[0] == pytest.approx(0.5, abs=1e-6)
    assert found.error[0] >= 0.5


@pytest.mark.parametrize("root", [np.sqrt, np.cbrt])
def test_a_slope_that_is_infinite_has_no_estimate(root):
    found, _ = count_evaluations(root, [0.0])
    assert found.error[0] == np.inf


def test_noise():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, 400)
    for noise in (1e-12, 1e-8, 1e-4):
        found = extrapolate(
            lambda which, offsets, s=noise: (
                np.sin(x[which] + offsets) + s * rng.normal(size=offsets.shape),
                x[which] + offsets,
            ),
            x, np.sin(x), np.full(400, EPS), 2 * noise,
        )  # fmt: skip
        error = np.abs(found.slope - np.cos(x))
        assert np.mean(error > found.error) < 0.01
        assert np.median(found.error) < 1000 * noise


def test_entries_that_f_does_not_depend_on():
    found, evaluations = count_evaluations(lambda x: 0 * x + 3, [0.0, 1.0, 1e4])
    assert (found.slope == 0).all()
    assert (found.error < 1e-14).all()
    assert (evaluations <= 12).all()


class TestNumericalGradient:
    W = np.random.default_rng(1).normal(size=(6, 4))
    X = np.random.default_rng(2).normal(size=(20, 6))

    def loss(self, W):
        return float(np.mean(np.tanh(self.X @ W) ** 2))

    def gradient(self, W):
        z = np.tanh(self.X @ W)
        return self.X.T @ (2 * z * (1 - z**2)) / z.size

    def test_python_and_workers(self):
        gradient, error = numerical_gradient(self.loss, self.W, "auto", error=True)
        assert (np.abs(gradient - self.gradient(self.W)) <= error).all()
        assert np.max(error) < 1e-11
        shared = numerical_gradient(self.loss, self.W, "auto", workers=map)
        np.testing.assert_array_equal(shared, gradient)

    def test_compiled(self):
        f = njit(lambda x: np.sum(np.sin(10 * x)))
        x = np.linspace(-3, 3, 50)
        gradient, error = numerical_gradient(f, x, "auto", error=True)
        true = 10 * np.cos(10 * x)
        np.testing.assert_allclose(gradient, true, atol=1e-10)
        assert (np.abs(gradient - true) <= error).all()

    def test_across_the_kinks_of_relu(self):
        w = np.random.default_rng(3).normal(size=30)
        X = np.random.default_rng(4).normal(size=(50, 30))
        gradient, error = numerical_gradient(
            lambda w: float(np.sum(np.maximum(X @ w, 0) ** 1.0)), w, "auto", error=True
        )
        true = X.T @ (X @ w > 0).astype(float)
        np.testing.assert_allclose(gradient, true, atol=1e-9)
        assert np.mean(np.abs(gradient - true) > error) < 0.05

    def test_exceptions_at_the_edge_are_the_edge(self):
        gradient = numerical_gradient(lambda x: math.log(x[0]), [1e-5], "auto")
        assert gradient[0] == pytest.approx(1e5, rel=1e-10)

        @njit
        def f(x):
            if x[0] < 0:
                raise ValueError("negative")
            return x[0] ** 2

        assert numerical_gradient(f, [1e-5], "auto")[0] == pytest.approx(2e-5, rel=1e-9)

    def test_exceptions_everywhere_reach_the_caller(self):
        def f(x):
            if x[0] != 1.0:
                raise ValueError("only at 1")
            return 0.0

        with pytest.raises(ValueError, match="only at 1"):
            numerical_gradient(f, [1.0], "auto")

    def test_bounds(self):
        def f(x):
            assert 0 <= x[0] <= 2
            return math.exp(x[0])

        for x in (0.0, 1e-3, 2.0):
            found = numerical_gradient(f, [x], "auto", bounds=(0, 2))
            assert found[0] == pytest.approx(math.exp(x), rel=1e-10)

    def test_check(self):
        assert check_gradient(self.loss, self.gradient, self.W, "auto")
        assert not check_gradient(self.loss, 1.001 * self.gradient(self.W), self.W, "auto")
        at_zero = check_gradient(lambda x: abs(x[0]) + x[1], [1.0, 1.0], np.array([0.0, 1]), "auto")
        assert at_zero.arrays["x"].not_judged == {"kink": 1}
        assert not check_gradient(lambda x: abs(x[0]), [1.5], [0.0], "auto")

    def test_numerical_diff(self):
        assert numerical_diff(np.sin, 1e4, "auto") == pytest.approx(math.cos(1e4), rel=1e-9)
        np.testing.assert_allclose(
            numerical_diff(lambda x: np.array([x, x**5]), 1e-3, "auto"), [1, 5e-12], rtol=1e-10
        )


class TestBounds:
    @pytest.mark.parametrize("order", [2, 4, 6])
    @pytest.mark.parametrize("x", [0.0, 1e-5, 1.0])
    def test_orders_of_one_sided_differences(self, order, x):
        seen = []

        def f(v):
            seen.append(v[0])
            return math.exp(v[0])

        errors = []
        for h in (0.08, 0.04):
            found = numerical_gradient(f, [x], h, order=order, bounds=(0, 1))
            errors.append(abs(found[0] - math.exp(x)))
        assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)
        assert min(seen) >= 0
        assert max(seen) <= 1

    @pytest.mark.parametrize("order", [2, 4, 6])
    def test_the_error_of_one_sided_differences(self, order):
        found, error = numerical_gradient(
            lambda v: math.sin(v[0]), [0.0], 1e-2, order=order, bounds=(0, 9), error=True
        )
        assert abs(found[0] - 1) <= error[0] < 1e-3

    def test_check(self):
        x = np.array([1e-5, 2.0])
        assert check_gradient(
            lambda x: np.sum(x * np.log(x)), np.log(x) + 1, x, 1e-6, bounds=(0, np.inf)
        )
        assert not check_gradient(
            lambda x: np.sum(x * np.log(x)), 1.001 * (np.log(x) + 1), x, 1e-6, bounds=(0, np.inf)
        )

    def test_wrong_bounds(self):
        with pytest.raises(
            ValueError, match=r"`bounds` must have `x` between them. Got \(2\.0, 3\.0\)"
        ):
            numerical_gradient(np.sum, np.ones(2), bounds=([0, 2], [3, 3]))
        with pytest.raises(TypeError, match=r"`bounds` must be a pair"):
            numerical_gradient(np.sum, np.ones(2), bounds=3)


def slope_and_error(f, x):
    """Return the derivative at a number, and its estimated error, as arrays of one entry."""
    return numerical_gradient(lambda x: f(x[0]), np.array([x]), "auto", error=True)


class TestEstimatesAreUpperOnes:
    @staticmethod
    def romberg(slopes, rounding):
        column = (len(slopes), 1)
        usable = np.ones((len(slopes) - 2, 1), bool)
        found = _romberg(np.reshape(slopes, column), np.reshape(rounding, column), usable, usable,
                         np.array([2]))  # fmt: skip
        return float(found[0][0]), float(found[1][0])

    def test_long_steps_that_agree_by_chance(self):
        # Slopes of a network with a noise of 1e-7; the first three give 1.49722 and 1.49722.
        slopes = [-0.1626277217, 1.368750971, 1.487304322, 1.490827356, 1.491071406, 1.49109509]
        best, error = self.romberg(slopes, 2.5e-8 * 3.6 ** np.arange(6))
        assert abs(best - 1.4910892724) <= error < 1e-4

    def test_corrections_that_happen_to_be_equal(self):
        # The terms in h^4 and h^6 of the longer two steps nearly cancel.
        h = 3.6 ** -np.arange(3.0)
        slopes = 2 + h**2 + 1e-3 * h**4 - 1.1e-3 * h**6
        best, error = self.romberg(slopes, np.zeros(3))
        assert 0 < abs(best - 2) <= 3 * error

    def test_a_small_wave_beside_a_large_number(self):
        slope, error = slope_and_error(lambda x: 1665221558.7159615 + 3.54e-5 * np.sin(x), -6.4e-4)
        assert abs(slope[0] - 3.54e-5) < 30 * error[0]

    def test_a_kink_beyond_a_flat_stretch(self):
        slope, error = slope_and_error(
            lambda x: 0.85 + 0.284 * max(float(x) - 0.6, 0.0), np.float32(-1.3)
        )
        assert slope[0] == 0
        assert 0 < error[0] < 1e-5
