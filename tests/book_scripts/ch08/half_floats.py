# coding: utf-8
# ruff: noqa
import sys, os
sys.path.append(os.pardir)
import numpy as np
from deep_convnet import DeepConvNet
from dataset.mnist import load_mnist

_, (x_test, t_test) = load_mnist(flatten=False)
x_test, t_test = x_test[:50], t_test[:50]
np.random.seed(0)
network = DeepConvNet()
full = network.accuracy(x_test, t_test)
x_test = x_test.astype(np.float16)
for param in network.params.values():
    param[...] = param.astype(np.float16)
half = network.accuracy(x_test, t_test)
grads = network.gradient(x_test[:2], t_test[:2])
print(abs(full - half) < 0.1, sorted(grads) == sorted(network.params))
