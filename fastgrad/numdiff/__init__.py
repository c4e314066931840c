"""Numerical differentiation: what is evaluated, where, and how values become slopes."""
