"""Benchmarks: the suite that asv runs (``bench_*.py``), and scripts that compare with others.

This runs before Numba is imported in a benchmark's process, the last moment to say where compiled
kernels are kept.
"""

import hashlib
import importlib.util
import os
from pathlib import Path


def _kernel_cache(environment):
    """Return the folder for the kernels of the package that asv installed, named by its content.

    So two commits that are measured in turn do not compile in turn, nor do two series of one.
    asv's variable with the commit is of no use here: in the second series it names an older one.
    """
    spec = importlib.util.find_spec("fastgrad")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    if folder is None or Path(environment) not in folder.parents:
        return None
    content = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content.update(path.read_bytes())
    return Path(environment, "cache", content.hexdigest()[:16])


if "ASV_ENV_DIR" in os.environ and "NUMBA_CACHE_DIR" not in os.environ:
    _folder = _kernel_cache(os.environ["ASV_ENV_DIR"])
    if _folder is not None:
        os.environ["NUMBA_CACHE_DIR"] = str(_folder)
