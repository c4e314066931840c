"""Recognition of a fully connected network that the reader wrote, and its gradient, compiled.

The book's exercise calls ``numerical_gradient(loss_W, self.params["W1"])`` with a closure such as
``lambda W: self.loss(x, t)`` over a class that the reader typed. Whether that is the loss of a
network that the kernels know is found by *trying*: among the arrays that the function can reach,
find weights and biases whose shapes chain, and a batch with its targets; every `Hypothesis` about
activation and loss then predicts a number.

In every call the function itself is evaluated at two points: every entry of x is moved by h u, u
random in [1/2, 1], with random signs at the one and the opposite signs at the other. The compiled
network must have the same loss at both, to rounding, and at x where it was searched for. Each entry
is moved in both directions, so that no entry can deviate unseen: not one that a mask freezes, nor a
term that begins where a weight grows.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from fastgrad.networks.fully_connected import MultiLayerNet
from fastgrad.numdiff.objective import one_number
from fastgrad.validation import FloatArray

__all__ = ["NotRecognised", "Recognition"]

#: How far a loss may be from the predicted one, relative to it, and as much for a loss near zero.
#: Rounding makes the two differ by some 1e-15. Through a difference this far from right at both
#: points, an entry of the gradient would be wrong by 2e-10 for h = 1e-4, hardly more than the
#: rounding errors of the loop itself.
_ROUNDING = 2e-14
#: Chains of parameters, and pairs of arrays as batch and targets, that are tried; losses that are
#: predicted in a search, at least and at most: as many as x has entries, so that a search takes
#: less than the loop; vain searches for a function; and functions that are remembered.
_CHAINS, _PAIRS, _LEAST, _MOST, _VAIN, _MEMORY = 6, 12, 16, 400, 2, 16
#: Matrices that are looked at in the search for a chain.
_MATRICES = 24


class NotRecognised(Exception):  # noqa: N818 - no error
    """Why a function is not the loss of a network that the kernels know."""


class Hypothesis(NamedTuple):
    """What the loss of a fully connected network may be: a cross entropy after softmax.

    Attributes
    ----------
    activation : str
        Of the hidden layers.
    delta : float
        What is added to probabilities before the logarithm.
    largest : bool
        Whether targets are turned into labels, as by the book's ``cross_entropy_error``.
    summed : bool
        Whether the loss is the sum over the batch, not the mean.
    decay : float
        The λ of a penalty ½ λ Σ W² on the weights.
    """

    activation: str
    delta: float
    largest: bool
    summed: bool
    decay: float = 0.0

    def __str__(self) -> str:
        """Describe it for the line at the end of a run."""
        text = f"{self.activation}, cross entropy"
        if self.summed:
            text += ", summed"
        return text + (", weight decay" if self.decay else "")


_HYPOTHESES = tuple(
    Hypothesis(activation, delta, largest, summed)
    for delta in (1e-7, 0.0, 1e-8, 1e-10, 1e-12, 1e-15, 1e-6)
    for activation in ("sigmoid", "relu")
    for largest in (False, True)
    for summed in (False, True)
)


#: An array in the place of the perturbed one, and the value of the function there.
_Point = tuple[FloatArray, float]


class _Trial(NamedTuple):
    """Arrays of the reader's that may be a network's parameters, and a batch.

    Attributes
    ----------
    arrays : tuple of ndarray
        W1, b1, W2, b2, ..
    position : int
        Which of them is perturbed.
    x, t : array_like
        Samples and targets.
    labels : array_like or None
        The targets turned into labels, if they are no labels.
    size : int
        Samples.
    """

    arrays: tuple[FloatArray, ...]
    position: int
    x: Any
    t: Any
    labels: Any
    size: int

    def sizes(self) -> list[int]:
        """Return the numbers of units in each layer."""
        return [self.arrays[0].shape[0], *(b.size for b in self.arrays[1::2])]

    def targets(self, hypothesis: Hypothesis) -> Any:
        """Return the targets as a hypothesis takes them."""
        return self.labels if hypothesis.largest else self.t

    def scale(self, hypothesis: Hypothesis) -> int:
        """Return how many times the mean over the batch the loss is."""
        return self.size if hypothesis.summed else 1


class Recognition:
    """Recognises networks, and keeps their compiled twins and the gradients not yet asked for."""

    def __init__(self) -> None:
        self._hypotheses: OrderedDict[Any, Hypothesis] = OrderedDict()
        #: How often a function has been searched in vain.
        self._vain: Counter[Any] = Counter()
        #: Losses that may still be predicted in this search.
        self._left = 0
        self._compiled: OrderedDict[Any, MultiLayerNet] = OrderedDict()
        #: What the last gradients belong to, and those that have not been asked for yet.
        self._state: tuple[Any, ...] = ()
        self._slopes: dict[int, FloatArray] = {}
        self._rng = np.random.default_rng(0)

    def gradient(
        self,
        f: Callable[[Any], Any],
        x: FloatArray,
        h: float,
        reached: Sequence[Any],
        value: float | None = None,
    ) -> tuple[FloatArray, str, float]:
        """Return the central differences of the network whose loss a function is.

        Parameters
        ----------
        f : callable
            Evaluated at two points; at x as well if it is searched for without its value there.
        x : ndarray of float64
            A parameter of the network. Moved in place and restored.
        h : float
            The step.
        reached : sequence
            The objects that f can reach, the nearest first.
        value : float, optional
            The function's value at x.

        Returns
        -------
        gradient : ndarray, shape of x
        description : str
            Such as ``"784-50-10 (sigmoid, cross entropy)"``.
        seconds : float
            How long an evaluation of f takes.

        Raises
        ------
        NotRecognised
            If it is the loss of none.
        Exception
            Whatever f raises; x is as it was.
        """
        code = _code_of(f)
        if self._vain[code, x.shape] >= _VAIN:
            raise NotRecognised
        chains = list(itertools.islice(_chains(reached, x), _CHAINS))
        if not chains:
            raise NotRecognised
        began = time.perf_counter()
        points = self._moved(f, x, h)
        seconds = (time.perf_counter() - began) / len(points)
        trials = [
            _Trial(arrays, next(i for i, array in enumerate(arrays) if array is x), *batch)
            for arrays in chains
            for batch in itertools.islice(_batches(reached, arrays), _PAIRS)
        ]
        keys = [(code, *map(np.shape, trial.arrays)) for trial in trials]
        for key, trial in zip(keys, trials, strict=True):
            known = self._hypotheses.get(key)
            if known and self._agrees(known, points, trial):
                return *self._slopes_of(known, trial, h), seconds
        self._left = min(_MOST, max(_LEAST, x.size))
        value = one_number(f(x)) if value is None else value
        for key, trial in zip(keys, trials, strict=True):
            found = self._searched(value, points, trial)
            if found:
                self._hypotheses[key] = found
                if len(self._hypotheses) > _MEMORY:
                    self._hypotheses.popitem(last=False)
                return *self._slopes_of(found, trial, h), seconds
        self._vain[code, x.shape] += 1
        raise NotRecognised

    def knows(self, f: Callable[[Any], Any]) -> bool:
        """Return whether a function has been recognised before, for some parameter."""
        return any(key[0] is _code_of(f) for key in self._hypotheses)

    def _moved(self, f: Callable[[Any], Any], x: FloatArray, h: float) -> list[_Point]:
        """Evaluate f where every entry is moved, up or down, and where all move the other way."""
        moves = h * self._rng.uniform(0.5, 1.0, x.shape) * self._rng.choice([-1.0, 1.0], x.shape)
        before = x.copy()
        points = []
        try:
            for array in (before + moves, before - moves):
                x[...] = array
                points.append((array, one_number(f(x))))
                if not _equal(x, array):
                    raise NotRecognised("it changes the array that is nudged")
        finally:
            x[...] = before
        return points

    def _searched(self, value: float, points: Sequence[_Point], trial: _Trial) -> Hypothesis | None:
        """Return a hypothesis that predicts the value at x, and those at points."""
        # No `np.vdot`: the threads of its BLAS would keep spinning beside ours.
        weights = sum(float(np.sum(W * W)) for W in trial.arrays[::2])
        for hypothesis in _HYPOTHESES:
            if self._left <= 0:
                return None
            self._left -= 1
            # A penalty is what the loss is above that of the network without one.
            excess = value - self._predicted(hypothesis, trial)
            if not np.isfinite(excess):
                continue
            if abs(excess) > _ROUNDING * (abs(value) + trial.scale(hypothesis)):
                if excess < 0 or weights == 0 or hypothesis.summed:
                    continue
                hypothesis = hypothesis._replace(decay=2 * excess / weights)
            if self._agrees(hypothesis, points, trial):
                return hypothesis
        return None

    def _agrees(self, hypothesis: Hypothesis, points: Sequence[_Point], trial: _Trial) -> bool:
        """Return whether a hypothesis predicts the values at points to rounding."""
        return all(
            abs(self._predicted(hypothesis, trial, array) - value)
            <= _ROUNDING * (abs(value) + trial.scale(hypothesis))
            for array, value in points
        )

    def _network(
        self, hypothesis: Hypothesis, trial: _Trial, array: FloatArray | None = None
    ) -> MultiLayerNet:
        """Return the compiled network of a hypothesis, perhaps with another perturbed array."""
        key = hypothesis.activation, hypothesis.delta, hypothesis.decay, *trial.sizes()
        if key not in self._compiled:
            first, *hidden, last = trial.sizes()
            self._compiled[key] = MultiLayerNet(
                first, hidden, last, hypothesis.activation, 0.01, hypothesis.decay,
                delta=hypothesis.delta, rng=0,
            )  # fmt: skip
            if len(self._compiled) > 2 * len(_HYPOTHESES):
                self._compiled.popitem(last=False)
        arrays = list(trial.arrays)
        if array is not None:
            arrays[trial.position] = array
        net = self._compiled[key]
        net.params = dict(zip(net.params, arrays, strict=True))
        return net

    def _predicted(
        self, hypothesis: Hypothesis, trial: _Trial, array: FloatArray | None = None
    ) -> float:
        """Return the loss that a hypothesis predicts; NaN if it cannot be."""
        t = trial.targets(hypothesis)
        if t is None:
            return np.nan
        try:
            loss = self._network(hypothesis, trial, array).loss(trial.x, t)
        except (TypeError, ValueError):  # labels that are none
            return np.nan
        return float(loss * trial.scale(hypothesis))

    def _slopes_of(self, hypothesis: Hypothesis, trial: _Trial, h: float) -> tuple[FloatArray, str]:
        """Return the central differences, computed for all parameters at once, and what it is."""
        t = trial.targets(hypothesis)
        state = (*trial.arrays, trial.x, t, h, *hypothesis)
        same = len(state) == len(self._state) and all(map(_equal, state, self._state))
        if not same or trial.position not in self._slopes:
            grads = self._network(hypothesis, trial).numerical_gradient(trial.x, t, h)
            scale = trial.scale(hypothesis)
            self._slopes = dict(enumerate(scale * grad for grad in grads.values()))
            self._state = tuple(
                part.copy() if isinstance(part, np.ndarray) else part for part in state
            )
        sizes = "-".join(map(str, trial.sizes()))
        return self._slopes.pop(trial.position), f"{sizes} ({hypothesis})"


# ------------------------------------------------------------------------- what f is made of


def _code_of(f: Any) -> Any:
    return getattr(getattr(f, "__func__", f), "__code__", None)


def _chains(reached: Sequence[Any], x: FloatArray) -> Iterator[tuple[FloatArray, ...]]:
    """Yield weights and biases W1, b1, W2, b2, .. of which x is one: the book's names first.

    Without names, what shapes allow: each matrix has as many rows as the one before has columns,
    and a vector of as many numbers as it has columns.
    """
    seen = set()
    for params in reached:
        if isinstance(params, dict) and any(array is x for array in params.values()):
            chain = _named_chain(params)
            if any(array is x for array in chain):
                seen.add(tuple(map(id, chain)))
                yield chain
    arrays = {id(value): value for value in reached if _is_parameter(value)}
    matrices = [array for array in arrays.values() if array.ndim == 2][:_MATRICES]
    vectors = [array for array in arrays.values() if array.ndim == 1]

    def extended(chain: tuple[FloatArray, ...]) -> Iterator[tuple[FloatArray, ...]]:
        used = set(map(id, chain))
        for W in matrices:
            if id(W) in used or (chain and W.shape[0] != chain[-1].size):
                continue
            for b in vectors:
                if b.size == W.shape[1] and id(b) not in used:
                    yield from extended((*chain, W, b))
        if len(chain) >= 4:
            yield chain

    for chain in itertools.islice(extended(()), 50 * _CHAINS):
        if any(array is x for array in chain) and tuple(map(id, chain)) not in seen:
            yield chain


def _named_chain(params: dict[Any, Any]) -> tuple[FloatArray, ...]:
    """Return W1, b1, W2, b2, .. as far as a dict holds arrays whose shapes chain."""
    chain: tuple[FloatArray, ...] = ()
    for number in itertools.count(1):
        W, b = params.get(f"W{number}"), params.get(f"b{number}")
        if not (_is_parameter(W) and _is_parameter(b) and W.ndim == 2 and W.shape[1:] == b.shape):
            break
        if chain and W.shape[0] != chain[-1].size:
            return ()
        chain = (*chain, W, b)
    return chain if len(chain) >= 4 and f"W{len(chain) // 2 + 1}" not in params else ()


def _is_parameter(value: Any) -> TypeGuard[FloatArray]:
    return type(value) is np.ndarray and value.dtype == np.float64 and value.size > 0


def _batches(reached: Sequence[Any], arrays: Sequence[FloatArray]) -> Iterator[tuple[Any, ...]]:
    """Yield samples, targets, labels and size of what can be a batch, the nearest first."""
    width, classes = arrays[0].shape[0], arrays[-1].shape[0]
    own = set(map(id, arrays))
    data = [
        value
        for value in reached
        if isinstance(value, np.ndarray | int | np.integer)
        and not isinstance(value, bool)
        and id(value) not in own
        and np.size(value)
    ]
    for x in data:
        if not isinstance(x, np.ndarray) or x.dtype.kind not in "biuf":
            continue
        single = x.shape == (width,)
        if not single and (x.ndim < 2 or x[0].size != width):
            continue
        size = 1 if single else len(x)
        rows = x if x.ndim <= 2 else x.reshape(size, width)
        forms = ((classes,), (1,), (1, classes), ()) if single else ((size,), (size, classes))
        for t in data:
            shape = np.shape(t)
            if t is not x and shape in forms:
                many = shape[-1:] == (classes,) and (single or len(shape) == 2)
                yield rows, t, np.argmax(t, axis=-1) if many else None, size


def _equal(one: Any, other: Any) -> bool:
    """Return whether two values hold the same bits, for all that a network can tell."""
    if one is other:
        return not isinstance(one, np.ndarray)  # an array may have changed in place
    return np.shape(one) == np.shape(other) and bool(np.all(one == other))
