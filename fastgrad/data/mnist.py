"""MNIST, from files inside the package, and any other data set in the same format.

An IDX file is a header (two zero bytes, the type of the numbers, the number of dimensions, and
each dimension as a big-endian 32-bit integer) and the numbers after it. Folders of such files
come from strangers and headers may lie, so the memory taken here follows what a file really
holds, never what it declares.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgrad import validation

__all__ = ["load_mnist"]

_PACKAGE_DATA = Path(__file__).parent

_UBYTE = 0x08  # the code for unsigned bytes in an IDX header
_IMAGE_NDIM, _LABEL_NDIM = 3, 1

_GZIP_MAGIC = b"\x1f\x8b"

#: A byte of a deflate stream stands for at most 1,032 bytes.
_LARGEST_RATIO = 1032

_CHUNK = 1 << 20

Split = tuple[NDArray[Any], NDArray[Any]]


def load_mnist(
    normalize: bool = True,
    flatten: bool = True,
    one_hot_label: bool = False,
    *,
    path: str | os.PathLike[str] | None = None,
) -> tuple[Split, Split]:
    """Load MNIST, or another set of images in the same format.

    All 70,000 images are part of the package; nothing is ever downloaded.

    Parameters
    ----------
    normalize : bool, default True
        Pixels as float32 from 0 to 1, or else as uint8 from 0 to 255.
    flatten : bool, default True
        One row an image, or else (channel, height, width) an image.
    one_hot_label : bool, default False
        Labels as rows that are 1 at the label and 0 elsewhere.
    path : str or path-like, optional
        A folder that holds another data set (Fashion-MNIST, say) as the four IDX files
        ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
        ``t10k-labels-idx1-ubyte``, compressed with gzip (and then with ``.gz`` at the end of the
        name) or not; ``train-images.idx3-ubyte`` and the like are found too. Images may be of
        any size, and labels any numbers from 0 to 255.

    Returns
    -------
    (x_train, t_train), (x_test, t_test) : tuple of tuples of ndarray
        Images of shape (N, 784) or (N, 1, 28, 28), float32 or uint8. Labels of shape (N,),
        uint8, or one-hot of shape (N, 10), float64. With `path`, height and width are those of
        the files, and one-hot labels are as wide as the largest label of both sets asks for. All
        arrays are writeable and belong to the caller.

    Raises
    ------
    TypeError
        If a flag is no bool, or `path` no path.
    FileNotFoundError, NotADirectoryError
        If `path` is no folder, or lacks a file.
    ValueError
        If a file is truncated, corrupt, of another format, or does not match the others. The
        message names the file.

    Notes
    -----
    The flags, shapes and dtypes are those of ``dataset.mnist`` in *Deep Learning from Scratch*,
    section 3.6.1. The pixels are divided by 255 in float32.

    Both sets are ordered by groups of writers: for a subset draw images at random, never the
    first so many, nor every second one.

    Examples
    --------
    >>> from fastgrad.data.mnist import load_mnist
    >>> (x_train, t_train), (x_test, t_test) = load_mnist(one_hot_label=True)
    >>> x_train.shape, x_train.dtype, t_train.shape
    ((60000, 784), dtype('float32'), (60000, 10))
    >>> (x_train, t_train), _ = load_mnist(normalize=False, flatten=False)
    >>> x_train.shape, x_train.dtype, int(t_train[0])
    ((60000, 1, 28, 28), dtype('uint8'), 5)
    """
    normalize = validation.flag(normalize, "normalize")
    flatten = validation.flag(flatten, "flatten")
    one_hot_label = validation.flag(one_hot_label, "one_hot_label")
    folder = _PACKAGE_DATA if path is None else _folder(path)

    train = _read_split(folder, "train")
    test = _read_split(folder, "t10k")
    if train.images.shape[1:] != test.images.shape[1:]:
        raise ValueError(
            f"{str(test.images_file)!r} must hold images of {_times(train.images.shape[1:])} "
            f"pixels, as {train.images_file.name} does. Got {_times(test.images.shape[1:])}."
        )
    classes = 1 + max(int(train.labels.max()), int(test.labels.max()))

    def finish(split: _RawSplit) -> Split:
        n, height, width = split.images.shape
        x = split.images.reshape((n, height * width) if flatten else (n, 1, height, width))
        return (
            np.divide(x, np.float32(255)) if normalize else x,
            _one_hot(split.labels, classes) if one_hot_label else split.labels,
        )

    return finish(train), finish(test)


class _RawSplit(NamedTuple):
    """Images of shape (N, height, width) and labels of shape (N,), as the files have them."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    images_file: Path


def _read_split(folder: Path, prefix: str) -> _RawSplit:
    images_file = _find(folder, f"{prefix}-images", _IMAGE_NDIM)
    labels_file = _find(folder, f"{prefix}-labels", _LABEL_NDIM)
    labels = _read_idx(labels_file, _LABEL_NDIM)
    images = _read_idx(images_file, _IMAGE_NDIM)
    if len(images) != len(labels):
        raise ValueError(
            f"{str(labels_file)!r} must hold one label for each of the {len(images):,} images in "
            f"{images_file.name}. Got {len(labels):,}."
        )
    return _RawSplit(images, labels, images_file)


def _folder(path: str | os.PathLike[str]) -> Path:
    try:
        folder = Path(path)
    except TypeError:
        raise TypeError(
            f"`path` must be the path of a folder. Got {type(path).__name__}."
        ) from None
    if not folder.exists():
        raise FileNotFoundError(f"`path` must be a folder. Got {str(path)!r}, which is missing.")
    if not folder.is_dir():
        raise NotADirectoryError(f"`path` must be a folder. Got {str(path)!r}, which is a file.")
    return folder


def _find(folder: Path, stem: str, ndim: int) -> Path:
    name = f"{stem}-idx{ndim}-ubyte"
    dotted = f"{stem}.idx{ndim}-ubyte"
    for candidate in (name, f"{name}.gz", dotted, f"{dotted}.gz"):
        if (folder / candidate).is_file():
            return folder / candidate
    raise FileNotFoundError(
        f"{str(folder)!r} must hold the file {name} or {name}.gz. It has neither."
    )


def _read_idx(file: Path, ndim: int) -> NDArray[np.uint8]:
    """Return the unsigned bytes in an IDX file as a writeable array of `ndim` dimensions."""
    with open(file, "rb") as raw, _damage_is_value_error(file):
        held = os.fstat(raw.fileno()).st_size
        # By the first bytes, not by the name: browsers unpack a download and leave its .gz there.
        compressed = raw.peek(2)[:2] == _GZIP_MAGIC
        stream = gzip.GzipFile(fileobj=raw) if compressed else raw

        shape = _read_header(file, stream, ndim)
        size = math.prod(shape)
        if size > held * (_LARGEST_RATIO if compressed else 1):
            raise _wrong_size(file, shape, f"a file of {held:,} bytes in all")
        data = bytearray()
        while len(data) <= size and (chunk := stream.read(_CHUNK)):
            data += chunk
        if len(data) != size:
            raise _wrong_size(file, shape, "more" if len(data) > size else f"{len(data):,}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _read_header(file: Path, stream: io.BufferedIOBase, ndim: int) -> tuple[int, ...]:
    """Return the shape that an IDX file declares, leaving `stream` at its first number."""
    kind = {_IMAGE_NDIM: "images", _LABEL_NDIM: "labels"}[ndim]
    magic = bytes([0, 0, _UBYTE, ndim])
    got = stream.read(len(magic))
    if got != magic:
        raise ValueError(
            f"{str(file)!r} must be an IDX file of {kind}, which starts with the bytes "
            f"{magic.hex(' ')}. Got {got.hex(' ') or 'an empty file'}."
        )
    sizes = stream.read(4 * ndim)
    if len(sizes) < 4 * ndim:
        raise ValueError(
            f"{str(file)!r} must have a header of {4 + 4 * ndim} bytes. Got {4 + len(sizes)}."
        )
    shape = struct.unpack(f">{ndim}I", sizes)
    if 0 in shape:
        raise ValueError(f"{str(file)!r} must hold {kind}. Got {_times(shape)}.")
    return shape


def _wrong_size(file: Path, shape: tuple[int, ...], got: str) -> ValueError:
    return ValueError(
        f"{str(file)!r} must hold {_times(shape)} bytes after its header, as that says. Got {got}."
    )


@contextlib.contextmanager
def _damage_is_value_error(file: Path) -> Iterator[None]:
    """Turn what a damaged gzip stream raises into a ValueError that names the file."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{str(file)!r} must be a sound gzip file. Got: {error}.") from error


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(f"{n:,}" for n in shape)


def _one_hot(labels: NDArray[np.uint8], classes: int) -> NDArray[np.float64]:
    result = np.zeros((len(labels), classes))
    result[np.arange(len(labels)), labels] = 1
    return result
