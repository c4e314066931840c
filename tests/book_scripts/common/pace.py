# ruff: noqa
# A module of the book's folder that fastgrad does not serve.
import os
import sys

sys.path.append(os.pardir)
from common.optimizer import *


class Halving(SGD):
    def update(self, params, grads):
        super().update(params, grads)
        self.lr *= 0.5
