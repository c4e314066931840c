"""MNIST, from files inside the package, and any other data set in the same format.

An IDX file is a header (two zero bytes, the type of the numbers, the number of dimensions, and
each dimension as a big-endian 32-bit integer) and the numbers after it. Folders of such files
come from strangers and headers may lie, so the memory taken here follows what a file really
holds, never what it declares.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgrad import validation

__all__ = ["load_mnist"]

_PACKAGE_DATA = Path(__file__).parent

_UBYTE = 0x08  # the code for unsigned bytes in an IDX header
_NDIM = {"images": 3, "labels": 1}

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

    sets, images_files = [], []
    for prefix in ("train", "t10k"):
        images_file, labels_file = (_find(folder, prefix, kind) for kind in ("images", "labels"))
        labels, images = _read_idx(labels_file, "labels"), _read_idx(images_file, "images")
        if len(images) != len(labels):
            raise ValueError(
                f"{str(labels_file)!r} must hold one label for each of the {len(images):,} images "
                f"in {images_file.name}. Got {len(labels):,}."
            )
        sets.append((images, labels))
        images_files.append(images_file)
    train_size, test_size = (images.shape[1:] for images, _ in sets)
    if train_size != test_size:
        raise ValueError(
            f"{str(images_files[1])!r} must hold images of {_times(train_size)} "
            f"pixels, as {images_files[0].name} does. Got {_times(test_size)}."
        )
    classes = 1 + max(int(labels.max()) for _, labels in sets)

    def finish(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Split:
        n, height, width = images.shape
        x = images.reshape((n, height * width) if flatten else (n, 1, height, width))
        return (
            np.divide(x, np.float32(255)) if normalize else x,
            np.eye(classes)[labels] if one_hot_label else labels,
        )

    train, test = sets
    return finish(*train), finish(*test)


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


def _find(folder: Path, prefix: str, kind: str) -> Path:
    stem, suffix = f"{prefix}-{kind}", f"idx{_NDIM[kind]}-ubyte"
    name, dotted = f"{stem}-{suffix}", f"{stem}.{suffix}"
    for candidate in (name, f"{name}.gz", dotted, f"{dotted}.gz"):
        if (folder / candidate).is_file():
            return folder / candidate
    raise FileNotFoundError(
        f"{str(folder)!r} must hold the file {name} or {name}.gz. It has neither."
    )


def _read_idx(file: Path, kind: str) -> NDArray[np.uint8]:
    """Return the unsigned bytes in an IDX file as a writeable array."""

    def wrong(must: str, got: str) -> ValueError:
        return ValueError(f"{str(file)!r} must {must}. Got {got}.")

    ndim = _NDIM[kind]
    magic = bytes([0, 0, _UBYTE, ndim])
    with open(file, "rb") as raw:
        held = os.fstat(raw.fileno()).st_size
        # By the first bytes, not by the name: browsers unpack a download and leave its .gz there.
        compressed = raw.peek(2)[:2] == _GZIP_MAGIC
        stream = gzip.GzipFile(fileobj=raw) if compressed else raw
        try:
            start, sizes = stream.read(len(magic)), stream.read(4 * ndim)
            if start != magic:
                must = f"be an IDX file of {kind}, which starts with the bytes {magic.hex(' ')}"
                raise wrong(must, start.hex(" ") or "an empty file")
            if len(sizes) < 4 * ndim:
                raise wrong(f"have a header of {4 + 4 * ndim} bytes", f"{4 + len(sizes)}")
            shape = struct.unpack(f">{ndim}I", sizes)
            if 0 in shape:
                raise wrong(f"hold {kind}", _times(shape))
            size = math.prod(shape)
            must = f"hold {_times(shape)} bytes after its header, as that says"
            if size > held * (_LARGEST_RATIO if compressed else 1):
                raise wrong(must, f"a file of {held:,} bytes in all")
            data = bytearray()
            while len(data) <= size and (chunk := stream.read(_CHUNK)):
                data += chunk
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{str(file)!r} must be a sound gzip file. Got: {error}.") from error
    if len(data) != size:
        raise wrong(must, "more" if len(data) > size else f"{len(data):,}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(f"{n:,}" for n in shape)
