"""Convolution, forward and backward, sample by sample.

Forward, a sample's *columns* are packed, one row for each weight of a filter with what it meets at
every position, and one product of filters and columns gives all channels of the result. The
columns of one sample are small enough for the cache; those of a whole batch, the book's ``im2col``,
are not.

Backward, the same columns, times the gradient by the result, give the gradient by the filters. The
filters, times the gradient by the result, give the gradient by the columns, which is added to the
image from where they were packed.

ReLU and max pooling directly behind a convolution can be a part of it: the full-size result then
stays in the cache.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import prange, types

from fastgrad.kernels.elementary import like
from fastgrad.kernels.pooling import NOWHERE, pool_plane
from fastgrad.runtime.compile import address, allocating_helper, array_type, helper, parallel_kernel
from fastgrad.runtime.programs import call_pointer, chunk_range
from fastgrad.runtime.simd import TILE_ROWS, VECTOR_BYTES, add_tile

#: Vectors of a row of the right factor that are multiplied at a time. At the end of a row it is all
#: that are left, fewer than twice as many.
PANEL_VECTORS = 3


@helper
def output_size(size, window, stride, pad):
    """Return how many positions a window has along an axis."""
    return (size + 2 * pad - window) // stride + 1


@helper
def add_product(a, b, out):
    """Add ``a[:, :K] @ b``, with the K rows of b, to ``out``.

    Rows of b and of out are whole vectors, see `padded_size`.
    """
    width = PANEL_VECTORS * (VECTOR_BYTES // b.itemsize)
    begin, columns = 0, b.shape[1]
    while begin < columns:  # what stays in L1 while rows pass by
        end = begin + width if columns - begin >= 2 * width else columns
        panel, target = b[:, begin:end], out[:, begin:end]
        for row in range(0, a.shape[0], TILE_ROWS):
            add_tile(a, row, a.shape[0], panel, 0, b.shape[0], end - begin, target)
        begin = end


@helper
def padded_size(size, itemsize):
    """Return the number of entries, at least `size`, of a row of whole vectors."""
    width = VECTOR_BYTES // itemsize
    return (size + width - 1) // width * width


@helper
def pad_image(image, pad, padded):
    """Copy an image, shape (C, H, W), into the middle of one of zeros."""
    channels, height, width = image.shape
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                padded[c, y + pad, x + pad] = image[c, y, x]


@helper
def unpad_image(padded, pad, image):
    """Copy an image out of the middle of a padded one, and leave that full of zeros."""
    channels, height, width = image.shape
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                image[c, y, x] = padded[c, y + pad, x + pad]
    padded[:] = 0


@helper
def pack_columns(image, filter_h, filter_w, stride, width, columns):
    """Write what each weight of a filter meets at every position into a row of `columns`.

    Parameters
    ----------
    image : ndarray, shape (C, H, W)
        Padded.
    filter_h, filter_w, stride : int
    width : int
        Positions in a row of the result.
    columns : ndarray of image's dtype, shape (C * filter_h * filter_w, at least positions)
        Out.
    """
    channels = image.shape[0]
    height = output_size(image.shape[1], filter_h, stride, 0)
    for c in range(channels):
        for i in range(filter_h):
            for j in range(filter_w):
                row = columns[(c * filter_h + i) * filter_w + j]
                for y in range(height):
                    source = image[c, y * stride + i, j:]
                    target = row[y * width : (y + 1) * width]
                    if stride == 1:
                        for x in range(width):
                            target[x] = source[x]
                    else:
                        for x in range(width):
                            target[x] = source[x * stride]


@allocating_helper
def forward_part(x, W, b, stride, pad, rectify, pool, out, arg_max, parts, index):
    """Compute `convolution_forward` for a part of the samples and of the filters."""
    n_samples, channels, height, width = x.shape
    begin, end = chunk_range(n_samples, index // parts[1], parts[0])
    first, last = chunk_range(W.shape[0], index % parts[1], parts[1])
    _, _, filter_h, filter_w = W.shape
    out_h = output_size(height, filter_h, stride, pad)
    out_w = output_size(width, filter_w, stride, pad)
    n_terms, n_positions = channels * filter_h * filter_w, out_h * out_w
    weights = W[first:last].reshape(last - first, n_terms)
    pitch = padded_size(n_positions, x.itemsize)
    image = np.zeros((channels, height + 2 * pad, width + 2 * pad), x.dtype)
    columns = np.zeros((n_terms, pitch), x.dtype)
    planes = np.empty((last - first, pitch), x.dtype)
    zero = like(0.0, b[0])
    for n in range(begin, end):
        pad_image(x[n], pad, image)
        pack_columns(image, filter_h, filter_w, stride, out_w, columns)
        for f in range(first, last):
            planes[f - first] = b[f]
        add_product(weights, columns, planes)
        for f in range(first, last):
            plane = planes[f - first, :n_positions]
            if pool[0] > 0:
                target, places = out[n, f].reshape(-1), arg_max[n, f].reshape(-1)
                pool_plane(plane, out_w, pool, out.shape[3], target, places)
                if rectify:
                    for q in range(target.size):
                        value, place = target[q], places[q]
                        places[q] = NOWHERE if value <= zero else place
                        target[q] = zero if value <= zero else value
            else:
                target = out[n, f].reshape(-1)
                if rectify:
                    for p in range(n_positions):
                        target[p] = zero if plane[p] <= zero else plane[p]
                else:
                    for p in range(n_positions):
                        target[p] = plane[p]


@parallel_kernel
def convolution_forward(body, x, W, b, stride, pad, rectify, pool, out, arg_max, parts):
    """Compute a convolution, and ReLU and max pooling of it if asked for.

    Parameters
    ----------
    body : int
        From `forward_pointer`. What is called through a pointer is compiled only once.
    x : ndarray, shape (N, C, H, W)
    W : ndarray of x's dtype, shape (F, C, FH, FW)
    b : ndarray of x's dtype, shape (F,)
    stride, pad : int
        Of the filters.
    rectify : int
        1 if a ReLU follows, else 0.
    pool : ndarray of int64, shape (3,)
        Height, width and stride of the windows of a max pooling without padding that follows;
        height 0 for none.
    out : ndarray of x's dtype, shape (N, F, OH, OW)
        Out.
    arg_max : ndarray of int32, shape of out, or (0, 0, 0, 0) without pooling
        Out: where, in the plane of the convolution, the entry of `out` comes from; `NOWHERE` if
        the ReLU is flat there.
    parts : ndarray of int64, shape (2,)
        Into how many parts the samples and the filters are divided, each for a thread.
    """
    if parts[0] * parts[1] == 1:  # nobody to wake
        call_pointer(body, (x, W, b, stride, pad, rectify, pool, out, arg_max, parts, 0))
    else:
        for index in prange(parts[0] * parts[1]):
            call_pointer(body, (x, W, b, stride, pad, rectify, pool, out, arg_max, parts, index))


@functools.cache
def forward_pointer(dtype: Any) -> Any:
    """Return the address of `forward_part` for arrays of a dtype."""
    integer, biases, images = types.int64, array_type(dtype, 1), array_type(dtype, 4)
    whole, places = array_type(np.int64, 1), array_type(np.int32, 4)
    return address(
        forward_part,
        (images, images, biases, *[integer] * 3, whole, images, places, whole, integer),
    )


@helper
def spread_gradient(dout, out, arg_max, rectify, plane):
    """Write the gradient by a plane of the convolution, given that by what came out behind it.

    Parameters
    ----------
    dout, out : ndarray, shape (M,)
        `out` is read where a ReLU and no max pooling follows.
    arg_max : ndarray of int32, shape (M,) or (0,)
        Empty without max pooling.
    rectify : int
    plane : ndarray of dout's dtype, shape (positions,)
        Out.
    """
    if arg_max.size > 0:
        plane[:] = 0
        for q in range(dout.size):
            if arg_max[q] != NOWHERE:
                plane[arg_max[q]] += dout[q]
    elif rectify:
        for q in range(dout.size):
            plane[q] = dout[q] if out[q] != 0 else like(0.0, dout[q])
    else:
        for q in range(dout.size):
            plane[q] = dout[q]


@helper
def add_columns(columns, filter_h, filter_w, stride, width, image):
    """Add what `pack_columns` would have taken from an image to where it would have taken it."""
    channels = image.shape[0]
    height = output_size(image.shape[1], filter_h, stride, 0)
    for c in range(channels):
        for i in range(filter_h):
            for j in range(filter_w):
                row = columns[(c * filter_h + i) * filter_w + j]
                for y in range(height):
                    source = row[y * width : (y + 1) * width]
                    target = image[c, y * stride + i, j:]
                    if stride == 1:
                        for x in range(width):
                            target[x] += source[x]
                    else:
                        for x in range(width):
                            target[x * stride] += source[x]


@allocating_helper
def backward_part(dout, x, W, stride, pad, rectify, out, arg_max, dx, dW, db, parts, index):
    """Compute `convolution_backward` for a part of the samples and of the filters."""
    n_samples, channels, height, width = x.shape
    sample_part, filter_part = index // parts[1], index % parts[1]
    begin, end = chunk_range(n_samples, sample_part, parts[0])
    first, last = chunk_range(W.shape[0], filter_part, parts[1])
    n_filters = last - first
    _, _, filter_h, filter_w = W.shape
    out_h = output_size(height, filter_h, stride, pad)
    out_w = output_size(width, filter_w, stride, pad)
    n_terms, n_positions = channels * filter_h * filter_w, out_h * out_w
    pitch = padded_size(n_positions, x.itemsize)
    image = np.zeros((channels, height + 2 * pad, width + 2 * pad), x.dtype)
    dimage = np.zeros((channels, height + 2 * pad, width + 2 * pad), x.dtype)
    columns = np.zeros((n_terms, pitch), x.dtype)
    planes = np.zeros((n_filters, pitch), x.dtype)
    transposed = np.zeros((n_positions, padded_size(n_filters, x.itemsize)), x.dtype)
    sums = np.zeros((n_terms, transposed.shape[1]), x.dtype)
    weights = np.empty((n_terms, n_filters), x.dtype)
    flat, dflat = W[first:last].reshape(n_filters, n_terms), dW[sample_part, first:last].reshape(-1)
    for k in range(n_terms):
        for f in range(n_filters):
            weights[k, f] = flat[f, k]
    no_out, no_arg_max = out.reshape(-1)[:0], arg_max.reshape(-1)[:0]
    for n in range(begin, end):
        pad_image(x[n], pad, image)
        pack_columns(image, filter_h, filter_w, stride, out_w, columns)
        for f in range(n_filters):
            before = out[n, first + f].reshape(-1) if out.size > 0 else no_out
            places = arg_max[n, first + f].reshape(-1) if arg_max.size > 0 else no_arg_max
            plane = planes[f, :n_positions]
            spread_gradient(dout[n, first + f].reshape(-1), before, places, rectify, plane)
            for p in range(n_positions):
                db[sample_part, first + f] += plane[p]
        for p in range(n_positions):
            for f in range(n_filters):
                transposed[p, f] = planes[f, p]
        add_product(columns, transposed, sums)
        if dx.size > 0:
            columns[:] = 0
            add_product(weights, planes, columns)
            add_columns(columns, filter_h, filter_w, stride, out_w, dimage)
            unpad_image(dimage, pad, dx[filter_part, n])
    for f in range(n_filters):
        for k in range(n_terms):
            dflat[f * n_terms + k] = sums[k, f]


@parallel_kernel
def convolution_backward(body, dout, x, W, stride, pad, rectify, out, arg_max, dx, dW, db, parts):
    """Compute the gradients of a convolution, with what follows it as `convolution_forward` has it.

    Parameters
    ----------
    body : int
        From `backward_pointer`.
    dout : ndarray, shape of out
        Gradient of the loss with respect to `out`.
    x : ndarray of dout's dtype, shape (N, C, H, W)
    W : ndarray of dout's dtype, shape (F, C, FH, FW)
    stride, pad, rectify : int
    out, arg_max : ndarray
        As `convolution_forward` left them; `out` may be empty if no ReLU follows, or pooling does.
    dx : ndarray of dout's dtype, shape (filter parts, N, C, H, W), or (filter parts, 0, ..)
        Out: gradient with respect to x, to be added up over the first axis. Not computed if empty.
    dW : ndarray of dout's dtype, shape (sample parts, F, C, FH, FW)
    db : ndarray of dout's dtype, shape (sample parts, F)
        In: zeros. Out: gradients with respect to W and b, to be added up over the first axis.
    parts : ndarray of int64, shape (2,)
        Into how many parts the samples and the filters are divided, each for a thread.
    """
    if parts[0] * parts[1] == 1:
        call_pointer(body, (dout, x, W, stride, pad, rectify, out, arg_max, dx, dW, db, parts, 0))
    else:
        for index in prange(parts[0] * parts[1]):
            call_pointer(
                body, (dout, x, W, stride, pad, rectify, out, arg_max, dx, dW, db, parts, index)
            )


@functools.cache
def backward_pointer(dtype: Any) -> Any:
    """Return the address of `backward_part` for arrays of a dtype."""
    integer, sums = types.int64, array_type(dtype, 2)
    images, stacks = array_type(dtype, 4), array_type(dtype, 5)
    whole, places = array_type(np.int64, 1), array_type(np.int32, 4)
    return address(
        backward_part,
        (*[images] * 3, *[integer] * 3, images, places, stacks, stacks, sums, whole, integer),
    )
