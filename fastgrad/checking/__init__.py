"""Checking a gradient: evidence about each entry, one table of rules, and how it is told."""

from fastgrad.checking.check import (
    ArrayCheck,
    GradientCheck,
    GradientCheckWarning,
    compare_gradients,
)

__all__ = ["ArrayCheck", "GradientCheck", "GradientCheckWarning", "compare_gradients"]
