"""Fuzz the reader of IDX files: any bytes give an array or a ValueError that names the file."""

import math
import struct
import sys
import tempfile
from pathlib import Path

import atheris

sys.modules.pop("gzip", None)  # what is imported already is not instrumented
with atheris.instrument_imports(include=["fastgrad.data.mnist", "gzip"]):
    import gzip

    from fastgrad.data import mnist

PLAIN, GZIPPED, AS_IT_IS = range(3)

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz_idx_"))
FILE = FOLDER / "train-images-idx3-ubyte"


def one_input(data: bytes) -> None:
    if len(data) < 2:
        return
    packing, ndim, content = data[0] % 3, 3 if data[1] % 2 else 1, data[2:]
    FILE.write_bytes(gzip.compress(content, 1) if packing == GZIPPED else content)
    try:
        array = mnist._read_idx(FILE, "images" if ndim == 3 else "labels")
    except ValueError as error:
        if str(FILE) not in str(error):
            raise
        return
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    start = 4 + 4 * ndim
    if (
        array.ndim != ndim
        or array.shape != struct.unpack(f">{ndim}I", content[4:start])
        or array.tobytes() != content[start:]
        or not array.flags.writeable
    ):
        raise AssertionError("an array that the file does not hold")


def write_seeds(folder: Path) -> None:
    for ndim in (1, 3):
        shape = (2, 3, 4)[:ndim]
        sound = bytes([0, 0, 8, ndim]) + struct.pack(f">{ndim}I", *shape)
        sound += bytes(range(math.prod(shape)))
        for packing, content in (
            (PLAIN, sound),
            (GZIPPED, sound),
            (AS_IT_IS, gzip.compress(sound)),
            (AS_IT_IS, gzip.compress(sound[:9]) + gzip.compress(sound[9:]) + bytes(9)),
            (AS_IT_IS, gzip.compress(sound[:4] + b"\x80\0\0\0" * ndim + bytes(1 << 20))),
        ):
            seed = bytes([packing, ndim == 3]) + content
            (folder / f"{ndim}-{packing}-{len(content)}").write_bytes(seed)


if __name__ == "__main__":
    if not [argument for argument in sys.argv[1:] if not argument.startswith("-")]:
        seeds = FOLDER / "seeds"
        seeds.mkdir()
        write_seeds(seeds)
        sys.argv.append(str(seeds))
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
