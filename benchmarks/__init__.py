"""Benchmarks: the suite that asv runs (``bench_*.py``), and scripts that compare with others.

This runs before Numba is imported in a benchmark's process, the last moment to say where compiled
kernels are kept.
"""

import os
from pathlib import Path

if "ASV_ENV_DIR" in os.environ and "ASV_COMMIT" in os.environ:
    # A cache for each commit, so that two that are measured in turn do not compile in turn.
    os.environ.setdefault(
        "NUMBA_CACHE_DIR", str(Path(os.environ["ASV_ENV_DIR"], "cache", os.environ["ASV_COMMIT"]))
    )
