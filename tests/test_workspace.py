"""The names under which kernels find their arguments: none is missing, and none is left over."""

import numba
import numpy as np
import pytest
from reference import random_params

import fastgrad
from fastgrad.kernels import forward
from fastgrad.kernels.activations import SIGMOID
from fastgrad.networks import fit, workspace
from fastgrad.runtime.programs import Program


def unread(programs, names):
    """Return which of the names no kernel of the programs reads."""
    return set(names) - {name for program in programs for name in program.places}


@pytest.mark.parametrize("sizes", [(5, 3), (5, 4, 3), (5, 4, 6, 3)])
def test_every_name_of_a_workspace_is_read(sizes):
    net = workspace.Architecture(sizes, SIGMOID, 1e-7, np.dtype("d"))
    space = workspace.Workspace(net, 6, 1, np.dtype("d"))
    makers = [(workspace.general,), (workspace.gradient, False), (workspace.gradient, True)]
    programs = [space.program(*maker) for maker in makers]
    if len(sizes) == 3:
        programs.append(space.program(workspace.series))
    names = {name for program in programs for name in program.names}
    assert unread(programs, names) == set()
    assert space.program(*makers[-1]) is programs[2]  # made once


@pytest.mark.parametrize("sparse", [False, True])
def test_every_name_of_a_training_run_is_read(sparse):
    net = fastgrad.TwoLayerNet(5, 4, 3)
    x = np.ones((8, 5)) * (np.arange(5) == 2 if sparse else 1)
    data = fit.TrainingSet(x, np.zeros(8, np.int64), np.empty((0, 3)), 2)
    with net.engine() as engine:
        program = fit._GradientRun(engine, fastgrad.Adam(), net, data)._program
        shared = workspace.Workspace(engine.net, 2, 1, np.dtype("d")).names
    # Of sparse samples the kernels read the entries that are not zero.
    assert unread([program], set(program.names) - set(shared)) == ({"all_x"} if sparse else set())


@pytest.mark.parametrize("missing", ["W", "b"])
def test_a_name_that_is_missing_is_an_error(missing):
    params = random_params((5, 4), np.random.default_rng(0))
    names = {"x": np.ones((2, 5)), "out": np.ones((2, 4)), "W": params["W1"], "b": params["b1"]}
    del names[missing]
    with pytest.raises((numba.TypingError, AttributeError), match=f"ttribute '{missing}'"):
        Program(1, names, [(forward.affine_dense, {})]).launch()
