# coding: utf-8
# ruff: noqa
import sys, os
sys.path.append(os.pardir)
import numpy as np
import matplotlib.pyplot as plt
from dataset.mnist import load_mnist
from simple_convnet import SimpleConvNet
from common.layers import Convolution
from common.trainer import Trainer

np.random.seed(0)
(x_train, t_train), (x_test, t_test) = load_mnist(flatten=False)
network = SimpleConvNet(input_dim=(1,28,28),
                        conv_param = {'filter_num': 5, 'filter_size': 5, 'pad': 0, 'stride': 1},
                        hidden_size=20, output_size=10, weight_init_std=0.01)
trainer = Trainer(network, x_train[:500], t_train[:500], x_test, t_test,
                  epochs=2, mini_batch_size=50,
                  optimizer='Adam', optimizer_param={'lr': 0.001},
                  evaluate_sample_num_per_epoch=100, verbose=False)
trainer.train()
assert trainer.train_loss_list[-1] < trainer.train_loss_list[0]
network.save_params(sys.argv[1])

other = SimpleConvNet(conv_param={'filter_num': 5, 'filter_size': 5, 'pad': 0, 'stride': 1},
                      hidden_size=20)
other.load_params(sys.argv[1])
filters = other.params['W1']
for i in range(len(filters)):
    w = filters[i].reshape(1, *filters[i].shape)
    out = Convolution(w, 0).forward(x_test[:1])
    ax = plt.subplot(1, 5, i+1, xticks=[], yticks=[])
    ax.imshow(out.reshape(24, 24), cmap=plt.cm.gray_r, interpolation='nearest')
plt.show()
print(np.array_equal(other.predict(x_test[:3]), network.predict(x_test[:3])))

network = SimpleConvNet(input_dim=(1,6,6), hidden_size=4,
                        conv_param = {'filter_num':3, 'filter_size':3, 'pad':0, 'stride':1})
x, t = np.random.rand(1, 1, 6, 6), np.array([[1]])
numerical, exact = network.numerical_gradient(x, t), network.gradient(x, t)
for key in numerical:
    print(key, np.abs(numerical[key] - exact[key]).mean() < 1e-6)
