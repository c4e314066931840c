# ruff: noqa
"""Helpers as in the book's folder."""

import numpy as np


def smooth_curve(x):
    raise AssertionError("must not be handed on")


def pad_image(x, pad):
    return np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)])


def im2col(x, height, width):
    windows = np.lib.stride_tricks.sliding_window_view(x, (height, width), axis=(2, 3))
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, x.shape[1] * height * width)
