"""Verdicts: what a comparison of two gradients shows, entry by entry, and how it is told."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastgrad import tables
from fastgrad.checking import suspects
from fastgrad.checking import verdicts as rules
from fastgrad.checking.verdicts import REASONS, RIGHT, WRONG, Codes
from fastgrad.validation import FloatArray, real_array

__all__ = ["ArrayCheck", "GradientCheck", "GradientCheckWarning", "compare_gradients"]

#: The columns of the table.
_TITLES = ("array", "worst at", "analytic", "numerical", "error", "allowed", "verdict")

Verdict = Literal["wrong", "not deterministic", "unresolved", "ok"]


class GradientCheckWarning(UserWarning):
    """A numerical gradient could not see what it was asked about, for example in float32."""


@dataclass(frozen=True)
class ArrayCheck:
    r"""What a gradient check found in one array.

    Attributes
    ----------
    shape : tuple of int
    verdict : {"wrong", "not deterministic", "unresolved", "ok"}
        The first of these that applies. "unresolved" if no entry is wrong, but the largest one, or
        every one, could not be judged.
    wrong, judged : int
        How many entries are wrong, and how many could be judged: in these a mistake of 0.1% would
        have been seen, or one was seen.
    not_judged : dict of str to int
        How many entries were not judged, and why: "kink" within ±h; "noise", if a mistake of 0.1%
        would be lost in the noise of f; "not finite", if f is not at x ± h; "not drawn" for a
        sample.
    max_abs_error : float
        The largest \|analytic - numerical\| among the entries judged, or lost in noise.
    max_rel_error : float
        The largest \|analytic - numerical\| in proportion to the larger of the two numbers, among
        the entries large enough for a mistake of 0.1% to be seen; 0 if there are none.
    index : tuple of int
        Where the two differ most in proportion to what is allowed there; empty in an empty array.
    analytic, numerical : float
        The two numbers at that place.
    noise : float
        The noise floor: the error to expect of the numerical gradient, the median over the entries.
    allowed : float
        By how much the two numbers may differ at that place.
    """

    shape: tuple[int, ...]
    verdict: Verdict
    wrong: int
    judged: int
    not_judged: dict[str, int]
    max_abs_error: float
    max_rel_error: float
    index: tuple[int, ...]
    analytic: float
    numerical: float
    noise: float
    allowed: float = math.nan

    def cells(self) -> tuple[str, ...]:
        """Return what a table says of the array: the worst entry, and the verdict."""
        if not math.prod(self.shape):
            return ("", "", "", "", "", self.verdict)
        verdict = f"wrong: {self.wrong} of {self.judged}" if self.wrong else self.verdict
        if self.not_judged:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.not_judged.items())
            verdict += f"; not judged: {reasons}"
        return (
            str(self.index),
            f"{self.analytic:.6g}",
            f"{self.numerical:.6g}",
            f"{abs(self.analytic - self.numerical):.1e}",
            f"{self.allowed:.1e}",
            verdict,
        )

    def __str__(self) -> str:
        """Return the same in a line."""
        index, analytic, numerical, error, allowed, verdict = self.cells()
        if not index:
            return verdict
        return (
            f"{verdict}; at {index} {analytic}, numerical {numerical}: "
            f"error {error}, allowed {allowed}"
        )

    @property
    def kinks(self) -> int:
        """In how many entries a kink lies within ±h; these are not judged."""
        return self.not_judged.get("kink", 0)


@dataclass(frozen=True, repr=False)
class GradientCheck:
    """The result of a gradient check: a table when printed, a truth value in a condition.

    ``bool(check)`` is `ok`, so that ``assert net.check_gradient(x, t)`` says what it seems to say.

    Attributes
    ----------
    arrays : dict of str to ArrayCheck
        What was found in each array, by its path.
    h : float, ndarray or "auto"
        The step of the numerical gradient.
    analytic, numerical : dict of str to ndarray
        The two gradients; the numerical one is NaN where it was not computed.
    parameters : dict of str to ndarray
        The arrays that the gradient is by; empty if they are not known.
    codes : dict of str to ndarray of int
        What is known of each entry: 0 right, 1 wrong, above that not judged.
    repeats : tuple of float
        Two values of f at the same point, if they differ.
    noise : float
        How noisy f is: the standard deviation of its values; NaN if it was not measured.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgrad import check_gradient
    >>> x = np.array([1.0, 2.0])
    >>> check = check_gradient(lambda x: np.sum(x**3), [3.0, 12.1], x)
    >>> check.ok
    False
    >>> check.arrays["x"].index
    (1,)
    >>> print(check.report())
    `x` is wrong in 1 of 2 entries judged: at (1,) the gradient is 12.1, the numerical one 12.
    Only this entry is wrong.
    """

    arrays: dict[str, ArrayCheck]
    h: Any
    analytic: dict[str, FloatArray]
    numerical: dict[str, FloatArray]
    parameters: dict[str, FloatArray] = field(default_factory=dict)
    codes: dict[str, Codes] = field(default_factory=dict)
    repeats: tuple[float, ...] = ()
    noise: float = math.nan

    @property
    def ok(self) -> bool:
        """Whether every array is ok."""
        return all(array.verdict == "ok" for array in self.arrays.values())

    @property
    def resolved(self) -> bool:
        """Whether a mistake of 0.1% would have been seen in every array."""
        return all(array.verdict in ("ok", "wrong") for array in self.arrays.values())

    def __bool__(self) -> bool:
        """Return `ok`."""
        return self.ok

    def __str__(self) -> str:
        """Return the table."""
        lines = [tables.wrapped(f"{self._step()}: {self._summary()}", between="; ")]
        if self.arrays:
            lines.insert(0, tables.text_table(_TITLES, self._rows(), "llrrrrl"))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return the table as a notebook shows it."""
        return tables.html_table(_TITLES, self._rows(), f"{self._step()}: {self._summary()}")

    def _rows(self) -> list[tuple[str, ...]]:
        """Return a row for each array: all figures are those of one entry, the worst."""
        return [(name, *array.cells()) for name, array in self.arrays.items()]

    __repr__ = __str__

    def _step(self) -> str:
        if isinstance(self.h, str):
            return f"h = {self.h!r}"
        steps = np.asarray(self.h, float)
        low, high = steps.min(initial=np.inf), steps.max(initial=0)
        return f"h from {low:g} to {high:g}" if low < high else f"h = {high:g}"

    def _summary(self) -> str:
        verdicts = {array.verdict for array in self.arrays.values()}
        failed = "WRONG" if "wrong" in verdicts else "NOT PASSED"
        parts = [failed if verdicts - {"ok"} else "no mistake found"]
        if self.repeats:
            parts.append(self._not_deterministic())
        unseen = [name for name, a in self.arrays.items() if a.verdict == "unresolved"]
        if unseen:
            parts.append(f"a mistake of 0.1% could not be seen in {', '.join(unseen)}")
        counts = sum((Counter(a.not_judged) for a in self.arrays.values()), Counter[str]())
        total = counts.total() + sum(a.judged for a in self.arrays.values())
        level = "" if math.isnan(self.noise) else f", about {self.noise:.2g}"
        words = {
            "kink": "not judged, for a kink lies within ±h",
            "noise": f"of {total} entries could not be judged beside the noise of f{level}",
            "not finite": f"of {total} entries could not be judged, for f is not finite at x ± h",
            "not drawn": f"of {total} entries not drawn",
        }
        parts += [f"{counts[reason]} {text}" for reason, text in words.items() if counts[reason]]
        return "; ".join(parts)

    def _not_deterministic(self) -> str:
        low, high = self.repeats
        return f"f is not deterministic: two calls at the same point gave {low} and {high}"

    def report(self) -> str:
        """Say in sentences what is wrong where, and what is usually behind such a pattern.

        Returns
        -------
        str
            A line or two for each array that is not ok; one line if all are.
        """
        lines = [line for name in self.arrays for line in self._sentences(name)]
        if self.repeats:
            lines.insert(0, f"{self._not_deterministic().replace('f is', '`f` is')}. Fix its seed "
                            "in every call, or switch dropout and the like off.")  # fmt: skip
        return "\n".join(lines) or "No mistake found."

    def _sentences(self, name: str) -> Iterator[str]:
        array = self.arrays[name]
        if array.verdict == "wrong":
            yield (
                f"`{name}` is wrong in {array.wrong} of {array.judged} entries judged: at "
                f"{array.index} the gradient is {array.analytic:.9g}, the numerical one "
                f"{array.numerical:.9g}."
            )
            codes, parameters = self.codes[name], self.parameters.get(name)
            pattern = suspects.suspect(
                self.analytic[name], self.numerical[name], parameters,
                wrong=codes == WRONG, judged=codes <= WRONG,
            )  # fmt: skip
            if pattern:
                yield pattern
        elif array.verdict == "unresolved":
            yield f"`{name}` could not be judged: {_why(array, self.numerical[name])}."
        elif array.not_judged:
            listed = ", ".join(f"{n} ({reason})" for reason, n in array.not_judged.items())
            yield f"`{name}` is ok in {array.judged} entries; not judged: {listed}."

    def raise_if_wrong(self) -> None:
        """Raise an AssertionError with the table and the report unless every array is ok.

        Raises
        ------
        AssertionError
            If a mistake was found, or one could not have been seen.
        """
        if not self.ok:
            raise AssertionError(f"\n{self}\n{self.report()}")

    def plot(self) -> Any:
        """Draw the error of each array as an image beside its histogram.

        Returns
        -------
        matplotlib.figure.Figure
            One row for each array, or one overview of many; wrong entries are marked. A notebook
            shows it; ``savefig`` saves it.

        Raises
        ------
        ImportError
            If matplotlib is not installed (extra ``plot``).
        """
        from fastgrad.drawing import plot_check

        return plot_check(self)


def compare_gradients(
    analytic: Mapping[str, ArrayLike],
    numerical: Mapping[str, ArrayLike],
    *,
    h: Any,
    noise: float | Mapping[str, Any],
    kinks: Mapping[str, NDArray[np.bool_]] | None = None,
) -> GradientCheck:
    """Compare gradients array by array and judge them.

    Parameters
    ----------
    analytic, numerical : mapping of str to array_like
        The gradient to check and the numerical one, with the same keys and shapes.
    h : float or ndarray
        The step of the numerical gradient.
    noise : float, or mapping of str to float or ndarray
        The absolute error to expect of the numerical gradient. One number for an array is its
        rounding error, to which ``h**2`` times the largest entry is added for the truncation; an
        array of its shape is the whole error, entry by entry.
    kinks : mapping of str to ndarray of bool, optional
        The entries within ±h of a kink; they are counted, not judged.

    Returns
    -------
    GradientCheck

    Raises
    ------
    TypeError
        If the gradients do not hold real numbers.
    ValueError
        If keys or shapes do not fit.

    Warns
    -----
    GradientCheckWarning
        If a mistake of 0.1% in the largest entry of an array could not be seen.

    Notes
    -----
    An entry is wrong if the two numbers differ by more than ``noise + 0.00025 max(|a|, |n|)``: a
    quarter of a mistake of 0.1%. NaN is wrong in `analytic`; in `numerical` it is no evidence, and
    the entry is not judged. Where both numbers are exactly zero the entry is right.

    Examples
    --------
    >>> print(compare_gradients({"b": [1.0, 2.0]}, {"b": [1.0, 2.002]}, h=1e-4, noise=1e-12))
    array  worst at  analytic  numerical    error  allowed  verdict
    b      (1,)             2      2.002  2.0e-03  5.0e-04  wrong: 1 of 2
    h = 0.0001: WRONG
    """
    if set(analytic) != set(numerical):
        keys = sorted(numerical)
        raise ValueError(f"`analytic` must have the keys {keys}. Got {sorted(analytic)}.")
    found = GradientCheck({}, h, {}, {})
    for name in numerical:
        n = real_array(numerical[name], f"numerical[{name!r}]")
        a = real_array(analytic[name], f"analytic[{name!r}]", shape=n.shape)
        level = error = noise[name] if isinstance(noise, Mapping) else noise
        if np.shape(error) != n.shape or n.shape == ():
            error = error + np.max(h) ** 2 * np.nanmax(np.abs(n), initial=0.0)
        eps = float(np.finfo(np.result_type(a, n)).eps)
        codes = rules.judge(a, rules.Evidence.plain(n, np.broadcast_to(error, n.shape)), eps)
        if kinks is not None:
            codes[np.asarray(kinks[name], bool)] = rules.KINK
        record(found, name, a, n, level, codes)
    warn_if_unresolved(found)
    return found


def record(
    check: GradientCheck, name: str, analytic: FloatArray, numerical: FloatArray, error: Any,
    codes: Codes, parameters: FloatArray | None = None,
) -> None:  # fmt: skip
    """Add what was found in one array to a check."""
    check.arrays[name] = _summed_up(analytic, numerical, error, codes, bool(check.repeats))
    check.analytic[name], check.numerical[name] = analytic.copy(), numerical.copy()
    check.codes[name] = codes
    if parameters is not None:
        check.parameters[name] = parameters.copy()


def _summed_up(
    analytic: FloatArray, numerical: FloatArray, error: Any, codes: Codes, is_random: bool
) -> ArrayCheck:
    """Sum up what is known of the entries of one array."""
    shape = numerical.shape
    if numerical.size == 0:
        return ArrayCheck(shape, "ok", 0, 0, {}, 0.0, 0.0, (), 0.0, 0.0, 0.0)
    a, n = analytic.astype(np.float64), numerical.astype(np.float64)
    counts = np.bincount(codes.reshape(-1), minlength=len(REASONS) + 2).tolist()
    wrong, right = counts[WRONG], counts[RIGHT]
    with np.errstate(all="ignore"):
        largest = np.fmax(np.abs(a), np.abs(n))
        apart = np.where(codes <= WRONG, np.abs(a - n), 0.0)
        allowed = error + rules.TOLERANCE * largest
        excess = apart / np.where(allowed > 0, allowed, 1.0)
        excess = np.where((codes == WRONG) & ~np.isfinite(excess), np.inf, excess)
        seen = (codes <= WRONG) & (rules.MISTAKE * largest > allowed)
        relative = np.where(seen, apart / np.where(largest > 0, largest, 1.0), 0.0)
    # If nothing judged differs, show the largest entry.
    shown = np.nan_to_num(excess if excess.any() else largest, posinf=np.inf)
    index = np.unravel_index(np.argmax(shown), shape)
    comparable = np.where(np.isin(codes, (RIGHT, rules.NOISE)), largest, -1.0)
    if wrong:
        verdict: Verdict = "wrong"
    elif is_random:
        verdict = "not deterministic"
    else:
        verdict = "ok" if right and codes.flat[np.argmax(comparable)] == RIGHT else "unresolved"
    return ArrayCheck(
        shape, verdict, wrong, judged=wrong + right,
        not_judged={reason: counts[code] for code, reason in REASONS.items() if counts[code]},
        max_abs_error=float(np.max(apart)), max_rel_error=float(np.max(relative)),
        index=tuple(int(i) for i in index), analytic=float(a[index]), numerical=float(n[index]),
        allowed=float(np.broadcast_to(allowed, shape)[index]),
        noise=float(np.nanmedian(error)) if np.isfinite(error).any() else float("nan"),
    )  # fmt: skip


def warn_if_unresolved(check: GradientCheck) -> None:
    """Warn of each array in which a mistake could not have been seen."""
    for name, array in check.arrays.items():
        if array.verdict == "unresolved":
            warnings.warn(
                f"the numerical gradient of `{name}` cannot show a mistake of 0.1%: "
                f"{_why(array, check.numerical[name])}.",
                GradientCheckWarning,
                stacklevel=4,
            )


def _why(array: ArrayCheck, numerical: FloatArray) -> str:
    """Say why an array could not be judged, and what to do about it."""
    reasons = set(array.not_judged) - {"not drawn"}
    if reasons == {"kink"}:
        return (
            "f has a kink at x in every entry, or within ±h of it; check at another point, or with "
            "a smaller h"
        )
    if reasons == {"not finite"}:
        return "f is not finite at x, or beside it; give `bounds`, or check at another point"
    largest = np.max(np.abs(numerical), initial=0.0, where=np.isfinite(numerical))
    is_single = numerical.dtype == np.float32
    remedy = "use float64" if is_single else "use another h, or check at another point"
    return (
        f"its noise floor is {array.noise:.1e} in {numerical.dtype}, its largest entry "
        f"{largest:.1e}; {remedy}"
    )
