"""The optimizers of *Deep Learning from Scratch*, chapter 6: ``update(params, grads)`` in place.

Every optimizer goes over ``params.keys()``. Arrays are updated in place, whatever their shape and
memory layout; plain numbers, as in the book's comparison of the optimizers on x²/20 + y², are
replaced in the dict. A call that raises has changed nothing.

All optimizers share these conventions. `lr` is the learning rate, from 0 on; other settings are
what a step keeps of an average, from 0 to below 1. The dicts of optimizer state have an array for
every parameter, and are None before the first step. `TypeError` is raised for a setting that is no
real number, `ValueError` for one that is not finite or out of range.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from fastgrad.kernels import updates
from fastgrad.runtime import threads
from fastgrad.runtime.programs import run
from fastgrad.validation import FLOAT_DTYPES, FloatArray, real_array, real_number

__all__ = ["SGD", "AdaGrad", "Adam", "Momentum", "Nesterov", "RMSprop"]

#: Parameters that are worth a second thread, where a step neither divides nor takes a root.
_PARALLEL_SIZE = 100_000
#: Rules whose steps do; they take four times as long.
_SLOW_RULES = (updates.adagrad, updates.rmsprop, updates.adam)

_FLOAT32, _FLOAT64 = FLOAT_DTYPES
_NO_STATE = {dtype: [np.empty(0, dtype)] * 2 for dtype in FLOAT_DTYPES}


class _Step(NamedTuple):
    """One parameter's part of a step, checked."""

    key: Any
    value: Any  # as it stands in params
    array: FloatArray  # the same as an array
    order: Literal["C", "F"]  # the order in which its elements are gone through
    gradient: FloatArray
    state: list[FloatArray]


class Optimizer:
    """What the optimizers share: the checks, the optimizer state, the compiled pass.

    Attributes
    ----------
    rule : callable
        The kernel that takes a step: one of `fastgrad.kernels.updates`.
    state_names : tuple of str
        The attributes that hold optimizer state: a dict like params each, None before the first
        step.
    lr : float
        Learning rate.
    """

    rule: ClassVar[Any]
    state_names: ClassVar[tuple[str, ...]] = ()
    #: The attributes that are the rule's coefficients a and b.
    _coefficients: ClassVar[tuple[str, ...]] = ()

    lr: float

    def __init__(self, lr: float = 0.01) -> None:
        self.lr = real_number(lr, "lr", minimum=0)
        for name in self.state_names:
            setattr(self, name, None)

    def __repr__(self) -> str:
        """Return the call that makes such an optimizer."""
        settings = ", ".join(
            f"{name}={getattr(self, name)!r}" for name in ("lr", *self._coefficients)
        )
        return f"{type(self).__name__}({settings})"

    def update(self, params: MutableMapping[Any, Any], grads: Any) -> None:
        """Take one step.

        Parameters
        ----------
        params : dict of ndarray or float
            Parameters, float32 or float64. Arrays are changed in place, plain numbers replaced.
        grads : dict of array_like
            The gradient of every parameter, of its shape.

        Raises
        ------
        KeyError
            If a parameter has no gradient.
        TypeError
            If a parameter is neither a float32 or float64 array nor a real number, or a gradient
            does not hold real numbers.
        ValueError
            If a gradient has another shape than its parameter, or a parameter is read-only or has
            another shape than at its first step.
        """
        for name, given, method in (("params", params, "keys"), ("grads", grads, "__getitem__")):
            if not hasattr(given, method):
                raise TypeError(f"`{name}` must be a dict. Got {given!r}.")
        steps = [self._checked(key, params[key], grads) for key in params.keys()]  # noqa: SIM118
        lr, a, b = self.next_step()
        for i, name in enumerate(self.state_names):
            if getattr(self, name) is None:
                setattr(self, name, {})
            getattr(self, name).update((step.key, step.state[i]) for step in steps)
        for step in steps:
            _apply(self.rule, step, lr, a, b)
            if step.array is not step.value:
                numpy_number = isinstance(step.value, np.floating)
                params[step.key] = step.array[()] if numpy_number else step.array.item()

    def _checked(self, key: Any, value: Any, grads: Any) -> _Step:
        """Check one parameter and its gradient, and find its optimizer state."""
        try:
            gradient = grads[key]
        except KeyError:
            raise KeyError(f"`grads` must have an entry for {key!r}, as `params` has.") from None
        array = value
        order: Literal["C", "F"] = "C"
        # The common case needs no closer look; on small arrays that is what a step costs.
        if not (
            type(value) is type(gradient) is np.ndarray
            and value.dtype is gradient.dtype
            and (value.dtype is _FLOAT32 or value.dtype is _FLOAT64)
            and value.shape == gradient.shape
            and value.flags.carray
            and gradient.flags.carray
        ):
            array = _parameter_array(value, key)
            gradient = real_array(gradient, f"grads[{key!r}]", dtype=array.dtype, layout="K")
            if gradient.shape != array.shape:
                raise ValueError(
                    f"`grads[{key!r}]` must have shape {array.shape}. Got {gradient.shape}."
                )
            if array.flags.fnc:
                order = "F"
        if not self.state_names:
            return _Step(key, value, array, order, gradient, [])
        state = [self.recalled(name, key, array, order) for name in self.state_names]
        return _Step(key, value, array, order, gradient, state)

    def recalled(
        self, name: str, key: Any, array: FloatArray, order: Literal["C", "F"] = "C"
    ) -> FloatArray:
        """Return the optimizer state of a parameter, zeros at first, in an order; for `fit`."""
        state = getattr(self, name)
        if state is None or key not in state:
            return np.zeros(array.shape, array.dtype, order)
        known = np.asarray(state[key])
        if known.shape != array.shape:
            raise ValueError(
                f"`params[{key!r}]` must keep its shape {known.shape}. Got {array.shape}."
            )
        flags = known.flags
        if known.dtype is array.dtype and flags.behaved and flags[order]:
            return known
        return np.array(known, array.dtype, order=order)

    def next_step(self) -> tuple[float, float, float]:
        """Count a step, and return the rule's lr, a and b; for `fit`."""
        a, b = [*(float(getattr(self, name)) for name in self._coefficients), 0.0, 0.0][:2]
        return real_number(self.lr, "lr", minimum=0), a, b  # it may have been set since


def _parameter_array(value: Any, key: Any) -> FloatArray:
    """Return a parameter as an array: the same one, or a number in an array of no dimensions."""
    if not isinstance(value, np.ndarray):
        number = real_number(value, f"params[{key!r}]")
        return np.array(number, np.float32 if isinstance(value, np.float32) else np.float64)
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"`params[{key!r}]` must be a plain array. Got a masked array.")
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"`params[{key!r}]` must be float32 or float64. Got {value.dtype}.")
    if not value.flags.writeable:
        raise ValueError(f"`params[{key!r}]` must be writeable. Got a read-only array.")
    return value


def _apply(rule: Any, step: _Step, lr: float, a: float, b: float) -> None:
    """Update one parameter in place."""
    _, _, array, order, grad, state = step
    in_place = array.flags.carray
    if in_place:
        parameter, gradient = array.ravel(), grad.ravel()
        if state:
            state = [remembered.ravel() for remembered in state]
    else:
        in_place = array.flags.behaved and array.flags.fnc  # flags.farray says yes too often
        parameter = array.reshape(-1, order=order) if in_place else array.flatten(order)
        gradient = grad.reshape(-1, order=order)
        state = [remembered.reshape(-1, order=order) for remembered in state]
    # Two arrays with memory of their own cannot share it; the question alone takes a while.
    owners = array.base is None and grad.base is None and array is not grad
    if not owners and np.may_share_memory(parameter, gradient):
        gradient = gradient.copy()
    if len(state) < 2:
        state = state + _NO_STATE[array.dtype][len(state) :]
    work = 4 * array.size if rule in _SLOW_RULES else array.size
    chunks = 1 if work < _PARALLEL_SIZE else threads.chunks(work, _PARALLEL_SIZE)
    if chunks == 1:
        rule(parameter, gradient, *state, lr, a, b)
    else:
        pointer = updates.pointer(rule, array.dtype)
        run(updates.update, chunks, pointer, parameter, gradient, *state, lr, a, b)
    if not in_place:
        array[...] = parameter.reshape(array.shape, order=order)


def _fraction(value: Any, name: str) -> float:
    """Return `value` as a float from 0 to below 1."""
    number = real_number(value, name, minimum=0)
    if number >= 1:
        raise ValueError(f"`{name}` must be below 1. Got {value!s}.")
    return number


class SGD(Optimizer):
    """Stochastic gradient descent: p ← p − lr g (section 6.1.2 of the book).

    Parameters
    ----------
    lr : float, optional

    Examples
    --------
    >>> params = {"W": np.array([1.0, 2.0])}
    >>> SGD(lr=0.5).update(params, {"W": np.array([1.0, -1.0])})
    >>> params["W"]
    array([0.5, 2.5])
    """

    rule = staticmethod(updates.sgd)


class Momentum(Optimizer):
    """Gradient descent with momentum: v ← m v − lr g, p ← p + v (section 6.1.4 of the book).

    Parameters
    ----------
    lr : float, optional
    momentum : float, optional
        What a step keeps of the velocity.

    Attributes
    ----------
    v : dict of ndarray
        Velocities.

    Examples
    --------
    >>> params = {"x": 1.0}
    >>> optimizer = Momentum(lr=0.5)
    >>> for _ in range(2):
    ...     optimizer.update(params, {"x": 1.0})
    >>> round(params["x"], 12)
    -0.45
    """

    rule = staticmethod(updates.momentum)
    state_names = ("v",)
    _coefficients = ("momentum",)

    v: dict[Any, FloatArray] | None

    def __init__(self, lr: float = 0.01, momentum: float = 0.9) -> None:
        super().__init__(lr)
        self.momentum = _fraction(momentum, "momentum")


class Nesterov(Momentum):
    """Nesterov's accelerated gradient: p ← p + m² v − (1 + m) lr g, then v ← m v − lr g.

    Parameters
    ----------
    lr : float, optional
    momentum : float, optional
        What a step keeps of the velocity.

    Attributes
    ----------
    v : dict of ndarray
        Velocities.

    Notes
    -----
    In the form of N. Boulanger-Lewandowski and Y. Bengio, *Advances in optimizing recurrent
    networks* (arXiv:1212.0901), as in the book's code.

    Examples
    --------
    >>> params = {"x": 1.0}
    >>> Nesterov(lr=0.5).update(params, {"x": 1.0})
    >>> round(params["x"], 12)
    0.05
    """

    rule = staticmethod(updates.nesterov)


class AdaGrad(Optimizer):
    """AdaGrad: h ← h + g², p ← p − lr g / (√h + 1e-7) (section 6.1.5 of the book).

    Parameters
    ----------
    lr : float, optional

    Attributes
    ----------
    h : dict of ndarray
        Sums of squared gradients.

    Examples
    --------
    >>> params = {"x": 1.0}
    >>> AdaGrad(lr=0.5).update(params, {"x": 4.0})
    >>> round(params["x"], 6)
    0.5
    """

    rule = staticmethod(updates.adagrad)
    state_names = ("h",)

    h: dict[Any, FloatArray] | None


class RMSprop(Optimizer):
    """RMSprop: h ← d h + (1 − d) g², p ← p − lr g / (√h + 1e-7) (section 6.1.5 of the book).

    Parameters
    ----------
    lr : float, optional
    decay_rate : float, optional
        What a step keeps of the mean square.

    Attributes
    ----------
    h : dict of ndarray
        Mean squares of gradients.

    Examples
    --------
    >>> params = {"x": 1.0}
    >>> RMSprop(lr=0.05).update(params, {"x": 4.0})
    >>> round(params["x"], 6)
    0.5
    """

    rule = staticmethod(updates.rmsprop)
    state_names = ("h",)
    _coefficients = ("decay_rate",)

    h: dict[Any, FloatArray] | None

    def __init__(self, lr: float = 0.01, decay_rate: float = 0.99) -> None:
        super().__init__(lr)
        self.decay_rate = _fraction(decay_rate, "decay_rate")


class Adam(Optimizer):
    """Adam: m ← m + (1 − β₁)(g − m), v ← v + (1 − β₂)(g² − v), p ← p − lrₜ m / (√v + 1e-7).

    Parameters
    ----------
    lr : float, optional
    beta1, beta2 : float, optional
        What a step keeps of the mean and of the mean square.

    Attributes
    ----------
    iter : int
        Number of steps taken.
    m, v : dict of ndarray
        Means and mean squares of gradients.

    Notes
    -----
    With lrₜ = lr √(1 − β₂ᵗ) / (1 − β₁ᵗ) at step t, section 6.1.6 of the book; D. P. Kingma and
    J. Ba, *Adam: a method for stochastic optimization* (arXiv:1412.6980), section 2.

    Examples
    --------
    >>> params = {"x": 1.0}
    >>> Adam(lr=0.5).update(params, {"x": 4.0})
    >>> round(params["x"], 5)
    0.5
    """

    rule = staticmethod(updates.adam)
    state_names = ("m", "v")
    _coefficients = ("beta1", "beta2")

    m: dict[Any, FloatArray] | None
    v: dict[Any, FloatArray] | None

    def __init__(self, lr: float = 0.001, beta1: float = 0.9, beta2: float = 0.999) -> None:
        super().__init__(lr)
        self.beta1 = _fraction(beta1, "beta1")
        self.beta2 = _fraction(beta2, "beta2")
        self.iter = 0

    def next_step(self) -> tuple[float, float, float]:
        """Count a step, and return its bias corrected learning rate, and the betas; for `fit`."""
        lr, beta1, beta2 = super().next_step()
        self.iter += 1
        return updates.adam_rate(lr, beta1, beta2, self.iter), beta1, beta2


#: By the names of the command line and of the book's trainer.
BY_NAME: dict[str, type[Optimizer]] = {
    kind.__name__.lower(): kind for kind in (SGD, Momentum, Nesterov, AdaGrad, RMSprop, Adam)
}
