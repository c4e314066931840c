"""The pieces of a network: functions, layers and optimizers.

Begin with `functions`: input is validated, then a kernel computes. It imports the kernels and what
is below them.
"""
