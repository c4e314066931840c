r"""The update rules of gradient descent: each formula once, as a function of scalars.

One step turns a parameter `p`, its gradient `g` and the rule's memory of earlier steps into their
new values. On top of the formulas stand `update`, a serial pass over 1-D arrays, and
`update_parallel`, the same pass cut into one stretch a thread.

========== ================ ======= ======== =====================================================
rule       ``first``        ``a``   ``b``    step
========== ================ ======= ======== =====================================================
SGD                                          p - lr g
MOMENTUM   velocity v       m                v' = m v - lr g; p + v'
NESTEROV   velocity v       m                p + m² v - (1 + m) lr g; v' = m v - lr g
ADAGRAD    sum of squares h                  h' = h + g²; p - lr g / (√h' + 1e-7)
RMSPROP    mean square h    decay            h' = a h + (1 - a) g²; p - lr g / (√h' + 1e-7)
ADAM       mean m           β₁      β₂       m' = m + (1 - β₁)(g - m); v' = v + (1 - β₂)(g² - v);
                                             p - lr m' / (√v' + 1e-7), v being ``second`` and lr
                                             that of `adam_rate`
========== ================ ======= ======== =====================================================

What a rule does not use may be anything; an unused array is an empty one.
"""

# Helpers take scalars of either dtype and Numba overloads carry no annotations.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, no-any-return"

from __future__ import annotations

import math

from numba import prange

from fastgrad.kernels.compile import inlined_kernel, kernel, parallel_kernel

SGD, MOMENTUM, NESTEROV, ADAGRAD, RMSPROP, ADAM = range(6)

#: Keeps the division by a root defined at the start; the book's number.
EPSILON = 1e-7


@inlined_kernel
def sgd_step(p, g, lr):
    """Return the new parameter of plain gradient descent."""
    return p - lr * g


@inlined_kernel
def momentum_step(p, g, v, lr, m):
    """Return the new parameter and velocity of gradient descent with momentum."""
    v = m * v - lr * g
    return p + v, v


@inlined_kernel
def nesterov_step(p, g, v, lr, m, one):
    """Return the new parameter and velocity of Nesterov's accelerated gradient."""
    return p + m * m * v - (one + m) * lr * g, m * v - lr * g


@inlined_kernel
def adagrad_step(p, g, h, lr, epsilon):
    """Return the new parameter and sum of squares of AdaGrad."""
    h = h + g * g
    return p - lr * g / (math.sqrt(h) + epsilon), h


@inlined_kernel
def rmsprop_step(p, g, h, lr, keep, take, epsilon):
    """Return the new parameter and mean square of RMSprop; `take` is 1 - `keep`."""
    h = keep * h + take * (g * g)
    return p - lr * g / (math.sqrt(h) + epsilon), h


@inlined_kernel
def adam_step(p, g, m, v, lr, take_mean, take_square, epsilon):
    """Return the new parameter, mean and mean square of Adam; `take_mean` is 1 - β₁."""
    m = m + take_mean * (g - m)
    v = v + take_square * (g * g - v)
    return p - lr * m / (math.sqrt(v) + epsilon), m, v


@kernel
def adam_rate(lr, beta1, beta2, step):
    """Return the learning rate of Adam's step number `step` (from 1), bias corrected."""
    return lr * math.sqrt(1.0 - beta2**step) / (1.0 - beta1**step)


@kernel
def update(rule, p, g, first, second, lr, a, b):
    """Take one step of a rule on every parameter of a stretch, in place.

    Parameters
    ----------
    rule : int
        ``SGD`` .. ``ADAM``.
    p : ndarray, shape (M,)
        Parameters, float32 or float64. In and out.
    g : ndarray of p's dtype, shape (M,)
    first, second : ndarray of p's dtype, shape (M,) or (0,)
        The rule's memory, zero before the first step. In and out.
    lr, a, b : float
        The rule's coefficients, see the table above. Rounded to p's precision here, after the
        differences from 1.
    """
    number = p.dtype.type
    rate = number(lr)
    factor = number(a)
    rest = number(1.0 - a)
    rest_b = number(1.0 - b)
    one = number(1.0)
    epsilon = number(EPSILON)
    if rule == SGD:
        for i in range(p.size):
            p[i] = sgd_step(p[i], g[i], rate)
    elif rule == MOMENTUM:
        for i in range(p.size):
            p[i], first[i] = momentum_step(p[i], g[i], first[i], rate, factor)
    elif rule == NESTEROV:
        for i in range(p.size):
            p[i], first[i] = nesterov_step(p[i], g[i], first[i], rate, factor, one)
    elif rule == ADAGRAD:
        for i in range(p.size):
            p[i], first[i] = adagrad_step(p[i], g[i], first[i], rate, epsilon)
    elif rule == RMSPROP:
        for i in range(p.size):
            p[i], first[i] = rmsprop_step(p[i], g[i], first[i], rate, factor, rest, epsilon)
    else:
        for i in range(p.size):
            p[i], first[i], second[i] = adam_step(
                p[i], g[i], first[i], second[i], rate, rest, rest_b, epsilon
            )


@parallel_kernel
def update_parallel(rule, p, g, first, second, lr, a, b, stretches):
    """Take one step of a rule as `update` does, on several threads.

    Parameters
    ----------
    rule, p, g, first, second, lr, a, b
        As in `update`.
    stretches : int
        Number of pieces that go to threads.
    """
    length = (p.size + stretches - 1) // stretches
    for s in prange(stretches):
        i = s * length
        k = i + length
        update(rule, p[i:k], g[i:k], first[i:k], second[i:k], lr, a, b)
