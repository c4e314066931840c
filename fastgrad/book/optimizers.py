"""The compiled optimizers; plain numbers become what the book's formulas in NumPy make of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastgrad.nn import optimizers
from fastgrad.nn.optimizers import SGD

__all__ = ["SGD", "AdaGrad", "Adam", "Momentum", "Nesterov", "RMSprop"]


class _AsInTheBook(optimizers.Optimizer):
    """Optimizers whose state, made by NumPy, turns a Python float into a NumPy float."""

    def update(self, params: Any, grads: Any) -> None:
        """Take one step."""
        super().update(params, grads)
        params.update((key, np.float64(p)) for key, p in params.items() if type(p) is float)


class Momentum(_AsInTheBook, optimizers.Momentum):
    """See `fastgrad.Momentum`."""


class Nesterov(_AsInTheBook, optimizers.Nesterov):
    """See `fastgrad.Nesterov`."""


class AdaGrad(_AsInTheBook, optimizers.AdaGrad):
    """See `fastgrad.AdaGrad`."""


class RMSprop(_AsInTheBook, optimizers.RMSprop):
    """See `fastgrad.RMSprop`."""


class Adam(_AsInTheBook, optimizers.Adam):
    """See `fastgrad.Adam`."""
