# coding: utf-8
# ruff: noqa
import sys, os
sys.path.append(os.pardir)
import numpy as np
from dataset.mnist import load_mnist
from common.functions import sigmoid, softmax


def get_data():
    (x_train, t_train), (x_test, t_test) = load_mnist(
        normalize=True, flatten=True, one_hot_label=False)
    return x_test, t_test


def init_network():
    np.random.seed(0)
    network = {}
    for i, (n, m) in enumerate([(784, 50), (50, 100), (100, 10)], 1):
        network['W' + str(i)] = 0.1 * np.random.randn(n, m)
        network['b' + str(i)] = np.zeros(m)
    return network


def predict(network, x):
    z1 = sigmoid(np.dot(x, network['W1']) + network['b1'])
    z2 = sigmoid(np.dot(z1, network['W2']) + network['b2'])
    return softmax(np.dot(z2, network['W3']) + network['b3'])


x, t = get_data()
network = init_network()
one_by_one = np.array([predict(network, x[i]) for i in range(100)])
in_a_batch = predict(network, x[:100])
assert np.allclose(one_by_one, in_a_batch, rtol=1e-12)
print("dtype:" + str(x.dtype), "shape:" + str(in_a_batch.shape))
