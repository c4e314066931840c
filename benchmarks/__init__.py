"""Benchmarks: the suite that asv runs (``bench_*.py``), and scripts that compare with others.

This runs before NumPy and Numba are imported in a benchmark's process, the last moment to say how
many threads they start and where compiled kernels are kept.
"""

import os
from pathlib import Path

from .measuring import THREAD_VARIABLES

if "ASV" in os.environ and "NUMBA_NUM_THREADS" in os.environ:
    # In one of asv's two series NumPy gets as many threads as Numba.
    for name in THREAD_VARIABLES:
        os.environ.setdefault(name, os.environ["NUMBA_NUM_THREADS"])

if "ASV_ENV_DIR" in os.environ and "ASV_COMMIT" in os.environ:
    # A cache for each commit, so that two that are measured in turn do not compile in turn.
    os.environ.setdefault(
        "NUMBA_CACHE_DIR", str(Path(os.environ["ASV_ENV_DIR"], "cache", os.environ["ASV_COMMIT"]))
    )
