"""Recognition of a network that the reader wrote, and its numerical gradient, compiled.

The book's exercise calls ``numerical_gradient(loss_W, self.params["W1"])`` with a closure such as
``lambda W: self.loss(x, t)`` over a class that the reader typed. What such a function computes
cannot be read from it, but it can be *tried*:

1. Among what the function can reach (its closure, its arguments' defaults, the globals that it
   names, and the attributes of these) find the dict that holds the very array to be nudged, beside
   W1, b1, W2, b2, .. whose shapes chain, and the arrays that can be a batch and its targets.
2. Every `Hypothesis` about activation and loss predicts a number, by a compiled network. Those that
   agree with the function to rounding, at the present parameters and at points far from them,
   where every parameter has been moved, are kept.
3. The compiled network's central differences then stand for those of the function. In every call
   the function is evaluated again, at the present parameters and at both nudged points of two
   entries, one of them the entry with the largest slope.

Whatever disagrees, raises, prints, keeps a record or draws random numbers is left to the loop for
good. Every parameter is put back to the last bit, also after Ctrl-C.
"""

from __future__ import annotations

import functools
import itertools
import random
import sys
import threading
import time
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastgrad import gradients, networks
from fastgrad.arrays import FloatArray
from fastgrad.book import closures
from fastgrad.evaluation import one_number
from fastgrad.functions import DELTA

__all__ = ["Recognition", "numerical_gradient", "use"]

#: How far a loss may be from the predicted one, relative to it, and as much for a loss near zero:
#: at the present point, where rounding errors of a trained network may have grown, and at far
#: points, which are chosen so that they do not grow.
_HERE, _FAR = 1e-9, 1e-11
#: Standard deviations of the first layer's inputs at the far points, in turn: at the first neither
#: sigmoid nor softmax is saturated, at the others more and more of both.
_SPREADS = (1.0, 8.0, 30.0)
#: The inputs of a layer's units that are met there, together, at least; but no more points than
#: that. A small network needs more points, for it to meet every part of its activation's curve.
_INPUTS, _POINTS = 600, 24
#: Pairs of arrays that are tried as batch and targets, and functions that are remembered.
_PAIRS, _MEMORY = 12, 8
#: The loop is left alone where it is cheap: an array of fewer entries than this is no reason to try
#: anything, and trials may take this part of the time that the loop takes. No processor multiplies
#: more than this many numbers in a second, so f cannot have looked at a batch that asks for it.
_FEW, _SHARE, _FASTEST = 50, 0.25, 2e12


def numerical_gradient(f: Any, x: Any, h: Any = 1e-4, **options: Any) -> Any:
    """Compute the gradient of f by central differences; that of a recognised network compiled.

    It is what ``common.gradient`` serves to a reader's script or notebook.

    Parameters
    ----------
    f : callable
        Takes x, returns a number.
    x : array_like
        Where to differentiate. Nudged in place and restored.
    h : float, optional
        The step.
    **options
        As for `fastgrad.numerical_gradient`; with any of them nothing is recognised.

    Returns
    -------
    ndarray, shape of x

    Raises
    ------
    TypeError, ValueError, Exception
        As `fastgrad.numerical_gradient` does.

    Notes
    -----
    If f is the loss of a fully connected network whose parameters lie in a dict W1, b1, W2, b2, ..
    (two layers or more, float64, sigmoid or ReLU) and x is one of them, then the central
    differences of the *compiled* network are returned. What is **evaluated** is f itself, in every
    call at the present parameters and at both nudged points of two entries of x, and once at three
    points or more where all parameters have been moved; each time it must agree with the compiled
    network to rounding.
    What is **inferred** is that it agrees at the other nudged points as well. The loss may be the
    mean or the sum over the batch of −Σ t log(y + delta), delta being 1e-7 or 0 and t labels,
    one-hot or soft targets, or the largest of them as in the book. A function that does not agree,
    raises, prints, changes a parameter, draws random numbers or keeps a record (counts its calls,
    say, or notes its values) is evaluated at every point. So is one of few parameters, where that
    takes no time, and everything if ``common.gradient`` is kept (``run --keep common.gradient``).
    What f writes to a file or into an array is not noticed, and happens fewer times.

    Examples
    --------
    >>> numerical_gradient(lambda x: x[0]**2 + x[1]**2, np.array([3.0, 4.0])).round(8)
    array([6., 8.])
    """
    if _current is not None and not options and type(h) is float and 0 < h < 1:
        found = _current.gradient(f, x, h)
        if found is not None:
            return found
    return gradients.numerical_gradient(f, x, h, **options)


class Hypothesis(NamedTuple):
    """What the loss of a fully connected network may be."""

    activation: str
    delta: float
    #: Whether targets are turned into labels, as by the book's ``cross_entropy_error``.
    largest: bool
    #: Whether the loss is the sum over the batch, not the mean.
    summed: bool

    def __str__(self) -> str:
        """Describe it for the line at the end of a run."""
        over = "summed" if self.summed else "averaged"
        return f"{self.activation}, cross entropy {over} over the batch"


_HYPOTHESES = tuple(
    Hypothesis(activation, delta, largest, summed)
    for activation in ("sigmoid", "relu")
    for delta in (DELTA, 0.0)
    for largest in (False, True)
    for summed in (False, True)
)


class _Refused(Exception):  # noqa: N818 - no error of the reader's
    """Why a function is left to the loop."""


class _NotNow(_Refused):
    """Why a function is left to the loop in this call; nothing is remembered."""


class _Batch(NamedTuple):
    """Arrays of the reader's that may be samples and targets, in the two forms of a hypothesis."""

    x: Any
    t: Any
    labels: Any
    size: int


class _Network:
    """A network of the reader's.

    Attributes
    ----------
    params : dict
        The reader's dict (or an object's attributes).
    names : tuple of str
        W1, b1, W2, b2, ..
    arrays : tuple of ndarray
        What was in the dict when all of them were moved.
    hypotheses : list of Hypothesis
        Those that agreed wherever they were compared; for one-hot targets there are several.
    points : int
        The number of points of comparison.
    """

    def __init__(self, params: dict[str, Any], names: tuple[str, ...]) -> None:
        self.params = params
        self.names = names
        self.arrays: tuple[FloatArray, ...] = ()
        self.hypotheses = list(_HYPOTHESES)
        self.points = 0
        self.refusal = ""
        #: Seconds that an evaluation of f takes, that the loop has taken, and that trials have, as
        #: long as nothing is recognised; and when a trial has to stop.
        self.seconds = self.looped = self.tried = 0.0
        self._deadline = np.inf
        #: What the last gradients belong to, and those that have not been asked for yet.
        self._state: tuple[Any, ...] = ()
        self._slopes: dict[str, FloatArray] = {}
        self._compiled: dict[Any, networks.MultiLayerNet] = {}

    @property
    def sizes(self) -> list[int]:
        """Units of each layer."""
        weights = [self.params[name] for name in self.names[::2]]
        return [weights[0].shape[0], *(W.shape[1] for W in weights)]

    def is_worth_a_trial(self, size: int) -> bool:
        """Count the loop of this call, and return whether loops have taken enough for a trial."""
        self.looped += 2 * size * self.seconds
        return bool(self.arrays) or self.tried <= 0.5 * _SHARE * self.looped

    def begin_trial(self, start: float, seconds: float, size: int) -> None:
        """Note what an evaluation takes, and so when a trial that began at `start` has to stop."""
        self.seconds = seconds
        self.looped = self.looped or 2 * size * seconds
        self._deadline = start + _SHARE * self.looped - self.tried

    def end_trial(self, start: float) -> None:
        """Note what a trial took; one that never began is no reason to wait."""
        if self.seconds:
            self.tried += time.perf_counter() - start
        self._deadline = np.inf

    def compiled(
        self, hypothesis: Hypothesis, arrays: Sequence[FloatArray]
    ) -> networks.MultiLayerNet:
        """Return the compiled network of a hypothesis, with these parameters."""
        first, *hidden, last = self.sizes
        key = hypothesis.activation, hypothesis.delta, first, *hidden, last
        if key not in self._compiled:
            self._compiled[key] = networks.MultiLayerNet(
                first, hidden, last, hypothesis.activation, 0.01, delta=hypothesis.delta, rng=0
            )
        self._compiled[key].params = dict(zip(self.names, arrays, strict=True))
        return self._compiled[key]

    def predicted(
        self, hypothesis: Hypothesis, arrays: Sequence[FloatArray], batch: _Batch
    ) -> float:
        """Return the loss that a hypothesis predicts; NaN if it cannot be."""
        t = batch.labels if hypothesis.largest else batch.t
        if t is None:
            return np.nan
        try:
            loss = self.compiled(hypothesis, arrays).loss(batch.x, t)
        except (TypeError, ValueError):  # labels that are none
            return np.nan
        return loss * batch.size if hypothesis.summed else loss

    def keep_what_agrees(
        self, value: float, arrays: Sequence[FloatArray], batch: _Batch, tolerance: float
    ) -> bool:
        """Keep the hypotheses that predict a value; change nothing if none does."""
        kept = []
        for hypothesis in self.hypotheses:
            if time.perf_counter() > self._deadline:
                raise _NotNow("trying it costs more than the loop may")
            scale = batch.size if hypothesis.summed else 1
            error = abs(self.predicted(hypothesis, arrays, batch) - value)
            if error <= tolerance * (abs(value) + scale):
                kept.append(hypothesis)
        if kept:
            if kept[0] != self.hypotheses[0]:
                self._slopes = {}
            self.hypotheses = kept
            self.points += 1
        return bool(kept)

    def slopes(
        self, name: str, arrays: Sequence[FloatArray], batch: _Batch, h: float
    ) -> FloatArray:
        """Return the central differences by a parameter; computed for all of them at once."""
        state = (*arrays, batch.x, batch.t, np.float64(h))
        if name not in self._slopes or not all(map(_equal, state, self._state)):
            best = self.hypotheses[0]
            net = self.compiled(best, arrays)
            grads = net.numerical_gradient(batch.x, batch.labels if best.largest else batch.t, h)
            if best.summed:
                grads = {key: grad * batch.size for key, grad in grads.items()}
            self._state, self._slopes = tuple(np.array(part) for part in state), grads
        return self._slopes.pop(name)


class Recognition:
    """What has been recognised, and what not, while the book's modules are served.

    Attributes
    ----------
    lines : list of str
        A line for each function that was left to the loop although it has a network.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._known: OrderedDict[tuple[Any, int], _Network] = OrderedDict()
        #: Of recognised networks: where they were met, and what they are.
        self._met: dict[str, _Network] = {}
        self._lock = threading.RLock()
        self._rng = np.random.default_rng(0)

    def report(self) -> list[str]:
        """Return what there is to say at the end of a run."""
        found = [
            f"fastgrad recognised {title} as a network of {'-'.join(map(str, net.sizes))} "
            f"({net.hypotheses[0]}), verified at {net.points} points."
            for title, net in self._met.items()
        ]
        return found + self.lines

    def gradient(self, f: Any, x: Any, h: float) -> FloatArray | None:
        """Return the gradient of a recognised network's loss, or None if f is to be evaluated."""
        if type(x) is not np.ndarray or x.ndim not in (1, 2) or not isinstance(f, _FUNCTIONS):
            return None
        if x.size < _FEW and not self._knows(x):
            return None
        reached = list(closures.reachable(f))
        found = _network_of(reached, x)
        if found is None:
            if _is_a_layers(reached, x):
                self._say_why(
                    _title(f), "no dict of W1, b1, W2, b2, .. holds the array that is nudged"
                )
            return None
        code = getattr(getattr(f, "func", f), "__code__", None)
        with self._lock:
            net = self._known.get((code, id(found.params)))
            if net is None or net.names != found.names:
                net = found
                self._known[code, id(net.params)] = net
                if len(self._known) > _MEMORY:
                    self._known.popitem(last=False)
            if net.refusal or not net.is_worth_a_trial(x.size):
                return None
            title = _title(f)
            start = time.perf_counter()
            watch = _Watched()
            try:
                with watch:
                    try:
                        slopes = self._tried(f, x, h, net, reached)
                    except _Refused:
                        watch.check()
                        raise
                    watch.check()
            except _NotNow:
                return None
            except _Refused as reason:
                net.refusal = str(reason)
                self._say_why(title, net.refusal)
                if self._met.get(title) is net:
                    del self._met[title]
                return None
            finally:
                # An interrupt may have come within a method of the watch. None comes between these
                # statements, which call nothing.
                watch.active = False
                if sys.stdout is watch:
                    sys.stdout = watch.stream
                net.end_trial(start)
            self._met[title] = net
        out = np.empty_like(x)
        out[...] = slopes
        return out

    def _say_why(self, title: str, reason: str) -> None:
        line = f"fastgrad left {title} to the loop: {reason}."
        with self._lock:
            if line not in self.lines:
                self.lines.append(line)

    def _knows(self, x: FloatArray) -> bool:
        """Return whether x is a parameter of a recognised network."""
        with self._lock:
            nets = [net for net in self._known.values() if net.arrays]
            return any(x is array for net in nets for array in list(net.params.values()))

    def _tried(
        self, f: Any, x: FloatArray, h: float, net: _Network, reached: Sequence[Any]
    ) -> FloatArray:
        """Return the compiled slopes; refuse a function that keeps a record, and put that back."""
        if net.arrays:
            return self._verified(f, x, h, net, reached)
        arrays = _arrays(net)
        record = closures.Record(f)
        try:
            _value(f, x, arrays)
            # What is stored at the first evaluation for the first time is no record.
            picture = record.picture()
            _value(f, x, arrays)
            if record.picture() != picture:
                raise _Refused("it keeps a record of its evaluations")
            slopes = self._verified(f, x, h, net, reached)
            # The best value so far changes at other points only.
            _value(f, x, arrays)
            if record.picture() != picture:
                raise _Refused("it keeps a record of its evaluations")
        except _Refused:
            record.put_back()
            raise
        return slopes

    def _verified(
        self, f: Any, x: FloatArray, h: float, net: _Network, reached: Sequence[Any]
    ) -> FloatArray:
        """Return the compiled slopes after comparing f with the compiled network."""
        arrays = _arrays(net)
        start = time.perf_counter()
        value = _value(f, x, arrays)
        seconds = time.perf_counter() - start
        if not net.arrays:
            net.begin_trial(start, seconds, x.size)
        largest = _FASTEST * seconds / sum(W.size for W in arrays[::2])
        batch = next(
            (
                pair
                for pair in _batches(reached, arrays)
                if pair.size <= largest and net.keep_what_agrees(value, arrays, pair, _HERE)
            ),
            None,
        )
        if batch is None:
            raise _Refused(
                "its loss is none that fastgrad knows of any batch among the names that it uses"
            )
        if tuple(map(id, arrays)) != tuple(map(id, net.arrays)):
            self._compare_far_away(f, x, net, arrays, batch)
            # Layers remember what they saw last, and a loss without randomness has one value.
            if not abs(_value(f, x, arrays) - value) <= _HERE * abs(value):
                raise _Refused("it has more than one value at one point")
            net.arrays = arrays
        name = next(name for name in net.names if net.params[name] is x)
        slopes = net.slopes(name, arrays, batch, h)
        scale = batch.size if net.hypotheses[0].summed else 1
        tolerance = 0.01 * _HERE * (abs(value) + scale) / h
        steepest = int(np.argmax(np.abs(slopes)))
        another = (steepest + int(self._rng.integers(1, max(slopes.size, 2)))) % slopes.size
        for index in {steepest, another}:
            place = np.unravel_index(index, slopes.shape)
            ends = [x.copy(), x.copy()]
            for end, step in zip(ends, (h, -h), strict=True):
                end[place] += step
            upper, lower = (_value(f, x, [x], [end]) for end in ends)
            slope = (upper - lower) / (ends[0][place] - ends[1][place])
            if not abs(slope - slopes[place]) <= tolerance + 1e-6 * abs(slope):
                raise _Refused("its slope is not that of its network")
            net.points += 2
        return slopes

    def _compare_far_away(
        self,
        f: Any,
        x: FloatArray,
        net: _Network,
        arrays: tuple[FloatArray, ...],
        batch: _Batch,
    ) -> None:
        """Compare f with the compiled network where every parameter has been moved."""
        inputs = batch.size * min(len(b) for b in arrays[1:-1:2])
        count = min(max(len(_SPREADS), -(-_INPUTS // inputs)), _POINTS)
        for spread in itertools.islice(itertools.cycle(_SPREADS), count):
            points = self._far_point(arrays, batch.x, spread)
            # What the reader is to be warned of belongs to the points of the loop.
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value = _value(f, x, arrays, points)
            if not net.keep_what_agrees(value, points, batch, _FAR):
                raise _Refused("its loss differs from that of its network at other parameters")

    def _far_point(self, arrays: Sequence[FloatArray], x: Any, spread: float) -> list[FloatArray]:
        """Return random parameters for which the units' inputs are of the order of `spread`."""
        rows = np.asarray(x, np.float64)
        length = np.sqrt(np.mean(np.sum(np.atleast_2d(rows) ** 2, axis=-1)))
        points = []
        for number, array in enumerate(arrays):
            scale = 0.5
            if array.ndim == 2:
                scale = spread / (length or 1.0) if number == 0 else (2 / len(array)) ** 0.5
            points.append(scale * self._rng.standard_normal(array.shape))
        return points


#: What may have a network in its closure; a compiled function has none.
_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)

#: What the served `numerical_gradient` goes by; None while nothing is to be recognised.
_current: Recognition | None = None


def use(recognition: Recognition | None) -> Recognition | None:
    """Make `numerical_gradient` recognise networks, or not; return what it went by so far."""
    global _current
    before, _current = _current, recognition
    return before


# ------------------------------------------------------------------------- what f is made of


def _title(f: Any) -> str:
    """Return what to call a function in a line at the end of a run."""
    name = str(getattr(getattr(f, "func", f), "__qualname__", "a function"))
    return name.partition(".<locals>")[0].replace("<lambda>", "a lambda")


def _network_of(reached: Sequence[Any], x: FloatArray) -> _Network | None:
    """Find the dict that holds x among the parameters of a fully connected network."""
    for params in reached:
        if isinstance(params, dict) and any(array is x for array in params.values()):
            names = _names(params)
            if len(names) >= 4 and any(params[name] is x for name in names):
                return _Network(params, names)
    return None


def _is_a_layers(reached: Sequence[Any], x: FloatArray) -> bool:
    """Return whether x is within reach beside the weights of a layer that may follow its own."""
    arrays = [value for value in reached if type(value) is np.ndarray]
    for value in reached:
        if isinstance(value, dict | list):
            arrays += value.values() if isinstance(value, dict) else value[:_PAIRS]
    return any(array is x for array in arrays) and any(
        type(W) is np.ndarray and W.dtype.kind == "f" and W.ndim == 2 and len(W) == x.shape[-1]
        for W in arrays
    )


def _names(params: dict[str, Any]) -> tuple[str, ...]:
    """Return W1, b1, W2, b2, .. as far as a dict holds arrays whose shapes chain."""
    names: list[str] = []
    width = None
    for number in range(1, len(params)):
        W, b = params.get(f"W{number}"), params.get(f"b{number}")
        if not (type(W) is type(b) is np.ndarray and W.ndim == 2 and W.shape[1:] == b.shape):
            break
        if width is not None and W.shape[0] != width:
            return ()
        names += (f"W{number}", f"b{number}")
        width = W.shape[1]
    return tuple(names) if f"W{len(names) // 2 + 1}" not in params else ()


def _arrays(net: _Network) -> tuple[FloatArray, ...]:
    """Return the parameters as the reader has them."""
    arrays = tuple(net.params[name] for name in net.names)
    if any(array.dtype != np.float64 for array in arrays):
        raise _Refused("its parameters are not float64, so nothing could be verified")
    if not all(array.size and array.flags.writeable for array in arrays):
        raise _Refused("its parameters cannot be written into")
    return arrays


def _batches(reached: Sequence[Any], arrays: Sequence[FloatArray]) -> Iterator[_Batch]:
    """Yield pairs of arrays that can be samples and targets, the nearest first."""
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
    pairs = 0
    for x in data:
        if not isinstance(x, np.ndarray) or x.dtype.kind not in "biuf":
            continue
        single = x.shape == (width,)
        if not single and (x.ndim < 2 or x[0].size != width):
            continue
        size = 1 if single else len(x)
        rows = x if x.ndim <= 2 else x.reshape(size, width)
        for t in data:
            shape = np.shape(t)
            if t is x or shape not in (
                ((classes,), (1,), (1, classes), ()) if single else ((size,), (size, classes))
            ):
                continue
            many = shape[-1:] == (classes,) and (single or len(shape) == 2)
            pairs += 1
            yield _Batch(rows, t, np.argmax(t, axis=-1) if many else None, size)
            if pairs == _PAIRS:
                return


def _equal(one: Any, other: Any) -> bool:
    """Return whether two arrays hold the same bits, for all that a network can tell."""
    return np.shape(one) == np.shape(other) and bool(np.all(one == other))


# ------------------------------------------------------------------------------ evaluating f


def _value(
    f: Callable[[Any], Any],
    x: FloatArray,
    arrays: Sequence[FloatArray],
    points: Sequence[FloatArray] | None = None,
) -> float:
    """Evaluate f with `arrays` as they are, or moved to `points`, and put them back.

    An interrupt may come between any two statements, also while they are put back: then that is
    done once more.
    """
    before = [array.copy() for array in arrays]
    try:
        try:
            if points is not None:
                for array, point in zip(arrays, points, strict=True):
                    array[...] = point
            there = before if points is None else points
            if not all(map(_equal, arrays, there)):
                raise _Refused("its parameters share memory, or are not finite")
            value = one_number(f(x))
            if not all(map(_equal, arrays, there)):
                raise _Refused("its loss changes parameters")
            return value
        finally:
            _put_back(arrays, before)
    except BaseException as error:
        _put_back(arrays, before)
        # A guard of the reader's may end the script, but at a point of the loop only.
        if isinstance(error, Exception | SystemExit) and not isinstance(error, _Refused):
            # An error at the present parameters is the reader's to see, in the loop, and to mend.
            kind = _NotNow if points is None else _Refused
            raise kind(f"it raised {type(error).__name__} when it was tried") from error
        raise


def _put_back(arrays: Sequence[FloatArray], values: Sequence[FloatArray]) -> None:
    for array, value in zip(arrays, values, strict=True):
        array[...] = value


class _Watched:
    """Notices what a loss does beside returning a number, for the time of a ``with`` statement.

    What it prints meanwhile is kept back, and the random numbers that it draws are put back: the
    loop is going to print and draw them.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._heard = False
        self.active = True
        self.stream = sys.stdout

    def __enter__(self) -> _Watched:
        self._numpy = np.random.get_state()  # noqa: NPY002 - the book draws from it
        self._python = random.getstate()
        sys.stdout = self
        return self

    def __exit__(self, *exception: object) -> None:
        self.active = False
        if sys.stdout is self:
            sys.stdout = self.stream
        if self._drew():
            np.random.set_state(self._numpy)  # noqa: NPY002
            random.setstate(self._python)

    def _drew(self) -> bool:
        now = np.random.get_state()  # noqa: NPY002
        numpy_drew = any(not np.array_equal(*pair) for pair in zip(now, self._numpy, strict=True))
        return numpy_drew or random.getstate() != self._python

    def check(self) -> None:
        """Raise if something was noticed."""
        if self._heard:
            raise _Refused("it prints")
        if self._drew():
            raise _Refused("it draws random numbers")

    def write(self, text: str) -> int:
        """Take what is printed, or hand it on if another thread prints it."""
        if self.active and threading.get_ident() == self._thread:
            self._heard = True
            return len(text)
        return int(self.stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
