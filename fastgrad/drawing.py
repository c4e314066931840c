"""Pictures. Matplotlib is imported only when one is drawn, and shows no window.

Where it is not installed (extra ``plot``), an `ImportError` says so.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from fastgrad.tables import wrapped
from fastgrad.validation import FloatArray

__all__ = ["new_figure", "plot_check", "plot_history"]

#: So many arrays get an image and a histogram each; of more there is one overview.
_MOST_IMAGES = 6

_COLOURS = {"ok": "tab:green", "wrong": "tab:red"}


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


def plot_history(history: Any) -> Any:
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


def plot_check(check: Any) -> Any:
    """Draw the errors that a gradient check found.

    Parameters
    ----------
    check : GradientCheck

    Returns
    -------
    matplotlib.figure.Figure
        For each array an image of its errors, with wrong entries marked, and their histogram; for
        more than six arrays one overview. A notebook shows it; ``savefig`` saves it.

    Examples
    --------
    >>> from fastgrad import check_gradient
    >>> check = check_gradient(lambda x: x[0] ** 2 + x[1] ** 2, [2.0, 4.1], [1.0, 2.0])
    >>> plot_check(check).axes[0].get_title()
    'x: |analytic − numerical|'
    """
    names = [name for name, array in check.numerical.items() if array.size]
    if len(names) > _MOST_IMAGES:
        figure = new_figure(9, 1.2 + 0.3 * len(names))
        _overview(figure.subplots(), check, names)
        return figure
    figure = new_figure(9, 2.6 * max(1, len(names)))
    if names:
        panels = figure.subplots(len(names), 2, squeeze=False)
        for name, (left, right) in zip(names, panels, strict=True):
            _image(figure, left, check, name)
            _histogram(right, check, name)
    return figure


def _errors(check: Any, name: str) -> FloatArray:
    with np.errstate(invalid="ignore"):
        difference = check.analytic[name].astype(np.float64) - check.numerical[name]
    errors: FloatArray = np.abs(difference)
    return errors


def _image(figure: Any, axes: Any, check: Any, name: str) -> None:
    """Draw an array's errors as an image, and a cross on each entry that is wrong."""
    error = _errors(check, name)
    rows = error.shape[0] if error.ndim > 1 else 1
    picture = error.reshape(rows, -1)
    image = axes.imshow(picture, aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=axes)
    wrong = np.argwhere(check.codes[name].reshape(picture.shape) == 1)
    if 0 < len(wrong) <= 500:  # more would only hide the image
        axes.plot(wrong[:, 1], wrong[:, 0], "x", color="tab:red", markersize=6)
    axes.set(title=f"{name}: |analytic − numerical|", xlabel="column", ylabel="row")
    if error.ndim < 2:
        axes.set(xlabel="entry", ylabel="", yticks=[])


def _histogram(axes: Any, check: Any, name: str) -> None:
    error = _errors(check, name).reshape(-1)
    visible = np.isfinite(error) & (error > 0)
    wrong = check.codes[name].reshape(-1) == 1
    parts = {"wrong": visible & wrong, "not wrong": visible & ~wrong}
    parts = {label: part for label, part in parts.items() if part.any()}
    if parts:
        axes.hist(
            [np.log10(error[part]) for part in parts.values()],
            bins=min(60, 5 + int(visible.sum()) // 4),
            stacked=True,
            label=list(parts),
            color=["tab:red" if label == "wrong" else "tab:blue" for label in parts],
        )
    floor = np.log10(max(check.arrays[name].noise, 1e-300))
    axes.axvline(floor, color="black", linestyle="--", label="noise floor")
    axes.legend()
    axes.set_title(f"{name}: {wrapped(str(check.arrays[name]))}", fontsize="small")
    axes.locator_params(axis="x", nbins=6)  # more do not fit beside each other
    axes.set(xlabel="log10 of the error", ylabel="entries")


def _overview(axes: Any, check: Any, names: list[str]) -> None:
    """Draw a line for each array: where its errors lie, from the least to the largest."""
    for row, name in enumerate(names):
        array, error = check.arrays[name], _errors(check, name).reshape(-1)
        colour = _COLOURS.get(array.verdict, "tab:orange")
        seen = np.log10(error[np.isfinite(error) & (error > 0)])
        if seen.size:
            axes.plot([seen.min(), seen.max()], [row, row], color=colour, linewidth=1.5)
            axes.plot(np.median(seen), row, "o", color=colour, markersize=4)
        wrong = error[check.codes[name].reshape(-1) == 1]
        wrong = wrong[np.isfinite(wrong) & (wrong > 0)]
        axes.plot(np.log10(wrong), np.full(len(wrong), row), "x", color="tab:red")
        axes.plot(np.log10(max(array.noise, 1e-300)), row, "|", color="black", markersize=12)
        axes.annotate(
            array.cells()[-1], (1.01, row), xycoords=("axes fraction", "data"), va="center",
            color=colour,
        )  # fmt: skip
    axes.set_yticks(range(len(names)), names)
    axes.set(
        title="Errors of each array: least, median, largest; | noise floor, × wrong entries",
        xlabel="log10 of |analytic − numerical|",
        ylim=(len(names) - 0.5, -0.5),
    )
    axes.grid(alpha=0.3)


def _moving_average(values: FloatArray, width: int) -> FloatArray:
    """Return the mean of each `width` neighbours; where one is not finite, neither is the mean."""
    windows = np.lib.stride_tricks.sliding_window_view(values, width)
    result: FloatArray = windows.mean(axis=1)
    return result
