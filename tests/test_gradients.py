"""`numerical_diff`, `numerical_gradient` and `gradient_descent`."""

from __future__ import annotations

import gc
import itertools
import math
import weakref

import mpmath
import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numba import njit, prange

from fastgrad.checking.check import check_gradient
from fastgrad.kernels import user_function
from fastgrad.numdiff import objective
from fastgrad.numdiff.gradients import gradient_descent, numerical_diff, numerical_gradient


def rosenbrock(x):
    total = 0.0
    for i in range(x.size - 1):
        total += 100.0 * (x[i + 1] - x[i] * x[i]) ** 2 + (1.0 - x[i]) ** 2
    return total


def rosenbrock_gradient(x):
    bend = x[1:] - x[:-1] ** 2
    gradient = np.zeros_like(x)
    gradient[:-1] = -400.0 * x[:-1] * bend - 2.0 * (1.0 - x[:-1])
    gradient[1:] += 200.0 * bend
    return gradient


def log_sum_exp(x):
    return np.log(np.sum(np.exp(x)))


def softmax(x):
    return np.exp(x) / np.sum(np.exp(x))


FUNCTIONS = {
    "exp": (lambda x: np.sum(np.exp(x)), np.exp),
    "sin": (lambda x: np.sum(np.sin(x)), np.cos),
    "Rosenbrock": (rosenbrock, rosenbrock_gradient),
    "log-sum-exp": (log_sum_exp, softmax),
}


def sum_of_cubes(x):
    return np.sum(x * x * x)


compiled_sum_of_cubes = njit(sum_of_cubes)

both = pytest.mark.parametrize("f", [sum_of_cubes, compiled_sum_of_cubes], ids=["python", "njit"])


def textbook(f, x, h=1e-4):
    """Compute the gradient as the book's common/gradient.py does."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        kept = x[index]
        x[index] = kept + h
        upper = f(x)
        x[index] = kept - h
        lower = f(x)
        gradient[index] = (upper - lower) / (2 * h)
        x[index] = kept
    return gradient


class TestBook:
    def test_numerical_diff(self):
        def function_1(x):
            return 0.01 * x**2 + 0.1 * x

        assert numerical_diff(function_1, 5) == pytest.approx(0.2, abs=1e-11)
        assert numerical_diff(function_1, 10) == pytest.approx(0.3, abs=1e-11)

    @pytest.mark.parametrize(
        ("point", "gradient"), [((3, 4), (6, 8)), ((0, 2), (0, 4)), ((3, 0), (6, 0))]
    )
    def test_numerical_gradient(self, point, gradient):
        found = numerical_gradient(lambda x: x[0] ** 2 + x[1] ** 2, np.array(point))
        np.testing.assert_allclose(found, gradient, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("arguments", [{}, {"error": True}, {"h": "auto"}])
    def test_numerical_diff_of_what_is_not_element_by_element(self, arguments):
        for f in (lambda x: x[:2], np.sum):
            with pytest.raises(ValueError, match=r"shape \(3,\), element by element\. Got \("):
                numerical_diff(f, np.ones(3), **arguments)
        with pytest.raises(TypeError, match="`x` must be an array, not a tree"):
            numerical_diff(lambda p: p["a"], {"a": np.ones(2)}, **arguments)

    def test_gradient_descent_uphill(self):
        with pytest.raises(ValueError, match=r"`lr` must be a finite number, at least 0\. Got -1"):
            gradient_descent(np.sum, np.ones(2), lr=-1)
        with pytest.raises(TypeError, match="`return_history` must be True or False"):
            gradient_descent(np.sum, np.ones(2), return_history="yes")

    def test_gradient_descent(self):
        start = np.array([-3.0, 4.0])
        x, history = gradient_descent(
            lambda x: x[0] ** 2 + x[1] ** 2, start, lr=0.1, step_num=100, return_history=True
        )
        np.testing.assert_allclose(x, [-6.11110793e-10, 8.14814391e-10], rtol=0, atol=1e-12)
        np.testing.assert_array_equal(start, [-3, 4])
        assert history.shape == (101, 2)
        np.testing.assert_array_equal(history[0], start)
        np.testing.assert_array_equal(history[-1], x)
        np.testing.assert_allclose(history[1:], 0.8 * history[:-1], rtol=1e-6)

    def test_closure_that_reads_the_live_array(self):
        weights = np.random.default_rng(0).normal(size=(2, 3))
        found = numerical_gradient(lambda _: float(np.sum(weights**2)), weights)
        np.testing.assert_allclose(found, 2 * weights, rtol=1e-9)

    def test_elements_are_visited_in_memory_order(self):
        x = np.asfortranarray(np.zeros((2, 3)))
        visited = []

        def f(x):
            visited.append(int(np.argmax(np.abs(x).ravel(order="K"))))
            return 0.0

        numerical_gradient(f, x)
        assert visited == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


class TestNumericalDiff:
    def test_numbers_stay_numbers(self):
        seen = []
        found = numerical_diff(lambda x: seen.append(x) or x * x, 3)
        assert isinstance(found, float)
        assert all(np.ndim(x) == 0 for x in seen)
        assert found == pytest.approx(6)

    def test_elementwise(self):
        x = np.linspace(-2, 2, 12).reshape(3, 4)
        found = numerical_diff(np.sin, x, "auto")
        np.testing.assert_allclose(found, np.cos(x), atol=1e-9)

    def test_vector_of_one_number(self):
        found = numerical_diff(lambda x: np.array([x, x**2]), 2.0)
        np.testing.assert_allclose(found, [1, 4])

    def test_array_of_steps(self):
        np.testing.assert_allclose(numerical_diff(np.exp, [0.0, 1.0], [1e-5, 1e-4]), np.exp([0, 1]))

    @pytest.mark.parametrize("h", [0, -1e-4, math.nan, math.inf])
    def test_wrong_step(self, h):
        with pytest.raises(ValueError, match="`h`"):
            numerical_diff(np.sin, 1.0, h)


class TestBothKinds:
    @both
    @given(data=st.data())
    @settings(max_examples=25)
    def test_against_the_textbook_loop(self, f, data):
        shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4))
        x = data.draw(hnp.arrays(np.float64, shape, elements=st.floats(-100, 100)))
        layout = data.draw(st.sampled_from(["C", "F", "strided", "read-only", "list", "float32"]))
        if layout == "F":
            x = np.asfortranarray(x)
        elif layout == "strided":
            x = np.repeat(x, 2, axis=-1)[..., ::2]
        elif layout == "read-only":
            x.flags.writeable = False
        elif layout == "float32":
            x = x.astype(np.float32)
        before = np.array(x)
        found = numerical_gradient(f, x.tolist() if layout == "list" else x)
        np.testing.assert_array_equal(x, before)
        assert found.shape == before.shape
        if layout == "float32":
            assert found.dtype == np.float32
            scale = 1 + np.sum(np.abs(before.astype(np.float64)) ** 3)
            wide = np.maximum(1e-4, np.spacing(np.abs(before)))
            bound = 1e-6 * scale / wide + 3 * wide * np.abs(before) + 1e-3
            assert (np.abs(found - 3.0 * before.astype(np.float64) ** 2) <= bound).all()
        else:
            assert found.dtype == np.float64
            scale = 1 + np.sum(np.abs(before) ** 3)
            expected = textbook(sum_of_cubes, before.copy())
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11 * scale)

    @both
    @pytest.mark.parametrize("size", [0, 1, 2, 3, 17, 1000])
    def test_sizes(self, f, size):
        x = np.random.default_rng(size).normal(size=size)
        np.testing.assert_allclose(numerical_gradient(f, x), 3 * x**2, atol=1e-6)

    @both
    @pytest.mark.parametrize("dtype", ["i1", "u1", "i8", "?", "f2", ">f8"])
    def test_other_dtypes_are_converted_not_truncated(self, f, dtype):
        x = np.array([0, 1, 1]).astype(dtype)
        found = numerical_gradient(f, x)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, [0, 3, 3], atol=1e-7)

    @both
    def test_no_dimensions(self, f):
        found = numerical_gradient(f, 2.0)
        assert found.shape == ()
        assert found == pytest.approx(12)

    @both
    def test_nan_and_infinity_go_through(self, f):
        with np.errstate(all="ignore"):
            found = numerical_gradient(f, np.array([1.0, np.nan]))
            assert np.isnan(found).all()
            assert not np.isfinite(numerical_gradient(f, np.array([1.0, np.inf]))[1])

    @both
    def test_step_lost_beside_a_large_number(self, f):
        x = np.array([1e15, -1e15])
        np.testing.assert_allclose(numerical_gradient(f, x, 1e-9), 3 * x**2, rtol=0.5)

    @both
    def test_huge_step(self, f):
        with np.errstate(all="ignore"):
            assert not np.isfinite(numerical_gradient(f, np.ones(2), 1e300)).any()

    @both
    def test_orders_and_steps(self, f):
        x = np.random.default_rng(0).normal(size=(4, 5))
        for order, h in itertools.product((2, 4, 6), (1e-3, "auto", np.full((4, 5), 2e-3))):
            found = numerical_gradient(f, x, h, order=order)
            np.testing.assert_allclose(found, 3 * x**2, atol=5e-6 if order == 2 else 1e-10)

    @both
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"h": 0}, ValueError, r"`h` must be above 0\. Got 0\."),
            ({"h": "large"}, ValueError, "`h` must be \"auto\", a number above 0.*Got 'large'"),
            ({"h": [1e-4, 1e-4]}, ValueError, r"`h` must have shape \(3,\)\. Got \(2,\)\."),
            ({"h": [1e-4, 0, 1e-4]}, ValueError, "`h` must hold finite numbers above 0 only"),
            ({"h": None}, TypeError, "`h` must be a real number. Got None"),
            ({"error": "yes"}, TypeError, "`error` must be True or False. Got .yes"),
            ({"bounds": (1, 1)}, ValueError, r"`bounds` must have low < high\. Got \(1\.0, 1\.0\)"),
            ({"bounds": (np.nan, 9)}, ValueError, "`bounds` must have low < high"),
            ({"bounds": (8, 9)}, ValueError, r"`bounds` must have `x` between them\. Got \(8"),
            ({"order": 3}, ValueError, r"`order` must be 2, 4 or 6\. Got 3\."),
            ({"args": [1]}, TypeError, r"`args` must be a tuple\. Got list\."),
        ],
    )
    def test_wrong_arguments(self, f, arguments, error, message):
        with pytest.raises(error, match=message):
            numerical_gradient(f, np.ones(3), **arguments)

    def test_wrong_x_and_f(self):
        with pytest.raises(TypeError, match="`x` must be an array of real numbers"):
            numerical_gradient(sum_of_cubes, np.ones(3, complex))
        with pytest.raises(TypeError, match=r"`f` must be callable\. Got 3\."):
            numerical_gradient(3, np.ones(3))

    @both
    def test_keeps_the_memory_order(self, f):
        x = np.asfortranarray(np.ones((3, 4)))
        assert numerical_gradient(f, x).flags.f_contiguous


class TestPythonFunctions:
    @pytest.mark.parametrize(
        "wrap",
        [float, np.float32, np.float64, np.array, lambda v: np.array([[v]]), lambda v: [v], int],
        ids=["float", "float32", "float64", "0-d", "one element", "list", "int"],
    )
    def test_what_f_may_return(self, wrap):
        found = numerical_gradient(lambda x: wrap(np.round(x[0] * 1e6)), [1.0])
        assert found == pytest.approx(1e6, rel=1e-3)

    @pytest.mark.parametrize(
        ("value", "error"),
        [
            (np.zeros(2), ValueError),
            ([], ValueError),
            (None, TypeError),
            (1j, TypeError),
            ("1", TypeError),
            ([[1], [1, 2]], TypeError),
        ],
    )
    def test_what_f_may_not_return(self, value, error):
        x = np.ones(3)
        with pytest.raises(error, match="`f` must return one real number"):
            numerical_gradient(lambda x: value, x)
        np.testing.assert_array_equal(x, 1)

    @pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
    @pytest.mark.parametrize("after", range(9))
    def test_x_is_restored_when_f_raises(self, kind, after):
        x = np.array([[0.1, -0.0], [1e300, 3.0]])
        before = x.tobytes()
        calls = itertools.count()

        def f(x):
            if next(calls) == after:
                raise kind("stop")
            return x[0, 0]

        if after == 8:
            numerical_gradient(f, x)
        else:
            with pytest.raises(kind, match="stop"):
                numerical_gradient(f, x)
        assert x.tobytes() == before

    def test_f_that_changes_x_is_refused(self):
        x = np.ones(3)

        def f(x):
            x *= 2
            return x.sum()

        with pytest.raises(ValueError, match="`f` must not change `x`"):
            numerical_gradient(f, x)
        np.testing.assert_array_equal(x, 1)

    def test_args(self):
        found = numerical_gradient(lambda x, a, b: a * x[0] + b[0], [1.0], args=(3, [2.0]))
        assert found == pytest.approx(3)


@njit
def weighted(x, w, power, pair):
    return np.sum(w * x**power) * pair[0] + pair[1][0]


@njit
def picky(x, limit):
    if x[3] > limit:
        raise ValueError("too large", x[3])
    return np.sum(x)


@njit
def first_row(x):
    return x[:1]


@njit
def whole(x):
    return x


@njit
def nothing(x):
    x[0] + 1.0


@njit
def greedy(x):
    x *= 2
    return x.sum()


@njit(parallel=True)
def threaded(x):
    total = 0.0
    for i in prange(x.size):
        total += x[i] ** 3
    return total


@njit
def calls_threaded(x):
    return threaded(x)


@njit
def with_default(x, scale=2.0):
    return scale * np.sum(x**3)


@njit
def with_rest(x, *rest):
    return rest[0] * np.sum(x**3)


@njit("float64(float64[:])")
def fixed(x):
    return np.sum(x**3)


@njit
def many_dimensions(x):
    return x[1, 0, 1] ** 2 + 3 * x[0, 1, 0]


class TestCompiledFunctions:
    x = np.random.default_rng(1).normal(size=37)

    def test_further_arguments(self):
        w = np.random.default_rng(2).normal(size=74)[::2]
        w.flags.writeable = False
        args = (w, 3, (2.0, np.array([1.0])))
        found = numerical_gradient(weighted, self.x, args=args)
        np.testing.assert_allclose(found, 6 * w * self.x**2, atol=1e-6)
        np.testing.assert_array_equal(
            found, numerical_gradient(weighted, self.x, args=args, workers=map)
        )

    def test_same_numbers_as_the_loop_in_python(self):
        found = numerical_gradient(compiled_sum_of_cubes, self.x, order=4)
        looped = numerical_gradient(lambda x: compiled_sum_of_cubes(x), self.x, order=4)
        np.testing.assert_array_equal(found, looped)

    def test_one_thread_and_two_agree_bitwise(self):
        threads = numba.get_num_threads()
        many = numerical_gradient(compiled_sum_of_cubes, self.x)
        try:
            numba.set_num_threads(1)
            one = numerical_gradient(compiled_sum_of_cubes, self.x)
        finally:
            numba.set_num_threads(threads)
        np.testing.assert_array_equal(one, many)

    def test_exception_reaches_the_caller(self):
        x = np.ones(9)
        with pytest.raises(ValueError, match="too large") as caught:
            numerical_gradient(picky, x, args=(1.0,))
        assert caught.value.args == ("too large", 1.0001)
        np.testing.assert_array_equal(x, 1)
        np.testing.assert_allclose(numerical_gradient(picky, x, args=(2.0,)), 1)

    def test_first_exception_wins(self):
        @njit
        def f(x):
            for i in range(x.size):
                if x[i] != 1.0 and i >= 4:
                    raise IndexError(i)
            return 0.0

        with pytest.raises(IndexError) as caught:
            numerical_gradient(f, np.ones(500))
        assert caught.value.args == (4,)

    def test_exception_that_does_not_come_back(self):
        calls = np.zeros(1)
        address = calls.ctypes.data

        @njit
        def f(x, address):
            counter = numba.carray(_pointer(address), 1, np.float64)
            counter[0] += 1.0
            if counter[0] < 2.0:
                raise ValueError("once")
            return 0.0

        with pytest.raises(RuntimeError, match=r"element 0 of `x` at 1\.0001, but not when"):
            numerical_gradient(f, np.ones(1), args=(address,))

    def test_arrays_of_one_element(self):
        np.testing.assert_allclose(numerical_gradient(first_row, np.ones(4)), [1, 0, 0, 0])
        with pytest.raises(ValueError, match=r"one real number\. Got an array of shape \(4,\)"):
            numerical_gradient(whole, np.ones(4))

    def test_nothing_returned(self):
        with pytest.raises(TypeError, match=r"`f` must return one real number\. Got none\."):
            numerical_gradient(nothing, np.ones(4))

    def test_function_that_changes_x(self):
        x = np.ones(4)
        with pytest.raises(ValueError, match="`f` must not change `x`"):
            numerical_gradient(greedy, x)
        np.testing.assert_array_equal(x, 1)

    def test_does_not_compile(self):
        @njit
        def f(x):
            return x.no_such_attribute

        with pytest.raises(numba.TypingError, match="no_such_attribute"):
            numerical_gradient(f, np.ones(4))

    def test_unknown_argument(self):
        with pytest.raises(TypeError, match=r"for a compiled function\. Got dict"):
            numerical_gradient(with_default, np.ones(4), args=({},))

    @pytest.mark.parametrize(
        ("f", "args", "scale"),
        [
            (threaded, (), 1),
            (calls_threaded, (), 1),
            (with_default, (), 2),
            (with_default, (3.0,), 3),
            (with_rest, (4.0,), 4),
            (fixed, (), 1),
        ],
    )
    def test_functions_that_want_care(self, f, args, scale):
        found = numerical_gradient(f, self.x, args=args)
        np.testing.assert_allclose(found, 3 * scale * self.x**2, atol=1e-6)

    def test_functions_with_threads_of_their_own_are_not_nested(self):
        assert objective._compiled(calls_threaded, self.x, ()) is None
        assert objective._compiled(compiled_sum_of_cubes, self.x, ()) is not None

    def test_many_dimensions(self):
        found = numerical_gradient(many_dimensions, np.arange(12.0).reshape(2, 2, 3))
        expected = np.zeros((2, 2, 3))
        expected[1, 0, 1], expected[0, 1, 0] = 14, 3
        np.testing.assert_allclose(found, expected, atol=1e-7)

    def test_nothing_is_compiled_for_a_new_function_of_known_types(self):
        numerical_gradient(compiled_sum_of_cubes, self.x)
        driver = len(user_function.evaluate_perturbed.signatures)
        bridges = user_function.evaluator.cache_info().misses

        @njit
        def f(x):
            return np.sum(np.cos(x))

        np.testing.assert_allclose(numerical_gradient(f, self.x), -np.sin(self.x), atol=1e-7)
        numerical_gradient(f, self.x.reshape(37, 1)[:, 0])
        assert len(user_function.evaluate_perturbed.signatures) == driver
        assert user_function.evaluator.cache_info().misses == bridges
        assert len(f.signatures) == 1

    def test_one_signature_of_the_driver_for_each_dtype(self):
        for x in (self.x, self.x[::2], np.ones((3, 4)), np.ones((2, 2, 2), order="F")):
            numerical_gradient(compiled_sum_of_cubes, x)
            numerical_gradient(compiled_sum_of_cubes, x.astype(np.float32))
        assert len(user_function.evaluate_perturbed.signatures) <= 2

    def test_recompiled_function(self):
        scale = 2.0

        @njit
        def f(x):
            return scale * x[0]

        assert numerical_gradient(f, [1.0]) == pytest.approx(2)
        scale = 5.0
        f.recompile()
        assert numerical_gradient(f, [1.0]) == pytest.approx(5)

    def test_functions_are_not_kept_alive(self):
        @njit
        def f(x):
            return x[0]

        numerical_gradient(f, [1.0])
        alive = weakref.ref(f)
        del f
        gc.collect()
        assert alive() is None

    def test_many_stretches(self, monkeypatch):
        monkeypatch.setattr(objective, "_STRETCH", 0.0)
        np.testing.assert_allclose(
            numerical_gradient(compiled_sum_of_cubes, self.x), 3 * self.x**2, atol=1e-6
        )


@numba.extending.intrinsic
def _pointer(typingctx, address):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(numba.types.voidptr))

    return numba.types.voidptr(address), generate


class TestAccuracy:
    x = np.random.default_rng(0).uniform(-2, 2, 10)

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_order_4_auto(self, name):
        f, gradient = FUNCTIONS[name]
        true = gradient(self.x)
        found = numerical_gradient(f, self.x, "auto", order=4)
        assert np.max(np.abs(found - true)) <= 1e-11 * np.max(np.abs(true))

    @pytest.mark.parametrize("order", [2, 4, 6])
    @pytest.mark.parametrize("h", ["auto", 1e-4, 1e-2, 1e-6])
    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_error_estimate_brackets_the_error(self, name, h, order):
        f, gradient = FUNCTIONS[name]
        for seed in range(20):
            x = np.random.default_rng(seed).uniform(-2, 2, 10)
            # A pause of the machine may decide for all points at once, whose rounding is another.
            found, error = numerical_gradient(f, x, h, order=order, error=True, batched=False)
            alone = numerical_gradient(f, x, h, order=order, batched=False)
            np.testing.assert_array_equal(found, alone)
            assert (np.abs(found - gradient(x)) <= error).all()

    @pytest.mark.parametrize("order", [2, 4, 6])
    def test_error_estimate_is_of_use(self, order):
        found, error = numerical_gradient(np.exp, [1.0], 0.05, order=order, error=True)
        assert error[0] <= 2**order * abs(found[0] - np.e)

    @pytest.mark.parametrize("order", [2, 4, 6])
    def test_order_of_convergence(self, order):
        errors = [
            abs(numerical_gradient(np.exp, [1.0], h, order=order)[0] - np.e) for h in (0.4, 0.2)
        ]
        assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("x", [0.1, 1.0 - 1e-7, 3.3, 1e4, -7e-5])
    def test_no_error_is_made_in_the_step(self, x, dtype):
        # For a linear f of exact values only the step could be wrong.
        x = np.array([x], dtype)
        for order in (2, 4, 6):
            found = numerical_gradient(lambda x: float(x[0]), x, 3e-4, order=order)
            assert abs(found[0] - 1) <= 4 * np.finfo(dtype).eps

    @given(st.floats(-3, 3), st.floats(1e-5, 0.5))
    def test_against_50_digits(self, x, h):
        """The difference at the very points that were taken, by mpmath."""
        points = []

        def f(x):
            points.append(float(x[0]))
            return math.exp(x[0])

        found = numerical_gradient(f, [x], h)
        with mpmath.workdps(50):
            upper, lower = map(mpmath.mpf, points)
            exact = (mpmath.exp(upper) - mpmath.exp(lower)) / (upper - lower)
        assert abs(found[0] - float(exact)) <= 4e-16 * math.exp(x + h) / h

    def test_float32(self):
        x = np.array([0.5, 1.5], np.float32)
        found, error = numerical_gradient(sum_of_cubes, x, "auto", order=4, error=True)
        assert found.dtype == error.dtype == np.float32
        assert (np.abs(found - 3 * x**2) <= error).all()
        np.testing.assert_allclose(found, 3 * x**2, rtol=1e-4)


class TestGradientDescent:
    @both
    def test_start_is_kept(self, f):
        start = np.array([[2, 1], [3, 1]])
        x, history = gradient_descent(f, start, 0.01, 5, return_history=True)
        assert history.shape == (6, 2, 2)
        np.testing.assert_array_equal(start, [[2, 1], [3, 1]])
        expected = start.astype(float)
        for step in range(6):
            np.testing.assert_allclose(history[step], expected, rtol=1e-6)
            expected = expected - 0.01 * 3 * expected**2
        np.testing.assert_array_equal(x, history[-1])

    def test_no_steps(self):
        x, history = gradient_descent(sum_of_cubes, [1.0], step_num=0, return_history=True)
        np.testing.assert_array_equal(x, [1.0])
        assert history.shape == (1, 1)

    def test_float32_stays(self):
        x = gradient_descent(lambda x: np.sum(x * x), np.ones(3, np.float32), lr=0.1)
        assert x.dtype == np.float32

    def test_divergence_goes_on(self):
        x = gradient_descent(lambda x: np.sum(x**2), [-3.0, 4.0], lr=10.0)
        np.testing.assert_allclose(x, np.array([-3.0, 4.0]) * 19.0**100, rtol=1e-5)
        with np.errstate(all="ignore"):
            x = gradient_descent(lambda x: np.sum(x**2), [-3.0, 4.0], lr=10.0, step_num=400)
        assert not np.isfinite(x).any()

    def test_tiny_rate_stands_still(self):
        x = gradient_descent(lambda x: np.sum(x**2), [-3.0, 4.0], lr=1e-10)
        np.testing.assert_allclose(x, [-3, 4], atol=1e-6)

    @pytest.mark.parametrize(
        ("arguments", "error", "name"),
        [
            ({"lr": math.nan}, ValueError, "lr"),
            ({"lr": "fast"}, TypeError, "lr"),
            ({"step_num": -1}, ValueError, "step_num"),
            ({"step_num": 1.5}, TypeError, "step_num"),
            ({"init_x": [1j]}, TypeError, "init_x"),
        ],
    )
    def test_wrong_arguments(self, arguments, error, name):
        with pytest.raises(error, match=f"`{name}` must be"):
            gradient_descent(**{"f": sum_of_cubes, "init_x": [1.0], **arguments})


def doubled(x):
    x *= 2
    return x.sum()


@pytest.mark.parametrize("function", [doubled, njit(doubled)], ids=["python", "njit"])
def test_a_function_that_works_in_place_leaves_x(function):
    x = np.array([3.0])
    gradient, _ = numerical_gradient(function, x, error=True)
    np.testing.assert_allclose(gradient, [2], rtol=1e-9)
    assert check_gradient(function, [2.0], x)
    assert x == 3


def test_numerical_diff_of_a_function_that_works_in_place():
    def square(x):
        x **= 2
        return x

    slope = numerical_diff(square, np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(slope, [2, 4, 6], rtol=1e-8)


def test_a_compiled_function_sees_no_dimensions_where_x_has_none():
    x = np.array(3.0)
    gradient = numerical_gradient(njit(lambda x: math.sin(x[()])), x)
    assert gradient.shape == ()
    assert gradient == pytest.approx(math.cos(3), rel=1e-8)
    assert numerical_gradient(njit(lambda x: x.ndim * x.sum()), x) == 0


@pytest.mark.parametrize("h", [1e50, 1e-60, [1e50, 1.0], [1.0, 1e-60]], ids=str)
def test_steps_that_float32_does_not_have(h):
    with pytest.raises(ValueError, match="`h` must"):
        numerical_gradient(np.sum, np.ones(2, np.float32), h)


@pytest.mark.parametrize("order", [[2], np.array(2), 2.5, "2", 3], ids=repr)
def test_orders_there_are_not(order):
    with pytest.raises(ValueError, match="`order` must be 2, 4 or 6"):
        numerical_gradient(np.sum, np.ones(2), order=order)
