"""Networks, and their training.

Begin with `fully_connected`: a network is its parameters, and an `engine` that has the kernels
compute with them. `fit` is the training loop. It may import everything but `fastgrad.book` and
`fastgrad.cli`.
"""
