"""After `fastgrad warmup` nothing is compiled any more; conftest.py has this file run first."""

import os
import subprocess
import sys

import numba
import pytest
from processes import answer, environment_of, run

from fastgrad.cli import commands, parser, warmup

pytestmark = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="nothing is compiled")

#: As users write, for either dtype; prints for how long it compiled.
TYPICAL = """
import numpy as np
import fastgrad
from fastgrad.runtime.compile_time import Watch

with Watch() as compiling:
    (x, t), test = fastgrad.load_mnist()
    x, t, test = x[:300], t[:300], (test[0][:50], test[1][:50])
    for dtype in (np.float64, np.float32):
        net = fastgrad.TwoLayerNet(784, 20, 10, dtype=dtype, rng=0)
        net.numerical_gradient(x[:100], t[:100])
        net.check_gradient(x[:20], t[:20])
        one_hot = np.eye(10)[t]
        for optimizer in ("SGD", "Momentum", "Nesterov", "AdaGrad", "RMSprop", "Adam"):
            optimizer = getattr(fastgrad, optimizer)()
            net.fit(x, t, iterations=3, optimizer=optimizer, validation=test)
            net.fit(x, one_hot, iterations=2, optimizer=optimizer, method="numerical_gradient")
            optimizer.update(net.params, net.gradient(x[:10].astype(dtype), one_hot[:10]))
        deep = fastgrad.MultiLayerNet(784, [10, 10], 10, dtype=dtype, rng=0)
        deep.fit(x, t, iterations=3, validation=test)
        deep.check_gradient(x[:3], t[:3])
        y = fastgrad.softmax(fastgrad.sigmoid(np.linspace(-1, 1, 6, dtype=dtype).reshape(2, 3)))
        fastgrad.cross_entropy_error(y, np.array([0, 1]))
        layer = fastgrad.Affine(np.ones((3, 2), dtype), np.zeros(2, dtype))
        layer.forward(y)
        layer.backward(np.ones((2, 2), dtype))
    from fastgrad.book.networks import MultiLayerNetExtend
    MultiLayerNetExtend(784, [10], 10, use_batchnorm=True).gradient(x[:10], t[:10])
print(compiling.seconds)
"""


def test_nothing_is_compiled_after_it(capsys):
    assert parser.main(["warmup"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[1].startswith(("compiled for float64 and", "nothing to compile"))
    total = 2 * len(warmup.CALLS)
    assert f"{total}/{total}" in err  # the progress bar
    assert answer(run(TYPICAL)) == "0.0"
    assert parser.main(["warmup"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("nothing to compile for float64 and ")


#: A main module that processes can import, with two calls that need one kernel each.
TWO_CALLS = """
import fastgrad
from fastgrad.cli import warmup

warmup.CALLS = {
    name: lambda dtype, name=name: getattr(fastgrad, name)(dtype.type([1, 2]))
    for name in ("sigmoid", "sigmoid_grad")
}
if __name__ == "__main__":
"""


@pytest.fixture
def run_calls(tmp_path):
    """Return a function that runs a line after `TWO_CALLS`, with a cache that is empty at first."""

    def run_calls(line, stderr=subprocess.PIPE):
        script = tmp_path / "calls.py"
        script.write_text(TWO_CALLS + f"    {line}\n")
        return subprocess.run(
            [sys.executable, script], env=environment_of(NUMBA_CACHE_DIR=str(tmp_path / "cache")),
            stdout=subprocess.PIPE, stderr=stderr, text=True, check=False,
        )  # fmt: skip

    return run_calls


def test_calls_go_to_other_processes_where_something_is_to_compile(run_calls):
    line = 'print(warmup.compile_ahead(list(warmup.CALLS), "float32", "a test"))'
    first, second = run_calls(line), run_calls(line)
    assert float(answer(first)) > 0
    assert first.stderr == (
        "fastgrad: compiling kernels for a test in float32, about 10 s (kept for later)\n"
    )
    assert (answer(second), second.stderr) == ("0.0", "")


@pytest.mark.skipif(os.name != "posix", reason="needs a terminal")
def test_processes_do_not_each_say_it_in_a_terminal(run_calls, tmp_path):
    terminal, stderr = os.openpty()
    line = 'print(*(name for name, _ in warmup.compile_everything(["float64"])), sep="\\n")'
    done = run_calls(line, stderr)
    os.close(stderr)
    with pytest.raises(OSError, match="Input/output error"):  # where nothing has been written
        print(os.read(terminal, 1000))
    os.close(terminal)
    assert sorted(done.stdout.split("\n")) == ["", "sigmoid float64", "sigmoid_grad float64"]
    assert list((tmp_path / "cache").rglob("*.nbi"))


def test_nowhere_to_keep_it(monkeypatch, capsys):
    monkeypatch.setattr(commands, "cache_folder", lambda: None)
    with pytest.raises(SystemExit):
        parser.main(["warmup"])
    assert "no folder can be written" in capsys.readouterr().err
