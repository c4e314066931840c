"""Fuzz the reader of saved networks: any bytes give what NumPy reads too, or a ValueError."""

import io
import json
import sys
import tempfile
import warnings
from pathlib import Path

import atheris
import numpy as np

sys.modules.pop("zipfile", None)  # what is imported already is not instrumented
with atheris.instrument_imports(include=["fastgrad.data.archives", "zipfile"]):
    import zipfile

    from fastgrad.data import archives

WHOLE, MEMBER, HEADER, DIRECTORY, SETTINGS = range(5)

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz_npz_"))
FILE = FOLDER / "net.npz"


def archive_of(name: str, member: bytes) -> bytes:
    """Return an archive of one member, sound but for what the member holds."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, member)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


SOUND = archive_of("W1.npy", npy(np.arange(6.0).reshape(2, 3)))
DIRECTORY_START = SOUND.index(b"PK\x01\x02")


def content_of(data: bytes) -> bytes:
    """Put the fuzzed bytes where checksums would otherwise keep nearly all of them away."""
    kind, rest = data[0] % 5, data[1:]
    if kind == MEMBER:
        return archive_of("W1.npy", rest)
    if kind == HEADER:
        text = rest[:500] + b"\n"
        header = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
        return archive_of("W1.npy", header + bytes(48))
    if kind == DIRECTORY:
        return SOUND[:DIRECTORY_START] + rest
    if kind == SETTINGS:
        return archive_of("settings.npy", npy(np.frombuffer(rest, np.uint8)))
    return rest


def one_input(data: bytes) -> None:
    if not data:
        return
    FILE.write_bytes(content_of(data))
    try:
        arrays, settings = archives.load_arrays(FILE)
    except ValueError as error:
        if str(FILE) not in str(error):
            raise
        return
    with np.load(FILE, allow_pickle=False) as archive:
        want = {name: archive[name] for name in archive.files}
    if "settings" in want and json.dumps(settings) != json.dumps(
        json.loads(want.pop("settings").tobytes())
    ):
        raise AssertionError("other settings than the file holds")
    if list(arrays) != list(want):
        raise AssertionError("other names than NumPy finds")
    for name, array in arrays.items():
        if (array.dtype, array.shape) != (want[name].dtype, want[name].shape):
            raise AssertionError("an array of another form than NumPy finds")
        if array.tobytes() != want[name].tobytes():
            raise AssertionError("other numbers than NumPy finds")


def write_seeds(folder: Path) -> None:
    saved = archives.save_arrays(
        FILE, {"W1": np.ones((2, 3), np.float32), "b1": np.zeros(3)}, activation="relu", delta=1e-7
    ).read_bytes()
    header = npy(np.ones((2, 3)))
    for kind, content in (
        (WHOLE, saved),
        (WHOLE, SOUND),
        (MEMBER, npy(np.asfortranarray(np.ones((2, 2), ">i2")))),
        (HEADER, header[10 : header.index(b"\n")]),
        (DIRECTORY, SOUND[DIRECTORY_START:]),
        (SETTINGS, b'{"delta": 1e-07, "sizes": [784, 50, 10]}'),
    ):
        (folder / f"{kind}-{len(content)}").write_bytes(bytes([kind]) + content)


if __name__ == "__main__":
    warnings.simplefilter("error")
    if not [argument for argument in sys.argv[1:] if not argument.startswith("-")]:
        seeds = FOLDER / "seeds"
        seeds.mkdir()
        write_seeds(seeds)
        sys.argv.append(str(seeds))
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
