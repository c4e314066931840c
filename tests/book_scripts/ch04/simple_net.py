# coding: utf-8
# ruff: noqa
import sys, os
sys.path.append(os.pardir)
import numpy as np
from common.functions import softmax, cross_entropy_error
from common.gradient import numerical_gradient


class simpleNet:
    def __init__(self):
        self.W = np.array([[0.20416663, -0.26468752, 0.93918521],
                           [-0.96143561, -0.73607466, 0.3411377]])

    def predict(self, x):
        return np.dot(x, self.W)

    def loss(self, x, t):
        return cross_entropy_error(softmax(self.predict(x)), t)


x = np.array([0.6, 0.9])
t = np.array([0, 0, 1])
net = simpleNet()

# The closure ignores its argument and reads the array that is being nudged.
f = lambda w: net.loss(x, t)
before = net.W.copy()
dW = numerical_gradient(f, net.W)
assert (net.W == before).all()
print(dW)
