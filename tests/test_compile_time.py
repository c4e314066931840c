"""Compiling is announced once, and is not counted as training."""

import time

import numba
import numpy as np
import pytest

import fastgrad
from fastgrad.runtime import compile_time
from fastgrad.runtime.compile import kernel


def compile_something(ours=True, seconds=0.0):
    compile_time._begin(ours)
    time.sleep(seconds)
    compile_time._end()


@pytest.fixture(autouse=True)
def _a_while_ago(monkeypatch):
    monkeypatch.setattr(compile_time._state, "announced", False)
    monkeypatch.setattr(compile_time, "_written", set())


def test_it_is_announced_once(capsys):
    with compile_time.announced("float32") as compiling:
        compile_something(seconds=0.02)
        assert compiling.seconds >= 0.02
        compile_something()
    with compile_time.announced("float32"):
        compile_something()
    assert capsys.readouterr().err == ("fastgrad: compiling kernels for float32 (kept for later)\n")


def test_it_says_for_how_long_about(capsys):
    compile_time.say("training in float64", 6)
    assert "for training in float64, about 6 s (kept" in capsys.readouterr().err


def test_who_asks_is_told_whatever_was_compiled_just_before(capsys):
    compile_something()
    with compile_time.announced("float32"):
        compile_something()
    assert capsys.readouterr().err.startswith("fastgrad: compiling kernels for float32 (")


def test_what_a_kernel_calls_counts_as_a_part_of_it(capsys):
    with compile_time.announced("") as compiling:
        begin = time.perf_counter()
        compile_time._begin(True)
        compile_something(ours=False, seconds=0.02)
        compile_something(ours=True, seconds=0.02)
        compile_time._end()
        assert 0.04 <= compiling.seconds <= time.perf_counter() - begin
    assert capsys.readouterr().err.count("\n") == 1


def test_functions_of_the_user_are_their_own_affair(capsys):
    with compile_time.announced("") as compiling:
        compile_something(ours=False, seconds=0.02)
        assert compiling.seconds == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("waits", [False, True])
def test_without_being_asked_only_where_somebody_waits(waits, capsys, monkeypatch):
    monkeypatch.setattr(compile_time.sys.stderr, "isatty", lambda: waits, raising=False)
    compile_something()
    assert ("compiling" in capsys.readouterr().err) == waits


def test_without_a_cache_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(compile_time, "cache_folder", lambda: None)
    with compile_time.announced("float64"):
        compile_something()
    assert "in each process anew, as no folder can be written" in capsys.readouterr().err


def test_numba_is_followed():
    """A function of ours is the one compiled, seen from Numba."""

    def doubled(x):
        return 2 * x

    doubled.__module__ = "fastgrad.kernels.doubled"
    told = []
    with compile_time.Watch(lambda: told.append(1)) as compiling:
        assert kernel(doubled)(3.0) == 6
    if not numba.config.DISABLE_JIT:
        assert told == [1]
        assert compiling.seconds > 0


def test_a_fit_is_timed_without_it():
    net = fastgrad.TwoLayerNet(4, 3, 2, rng=0)
    x, t = np.ones((5, 4)), np.zeros(5, np.int64)
    net.fit(x, t, iterations=1, batch_size=2)
    begin = time.perf_counter()
    history = net.fit(
        x, t, iterations=2, batch_size=2, callback=lambda *_: compile_something(seconds=0.02)
    )
    assert history.seconds < time.perf_counter() - begin - 0.04


def test_a_bar_starts_after_it(capsys, monkeypatch):
    """The first line is the announcement, and nothing of the small run before is left behind."""
    net = fastgrad.TwoLayerNet(4, 3, 2, rng=0)
    x, t = np.ones((5, 4)), np.zeros(5, np.int64)
    optimizer = fastgrad.Adam(0.01)
    checked = net.checked_params
    monkeypatch.setattr(
        fastgrad.TwoLayerNet, "accuracy", lambda *_: compile_something() or 1.0
    )  # evaluated in the small run alone
    state, before = np.random.get_state()[1].copy(), checked()["W1"].copy()
    history = net.fit(x, t, iterations=0, batch_size=2, optimizer=optimizer, progress=True)
    assert len(history.loss) == 0
    first, *others = capsys.readouterr().err.replace("\r", "\n").split("\n")
    assert first.startswith("fastgrad: compiling kernels for training in float64 (")
    assert any("0it" in line or "0/0" in line for line in others)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    np.testing.assert_array_equal(net.params["W1"], before)
    assert optimizer.iter == 0
    assert optimizer.m is None
