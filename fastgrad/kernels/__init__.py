"""Every compiled loop: arrays and scalars in, arrays out; no validation, no Python objects.

Begin with `forward`, the way of a mini-batch through a network. Kernels import each other and
`fastgrad.runtime`, nothing else.
"""
