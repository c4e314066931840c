"""The compiled layers of images with the book's dtypes: what they compute is float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastgrad.nn import convolution

__all__ = ["Convolution", "Pooling", "col2im", "im2col"]


def im2col(input_data: Any, filter_h: int, filter_w: int, stride: int = 1, pad: int = 0) -> Any:
    """Return the patches of images as rows, see `fastgrad.im2col`."""
    images = np.asarray(input_data, np.float64)
    return convolution.im2col(images, filter_h, filter_w, stride, pad)


def col2im(
    col: Any, input_shape: Any, filter_h: int, filter_w: int, stride: int = 1, pad: int = 0
) -> Any:
    """Return the sums of patches, see `fastgrad.col2im`."""
    rows = np.asarray(col, np.float64)
    return convolution.col2im(rows, input_shape, filter_h, filter_w, stride, pad)


class Convolution(convolution.Convolution):
    """The convolution as a layer, see `fastgrad.Convolution`."""

    def forward(self, x: Any) -> Any:
        """Return the filtered images."""
        return super().forward(np.asarray(x, np.float64))


class Pooling(convolution.Pooling):
    """Max pooling as a layer, see `fastgrad.Pooling`."""

    def forward(self, x: Any) -> Any:
        """Return the largest entry of each window."""
        return super().forward(np.asarray(x, np.float64))
