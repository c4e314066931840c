"""Bitmasks: which entries of the samples are not zero, 64 in a number, and CSR made of them.

Four of five MNIST pixels are zero, and their products need not be computed. Bit i % 64 of number
i // 64 of a sample's row says whether its entry i is not zero. A list of positions would take three
times as long to make as it saves in a single call; a data set, of which every sample is read many
times, also gets its non-zero entries packed one after the other, as in the CSR format.
"""

from __future__ import annotations

import numpy as np

from fastgrad.runtime.compile import chunk_kernel, helper
from fastgrad.runtime.programs import chunk_range
from fastgrad.runtime.simd import count_bits, lowest_bit, nonzero_bits

#: Entries in a number of a bitmask.
WORD = 64
NO_BITS, ONE_BIT = np.uint64(0), np.uint64(1)
_ALL_BITS = np.uint64(2**64 - 1)


def words(n: int) -> int:
    """Return how many numbers the bitmask of `n` entries takes."""
    return -(-n // WORD)


@helper
def is_set(bits, i):
    """Return whether bit i of a row of a bitmask is set."""
    return (bits[i // WORD] >> np.uint64(i % WORD)) & ONE_BIT != NO_BITS


@helper
def build_bitmask(x, bits, begin, end):
    """Build the bitmask of samples begin .. end - 1.

    Parameters
    ----------
    x : ndarray, shape (N, D)
    bits : ndarray of uint64, shape (N, words)
        Out.
    begin, end : int
    """
    whole = x.shape[1] // WORD
    for n in range(begin, end):
        for word in range(whole):
            bits[n, word] = nonzero_bits(x, n, word * WORD)
        if whole < bits.shape[1]:
            rest = NO_BITS
            for i in range(whole * WORD, x.shape[1]):
                rest |= np.uint64(x[n, i] != 0) << np.uint64(i - whole * WORD)
            bits[n, whole] = rest


@helper
def transpose_bits(bits, rows, word, out):
    """Turn 64 columns of a bitmask by sample into one by entry.

    64 x 64 bits at a time, halves of halves of them swapped (H. S. Warren, *Hacker's Delight*,
    section 7-3): 7 microseconds for 100 samples of 784 entries, where bit by bit takes 40.

    Parameters
    ----------
    bits : ndarray of uint64, 2-D
    rows : ndarray of int64, shape (N,)
        The rows of ``bits`` to read.
    word : int
        The column of ``bits`` to read.
    out : ndarray of uint64, shape (N / 64 or more, 64)
        Out: bit n of out[g, i] says whether entry 64 word + i of sample rows[64 g + n] is not zero.
    """
    for group in range(out.shape[0]):
        count = min(WORD, rows.size - group * WORD)
        for n in range(count):
            out[group, n] = bits[rows[group * WORD + n], word]
        for n in range(count, WORD):
            out[group, n] = NO_BITS
        half = WORD // 2
        low = _ALL_BITS >> np.uint64(half)
        while half > 0:
            shift = np.uint64(half)
            for begin in range(0, WORD, 2 * half):
                for k in range(begin, begin + half):
                    swap = ((out[group, k] >> shift) ^ out[group, k + half]) & low
                    out[group, k] ^= swap << shift
                    out[group, k + half] ^= swap
            half //= 2
            low ^= low << np.uint64(half)


# The kernels that turn a data set into CSR. Each thread is going to read the entries of its own
# rows of W1 alone, so a sample's row of ``indptr`` says where the entries of each thread begin.


@chunk_kernel
def build_bitmasks(args, chunk, chunks, iteration):
    """Build the bitmask of a chunk of the samples."""
    x, bits = args.x, args.bits
    begin, end = chunk_range(x.shape[0], chunk, chunks)
    build_bitmask(x, bits, begin, end)


@chunk_kernel
def count_entries(args, chunk, chunks, iteration):
    """Count the non-zero entries of a chunk of the samples, owner by owner, into ``indptr``."""
    bits, own, indptr = args.bits, args.own, args.indptr
    begin, end = chunk_range(bits.shape[0], chunk, chunks)
    for n in range(begin, end):
        total = 0
        for owner in range(own.shape[0]):
            indptr[n, owner] = total
            for word in range(bits.shape[1]):
                total += count_bits(bits[n, word] & own[owner, word])
        indptr[n, own.shape[0]] = total


@chunk_kernel
def pack_entries(args, chunk, chunks, iteration):
    """Copy the non-zero entries of a chunk of the samples to where ``indptr`` says."""
    x, bits, indptr, data = args.x, args.bits, args.indptr, args.data
    begin, end = chunk_range(bits.shape[0], chunk, chunks)
    for n in range(begin, end):
        place = indptr[n, 0]
        for word in range(bits.shape[1]):
            left = bits[n, word]
            while left != NO_BITS:
                data[place] = x[n, word * WORD + lowest_bit(left)]
                place += 1
                left &= left - ONE_BIT
