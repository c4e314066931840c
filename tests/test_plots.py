"""The pictures show the numbers that they are given, and need neither a display nor pyplot."""

import itertools
import struct
import subprocess
import sys

import numpy as np
import pytest

from fastgrad import History, check_gradient
from fastgrad.drawing import plot_history


def history(n_iterations=400, n_epochs=3, **changes):
    rng = np.random.default_rng(0)
    values = {
        "loss": np.linspace(2.3, 0.3, n_iterations) + 0.1 * rng.random(n_iterations),
        "epochs": np.arange(float(n_epochs)),
        "train_accuracy": np.linspace(0.1, 0.9, n_epochs),
        "test_accuracy": np.linspace(0.1, 0.8, n_epochs),
    }
    return History(**(values | changes))


def lines(axes):
    return {line.get_label(): line.get_xydata().T for line in axes.get_lines()}


def test_loss_and_its_moving_average():
    run = history()
    drawn = lines(plot_history(run).axes[0])
    np.testing.assert_array_equal(drawn["each mini-batch"], [np.arange(1, 401), run.loss])
    x, y = drawn["mean of 20 neighbours"]
    for i in (0, 123, 380):
        assert y[i] == pytest.approx(run.loss[i : i + 20].mean())
        assert x[i] == np.arange(i + 1, i + 21).mean()
    assert len(x) == 381


def test_accuracies():
    run = history()
    axes = plot_history(run).axes[1]
    drawn = lines(axes)
    np.testing.assert_array_equal(drawn["training"], [run.epochs, run.train_accuracy])
    np.testing.assert_array_equal(drawn["test"], [run.epochs, run.test_accuracy])
    assert axes.get_ylim() == (0, 1)


def test_without_accuracies_there_is_one_panel():
    nothing = np.empty(0)
    run = history(epochs=nothing, train_accuracy=nothing, test_accuracy=nothing)
    assert len(plot_history(run).axes) == 1


@pytest.mark.parametrize("n_iterations", [0, 1, 2, 39, 40, 5000])
def test_any_length_can_be_drawn(n_iterations, tmp_path):
    figure = plot_history(history(n_iterations, n_epochs=min(1, n_iterations)))
    figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_diverged_run_can_be_drawn(value, tmp_path):
    run = history()
    run.loss[200:] = value
    plot_history(run).savefig(tmp_path / "picture.png")
    run.loss[:] = value
    plot_history(run).savefig(tmp_path / "picture.png")


def test_history_plots_itself():
    figure = history().plot()
    assert [axes.get_title() for axes in figure.axes] == ["Loss", "Accuracy"]


def test_a_notebook_shows_what_plot_returns():
    """IPython asks an object for its ``_repr_png_``."""
    check = check_gradient(lambda x: np.sum(x**2), lambda x: 2 * x, [1.0, 2.0])
    for figure in (history().plot(), check.plot()):
        png = figure._repr_png_()
        assert png.startswith(b"\x89PNG")
        width, height = struct.unpack(">2I", png[16:24])
        assert (width, height) == tuple(figure.get_size_inches() * figure.dpi)


@pytest.mark.parametrize(("largest", "decades"), [(1e-7, 3.8), (1e-9, 1.6), (1e-11, 2.2)])
def test_ticks_of_a_histogram_do_not_touch(largest, decades):
    x = np.ones(10)
    errors = largest * 10 ** np.linspace(0, -decades, 10)
    check = check_gradient(lambda x: np.sum(x**2), 2 * x + errors, x)
    figure = check.plot()
    figure.draw_without_rendering()
    (_, axes, *_) = figure.axes
    low, high = axes.get_xlim()
    texts = [text for text in axes.get_xticklabels() if low <= text.get_position()[0] <= high]
    boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) >= 2
    for left, right in itertools.pairwise(boxes):
        assert left.x1 + 2 < right.x0


def test_pyplot_is_never_imported():
    code = (
        "import sys, numpy as np, fastgrad.drawing;"
        "assert 'matplotlib' not in sys.modules;"
        "fastgrad.History(np.ones(3)).plot();"
        "assert 'matplotlib.figure' in sys.modules;"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    check = check_gradient(lambda x: np.sum(x**2), lambda x: 2 * x, [1.0, 2.0])
    for plot in (history().plot, check.plot):
        with pytest.raises(ImportError, match=r"pip install 'fastgrad\[plot\]'"):
            plot()
