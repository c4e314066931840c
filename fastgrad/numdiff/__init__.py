"""Numerical differentiation: what is evaluated, where, and how values become slopes.

Begin with `gradients`. It imports `fastgrad.kernels`, for functions that are compiled, and what is
below them.
"""
