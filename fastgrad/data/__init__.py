"""MNIST, and archives of arrays.

Begin with `mnist`. It imports `fastgrad.validation` alone.
"""
