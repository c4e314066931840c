"""The pieces of a network in NumPy's terms: functions, layers and optimizers.

Begin with `functions`: input is validated, then a kernel computes. It imports the kernels and what
is below them.
"""
