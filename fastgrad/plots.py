"""Pictures. Matplotlib is imported only when one is drawn, and shows no window."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgrad.arrays import FloatArray

if TYPE_CHECKING:
    from fastgrad.training import History

__all__ = ["new_figure", "plot_history"]


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure that a notebook shows when it is a cell's last line.

    Parameters
    ----------
    width, height : float
        In inches.

    Returns
    -------
    matplotlib.figure.Figure
        One that pyplot knows nothing of: no window opens, and nothing has to be closed.

    Raises
    ------
    ImportError
        If matplotlib is not installed (extra ``plot``).

    Examples
    --------
    >>> figure = new_figure(4, 3)
    >>> figure.subplots().set_title("empty").get_text()
    'empty'
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "A picture needs matplotlib. Install it: pip install 'fastgrad[plot]'"
        ) from error

    class NotebookFigure(Figure):
        """A figure that draws itself; IPython else does so for the figures of pyplot alone."""

        def _repr_png_(self) -> bytes:
            png = io.BytesIO()
            self.savefig(png, format="png")
            return png.getvalue()

    return NotebookFigure(figsize=(width, height), layout="constrained")


def plot_history(history: History) -> Any:
    """Draw the loss and the accuracies of a training run.

    Parameters
    ----------
    history : History
        What `fit` returned.

    Returns
    -------
    matplotlib.figure.Figure
        The loss of every mini-batch and its moving average; beside it, if the history has them, the
        accuracies on training and test data. A notebook shows it; ``savefig`` saves it.

    Raises
    ------
    ImportError
        If matplotlib is not installed (extra ``plot``).

    Notes
    -----
    Figures 4-11 and 4-12 of *Deep Learning from Scratch*.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgrad import History
    >>> figure = plot_history(History(loss=np.array([2.3, 1.9, 1.2])))
    >>> figure.axes[0].get_ylabel()
    'loss'
    """
    panels = 1 if history.epochs.size == 0 else 2
    figure = new_figure(5.5 * panels, 4)  # says so where there is no matplotlib
    from matplotlib.ticker import MaxNLocator

    left, *right = figure.subplots(1, panels, squeeze=False)[0]

    count = len(history.loss)
    iterations = np.arange(1, count + 1)
    width = max(1, min(100, count // 20))
    faint = {"linewidth": 0.6, "alpha": 0.35} if width > 1 else {"marker": "."}
    left.plot(iterations, history.loss, color="tab:blue", label="each mini-batch", **faint)
    if width > 1:
        middles = iterations[: count - width + 1] + (width - 1) / 2
        average = _moving_average(history.loss, width)
        left.plot(middles, average, color="tab:blue", label=f"mean of {width} neighbours")
        left.legend()
    left.set(xlabel="iteration", ylabel="loss", title="Loss")
    if np.isfinite(history.loss).any():
        left.set_ylim(bottom=0)

    for axes in right:
        axes.plot(history.epochs, history.train_accuracy, "o-", markersize=4, label="training")
        axes.plot(history.epochs, history.test_accuracy, "s--", markersize=4, label="test")
        axes.set(xlabel="epoch", ylabel="accuracy", title="Accuracy", ylim=(0, 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="lower right")
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    return figure


def _moving_average(values: FloatArray, width: int) -> FloatArray:
    """Return the mean of each `width` neighbours; where one is not finite, neither is the mean."""
    windows = np.lib.stride_tricks.sliding_window_view(values, width)
    result: FloatArray = windows.mean(axis=1)
    return result
