# ruff: noqa
# A module of the book's folder that fastgrad does not serve.
import os
import sys

sys.path.append(os.pardir)
from common.optimizer import *


class Trainer:
    def __init__(self, network, x, t, steps, optimizer="SGD", optimizer_param={"lr": 0.01}):
        self.network, self.x, self.t, self.steps = network, x, t, steps
        classes = {"sgd": SGD, "adam": Adam, "adagrad": AdaGrad}
        self.optimizer = classes[optimizer.lower()](**optimizer_param)
        self.train_loss_list = []

    def train(self):
        for _ in range(self.steps):
            mask = np.random.choice(self.x.shape[0], 20)
            grads = self.network.gradient(self.x[mask], self.t[mask])
            self.optimizer.update(self.network.params, grads)
            self.train_loss_list.append(self.network.loss(self.x[mask], self.t[mask]))
