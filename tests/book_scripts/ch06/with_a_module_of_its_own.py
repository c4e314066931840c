# coding: utf-8
# ruff: noqa
import sys, os
sys.path.append(os.pardir)
import numpy as np
from dataset.mnist import load_mnist
from common.layers import *
from common.extra import Doubling
from common.multi_layer_net import MultiLayerNet
from common.pace import Halving
from common.trainer import Trainer
from common.util import im2col, shuffle_dataset

np.random.seed(0)
(x_train, t_train), _ = load_mnist(normalize=True)
x_train, t_train = shuffle_dataset(x_train[:300], t_train[:300])

network = MultiLayerNet(input_size=784, hidden_size_list=[20, 20], output_size=10,
                        weight_decay_lambda=0.1)
trainer = Trainer(network, x_train, t_train, x_train, t_train, epochs=4, mini_batch_size=60,
                  optimizer='Adam', optimizer_param={'lr': 0.01}, verbose=False)
trainer.train()
assert trainer.train_loss_list[-1] < trainer.train_loss_list[0]

# A layer of the folder's own beside those served.
print(Doubling().forward(np.array([-1.0, 2.0])), Relu().forward(np.array([-1.0, 2.0])))
print(im2col(np.zeros((2, 1, 4, 4)), 2, 2).shape)
print(type(trainer.optimizer).__module__, Halving(0.5).lr)
