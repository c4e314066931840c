# ruff: noqa
import sys, os
sys.path.append(os.pardir)
import numpy as np
from common.functions import *
from common.gradient import numerical_gradient


class MyNet:
    def __init__(self, input_size, hidden_size, output_size, weight_init_std=0.01):
        self.params = {}
        self.params['W1'] = weight_init_std * np.random.randn(input_size, hidden_size)
        self.params['b1'] = np.zeros(hidden_size)
        self.params['W2'] = weight_init_std * np.random.randn(hidden_size, output_size)
        self.params['b2'] = np.zeros(output_size)

    def predict(self, x):
        z = sigmoid(np.dot(x, self.params['W1']) + self.params['b1'])
        return softmax(np.dot(z, self.params['W2']) + self.params['b2'])

    def loss(self, x, t):
        return cross_entropy_error(self.predict(x), t)

    def numerical_gradient(self, x, t):
        loss_W = lambda W: self.loss(x, t)
        return {key: numerical_gradient(loss_W, self.params[key]) for key in self.params}


np.random.seed(0)
net = MyNet(12, 7, 3)
x, t = np.random.rand(4, 12), np.eye(3)[np.random.randint(0, 3, 4)]
grads = net.numerical_gradient(x, t)
for key in grads:
    print(key, grads[key].shape, "%.9f" % np.abs(grads[key]).sum())
