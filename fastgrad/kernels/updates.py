r"""The update rules of gradient descent, each a serial pass over parameters, in place.

One update turns a parameter `p`, its gradient `g` and the optimizer state of earlier updates into
their new values. All rules have the same arguments, so that one can be called through a pointer.

========== ================ ======= ======== =====================================================
rule       ``first``        ``a``   ``b``    update
========== ================ ======= ======== =====================================================
sgd                                          p - lr g
momentum   velocity v       m                v' = m v - lr g; p + v'
nesterov   velocity v       m                p + m² v - (1 + m) lr g; v' = m v - lr g
adagrad    sum of squares h                  h' = h + g²; p - lr g / (√h' + 1e-7)
rmsprop    mean square h    decay            h' = a h + (1 - a) g²; p - lr g / (√h' + 1e-7)
adam       mean m           β₁      β₂       m' = m + (1 - β₁)(g - m); v' = v + (1 - β₂)(g² - v);
                                             p - lr m' / (√v' + 1e-7), v being ``second`` and lr
                                             that of `adam_rate`
========== ================ ======= ======== =====================================================

What a rule does not use may be anything; an unused array is an empty one. The arguments:

p : ndarray, shape (M,)
    Parameters, float32 or float64. In and out.
g : ndarray of p's dtype, shape (M,)
first, second : ndarray of p's dtype, shape (M,) or (0,)
    The optimizer state, zero before the first update. In and out.
lr, a, b : float
    The rule's coefficients. Rounded to p's precision here, after the differences from 1.
"""

from __future__ import annotations

import functools
import math

from numba import types

from fastgrad.runtime.compile import address, array_type, helper, kernel
from fastgrad.runtime.programs import call_pointer, chunk_range

#: Keeps the division by a root defined at the start; the book's number.
EPSILON = 1e-7


@kernel
def sgd(p, g, first, second, lr, a, b):
    """Update by plain gradient descent."""
    rate = p.dtype.type(lr)
    for i in range(p.size):
        p[i] -= rate * g[i]


@kernel
def momentum(p, g, first, second, lr, a, b):
    """Update by gradient descent with momentum."""
    number = p.dtype.type
    rate, m = number(lr), number(a)
    for i in range(p.size):
        v = m * first[i] - rate * g[i]
        first[i] = v
        p[i] += v


@kernel
def nesterov(p, g, first, second, lr, a, b):
    """Update by Nesterov's accelerated gradient."""
    number = p.dtype.type
    rate, m, one = number(lr), number(a), number(1)
    for i in range(p.size):
        v = first[i]
        p[i] += m * m * v - (one + m) * rate * g[i]
        first[i] = m * v - rate * g[i]


@kernel
def adagrad(p, g, first, second, lr, a, b):
    """Update by AdaGrad."""
    number = p.dtype.type
    rate, epsilon = number(lr), number(EPSILON)
    for i in range(p.size):
        h = first[i] + g[i] * g[i]
        first[i] = h
        p[i] -= rate * g[i] / (math.sqrt(h) + epsilon)


@kernel
def rmsprop(p, g, first, second, lr, a, b):
    """Update by RMSprop."""
    number = p.dtype.type
    rate, keep, take, epsilon = number(lr), number(a), number(1.0 - a), number(EPSILON)
    for i in range(p.size):
        h = keep * first[i] + take * (g[i] * g[i])
        first[i] = h
        p[i] -= rate * g[i] / (math.sqrt(h) + epsilon)


@kernel
def adam(p, g, first, second, lr, a, b):
    """Update by Adam."""
    number = p.dtype.type
    rate, take_mean, take_square = number(lr), number(1.0 - a), number(1.0 - b)
    epsilon = number(EPSILON)
    for i in range(p.size):
        m = first[i] + take_mean * (g[i] - first[i])
        v = second[i] + take_square * (g[i] * g[i] - second[i])
        first[i], second[i] = m, v
        p[i] -= rate * m / (math.sqrt(v) + epsilon)


@kernel
def adam_rate(lr, beta1, beta2, t):
    """Return the learning rate of Adam's update number t, from 1, bias corrected."""
    return lr * math.sqrt(1.0 - beta2**t) / (1.0 - beta1**t)


@functools.cache
def pointer(rule, dtype):
    """Return the address of a rule for parameters of a dtype."""
    return address(rule, (*[array_type(dtype, 1)] * 4, *[types.float64] * 3))


@helper
def update(rule, p, g, first, second, lr, a, b, chunk, chunks):
    """Update a chunk of the parameters by a rule, given by its `pointer`."""
    i, k = chunk_range(p.size, chunk, chunks)
    call_pointer(rule, (p[i:k], g[i:k], first[i:k], second[i:k], lr, a, b))
