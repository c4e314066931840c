"""Steps of a launch: each share of each once, in order, however many threads take part."""

import threading
from typing import NamedTuple

import numpy as np
import pytest

from fastgrad.kernels.compile import task_kernel
from fastgrad.kernels.tasks import COMPILED, ROW, Block, Program, part_address, run_steps, take_part
from fastgrad.threads import GIVE_WAY, launch

STEPS = 40


class Sheet(NamedTuple):
    now: np.ndarray
    runs: np.ndarray
    early: np.ndarray


@task_kernel
def note(share, s):
    """Note a run of a share of a step, and whether a share of the step before was missing."""
    step = s.now[share, 0]
    s.runs[step, share] += 1 + s.now[share, 1]
    if step > 0:
        for other in range(s.runs.shape[1]):
            s.early[share] += s.runs[step - 1, other] == 0


class Run:
    def __init__(self, shares):
        self.now = np.zeros((shares, ROW), np.int64)
        self.progress = np.zeros((shares, ROW), np.int64)
        self.runs = np.zeros((STEPS, shares), np.int64)
        self.early = np.zeros(shares, np.int64)
        self.block = Block(Sheet(self.now, self.runs, self.early))
        program = Program(*((note, step, 10 * step) for step in range(STEPS)))
        self.arguments = self.block.steps(program), self.progress, self.now, GIVE_WAY

    def take_part(self, member):
        take_part(member, *self.arguments)

    def assert_complete(self):
        want = np.broadcast_to(1 + 10 * np.arange(STEPS)[:, None], self.runs.shape)
        np.testing.assert_array_equal(self.runs, want)
        assert not self.early.any()


@pytest.mark.parametrize("shares", [1, 2, 3, 8])
def test_a_launch_runs_every_share_of_every_step_in_order(shares):
    run = Run(shares)
    for _ in range(20):
        run.runs[:] = 0
        launch(run_steps, part_address(), *run.arguments)
        run.assert_complete()


@pytest.mark.parametrize("shares", [1, 2, 5])
def test_one_thread_alone_does_the_others_shares_too(shares):
    for member in range(shares):
        run = Run(shares)
        run.take_part(member)
        run.assert_complete()
        for late in range(shares):
            run.take_part(late)
        run.assert_complete()


@pytest.mark.skipif(not COMPILED, reason="plain Python claims nothing atomically")
def test_threads_may_come_in_any_number_and_order():
    rng = np.random.default_rng(0)
    for shares in (2, 3, 6) * 10:
        run = Run(shares)
        members = rng.permutation(shares)[: rng.integers(1, shares + 1)]
        crew = [threading.Thread(target=run.take_part, args=(int(m),)) for m in members]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in crew)
        run.assert_complete()


def test_steps_are_remembered():
    block = Run(2).block
    program = Program((note, 3, 4, 5, 6), (note,))
    steps = block.steps(program)
    assert block.steps(program) is steps
    np.testing.assert_array_equal(steps[:, 2:], [[3, 4, 5, 6], [0, 0, 0, 0]])
