# coding: utf-8
# ruff: noqa
import os
import sys
sys.path.append(os.pardir)
import matplotlib.pyplot as plt
from dataset.mnist import load_mnist
from common.util import smooth_curve
from common.multi_layer_net import MultiLayerNet
from common.optimizer import *

# np comes with the star import.
np.random.seed(0)
(x_train, t_train), (x_test, t_test) = load_mnist(normalize=True)
max_iterations = 12

optimizers = {}
optimizers['SGD'] = SGD()
optimizers['Momentum'] = Momentum()
optimizers['AdaGrad'] = AdaGrad()
optimizers['Adam'] = Adam()

networks = {}
train_loss = {}
for key in optimizers.keys():
    networks[key] = MultiLayerNet(
        input_size=784, hidden_size_list=[20, 20], output_size=10)
    train_loss[key] = []

for i in range(max_iterations):
    batch_mask = np.random.choice(x_train.shape[0], 128)
    x_batch = x_train[batch_mask]
    t_batch = t_train[batch_mask]

    for key in optimizers.keys():
        grads = networks[key].gradient(x_batch, t_batch)
        optimizers[key].update(networks[key].params, grads)
        train_loss[key].append(networks[key].loss(x_batch, t_batch))

for key in optimizers.keys():
    plt.plot(np.arange(max_iterations), smooth_curve(train_loss[key]), label=key)
    assert train_loss[key][-1] < train_loss[key][0], key
plt.legend()
plt.show()
print("compared " + ", ".join(optimizers))
