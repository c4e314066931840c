"""Verdicts where a single difference misleads: poles, edges, kinks, steps, peaks, noise."""

from __future__ import annotations

import warnings
import zlib

import numpy as np
import pytest

from fastgrad import (
    GradientCheckWarning,
    check_backward,
    check_gradient,
    numerical_diff,
    numerical_gradient,
)

pytestmark = pytest.mark.filterwarnings("ignore::fastgrad.GradientCheckWarning")


def verdict(f, grad, x, *arguments, **options):
    """Return the verdict on an array; f may divide by zero."""
    with np.errstate(all="ignore"):
        check = check_gradient(f, grad, np.array(x, float), *arguments, **options)
    return check.arrays["x"].verdict


class TestValuesThatAreNotFinite:
    def test_infinite_half_a_step_away(self):
        f = lambda x: 1 / x[0]  # noqa: E731
        assert verdict(f, [-400.0], [0.05], 0.1) == "ok"
        assert verdict(f, [0.0], [0.05], 0.1) == "wrong"
        assert verdict(f, [3.0], [0.05], 0.1) == "wrong"

    def test_the_pole_of_a_logarithm(self):
        f = lambda x: np.log(np.abs(x[0]))  # noqa: E731
        assert verdict(f, [2e4], [5e-5]) == "ok"
        assert verdict(f, [7.0], [5e-5]) == "wrong"

    def test_one_pole_among_several_entries(self):
        f = lambda x: np.sum(1 / x)  # noqa: E731
        assert verdict(f, [7.0, -0.25], [5e-5, 2.0]) == "wrong"
        assert verdict(f, [-4e8, -0.25], [5e-5, 2.0]) == "ok"

    def test_the_largest_entry_is_looked_at_again(self):
        x = np.array([0.3, 5e-5, 0.7])
        f = lambda x: -np.log(x).sum() if (x > 0).all() else np.inf  # noqa: E731
        assert verdict(f, -1 / x, x) == "ok"
        assert verdict(f, [-1 / 0.3, -3 / 5e-5, -1 / 0.7], x) == "wrong"

    def test_nan_at_x_itself_is_no_evidence(self):
        f = lambda x: np.nan if x[0] == 1 else x[0]  # noqa: E731
        check = check_gradient(f, [1.0], np.array([1.0]))
        assert check.arrays["x"].verdict == "unresolved"
        assert check.arrays["x"].not_judged == {"not finite": 1}

    def test_an_infinite_parameter_leaves_the_others_alone(self):
        x = np.array([np.inf, 0.5, 2.0])
        f = lambda x: float(np.sum(np.tanh(x)))  # noqa: E731
        right = np.array([0.0, 1 / np.cosh(0.5) ** 2, 1 / np.cosh(2.0) ** 2])
        check = check_gradient(f, right, x)
        assert check.arrays["x"].wrong == 0
        assert check.codes["x"][1:].tolist() == [0, 0]
        assert check_gradient(f, 1.001 * right, x).arrays["x"].wrong == 2


class TestStepsTooLong:
    def test_a_logarithm_of_a_small_scale(self):
        f = lambda x: np.log1p((x[0] / 1e-5) ** 2)  # noqa: E731
        assert verdict(f, [1e5], [1e-5]) == "ok"
        assert verdict(f, [1.001e5], [1e-5]) == "wrong"

    @pytest.mark.parametrize("seed", range(10))
    def test_a_wave_far_shorter_than_the_step(self, seed):
        x = 1e-6 * np.random.default_rng(seed).normal(size=4)
        f = lambda x: np.sum(np.sin(x / 1e-6))  # noqa: E731
        right = np.cos(x / 1e-6) / 1e-6
        assert verdict(f, right, x) == "ok"
        assert verdict(f, 1.001 * right, x) == "wrong"

    @pytest.mark.parametrize("x", np.geomspace(1e-6, 1e-2, 21))
    def test_near_the_edge_of_a_domain(self, x):
        f = lambda x: np.sqrt(x[0])  # noqa: E731
        right = 0.5 / np.sqrt(x)
        assert verdict(f, [right], [x], bounds=(0, np.inf)) == "ok"
        assert verdict(f, [1.001 * right], [x], bounds=(0, np.inf)) == "wrong"
        found, error = numerical_gradient(f, np.array([x]), bounds=(0, np.inf), error=True)
        assert abs(found[0] - right) <= error[0]

    def test_a_narrow_peak(self):
        f = lambda x: np.exp(-(((x[0] - 1) / 3e-4) ** 2))  # noqa: E731
        right = f([1.00015]) * -2 * 0.00015 / 3e-4**2
        found, error = numerical_gradient(f, np.array([1.00015]), "auto", error=True)
        assert found[0] == pytest.approx(right, rel=1e-8)
        assert abs(found[0] - right) <= error[0]
        assert verdict(f, [right], [1.00015]) == "ok"


class TestKinks:
    def test_to_both_sides_within_half_a_step(self):
        f = lambda x: np.clip(x[0], -1e-5, 1e-5)  # noqa: E731
        assert verdict(f, [1.0], [0.0]) == "ok"
        assert verdict(f, [1.001], [0.0]) == "wrong"
        assert verdict(f, [0.0], [0.0]) == "wrong"

    @pytest.mark.parametrize("seed", range(12))
    def test_many_of_a_network(self, seed):
        rng = np.random.default_rng(seed)
        x, t = rng.normal(size=(12, 4)), rng.normal(size=(12, 3))
        p = {"W1": rng.normal(size=(4, 5)), "W2": rng.normal(size=(5, 5)),
             "W3": rng.normal(size=(5, 3))}  # fmt: skip

        def layers(p):
            a = np.maximum(x @ p["W1"], 0)
            b = np.maximum(a @ p["W2"], 0)
            return a, b, b @ p["W3"] - t

        a, b, off = layers(p)
        dy = 2 * off / off.size
        db = dy @ p["W3"].T * (b > 0)
        da = db @ p["W2"].T * (a > 0)
        right = {"W1": x.T @ da, "W2": a.T @ db, "W3": b.T @ dy}
        loss = lambda p: float(np.mean(layers(p)[2] ** 2))  # noqa: E731
        check = check_gradient(loss, right, p, 1e-2)
        assert {array.wrong for array in check.arrays.values()} == {0}
        right["W2"] = 1.002 * right["W2"]
        assert check_gradient(loss, right, p, 1e-2).arrays["W2"].wrong

    def test_a_kink_is_in_the_error(self):
        assert numerical_diff(lambda x: np.maximum(x, 0), 0.0, error=True)[1] >= 0.5
        assert numerical_diff(lambda x: np.maximum(x, 0), 0.0, "auto", error=True)[1] >= 0.5


class TestValuesInSteps:
    CASES = {  # noqa: RUF012
        "float32": lambda w: float(np.float32(1e4 + w[0] ** 2)),
        "decimals": lambda w: round(float(w[0]) ** 2, 3),
    }

    @pytest.mark.parametrize("name", CASES)
    def test_the_ladder_reaches_beyond_the_step(self, name):
        f = self.CASES[name]
        assert verdict(f, [1.0], [0.5]) in ("ok", "unresolved")
        assert verdict(f, [1.2], [0.5]) == "wrong"
        found, error = numerical_gradient(f, np.array([0.5]), "auto", error=True)
        assert abs(found[0] - 1) <= error[0] < 0.1


class TestCancellation:
    @pytest.mark.parametrize(
        ("f", "x", "right", "digits"),
        [
            (lambda x: (np.exp(x) - 1) / x if x else 1.0, 0.0, 0.5, 1e-7),
            (lambda x: (1 - np.cos(x)) / x**2, 1e-4, -8.333333e-6, 1e-3),
            (
                lambda x: np.cos(np.pi * x) / x - np.sin(np.pi * x) / (np.pi * x**2) if x else 0.0,
                0.0,
                -(np.pi**2) / 3,
                1e-6,
            ),
        ],
        ids=["expm1", "1 - cos", "sinc"],
    )
    def test_auto_keeps_clear_of_it(self, f, x, right, digits):
        one = lambda x: f(float(x))  # noqa: E731
        found, error = numerical_diff(one, x, "auto", error=True)
        assert abs(found - right) <= digits * abs(right)
        assert abs(found - right) <= 3 * error
        gradient, error = numerical_gradient(lambda x: one(x[0]), np.array([x]), "auto", error=True)
        assert abs(gradient[0] - right) <= digits * abs(right)
        assert abs(gradient[0] - right) <= 3 * error[0]


class TestZeros:
    @pytest.mark.parametrize("seed", range(20))
    def test_a_bias_before_batch_normalisation(self, seed):
        rng = np.random.default_rng(seed)
        x, t = rng.normal(size=(10, 3)), rng.normal(size=(10, 4))
        p = {"W": rng.normal(size=(3, 4)), "b": rng.normal(size=4)}

        def forward(p):
            a = x @ p["W"] + p["b"]
            centred, deviation = a - a.mean(axis=0), np.sqrt(a.var(axis=0) + 1e-5)
            return centred / deviation, deviation

        def loss(p):
            return float(np.mean((np.tanh(forward(p)[0]) - t) ** 2))

        z, deviation = forward(p)
        y = np.tanh(z)
        dz = 2 * (y - t) / t.size * (1 - y**2)
        da = (dz - dz.mean(axis=0) - z * (dz * z).mean(axis=0)) / deviation
        check = check_gradient(loss, {"W": x.T @ da, "b": da.sum(axis=0)}, p)
        assert check.ok
        wrong = {"W": x.T @ da, "b": da.sum(axis=0) + 1e-6}
        assert check_gradient(loss, wrong, p).arrays["b"].verdict == "wrong"


@pytest.mark.parametrize("seed", [0, 3, 21, 148])
def test_a_gradient_of_nothing_but_rounding_is_not_called_wrong(seed):
    rng = np.random.default_rng(seed)
    a, target = rng.normal(size=(12, 6)) / 100, rng.normal(size=(12, 3))
    weights = rng.normal(size=(6, 3))

    def forward(bias):
        centred = a + bias - (a + bias).mean(0)
        deviation = np.sqrt((centred**2).mean(0) + 1e-7)
        return centred / deviation, deviation

    normal, deviation = forward(np.zeros(6))
    d = 2 * (np.tanh(normal) @ weights - target) @ weights.T * (1 - np.tanh(normal) ** 2)
    gradient = ((d - d.mean(0) - normal * (d * normal).mean(0)) / deviation).sum(0)
    loss = lambda bias: np.sum((np.tanh(forward(bias)[0]) @ weights - target) ** 2)  # noqa: E731
    assert verdict(loss, gradient, np.zeros(6)) != "wrong"
    assert verdict(loss, gradient + 1e-3, np.zeros(6)) == "wrong"


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("h", [1e-4, "auto"])
def test_a_gradient_below_the_last_place_of_the_loss_is_zero(seed, h):
    # A bias before batch normalisation, ReLU, an affine layer and the softmax with cross entropy.
    rng = np.random.default_rng(seed)
    x, weights, affine = (rng.normal(size=shape) for shape in ((12, 6), (6, 8), (8, 4)))
    rows, labels = np.arange(12), rng.integers(4, size=12)

    def forward(bias):
        a = x @ weights + bias
        deviation = np.sqrt(np.var(a, axis=0) + 1e-7)
        normal = (a - a.mean(axis=0)) / deviation
        e = np.exp(np.maximum(normal, 0) @ affine)
        return normal, deviation, e / e.sum(axis=1, keepdims=True)

    bias = rng.normal(size=8) / 10
    normal, deviation, p = forward(bias)
    p[rows, labels] -= 1
    d = p / 12 @ affine.T * (normal > 0)
    gradient = ((d - d.mean(0) - normal * (d * normal).mean(0)) / deviation).sum(0)
    loss = lambda bias: -np.mean(np.log(forward(bias)[2][rows, labels]))  # noqa: E731
    assert 0 < np.abs(gradient).max() < 1e-15
    assert verdict(loss, gradient, bias, h) == "ok"
    assert verdict(loss, gradient + 1e-8, bias, h) == "wrong"


class TestZeroSlopesAndCoarseValues:
    @pytest.mark.parametrize("offset", [1e16, 1e17])
    def test_a_slope_that_is_seen_all_the_same(self, offset):
        f = lambda x: offset + np.sum(x)  # noqa: E731
        assert verdict(f, [0.0, 0.0], [0.3, 0.7]) == "wrong"
        assert verdict(f, [1.0, 1.0], [0.3, 0.7]) in ("ok", "unresolved")


class TestFloat32:
    @staticmethod
    def network(seed):
        """Return a loss in float32, its parameters, and its gradient in float32."""
        rng = np.random.default_rng(seed)
        x, t = (rng.normal(size=(16, n)).astype(np.float32) for n in (6, 3))
        p = {
            "W1": rng.normal(size=(6, 8)).astype(np.float32) / 2,
            "W2": rng.normal(size=(8, 3)).astype(np.float32) / 2,
        }
        z = np.tanh(x @ p["W1"])
        dy = 2 * (z @ p["W2"] - t) / np.float32(t.size)
        right = {"W1": x.T @ (dy @ p["W2"].T * (1 - z**2)), "W2": z.T @ dy}
        return lambda p: np.mean((np.tanh(x @ p["W1"]) @ p["W2"] - t) ** 2), p, right

    def test_the_default_sees_enough(self):
        passed = 0
        for seed in range(13):
            loss, p, right = self.network(seed)
            check = check_gradient(loss, right, p)
            assert all(array.wrong == 0 for array in check.arrays.values())
            passed += check.ok
            right["W2"] = np.float32(1.02) * right["W2"]
            assert check_gradient(loss, right, p).arrays["W2"].verdict == "wrong"
        assert passed >= 10


class TestSuspects:
    def report(self, f, grad, x):
        return check_gradient(f, grad, np.array(x, float)).report()

    def test_one_entry_of_one(self):
        assert "Only this entry" not in self.report(lambda x: x[0] ** 2, [3.0], [1.0])

    def test_a_factor_without_meaning(self):
        x = np.linspace(1, 2, 8)
        report = self.report(lambda x: np.sum(x**2), 2e-14 * x, x)
        assert "mean" not in report

    def test_a_factor_beside_a_kink(self):
        x = np.append(np.linspace(1, 2, 12), 0.0)
        grad = np.append(2 * 2 * x[:-1], 2.0)
        report = self.report(lambda x: np.sum(x[:-1] ** 2) + max(x[-1], 0), grad, x)
        assert "2 times the numerical one: a missing ½" in report

    def test_none_where_none_fits(self):
        rng = np.random.default_rng(0)
        named = 0
        for _ in range(100):
            shape = tuple(rng.integers(1, 6, rng.integers(1, 3)))
            x, right = rng.normal(size=shape), rng.normal(size=shape)
            wrong = right + (rng.random(shape) < rng.uniform(0.3, 1)) * rng.normal(size=shape)
            report = self.report(lambda x, right=right: np.sum(right * x), wrong, x)
            named += any(word in report for word in ("times", "shifted", "transpose", "small ones",
                                                     "sign", "All wrong"))  # fmt: skip
        assert named <= 2


class TestArguments:
    def test_directions_are_all_different(self):
        check = check_gradient(
            lambda x: np.sum(x**3), lambda x: 3 * x**2, np.arange(1.0, 4.0), directions=4, rng=0
        )
        values = check.analytic["x along 4 directions"]
        assert len(set(np.abs(values).round(9))) == 4

    def test_complex_results(self):
        u = np.array([1.0, 2.0, 3.0])

        def forward(x):
            return np.exp(1j * u * x[0]) * x[1]

        def right(dout):
            jacobian = np.stack([1j * u * forward(x), forward([x[0], 1.0])], axis=1)
            return (dout.conj() @ jacobian).real

        def conjugate(dout):
            return right(dout.conj())

        def real_part_alone(dout):
            return right(dout.real + 0j)

        x = np.array([0.4, 1.5])
        assert check_backward(forward, right, x, rng=0).ok
        assert not check_backward(forward, conjugate, x, rng=0).ok
        assert not check_backward(forward, real_part_alone, x, rng=0).ok
        number = check_backward(
            lambda x: np.exp(1j * x[0]),
            lambda dout: [(np.conj(dout) * 1j * np.exp(0.4j)).real, 0.0],
            x, rng=0,
        )  # fmt: skip
        assert number.ok

    @pytest.mark.parametrize("output", [(np.ones(2), np.ones(3)), {"y": 1.0}, "text"])
    def test_what_is_no_array_is_refused(self, output):
        with pytest.raises(TypeError, match="`forward` must return an array"):
            check_backward(lambda x: output, lambda dout: dout, np.ones(2))

    def test_tables_are_refused(self):
        class Table:
            def to_numpy(self):
                return np.ones(2)

            def __array__(self, dtype=None, copy=None):
                return np.ones(2)

        for call in (numerical_gradient, lambda f, x: check_gradient(f, np.ones(2), x)):
            with pytest.raises(TypeError, match=r"`x` must be an array.*to_numpy\(\)"):
                call(np.sum, Table())

    def test_huge_values_raise_no_warning_of_numpys(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            check_gradient(lambda x: np.sum(x), np.ones(2), np.array([1e300, 2e300]))

    def test_a_layer_takes_no_further_arguments(self):
        with pytest.raises(TypeError, match="`args` must be left out"):
            check_backward(lambda x: 2 * x, lambda dout: 2 * dout, np.ones(2), args=(1,))

    @pytest.mark.parametrize("f", [np.sum, np.diff, np.diag])
    def test_extrapolated_slopes_are_those_of_each_element(self, f):
        with pytest.raises(ValueError, match=r"must return an array of shape \(3,\), element by"):
            numerical_diff(f, np.ones(3), "auto")

    def test_only_checks_warn_of_checks(self):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            numerical_gradient(lambda _: 1.0, [1, 2])
        assert [w.category for w in caught] == [UserWarning]
        assert issubclass(GradientCheckWarning, UserWarning)


def test_noise_that_grows_towards_x_is_not_called_wrong():
    rough = lambda x: float(x[0] ** 2 + 1e-9 * (zlib.crc32(x.tobytes()) % 1000 / 1000))  # noqa: E731
    assert verdict(rough, [2.0], [1.0]) == "ok"
    assert verdict(rough, [2.01], [1.0]) == "wrong"
