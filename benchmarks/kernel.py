"""The machine code and the time of one kernel: ``python benchmarks/kernel.py affine_sparse``.

Makes one of the calls that ``fastgrad warmup`` makes. Where the kernel is met first it is run again
and again, which gives its shortest time. The code is compiled once more, since what comes from the
cache cannot be shown. A function that only kernels call has no time.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import timeit
from collections.abc import Callable
from typing import Any

import numba
from numba.extending import is_jitted

from fastgrad import kernels
from fastgrad.cli import warmup
from fastgrad.networks import fit, workspace
from fastgrad.runtime.programs import Program


def find(name: str) -> Any:
    """Return a compiled function of `fastgrad.kernels`."""
    for module in pkgutil.walk_packages(kernels.__path__, f"{kernels.__name__}."):
        kernel = getattr(importlib.import_module(module.name), name, None)
        if is_jitted(kernel):
            return kernel
    raise SystemExit(f"there is no kernel {name!r} in fastgrad/kernels, or nothing is compiled")


def main() -> None:
    parser = argparse.ArgumentParser(description="print the machine code and time of a kernel")
    parser.add_argument("kernel", help="the name of a function in fastgrad/kernels")
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64")
    parser.add_argument("--call", choices=tuple(warmup.CALLS), default="gradient")
    options = parser.parse_args()
    kernel = find(options.kernel)
    seconds: list[float] = []

    def measure(run: Callable[[], object]) -> None:
        if not seconds:
            number, _ = timeit.Timer(run).autorange()
            seconds.append(min(timeit.repeat(run, number=number, repeat=5)) / number)

    class Timed(Program):
        def __init__(self, chunks: int, names: Any, *stages: Any) -> None:
            super().__init__(chunks, names, *stages)
            pairs = [pair for stage in stages for pair in stage if pair[0] is kernel]
            self.alone = [Program(chunks, names, [pair]) for pair in pairs]

        def bind(self, **arrays: Any) -> None:
            super().bind(**arrays)
            for program in self.alone:
                program.bind(**{key: arrays[key] for key in arrays if key in program.places})

        def launch(self, *iterations: Any, **more: Any) -> None:
            super().launch(*iterations, **more)
            for program in self.alone:
                measure(program.launch)

    def timed(self: Any, *arguments: Any) -> Any:
        measure(lambda: original.__call__(self, *arguments))
        return original.__call__(self, *arguments)

    workspace.Program = fit.Program = Timed  # type: ignore[misc]
    original = type(kernel)
    kernel.__class__ = type("Timed", (original,), {"__call__": timed})
    warmup.call(options.call, options.dtype)
    if not kernel.signatures:
        raise SystemExit(f"{options.kernel} has no part in {options.call!r}: see --call")
    compiled = numba.njit(**kernel.targetoptions)(kernel.py_func)
    compiled.compile(kernel.signatures[-1])
    print(
        *(f"# {1e6 * each:.2f} µs" for each in seconds), *compiled.inspect_asm().values(), sep="\n"
    )


if __name__ == "__main__":
    main()
