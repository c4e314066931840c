# ruff: noqa
"""A module of the reader's own in the book's folder; uses what comes with the star import."""

from common.functions import *


class Doubling:
    def forward(self, x):
        return relu(2 * x)

    def backward(self, dout):
        return 2 * dout
