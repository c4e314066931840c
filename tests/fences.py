"""Arrays between pages that may not be touched."""

import contextlib
import ctypes
import mmap

import numpy as np
import pytest


@contextlib.contextmanager
def fenced(*arrays):
    """Yield copies of arrays: right before a page without access, and right behind one.

    Reading or writing there ends the process. Where no page can be protected the test is skipped.
    """
    if not hasattr(mmap, "PROT_READ"):
        pytest.skip("has no pages to protect")
    protect = ctypes.CDLL(None).mprotect
    page, fences, before, behind = mmap.PAGESIZE, [], [], []
    for array in arrays:
        held = -(-array.nbytes // page) * page
        for copies, offset in ((before, held - array.nbytes), (behind, 0)):
            whole = np.frombuffer(mmap.mmap(-1, held + 2 * page), np.uint8)
            inside = whole[page + offset : page + offset + array.nbytes]
            copies.append(inside.view(array.dtype).reshape(array.shape))
            copies[-1][...] = array
            fences += [whole.ctypes.data, whole.ctypes.data + page + held]
    access = mmap.PROT_READ | mmap.PROT_WRITE
    for fence in fences:
        assert protect(ctypes.c_void_p(fence), ctypes.c_size_t(page), 0) == 0
    try:
        yield before, behind
    finally:
        for fence in fences:
            assert protect(ctypes.c_void_p(fence), ctypes.c_size_t(page), access) == 0
