# ruff: noqa
"""Stands where the reader's own file would, and is left half-written."""

from collections import OrderedDict

from common.layers import *


class TwoLayerNet:
    def __init__(self, input_size, hidden_size, output_size, weight_init_std=0.01):
        self.layers = OrderedDict()
        self.lastLayer = SoftmaxWithLoss()
        raise NotImplementedError
