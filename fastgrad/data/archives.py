"""Named arrays and settings in one ``.npz`` file: written whole or not at all, read without trust.

The file is what `numpy.savez` writes, an uncompressed zip archive with one ``.npy`` member an
array, plus a member ``settings`` that holds a JSON object as UTF-8 bytes. Pickle has no part in
it. NumPy reads it too::

    archive = np.load(path)
    archive["W1"]
    json.loads(archive["settings"].tobytes())
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import secrets
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["load_arrays", "save_arrays"]

_SETTINGS = "settings"

_NUMERIC_KINDS = "biufc"

#: That of an array of numbers with many axes is not longer, and NumPy parses it as Python.
_HEADER_BYTES = 2_000


def save_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]], /, **settings: Any
) -> Path:
    """Write arrays and settings to a file, all or nothing.

    The archive is written to a temporary file in the same folder, flushed to the disk, and then
    put in the place of `path` in one step. An exception, a full disk or Ctrl-C before that step
    leaves an older file untouched and no temporary file behind. (A process that is killed
    outright has no chance to tidy up: the older file is untouched, ``.fastgrad-*.tmp`` stays.)

    Parameters
    ----------
    path : str or path-like
        Where to. ``.npz`` is appended if it is missing, as `numpy.savez` does.
    arrays : mapping of str to ndarray
        Arrays of numbers or booleans; names are identifiers, and not ``settings``.
    **settings : Any
        What JSON can hold: strings, numbers, booleans, None, lists and dicts of them. NumPy
        scalars become Python numbers and tuples become lists.

    Returns
    -------
    pathlib.Path
        The file written.

    Raises
    ------
    TypeError
        If an array does not hold numbers, or a setting does not fit into JSON.
    ValueError
        If the name of an array is no identifier, or ``settings``.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from fastgrad.data.archives import load_arrays, save_arrays
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save_arrays(os.path.join(folder, "net"), {"b1": np.arange(3.0)}, delta=1e-7)
    ...     path.name, load_arrays(path)
    ('net.npz', ({'b1': array([0., 1., 2.])}, {'delta': 1e-07}))
    """
    members = {}
    for name, array in arrays.items():
        if not isinstance(name, str) or not name.isidentifier() or name == _SETTINGS:
            raise ValueError(
                f"the name of an array must be an identifier other than {_SETTINGS!r}. "
                f"Got {name!r}."
            )
        members[name] = np.asarray(array)
        if members[name].dtype.kind not in _NUMERIC_KINDS:
            raise TypeError(
                f"`{name}` must be an array of numbers. Got dtype {members[name].dtype}."
            )
    encoded = json.dumps(settings, default=_to_python).encode()
    members[_SETTINGS] = np.frombuffer(encoded, np.uint8)
    target = _with_suffix(path)
    _replace(target, members)
    return target


def load_arrays(
    path: str | os.PathLike[str],
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read arrays and settings from a file that `save_arrays` wrote.

    Whatever the file holds, no code in it is executed, and no more memory is taken than the file
    is long, a few times over.

    Parameters
    ----------
    path : str or path-like
        The file, with ``.npz`` or without it.

    Returns
    -------
    arrays : dict of str to ndarray
        New arrays, in the order and of the dtypes in which they were saved.
    settings : dict
        Empty if the file has none, as one made by `numpy.savez`.

    Raises
    ------
    ValueError
        If the file is truncated, damaged, compressed, or holds something else than arrays of
        numbers. The message names the file.
    OSError
        If the file cannot be read.

    Examples
    --------
    See `save_arrays`.
    """
    source = _with_suffix(path)
    if not source.exists():
        source = Path(os.fsdecode(path))  # a file that was given another name since
    content = source.read_bytes()
    try:
        return _read(content)
    except Exception as error:  # whatever `zipfile` and NumPy raise for damaged bytes
        raise ValueError(
            f"`path` must be an archive of arrays (.npz). Got {str(source)!r}: "
            f"{str(error).rstrip('.')}."
        ) from error


def _with_suffix(path: str | os.PathLike[str]) -> Path:
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise TypeError(f"`path` must be the path of a file. Got {type(path).__name__}.") from None
    return Path(text if text.endswith(".npz") else f"{text}.npz")


# --- Writing -------------------------------------------------------------------------------------


def _to_python(value: object) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a setting must fit into JSON. Got {type(value).__name__}.")


def _replace(target: Path, members: Mapping[str, NDArray[Any]]) -> None:
    """Write an archive beside `target`, then put it in the place of `target`."""
    real = Path(os.path.realpath(target))  # keeps a symbolic link, and replaces what it points to
    if real.exists() and not real.is_file():
        raise OSError(errno.EEXIST, "Not a regular file, so not overwritten", str(target))
    if real.exists() and not os.access(real, os.W_OK):
        raise PermissionError(errno.EACCES, "File is read-only", str(target))
    temporary = real.with_name(f".fastgrad-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            with zipfile.ZipFile(file, "w") as archive:  # stored, not compressed
                for name, array in members.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        if real.exists():
            os.chmod(temporary, stat.S_IMODE(real.stat().st_mode))
        os.replace(temporary, real)
    except OSError as error:
        # The caller's file, not the temporary one, belongs in the message.
        raise OSError(error.errno, error.strerror, str(target)) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


# --- Reading -------------------------------------------------------------------------------------


def _read(content: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    if not content.startswith(b"PK\x03\x04"):  # `zipfile` looks at the end of a file only
        raise ValueError("it does not start as a zip archive")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        # Members may not lie upon each other: whoever forges sizes gets no more memory than the
        # file is long.
        if sum(member.compress_size for member in members) > len(content):
            raise ValueError("its members are larger than the file")
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name == member.filename or not name.isidentifier() or name in arrays:
                raise ValueError(f"it holds {member.filename!r}, not one .npy file a name")
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{member.filename!r} is compressed")
            data = archive.read(member)
            header = io.BytesIO(data)
            np.lib.format.read_magic(header)
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(header, _HEADER_BYTES)
            start = header.tell()
            if dtype.kind not in _NUMERIC_KINDS:
                raise ValueError(f"{member.filename!r} is no array of numbers")
            # Before NumPy allocates what the header claims.
            if math.prod(shape) * dtype.itemsize != len(data) - start:
                raise ValueError(f"{member.filename!r} has a header that does not fit its length")
            array = np.ndarray(shape, dtype, data, start, order="F" if is_fortran else "C")
            arrays[name] = array.copy(order="K")
    if _SETTINGS not in arrays:
        return arrays, {}
    try:
        settings = json.loads(arrays.pop(_SETTINGS).tobytes())
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise ValueError("its settings are no JSON object")
    return arrays, settings
