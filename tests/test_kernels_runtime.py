"""Steps of a launch: each chunk of each once, in order, however many threads take part."""

import ctypes
import gc
import threading
import weakref

import numba
import numpy as np
import pytest
from numba import types
from processes import answer
from processes import run as run_python
from reference import from_python

from fastgrad.runtime import steps
from fastgrad.runtime.compile import COMPILED, address, kernel, step_kernel
from fastgrad.runtime.steps import Arguments, launch, program, progress_rows, run_thread
from fastgrad.runtime.threads import YIELD

STEPS = 40


@step_kernel
def note(args, chunk, chunks, number):
    """Note a run of a chunk of a step, and whether a chunk of the step before was missing."""
    step, runs, early = args.step, args.runs, args.early
    runs[number, step, chunk] += 1
    before = number * runs.shape[1] + step - 1
    if before >= 0:
        for other in range(chunks):
            early[chunk] += runs[before // runs.shape[1], before % runs.shape[1], other] == 0


class Run:
    """A program of two steps, the first of two kernels, to be repeated twenty times."""

    def __init__(self, chunks):
        self.progress = progress_rows(chunks)
        self.runs = np.zeros((STEPS // 2, 3, chunks), np.int64)
        self.early = np.zeros(chunks, np.int64)
        # The second kernel of a step follows the first of the same chunk, not of all.
        notes = [self.early, np.zeros(chunks, np.int64), self.early]
        self.args = [
            Arguments(step=step, runs=self.runs, early=early) for step, early in enumerate(notes)
        ]
        first, second, third = [(note, args) for args in self.args]
        self.program = program([first, second], [third])

    def thread(self, number):
        from_python(run_thread)(number, *self.program, 0, len(self.runs), self.progress, YIELD)

    def assert_complete(self):
        np.testing.assert_array_equal(self.runs, np.ones_like(self.runs))
        assert not self.early.any()


@pytest.mark.parametrize("n_chunks", [1, 2, 3, 8])
def test_a_launch_runs_every_chunk_of_every_step_in_order(n_chunks):
    run = Run(n_chunks)
    for _ in range(20):
        run.runs[:] = 0
        launch(run.program, run.progress, repeats=len(run.runs))
        run.assert_complete()


def test_the_numbers_of_a_launch_go_on_from_the_first():
    run = Run(2)
    launch(run.program, run.progress, first=3, repeats=2)
    np.testing.assert_array_equal(np.flatnonzero(run.runs.any(axis=(1, 2))), [3, 4])
    launch(run.program, run.progress, first=7)
    np.testing.assert_array_equal(np.flatnonzero(run.runs.any(axis=(1, 2))), [3, 4, 7])


@pytest.mark.parametrize("n_chunks", [1, 2, 5])
def test_one_thread_alone_does_the_others_chunks_too(n_chunks):
    for number in range(n_chunks):
        run = Run(n_chunks)
        run.thread(number)
        run.assert_complete()
        for late in range(n_chunks):
            run.thread(late)
        run.assert_complete()


@pytest.mark.skipif(not COMPILED, reason="plain Python claims nothing atomically")
def test_threads_may_come_in_any_number_and_order():
    rng = np.random.default_rng(0)
    for n_chunks in (2, 3, 6) * 10:
        run = Run(n_chunks)
        numbers = rng.permutation(n_chunks)[: rng.integers(1, n_chunks + 1)]
        crew = [threading.Thread(target=run.thread, args=(int(number),)) for number in numbers]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in crew)
        run.assert_complete()


def test_steps_without_kernels_and_programs_without_steps():
    run = Run(2)
    for nothing in (program([]), program([], [])):
        launch(nothing, run.progress)
    launch(program([], [(note, run.args[0])], []), run.progress)
    assert run.runs.sum() == 2


@step_kernel
def describe(args, chunk, chunks, number):
    """Write down what the arguments look like from inside."""
    whole, real, integers, cube, out = args.whole, args.real, args.integers, args.cube, args.out
    out[0], out[1] = whole, real
    out[2], out[3] = integers.size, integers[integers.size - 1]
    out[4], out[5], out[6] = cube.shape[0], cube.shape[1], cube.shape[2]
    out[7], out[8] = cube[1, 0, 2], cube[cube.shape[0] - 1, 1, 0]
    flat = cube[1].reshape(-1)
    out[9] = flat[flat.size - 1]
    out[10], out[11], out[12] = chunk, chunks, number


class TestArguments:
    def described(self, args, out):
        launch(program([(describe, args)]), progress_rows(1), first=9)
        return out.tolist()

    def test_arrays_and_numbers_are_read_as_attributes(self):
        out = np.zeros(13)
        cube = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
        args = Arguments(
            whole=-(2**40), real=0.5, integers=np.arange(5, dtype=np.uint8), cube=cube, out=out
        )
        want = [-(2**40), 0.5, 5, 4, 4, 2, 3, cube[1, 0, 2], cube[3, 1, 0], cube[1, 1, 2], 0, 1, 9]
        assert self.described(args, out) == want
        other = -np.arange(60, dtype=np.float32).reshape(3, 4, 5)
        args.set(whole=7, real=-1.5, integers=np.array([3, 4], np.uint8), cube=other)
        want = [7, -1.5, 2, 4, 3, 4, 5, other[1, 0, 2], other[2, 1, 0], other[1, 3, 4], 0, 1, 9]
        assert self.described(args, out) == want
        twice = 2 * other
        point = steps.binder([(args, "cube"), (args, "integers")])
        point([twice, np.array([3, 4, 9], np.uint8)])
        want[2:4] = 3, 9
        want[7:10] = [2 * value for value in want[7:10]]
        assert self.described(args, out) == want

    @pytest.mark.skipif(not COMPILED, reason="plain Python takes any object")
    def test_other_types_and_layouts_are_refused(self):
        args = Arguments(x=np.ones((2, 3)), n=1)
        odd = np.empty(49, np.uint8)[1:].view(np.float64).reshape(2, 3)
        for bad in (
            np.ones((2, 3), "f"),
            np.ones((2, 3), ">f8"),
            np.ones((2, 3), int),
            np.ones((3, 2)).T,
            np.ones((4, 6))[::2, ::2],
            odd,
        ):
            with pytest.raises(TypeError, match="`x` must be a plain array of float64"):
                args.set(x=bad)
        with pytest.raises(KeyError):
            args.set(y=np.ones((2, 3)))

    def test_empty_arrays(self):
        args, out = Arguments(x=np.empty((0, 3)), out=np.full(2, -1)), np.zeros(2, np.int64)
        args.set(out=out)
        launch(program([(shape_of, args)]), progress_rows(1))
        assert out.tolist() == [0, 3]
        args.set(x=np.empty((4, 0)))
        launch(program([(shape_of, args)]), progress_rows(1))
        assert out.tolist() == [4, 0]

    def test_arrays_given_at_first_are_kept_alive(self):
        first, later = np.ones(3), np.ones(3)
        known = [weakref.ref(first), weakref.ref(later)]
        args = Arguments(x=first)
        if COMPILED:
            args.set(x=later)
        del first, later
        gc.collect()
        assert known[0]() is not None
        assert not COMPILED or known[1]() is None  # that one is borrowed
        del args
        gc.collect()
        assert known[0]() is None

    @pytest.mark.skipif(not COMPILED, reason="nothing is compiled")
    def test_a_kernel_is_compiled_for_the_arguments_that_it_reads(self):
        one = Arguments(x=np.ones((2, 2)), out=np.zeros(2, np.int64))
        # In the same place in memory, beside others that it does not read.
        two = Arguments(x=np.ones((5, 2)), out=np.zeros(2, np.int64), more=np.ones(3), n=2)
        assert one.kernel_address(shape_of) == two.kernel_address(shape_of)
        moved = Arguments(n=2, x=np.ones((5, 2)), out=np.zeros(2, np.int64))
        assert one.kernel_address(shape_of) != moved.kernel_address(shape_of)


@step_kernel
def shape_of(args, chunk, chunks, number):
    """Write down the shape of a matrix."""
    x, out = args.x, args.out
    out[0], out[1] = x.shape


@pytest.mark.skipif(not COMPILED, reason="nothing is atomic")
def test_counters_are_swapped_by_one_thread_only():
    counters = progress_rows(1)

    @numba.njit
    def claim(counters, value):
        return steps.compare_and_swap(counters, 0, 3, value, value + 1)

    assert claim(counters, 0)
    assert not claim(counters, 0)
    assert claim(counters, 1)
    assert counters.sum() == counters[0, 3] == 2


@pytest.mark.skipif(not COMPILED, reason="nothing is compiled")
def test_a_call_through_a_pointer_takes_integers_of_every_kind():
    @kernel
    def add(out, a, b):
        out[0] = a + b

    vector = types.Array(types.int64, 1, "C")
    place = address(add, (vector, types.int64, types.int64))

    @numba.njit
    def call(place, out, a, b):
        return steps.call_pointer(place, (out, a, b))

    out = np.zeros(1, np.int64)
    for a, b in [(1, 2), (np.int8(-3), 2), (np.uint8(200), np.int32(5))]:
        assert call(place, out, a, b) is False
        assert out[0] == int(a) + int(b)


def test_yield_is_a_function_of_the_system():
    ctypes.CFUNCTYPE(ctypes.c_int)(YIELD)()


BROKEN_LABEL = """
import numpy as np
from fastgrad.networks import engine

sizes = (6, 4, 3)
rng = np.random.default_rng(0)
net = engine.Engine(sizes, "sigmoid", 1e-7, np.dtype("d"))
params = {name: rng.standard_normal(shape)
          for name, shape in net.net.shapes().items()}
net.load(params)
x, soft = rng.random((5, 6)), np.empty((0, 3))
good, bad = np.zeros(5, np.int64), np.array([0, 1, 2, 10**6, 0])
for enough in (10**15, 1):  # on one thread, on two
    engine.PASS = engine.ParallelCost(enough, 0)
    want = net.loss(x, good, soft)
    try:
        net.loss(x, bad, soft)
    except RuntimeError as error:
        print("refused:", error)
    # The same engine goes on afterwards.
    assert net.loss(x, good, soft) == want
    print(np.isfinite(want))
"""


@pytest.mark.skipif(not COMPILED, reason="plain Python raises by itself")
def test_an_exception_inside_a_step_reaches_the_caller(tmp_path):
    process = run_python(
        BROKEN_LABEL,
        NUMBA_BOUNDSCHECK="1",
        NUMBA_OPT="0",
        NUMBA_NUM_THREADS="2",
        NUMBA_CACHE_DIR=str(tmp_path),
    )
    lines = answer(process).splitlines()
    assert lines[1::2] == ["True", "True"]
    assert all(line.startswith("refused: a compiled kernel") for line in lines[::2])


@pytest.mark.parametrize("size", [0, 1, 6, 7, 20, 100, 784])
@pytest.mark.parametrize("n_chunks", [1, 2, 3, 5])
def test_chunks_are_neighbours_of_equal_size(size, n_chunks):
    ends = [from_python(steps.chunk_range)(size, chunk, n_chunks) for chunk in range(n_chunks)]
    assert [begin for begin, _ in ends] == [0, *(end for _, end in ends[:-1])]
    assert ends[-1][1] == size
    lengths = [end - begin for begin, end in ends]
    assert max(lengths) - min(lengths) <= 1
