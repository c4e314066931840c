# coding: utf-8
# ruff: noqa
import sys, os
sys.path.append(os.pardir)
import numpy as np
import matplotlib.pyplot as plt
from dataset.mnist import load_mnist
from two_layer_net import TwoLayerNet

(x_train, t_train), (x_test, t_test) = load_mnist(normalize=True, one_hot_label=True)

np.random.seed(0)
network = TwoLayerNet(input_size=784, hidden_size=50, output_size=10)

iters_num = int(sys.argv[1])
batch_size = 100
learning_rate = 0.1
train_loss_list = []

for i in range(iters_num):
    batch_mask = np.random.choice(x_train.shape[0], batch_size)
    x_batch = x_train[batch_mask]
    t_batch = t_train[batch_mask]

    if i == 0:
        grad = network.numerical_gradient(x_batch, t_batch)
    else:
        grad = network.gradient(x_batch, t_batch)

    for key in ('W1', 'b1', 'W2', 'b2'):
        network.params[key] -= learning_rate * grad[key]

    train_loss_list.append(network.loss(x_batch, t_batch))

print("last loss:" + repr(float(train_loss_list[-1])))
print("test acc:" + repr(float(network.accuracy(x_test, t_test))))
plt.plot(np.arange(iters_num), train_loss_list)
plt.xlabel("iterations")
plt.show()
