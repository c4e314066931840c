"""The compiled layers of images with the book's dtypes: what they compute is float64.

A numerical gradient may evaluate a loss at many points at once. The arrays that it does that with
cannot enter compiled code, so they go by the book's formulas here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastgrad.nn import convolution
from fastgrad.numdiff.batched_array import BatchedArray

__all__ = ["Convolution", "Pooling", "col2im", "im2col"]


def im2col(input_data: Any, filter_h: int, filter_w: int, stride: int = 1, pad: int = 0) -> Any:
    """Return the patches of images as rows, see `fastgrad.im2col`."""
    if not isinstance(input_data, BatchedArray):
        images = np.asarray(input_data, np.float64)
        return convolution.im2col(images, filter_h, filter_w, stride, pad)
    height, width = _output_size(input_data, (filter_h, filter_w), stride, pad)
    images = np.pad(input_data, [(0, 0), (0, 0), (pad, pad), (pad, pad)])
    patches = np.zeros_like(images, shape=(*images.shape[:2], filter_h, filter_w, height, width))
    for y in range(filter_h):
        rows = slice(y, y + stride * height, stride)
        for x in range(filter_w):
            patches[:, :, y, x] = images[:, :, rows, x : x + stride * width : stride]
    return patches.transpose(0, 4, 5, 1, 2, 3).reshape(len(images) * height * width, -1)


def col2im(
    col: Any, input_shape: Any, filter_h: int, filter_w: int, stride: int = 1, pad: int = 0
) -> Any:
    """Return the sums of patches, see `fastgrad.col2im`."""
    rows = np.asarray(col, np.float64)
    return convolution.col2im(rows, input_shape, filter_h, filter_w, stride, pad)


def _output_size(images: Any, window: Any, stride: int, pad: int) -> list[int]:
    pairs = zip(images.shape[2:], window, strict=True)
    return [(length + 2 * pad - side) // stride + 1 for length, side in pairs]


def _by_patches(layer: Any, x: Any, window: Any, compute: Callable[[Any], Any]) -> Any:
    """Return as images what a layer computes from patches: in rows of a pixel's channels."""
    rows = compute(im2col(x, window[0], window[1], layer.stride, layer.pad))
    size = _output_size(x, window, layer.stride, layer.pad)
    return rows.reshape(len(x), *size, -1).transpose(0, 3, 1, 2)


class Convolution(convolution.Convolution):
    """The convolution as a layer, see `fastgrad.Convolution`."""

    def forward(self, x: Any) -> Any:
        """Return the filtered images."""
        if not any(isinstance(array, BatchedArray) for array in (x, self.W, self.b)):
            return super().forward(np.asarray(x, np.float64))
        count, _, *window = self.W.shape
        filters = self.W.reshape(count, -1).T
        return _by_patches(self, x, window, lambda rows: np.dot(rows, filters) + self.b)


class Pooling(convolution.Pooling):
    """Max pooling as a layer, see `fastgrad.Pooling`."""

    def forward(self, x: Any) -> Any:
        """Return the largest entry of each window."""
        if not isinstance(x, BatchedArray):
            return super().forward(np.asarray(x, np.float64))
        window = self.pool_h, self.pool_w
        size = self.pool_h * self.pool_w
        return _by_patches(self, x, window, lambda rows: np.max(rows.reshape(-1, size), axis=1))
