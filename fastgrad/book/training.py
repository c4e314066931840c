"""The book's ``Trainer`` of chapter 6."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastgrad.book import optimizers

__all__ = ["Trainer"]

_OPTIMIZERS = {name.lower(): getattr(optimizers, name) for name in optimizers.__all__}


class Trainer:
    """Trains a network on mini-batches, and prints how it goes, as the book's chapter 6 does.

    Parameters
    ----------
    network : object
        With ``params``, ``gradient(x, t)``, ``loss(x, t)`` and ``accuracy(x, t)``.
    x_train, t_train, x_test, t_test : ndarray
        Samples and targets, to train with and to test with.
    epochs : int, optional
    mini_batch_size : int, optional
    optimizer : {"sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam"}, optional
        In any case of letters.
    optimizer_param : dict, optional
        The arguments of the optimizer.
    evaluate_sample_num_per_epoch : int, optional
        Evaluate the accuracies on that many samples only.
    verbose : bool, optional
        Whether to print the loss of each batch, and the accuracies of each epoch.

    Attributes
    ----------
    network, optimizer : object
    train_loss_list : list of float
        The loss of each mini-batch, after the update.
    train_acc_list, test_acc_list : list of float
        The accuracies, evaluated after the first iteration of each epoch.
    current_iter, current_epoch, max_iter : int
    iter_per_epoch : float
        Not a whole number where the samples do not fill the last batch.

    Notes
    -----
    Batches are drawn with replacement from NumPy's global legacy generator, so that a seed gives
    the book's numbers. As in the book, accuracies are evaluated where a whole number of iterations
    ends an epoch: with 60,000 samples and batches of 128 once in 8 epochs.

    Examples
    --------
    >>> from fastgrad.book import MultiLayerNetExtend
    >>> np.random.seed(0)
    >>> x, t = np.random.rand(20, 4), np.arange(20) % 2
    >>> net = MultiLayerNetExtend(4, [3], 2)
    >>> trainer = Trainer(net, x, t, x, t, epochs=2, mini_batch_size=10, verbose=False)
    >>> trainer.train()
    >>> len(trainer.train_loss_list), len(trainer.test_acc_list)
    (4, 2)
    """

    def __init__(
        self,
        network: Any,
        x_train: Any,
        t_train: Any,
        x_test: Any,
        t_test: Any,
        epochs: int = 20,
        mini_batch_size: int = 100,
        optimizer: str = "SGD",
        optimizer_param: Mapping[str, Any] = {"lr": 0.01},
        evaluate_sample_num_per_epoch: int | None = None,
        verbose: bool = True,
    ) -> None:
        self.network = network
        self.verbose = verbose
        self.x_train, self.t_train = x_train, t_train
        self.x_test, self.t_test = x_test, t_test
        self.epochs = epochs
        self.batch_size = mini_batch_size
        self.evaluate_sample_num_per_epoch = evaluate_sample_num_per_epoch
        self.optimizer = _OPTIMIZERS[optimizer.lower()](**optimizer_param)
        self.train_size = self.x_train.shape[0]
        self.iter_per_epoch = max(self.train_size / self.batch_size, 1)
        self.max_iter = int(self.epochs * self.iter_per_epoch)
        self.current_iter = 0
        self.current_epoch = 0
        self.train_loss_list: list[Any] = []
        self.train_acc_list: list[Any] = []
        self.test_acc_list: list[Any] = []

    def train_step(self) -> None:
        """Do one iteration: draw a batch, update, note down the loss; accuracies once an epoch."""
        mask = np.random.choice(self.train_size, self.batch_size)  # noqa: NPY002
        x_batch, t_batch = self.x_train[mask], self.t_train[mask]
        self.optimizer.update(self.network.params, self.network.gradient(x_batch, t_batch))
        loss = self.network.loss(x_batch, t_batch)
        self.train_loss_list.append(loss)
        if self.verbose:
            print(f"train loss:{loss}")
        if self.current_iter % self.iter_per_epoch == 0:
            self.current_epoch += 1
            n = self.evaluate_sample_num_per_epoch  # None: all of them
            train_acc = self.network.accuracy(self.x_train[:n], self.t_train[:n])
            test_acc = self.network.accuracy(self.x_test[:n], self.t_test[:n])
            self.train_acc_list.append(train_acc)
            self.test_acc_list.append(test_acc)
            if self.verbose:
                print(
                    f"=== epoch:{self.current_epoch}, train acc:{train_acc}, "
                    f"test acc:{test_acc} ==="
                )
        self.current_iter += 1

    def train(self) -> None:
        """Do all iterations, and print the final accuracy."""
        for _ in range(self.max_iter):
            self.train_step()
        test_acc = self.network.accuracy(self.x_test, self.t_test)
        if self.verbose:
            print("=============== Final Test Accuracy ===============")
            print(f"test acc:{test_acc}")
