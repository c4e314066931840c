"""Networks, and their training.

Begin with `network`: a network is parameters, layers and a loss, and what it does stands there
once. `fully_connected` has an `engine` do it, whose kernels compute with the parameters. `fit` is
the training loop. It may import everything but `fastgrad.book` and `fastgrad.cli`.
"""
