"""Numerical Hessians against exact ones."""

import numpy as np
import pytest

from fastgrad import numerical_hessian


def rosenbrock(x):
    return np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def exact_rosenbrock(x):
    hessian = np.zeros((x.size, x.size))
    for i in range(x.size - 1):
        hessian[i, i] += 1200 * x[i] ** 2 - 400 * x[i + 1] + 2
        hessian[i, i + 1] = hessian[i + 1, i] = -400 * x[i]
        hessian[i + 1, i + 1] += 200
    return hessian


def test_rosenbrock():
    x = np.array([0.3, -1.2, 2.0, 0.7])
    kept = x.copy()
    hessian, error = numerical_hessian(rosenbrock, x, error=True)
    want = exact_rosenbrock(x)
    np.testing.assert_allclose(hessian, want, rtol=1e-8, atol=1e-6)
    assert (np.abs(hessian - want) <= error).all()
    assert (hessian == hessian.T).all()
    assert (x == kept).all()


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1.0, 1e6])
def test_scales(scale):
    x = scale * np.array([0.5, 1.5])
    found = numerical_hessian(lambda x: np.exp(x[0] / scale) * np.sin(x[1] / scale), x)
    e, s, c = np.exp(0.5), np.sin(1.5), np.cos(1.5)
    want = np.array([[e * s, e * c], [e * c, -e * s]]) / scale**2
    np.testing.assert_allclose(found, want, rtol=1e-7, atol=1e-8 / scale**2)


def test_shapes():
    x = np.asfortranarray([[1.0, 2.0], [3.0, 4.0]])
    found = numerical_hessian(lambda x: np.sum(x**3) + x[0, 1] * x[1, 0], x)
    want = np.diag([6.0, 12, 18, 24])
    want[1, 2] = want[2, 1] = 1
    assert found.shape == (2, 2, 2, 2)
    np.testing.assert_allclose(found.reshape(4, 4), want, atol=1e-6)
    assert numerical_hessian(lambda x: x**4, 2.0).round(5) == 48
    assert numerical_hessian(lambda x: 1.0, np.empty(0)).shape == (0, 0)


def test_a_domain_that_ends_near_x():
    found, error = numerical_hessian(lambda x: np.sum(np.log(x)), np.array([1e-6, 2.0]), error=True)
    want = np.diag([-1e12, -0.25])
    np.testing.assert_allclose(found.diagonal(), want.diagonal(), rtol=1e-7)
    assert (np.abs(found - want) <= error).all()


def test_bad_input():
    with pytest.raises(TypeError, match="`x` must be an array"):
        numerical_hessian(lambda p: 1.0, {"W": np.ones(2)})
    with pytest.raises(ValueError, match="one real number"):
        numerical_hessian(lambda x: x, np.ones(2))
    x = np.ones(2)
    with pytest.raises(ZeroDivisionError):
        numerical_hessian(lambda x: 1 / 0, x)
    assert x.tolist() == [1, 1]
