r"""Max pooling, forward and backward.

A plane is one channel of one sample as one row of numbers. The entry that a window takes is
remembered by its place in the plane, so the way back is one addition for each window.
"""

from __future__ import annotations

from fastgrad.runtime.compile import helper
from fastgrad.runtime.programs import chunk_range

#: What `arg_max` holds for a window whose largest entry gets no gradient.
NOWHERE = -1


@helper
def larger_of(value, place, largest, largest_place):
    """Return the larger of two entries and where it stands; the second one if they are equal.

    A NaN counts as the largest.
    """
    is_larger = not value <= largest and largest == largest
    return (value, place) if is_larger else (largest, largest_place)


@helper
def pool_plane(plane, width, window, columns, out, arg_max):
    """Take the largest entry of each window of a plane without padding.

    Parameters
    ----------
    plane : ndarray, shape (H * width,)
    width : int
        Columns of the plane.
    window : tuple of int
        Its height and its width, and how far it moves.
    columns : int
        Columns of the result.
    out : ndarray of plane's dtype, shape (OH * columns,)
        Out: the largest entries. A NaN counts as the largest.
    arg_max : ndarray of int32, shape (OH * columns,)
        Out: where in the plane the first of them stands.
    """
    window_h, window_w, stride = window
    for y in range(out.size // columns):
        for x in range(columns):
            corner = y * stride * width + x * stride
            largest, place = plane[corner], corner
            if window_h == window_w == 2:  # the usual one, for a quarter of the time
                a, b = plane[corner], plane[corner + 1]
                c, d = plane[corner + width], plane[corner + width + 1]
                b, below = larger_of(b, corner + 1, a, corner)
                d, place = larger_of(d, corner + width + 1, c, corner + width)
                largest, place = larger_of(d, place, b, below)
            else:
                for i in range(window_h):
                    for j in range(window_w):
                        here = corner + i * width + j
                        largest, place = larger_of(plane[here], here, largest, place)
            out[y * columns + x], arg_max[y * columns + x] = largest, place


@helper
def max_pooling_forward(planes, width, window, columns, out, arg_max, chunk, chunks):
    """Take the largest entries of a chunk of the planes, as `pool_plane` does.

    Parameters
    ----------
    planes : ndarray, shape (M, H * width)
    width, window, columns
        As for `pool_plane`; `window` an ndarray of int64.
    out, arg_max : ndarray, shape (M, OH * columns)
        Out.
    chunk, chunks : int
    """
    begin, end = chunk_range(planes.shape[0], chunk, chunks)
    for m in range(begin, end):
        pool_plane(planes[m], width, window, columns, out[m], arg_max[m])


@helper
def max_pooling_backward(dout, arg_max, dplanes, chunk, chunks):
    """Add the gradient by each largest entry to where it came from.

    Parameters
    ----------
    dout : ndarray, shape (M, Q)
    arg_max : ndarray of int32, shape (M, Q)
        As `max_pooling_forward` left it, or `NOWHERE`.
    dplanes : ndarray of dout's dtype, shape (M, P)
        In: zeros. Out: the gradient by the planes.
    chunk, chunks : int
    """
    begin, end = chunk_range(dout.shape[0], chunk, chunks)
    for m in range(begin, end):
        for q in range(dout.shape[1]):
            if arg_max[m, q] != NOWHERE:
                dplanes[m, arg_max[m, q]] += dout[m, q]
