"""Second derivatives."""

from __future__ import annotations

import cmath

import numpy as np
import pytest

from fastgrad import numerical_hessian


def rosenbrock(x):
    return np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def rosenbrock_hessian(x):
    main = np.zeros(len(x))
    main[:-1] = 1200 * x[:-1] ** 2 - 400 * x[1:] + 2
    main[1:] += 200
    return np.diag(main) + np.diag(-400 * x[:-1], 1) + np.diag(-400 * x[:-1], -1)


U = np.array([0.3, -0.8, 1.1])
CASES = {
    "rosenbrock": (rosenbrock, rosenbrock_hessian, [-1.2, 1.0, 0.7]),
    "exp": (lambda x: np.exp(U @ x), lambda x: np.outer(U, U) * np.exp(U @ x), [1.0, 2.0, 0.5]),
    "log": (lambda x: np.sum(np.log(x)), lambda x: np.diag(-1 / x**2), [1e-3, 1.0, 50.0]),
    "sin": (
        lambda x: np.sin(U @ x), lambda x: -np.outer(U, U) * np.sin(U @ x), [0.0, 1.0, -3.0],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_smooth_functions(name):
    f, exact, x = CASES[name]
    x = np.array(x)
    kept = x.copy()
    found, error = numerical_hessian(f, x, error=True)
    off = np.abs(found - exact(x))
    assert off.max() <= 1e-8 * np.abs(exact(x)).max()
    assert (off <= error).all()
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(x, kept)


def test_shape_and_memory_order():
    x = np.asfortranarray(np.arange(1.0, 5.0).reshape(2, 2))
    found = numerical_hessian(lambda x: x[0, 1] ** 2 * x[1, 0], x)
    assert found.shape == (2, 2, 2, 2)
    assert found[0, 1, 0, 1] == pytest.approx(6, rel=1e-8)
    assert found[0, 1, 1, 0] == pytest.approx(4, rel=1e-8)
    assert numerical_hessian(lambda x: x**3, 2.0).shape == ()
    assert numerical_hessian(lambda x: 0.0, np.empty(0)).shape == (0, 0)


def test_complex_results():
    x = np.array([0.7, -1.2])
    found, error = numerical_hessian(lambda x: np.exp(1j * x[0]) * x[1] ** 2, x, error=True)
    turn = np.exp(0.7j)
    exact = turn * np.array([[-(x[1] ** 2), 2j * x[1]], [2j * x[1], 2]])
    assert found.dtype == np.complex128
    assert error.dtype == np.float64
    assert (np.abs(found - exact) <= error).all()
    np.testing.assert_allclose(found, exact, rtol=1e-8)
    np.testing.assert_array_equal(found, found.T)
    with pytest.raises(ValueError, match="at every point or at none"):
        numerical_hessian(lambda x: cmath.sqrt(x[0]) if x[0] < 0.1 else x[0] ** 2, [0.1])
    np.testing.assert_array_equal(x, [0.7, -1.2])


def test_trees_and_arrays_as_results_are_refused():
    with pytest.raises(TypeError, match="not a tree"):
        numerical_hessian(lambda p: 0.0, {"w": np.ones(2)})
    with pytest.raises(ValueError, match="one real number"):
        numerical_hessian(lambda x: x, np.ones(2))


def test_what_f_raises_leaves_x_as_it_was():
    x = np.array([1.0, 2.0])

    def f(x):
        if (x != [1.0, 2.0]).all():
            raise RuntimeError("no")
        return 0.0

    with pytest.raises(RuntimeError, match="no"):
        numerical_hessian(f, x)
    np.testing.assert_array_equal(x, [1.0, 2.0])


def test_further_arguments():
    found = numerical_hessian(lambda x, a: a * x[0] ** 2, [3.0], args=(5.0,))
    assert found[0, 0] == pytest.approx(10, rel=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_a_function_that_reads_another_array(dtype):
    x = np.arange(1, 4).astype(dtype)
    with pytest.warns(UserWarning, match="does not depend on `x`"):
        assert not numerical_hessian(lambda _: float(np.sum(x**2)), x).any()
    np.testing.assert_allclose(
        numerical_hessian(lambda x: np.sum(x**2), x), 2 * np.eye(3), atol=1e-6
    )
