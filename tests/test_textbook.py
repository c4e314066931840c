"""The textbook's loop that the command line compares with: the same loss, honest slopes."""

import numpy as np
import pytest

from fastgrad import TwoLayerNet
from fastgrad.cli import textbook


@pytest.fixture(params=["sigmoid", "relu"])
def problem(request):
    rng = np.random.default_rng(5)
    net = TwoLayerNet(7, 4, 3, 0.5, activation=request.param, rng=1)
    return net, rng.normal(size=(6, 7)), rng.integers(3, size=6), request.param


def test_loss_is_that_of_the_network(problem):
    net, x, t, activation = problem
    assert textbook.loss(net.params, x, t, activation) == pytest.approx(net.loss(x, t), rel=1e-14)


def test_slopes_are_those_of_the_network(problem):
    net, x, t, activation = problem
    before = {name: array.copy() for name, array in net.params.items()}
    for name, expected in net.numerical_gradient(x, t).items():
        slopes = [
            textbook.central_difference(
                lambda: textbook.loss(net.params, x, t, activation), net.params[name], i, 1e-4
            )
            for i in range(expected.size)
        ]
        np.testing.assert_allclose(slopes, expected.ravel(), atol=1e-10)
    for name, array in before.items():
        np.testing.assert_array_equal(net.params[name], array)


def test_near_kinks_are_the_places_where_a_unit_changes_its_side():
    net = TwoLayerNet(7, 4, 3, 0.5, activation="relu", rng=1)
    x = np.random.default_rng(5).normal(size=(6, 7))
    h = 0.3
    marks = textbook.near_kinks(net.params, x, h)
    for name in ("W1", "b1"):
        for index in np.ndindex(net.params[name].shape):
            sides = []
            for step in (-h, h):
                params = {key: array.copy() for key, array in net.params.items()}
                params[name][index] += step
                sides.append(x @ params["W1"] + params["b1"] > 0)
            assert marks[name][index] == (sides[0] != sides[1]).any()
    assert 0 < marks["W1"].sum() < marks["W1"].size
    assert not marks["W2"].any()
    assert not marks["b2"].any()


@pytest.mark.parametrize("count", [1, 3, 40, 100, 397, 1000])
def test_random_positions(count):
    params = TwoLayerNet(30, 12, 7, rng=0).params
    total = sum(array.size for array in params.values())
    positions = textbook.random_positions(params, count, np.random.default_rng(0))
    assert len(positions) == len(set(positions)) == min(count, total)
    assert all(0 <= index < params[name].size for name, index in positions)
    if count >= 40:
        for name, array in params.items():
            share = sum(position[0] == name for position in positions)
            assert share >= min(10, array.size)
