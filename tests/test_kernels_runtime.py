"""Stages of a launch: each chunk of each once, in order, however many threads take part."""

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

from fastgrad.runtime import programs
from fastgrad.runtime.compile import COMPILED, address, chunk_kernel, kernel
from fastgrad.runtime.programs import Program, run_thread, yield_core

ITERATIONS = 20


@chunk_kernel
def note(args, chunk, chunks, iteration):
    """Note a run of a chunk of a kernel, and whether a chunk of the one before was missing."""
    which, runs, early = args.which, args.runs, args.early
    runs[iteration, which, chunk] += 1
    before = iteration * runs.shape[1] + which - 1
    if before >= 0:
        for other in range(chunks):
            early[chunk] += runs[before // runs.shape[1], before % runs.shape[1], other] == 0


class Run:
    """A program of two stages, the first of two kernels, to be repeated twenty times."""

    def __init__(self, chunks):
        self.runs = np.zeros((ITERATIONS, 3, chunks), np.int64)
        self.early = np.zeros(chunks, np.int64)
        # The second kernel of a stage follows the first of the same chunk, not of all.
        self.names = {
            "which0": 0, "which1": 1, "which2": 2, "runs": self.runs, "early": self.early,
            "ignored": np.zeros(chunks, np.int64),
        }  # fmt: skip
        first, second, third = [(note, {"which": f"which{k}"}) for k in range(3)]
        second[1]["early"] = "ignored"
        self.program = Program(chunks, self.names, [first, second], [third])

    def thread(self, number):
        from_python(run_thread)(
            number, self.program.kernels, self.program.ends, 0, ITERATIONS,
            self.program.progress,
        )  # fmt: skip

    def assert_complete(self):
        np.testing.assert_array_equal(self.runs, np.ones_like(self.runs))
        assert not self.early.any()


@pytest.mark.parametrize("n_chunks", [1, 2, 3, 8])
def test_a_launch_runs_every_chunk_of_every_step_in_order(n_chunks):
    run = Run(n_chunks)
    for _ in range(20):
        run.runs[:] = 0
        run.program.launch(repeats=ITERATIONS)
        run.assert_complete()


def test_the_numbers_of_a_launch_go_on_from_the_first():
    run = Run(2)
    run.program.launch(first=3, repeats=2)
    np.testing.assert_array_equal(np.flatnonzero(run.runs.any(axis=(1, 2))), [3, 4])
    run.program.launch(first=7)
    np.testing.assert_array_equal(np.flatnonzero(run.runs.any(axis=(1, 2))), [3, 4, 7])


def test_a_launch_may_end_before_the_last_stage():
    run = Run(2)
    run.program.launch(first=5, stages=1)
    np.testing.assert_array_equal(run.runs[5].all(axis=1), [True, True, False])
    assert run.runs.sum() == 4


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


def test_stages_without_kernels_and_programs_without_any():
    run = Run(2)
    for nothing in (Program(2, {}, []), Program(2, {}, [], [])):
        nothing.launch()
    Program(2, run.names, [], [(note, {"which": "which0"})], []).launch()
    assert run.runs.sum() == 2


@chunk_kernel
def describe(args, chunk, chunks, iteration):
    """Write down what the arguments look like from inside."""
    whole, real, integers, cube, out = args.whole, args.real, args.integers, args.cube, args.out
    out[0], out[1] = whole, real
    out[2], out[3] = integers.size, integers[integers.size - 1]
    out[4], out[5], out[6] = cube.shape[0], cube.shape[1], cube.shape[2]
    out[7], out[8] = cube[1, 0, 2], cube[cube.shape[0] - 1, 1, 0]
    flat = cube[1].reshape(-1)
    out[9] = flat[flat.size - 1]
    out[10], out[11], out[12] = chunk, chunks, iteration


class TestArguments:
    def described(self, program, out):
        program.launch(first=9)
        return out.tolist()

    def test_arrays_and_numbers_are_read_as_attributes(self):
        out = np.zeros(13)
        cube = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
        names = {
            "whole": -(2**40), "real": 0.5, "box": cube, "out": out,
            "integers": np.arange(5, dtype=np.uint8),
        }  # fmt: skip
        program = Program(1, names, [(describe, {"cube": "box"})])
        want = [-(2**40), 0.5, 5, 4, 4, 2, 3, cube[1, 0, 2], cube[3, 1, 0], cube[1, 1, 2], 0, 1, 9]
        assert self.described(program, out) == want
        other = -np.arange(18, dtype=np.float32).reshape(3, 2, 3)
        program.bind(box=other, integers=np.array([3, 4], np.uint8))
        want[2:10] = 2, 4, 3, 2, 3, other[1, 0, 2], other[2, 1, 0], other[1, 1, 2]
        assert self.described(program, out) == want

    def test_an_array_takes_the_place_of_another_in_every_kernel(self):
        x, first, second = np.ones((2, 3)), np.zeros(2, np.int64), np.zeros(2, np.int64)
        names = {"x": x, "first": first, "second": second}
        program = Program(1, names, *([(shape_of, {"out": out})] for out in ("first", "second")))
        program.bind(x=np.ones((7, 3)))
        program.launch()
        assert first.tolist() == second.tolist() == [7, 3]
        with pytest.raises(KeyError):
            program.bind(y=x)

    def test_empty_arrays(self):
        out = np.zeros(2, np.int64)
        program = Program(1, {"x": np.empty((0, 3)), "out": out}, [(shape_of, {})])
        program.launch()
        assert out.tolist() == [0, 3]
        program.bind(x=np.empty((4, 3)))
        program.launch()
        assert out.tolist() == [4, 3]
        program.bind(x=np.empty((0, 3)))
        program.launch()
        assert out.tolist() == [0, 3]

    def test_arrays_given_at_first_are_kept_alive(self):
        first, later, out = np.ones((3, 2)), np.ones((3, 2)), np.zeros(2, np.int64)
        known = [weakref.ref(first), weakref.ref(later)]
        program = Program(1, {"x": first, "out": out}, [(shape_of, {})])
        if COMPILED:
            program.bind(x=later)
        del first, later
        gc.collect()
        assert known[0]() is not None
        assert not COMPILED or known[1]() is None  # that one is borrowed
        del program
        gc.collect()
        assert known[0]() is None

    @pytest.mark.skipif(not COMPILED, reason="nothing is compiled")
    def test_a_kernel_is_compiled_for_the_arguments_that_it_reads(self):
        out = np.zeros(2, np.int64)
        one = Program(1, {"x": np.ones((2, 2)), "out": out}, [(shape_of, {})])
        # Beside others that it does not read, and under another name.
        names = {"n": 2, "y": np.ones((5, 2)), "more": np.ones(3), "out": out}
        two = Program(1, names, [(shape_of, {"x": "y"})])
        assert one.kernels[0, 0] == two.kernels[0, 0]
        three = Program(1, {"x": np.ones((2, 2), "f"), "out": out}, [(shape_of, {})])
        assert one.kernels[0, 0] != three.kernels[0, 0]


@chunk_kernel
def shape_of(args, chunk, chunks, iteration):
    """Write down the shape of a matrix."""
    x, out = args.x, args.out
    out[0], out[1] = x.shape


@pytest.mark.skipif(not COMPILED, reason="nothing is atomic")
def test_counters_are_swapped_by_one_thread_only():
    counters = np.zeros((1, 4), np.int64)

    @numba.njit
    def claim(counters, value):
        return programs.compare_and_swap(counters, 0, 3, value, value + 1)

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
        return programs.call_pointer(place, (out, a, b))

    out = np.zeros(1, np.int64)
    for a, b in [(1, 2), (np.int8(-3), 2), (np.uint8(200), np.int32(5))]:
        assert call(place, out, a, b) is False
        assert out[0] == int(a) + int(b)


def test_yield_is_a_function_of_the_system():
    @numba.njit
    def call():
        return yield_core()

    call()


BROKEN_LABEL = """
import numpy as np
from fastgrad.networks import engine
from fastgrad.networks.workspace import parameter_shapes

sizes = (6, 4, 3)
rng = np.random.default_rng(0)
net = engine.Engine(sizes, "sigmoid", 1e-7, np.dtype("d"))
params = {name: rng.standard_normal(shape)
          for name, shape in parameter_shapes(sizes).items()}
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
def test_an_exception_inside_a_kernel_reaches_the_caller(tmp_path):
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
    ends = [from_python(programs.chunk_range)(size, chunk, n_chunks) for chunk in range(n_chunks)]
    assert [begin for begin, _ in ends] == [0, *(end for _, end in ends[:-1])]
    assert ends[-1][1] == size
    lengths = [end - begin for begin, end in ends]
    assert max(lengths) - min(lengths) <= 1
