"""Attributes that every evaluation of a function updates, such as running averages.

Batch normalisation that trains keeps ``self.mean = 0.9 * self.mean + 0.1 * mean`` for later. The
loss does not depend on it; and what it is after the many evaluations of a numerical gradient
depends on the last few hundred only, as older ones fade below rounding. So these few are made, and
it is seen whether what was before is being forgotten: from a second and a third beginning, one
higher and one lower, the same evaluations must give the same values, and bring the attributes
together. A counter, a best value so far and a sum of losses do not pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np

from fastgrad.numdiff.reach import attributes_of
from fastgrad.numdiff.reading import Reading

__all__ = ["FORGOTTEN", "Records"]

#: Evaluations after which an average with a momentum of 0.9 has forgotten what was before: older
#: values count 5e-19 of newer ones.
FORGOTTEN = 400
#: After an eighth of them two averages must have come together to this part of their distance, so
#: that after all of them it is below rounding.
_EIGHTH, _CLOSER = FORGOTTEN // 8, 1e-2


class Records:
    """The attributes that a function updates.

    As a context manager it puts back what they were at the beginning, unless `keep` was called.
    """

    def __init__(self, reading: Reading) -> None:
        self._places = [(reading.objects[number], name) for number, name in reading.records]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._places)

    def __enter__(self) -> Self:
        """Remember what they are."""
        self._before: Any = self._values()
        return self

    def put_back(self, *_: object) -> None:
        """Make the attributes what they were at the beginning."""
        if self._before is not None:
            self._set(self._before)

    __exit__ = put_back

    def keep(self) -> None:
        """Let the attributes be what they are now."""
        self._before = None

    def _values(self) -> list[Any]:
        return [attributes_of(holder).get(name) for holder, name in self._places]

    def _set(self, values: Sequence[Any]) -> None:
        for (holder, name), value in zip(self._places, values, strict=True):
            object.__setattr__(holder, name, value)

    def are_forgotten(self, evaluations: Sequence[Callable[[], Any]]) -> bool:
        """Make some evaluations, and return whether what was before them is forgotten then.

        The attributes are as these evaluations leave them.
        """
        evaluations[0]()  # which may be what makes the arrays
        second = self._values()
        if not all(map(_is_real, second)):
            return False
        losses, averages = [], []
        for side in (1, -1, 0):
            self._set([value + side * (1 + np.abs(value)) if side else value for value in second])
            losses.append([np.asarray(one()).tobytes() for one in evaluations[1:_EIGHTH]])
            averages.append(self._values())
        for evaluate in evaluations[_EIGHTH:]:
            evaluate()
        return losses[0] == losses[1] == losses[2] and all(
            bool(np.all(np.abs(one - last) <= _CLOSER * (1 + np.abs(before))))
            for each in averages[:2]
            for one, last, before in zip(each, averages[2], second, strict=True)
        )


def _is_real(value: Any) -> bool:
    return isinstance(value, float | np.floating) or (
        type(value) is np.ndarray and value.dtype == np.float64
    )
