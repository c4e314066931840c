"""`workers`: blocks of elements evaluated elsewhere, through any map."""

from __future__ import annotations

import concurrent.futures
import functools
import multiprocessing
import os

import numpy as np
import pytest
from numba import njit

from fastgrad.numdiff.gradients import numerical_gradient
from fastgrad.numdiff.objective import WorkerTraceback


def cubes(x, scale=1.0):
    return scale * float(np.sum(x**3))


@njit
def compiled_cubes(x, scale):
    return scale * np.sum(x**3)


class CannotBeUnpickledError(Exception):
    def __init__(self, place, reason):
        super().__init__(f"{place}: {reason}")


def fails_at_the_third(x, kind):
    if x.flat[2] != 3.0:
        try:
            {}["inner"]
        except KeyError as inner:
            if kind == "plain":
                raise ValueError("third", 3) from inner
            raise CannotBeUnpickledError("third", "on purpose") from inner
    return float(np.sum(x))


def process_number(x):
    return float(os.getpid())


X = np.arange(1.0, 25.0).reshape(2, 3, 4)


@pytest.fixture(scope="module", params=["pool", "processes", "threads", "builtin", "dask"])
def workers(request, tmp_path_factory):
    if request.param == "builtin":
        yield map
    elif request.param == "threads":
        with concurrent.futures.ThreadPoolExecutor(3) as executor:
            yield executor.map
    elif request.param == "pool":
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            yield pool.map
    elif request.param == "processes":
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
            yield executor.map
    else:
        distributed = pytest.importorskip("distributed")
        with (
            distributed.LocalCluster(
                n_workers=2,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
                local_directory=str(tmp_path_factory.mktemp("dask")),
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client.get_executor().map


LAYOUTS = {
    "C": lambda x: x,
    "F": np.asfortranarray,
    "permuted": lambda x: x.transpose(2, 0, 1),
    "reversed": lambda x: x[:, ::-1],
}


@pytest.mark.parametrize("order", [2, 6])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_same_numbers_in_the_same_places(workers, layout, order):
    x = layout(X.copy())
    before = x.copy()
    alone = numerical_gradient(cubes, x, args=(2.0,), order=order)
    shared = numerical_gradient(cubes, x, args=(2.0,), order=order, workers=workers)
    np.testing.assert_array_equal(shared, alone)
    assert shared.strides == alone.strides == np.empty_like(x).strides
    np.testing.assert_array_equal(x, before)


def test_compiled_function(workers):
    alone = numerical_gradient(compiled_cubes, X, args=(2.0,))
    shared = numerical_gradient(compiled_cubes, X, args=(2.0,), workers=workers)
    np.testing.assert_array_equal(shared, alone)


def test_error_estimate(workers):
    alone = numerical_gradient(cubes, X, error=True)
    shared = numerical_gradient(cubes, X, error=True, workers=workers)
    np.testing.assert_array_equal(shared, alone)


def test_exception_arrives_with_its_causes(workers):
    with pytest.raises(ValueError, match="third") as caught:
        numerical_gradient(fails_at_the_third, X, args=("plain",), workers=workers)
    assert caught.value.args == ("third", 3)
    inner = caught.value.__cause__
    assert isinstance(inner, KeyError)
    assert inner.args == ("inner",)
    assert isinstance(inner.__cause__, WorkerTraceback)
    assert "fails_at_the_third" in str(inner.__cause__)


def test_exception_that_cannot_be_unpickled(workers):
    with pytest.raises(RuntimeError, match="CannotBeUnpickledError: third: on purpose"):
        numerical_gradient(fails_at_the_third, X, args=("odd",), workers=workers)


def test_wrong_result_of_f(workers):
    with pytest.raises(ValueError, match="`f` must return one real number"):
        numerical_gradient(np.sort, X.ravel(), workers=workers)


def test_empty_x(workers):
    assert numerical_gradient(cubes, np.empty((0, 3)), workers=workers).shape == (0, 3)


def test_other_processes_do_the_work():
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        numbers = set()

        def spy(function, tasks):
            results = pool.map(function, tasks)
            numbers.update(*(block.ravel() for block in results))
            return results

        numerical_gradient(process_number, X, workers=spy)
    assert numbers
    assert os.getpid() not in numbers


class Recorder:
    """A pool that remembers how many blocks it got."""

    def __init__(self, count):
        self._max_workers = count

    def map(self, function, tasks):
        self.blocks = len(tasks)
        return map(function, tasks)


@pytest.mark.parametrize(("count", "size", "blocks"), [(1, 100, 4), (3, 100, 12), (8, 5, 5)])
def test_few_blocks(count, size, blocks):
    recorder = Recorder(count)
    x = np.linspace(0, 1, size)
    found = numerical_gradient(cubes, x, workers=recorder.map)
    assert recorder.blocks == blocks
    np.testing.assert_allclose(found, 3 * x**2, atol=1e-7)


def test_live_array_is_left_alone():
    x = X.copy()

    def reads_its_argument(argument):
        assert argument is not x
        np.testing.assert_array_equal(x, X)
        return float(np.sum(argument))

    np.testing.assert_allclose(numerical_gradient(reads_its_argument, x, workers=map), 1)


def test_interrupt_passes_through():
    def interrupted(function, tasks):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        numerical_gradient(cubes, X, workers=interrupted)


def test_futures_are_refused():
    def submit(function, tasks):
        return [concurrent.futures.Future() for _ in tasks]

    with pytest.raises(TypeError, match=r"`workers` must be a map that gives results.*It gave Fut"):
        numerical_gradient(cubes, X, workers=submit)


def test_not_callable():
    with pytest.raises(TypeError, match=r"`workers` must be a map-like callable\. Got 4\."):
        numerical_gradient(cubes, X, workers=4)


def test_partial_functions_travel(workers):
    f = functools.partial(cubes, scale=3.0)
    np.testing.assert_array_equal(
        numerical_gradient(f, X, workers=workers), numerical_gradient(f, X)
    )


def test_a_map_that_gives_nothing_is_refused():
    x = np.ones(3)
    with pytest.raises(TypeError, match=r"`workers` must be a map-like callable.* It gave None\."):
        numerical_gradient(cubes, x, workers=lambda f, parts: None)
    with pytest.raises(ValueError, match=r"each of 3 blocks of points\. It gave 2\."):
        numerical_gradient(cubes, x, workers=lambda f, parts: list(map(f, parts))[:2])
    np.testing.assert_array_equal(x, 1)
