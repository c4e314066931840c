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

A chunk is a part of the samples, and, where these are few, of the filters too. The arguments:

x : ndarray, shape (N, C, H, W)
W : ndarray of x's dtype, shape (F, C, FH, FW)
b : ndarray of x's dtype, shape (F,)
stride, pad : int
    Of the filters.
rectify : int
    1 if a ReLU follows, else 0.
pool : ndarray of int64, shape (3,)
    Height, width and stride of the windows of a max pooling without padding that follows; height
    0 for none.
out : ndarray of x's dtype, shape (N, F, OH, OW)
    Out of the forward pass. Backward it may be empty if no ReLU follows, or pooling does.
arg_max : ndarray of int32, shape of out, or (0, 0, 0, 0) without pooling
    Out of the forward pass: where in the plane of the convolution an entry of `out` comes from;
    `NOWHERE` if the ReLU is flat there.
filter_parts : int
    Into how many parts the filters are divided.
dout : ndarray, shape of out
    Gradient of the loss with respect to `out`.
dx : ndarray of x's dtype, shape (filter parts, N, C, H, W), or (filter parts, 0, ..)
    Out: gradient with respect to x, to be added up over the first axis. Not computed if empty.
dW : ndarray of x's dtype, shape (sample parts, F, C, FH, FW)
db : ndarray of x's dtype, shape (sample parts, F)
    In: zeros. Out: gradients with respect to W and b, to be added up over the first axis.
"""

from __future__ import annotations

import numpy as np

from fastgrad.kernels.elementary import like
from fastgrad.kernels.pooling import NOWHERE, pool_plane
from fastgrad.runtime.compile import allocating_helper, helper
from fastgrad.runtime.programs import chunk_range
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
def chunk_of(n_samples, n_filters, filter_parts, chunk, chunks):
    """Return where a chunk's samples begin and end, and where its filters do."""
    part, parts = chunk // filter_parts, chunks // filter_parts
    begin, end = chunk_range(n_samples, part, parts)
    first, last = chunk_range(n_filters, chunk % filter_parts, filter_parts)
    return begin, end, first, last


@helper
def copy_image(image, padded, pad, pads):
    """Copy an image, shape (C, H, W), into the middle of a padded one if `pads`, else out of it."""
    channels, height, width = image.shape
    for c in range(channels):
        for y in range(height):
            if pads:
                for x in range(width):
                    padded[c, y + pad, x + pad] = image[c, y, x]
            else:
                for x in range(width):
                    image[c, y, x] = padded[c, y + pad, x + pad]


@helper
def copy_columns(image, filter_h, filter_w, stride, width, columns, packs):
    """Write what each weight of a filter meets at every position into a row of `columns`.

    Or, if not `packs`, add these rows to where they came from.

    Parameters
    ----------
    image : ndarray, shape (C, H, W)
        Padded.
    filter_h, filter_w, stride : int
    width : int
        Positions in a row of the result.
    columns : ndarray of image's dtype, shape (C * filter_h * filter_w, at least positions)
    packs : bool
    """
    channels = image.shape[0]
    height = output_size(image.shape[1], filter_h, stride, 0)
    for c in range(channels):
        for i in range(filter_h):
            for j in range(filter_w):
                row = columns[(c * filter_h + i) * filter_w + j]
                for y in range(height):
                    met = image[c, y * stride + i, j:]
                    positions = row[y * width : (y + 1) * width]
                    if packs:
                        if stride == 1:
                            for x in range(width):
                                positions[x] = met[x]
                        else:
                            for x in range(width):
                                positions[x] = met[x * stride]
                    else:
                        if stride == 1:
                            for x in range(width):
                                met[x] += positions[x]
                        else:
                            for x in range(width):
                                met[x * stride] += positions[x]


@allocating_helper
def convolution_forward(
    x, W, b, stride, pad, rectify, pool, out, arg_max, filter_parts, chunk, chunks
):
    """Compute a convolution, and ReLU and max pooling of it if asked for."""
    n_samples, channels, height, width = x.shape
    n_filters, _, filter_h, filter_w = W.shape
    begin, end, first, last = chunk_of(n_samples, n_filters, filter_parts, chunk, chunks)
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
        copy_image(x[n], image, pad, True)
        copy_columns(image, filter_h, filter_w, stride, out_w, columns, True)
        for f in range(first, last):
            planes[f - first] = b[f]
        add_product(weights, columns, planes)
        for f in range(first, last):
            plane, target = planes[f - first, :n_positions], out[n, f].reshape(-1)
            if pool[0] > 0:
                places = arg_max[n, f].reshape(-1)
                pool_plane(plane, out_w, pool, out.shape[3], target, places)
                for q in range(target.size if rectify else 0):
                    value, place = target[q], places[q]
                    places[q] = NOWHERE if value <= zero else place
                    target[q] = zero if value <= zero else value
            elif rectify:
                for p in range(n_positions):
                    target[p] = zero if plane[p] <= zero else plane[p]
            else:
                for p in range(n_positions):
                    target[p] = plane[p]


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


@allocating_helper
def convolution_backward(
    dout, x, W, stride, pad, rectify, out, arg_max, dx, dW, db, filter_parts, chunk, chunks
):
    """Compute the gradients of a convolution, with what follows it."""
    n_samples, channels, height, width = x.shape
    all_filters, _, filter_h, filter_w = W.shape
    begin, end, first, last = chunk_of(n_samples, all_filters, filter_parts, chunk, chunks)
    filter_part, sample_part = chunk % filter_parts, chunk // filter_parts
    n_filters = last - first
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
        copy_image(x[n], image, pad, True)
        copy_columns(image, filter_h, filter_w, stride, out_w, columns, True)
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
            dimage[:] = 0
            copy_columns(dimage, filter_h, filter_w, stride, out_w, columns, False)
            copy_image(dx[filter_part, n], dimage, pad, False)
    for f in range(n_filters):
        for k in range(n_terms):
            dflat[f * n_terms + k] = sums[k, f]
