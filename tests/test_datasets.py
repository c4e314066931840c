import gzip
import hashlib
import itertools
import os
import shutil
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import open_files

from fastgrad.data import mnist as mnist_module
from fastgrad.data.mnist import load_mnist

MIB = 1 << 20

NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
IMAGES, LABELS = NAMES[:2]

per_example = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def idx(array, shape=None):
    """Return the bytes of an IDX file, whose header may declare another shape."""
    shape = array.shape if shape is None else shape
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + array.tobytes()


def random_set(n_train=7, n_test=5, size=(4, 3), classes=10, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(
        array.astype(np.uint8)
        for n in (n_train, n_test)
        for array in (rng.integers(0, 256, (n, *size)), rng.permutation(n) % classes)
    )


def write_set(folder, arrays=None, names=NAMES, pack=None):
    folder.mkdir(exist_ok=True)
    arrays = random_set() if arrays is None else arrays
    for name, array in zip(names, arrays, strict=True):
        data = idx(array)
        (folder / name).write_bytes(pack(data) if pack else data)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_set(tmp_path / "set")


@pytest.fixture(scope="module")
def mnist():
    return load_mnist()


# --- MNIST itself --------------------------------------------------------------------------------


def test_the_files_are_the_original_ones():
    # The sums are those of the notice beside the files.
    folder = Path(mnist_module.__file__).parent
    notice = (folder / "NOTICE.md").read_text(encoding="utf-8")
    for name in NAMES:
        data = gzip.decompress((folder / f"{name}.gz").read_bytes())
        assert f"| {name} | {hashlib.sha256(data).hexdigest()} |" in notice


def test_facts(mnist):
    (x_train, t_train), (x_test, t_test) = mnist
    assert (x_train.shape, x_train.dtype) == ((60_000, 784), np.float32)
    assert (x_test.shape, x_test.dtype) == ((10_000, 784), np.float32)
    assert (t_train.shape, t_train.dtype) == ((60_000,), np.uint8)
    assert (t_test.shape, t_test.dtype) == ((10_000,), np.uint8)
    assert np.bincount(t_train).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert x_train.mean(dtype=np.float64) == pytest.approx(0.130660, abs=1e-6)
    assert x_train.std(dtype=np.float64) == pytest.approx(0.308108, abs=1e-6)
    assert np.count_nonzero(x_train) / x_train.size == pytest.approx(0.1912, abs=1e-4)
    assert (x_train.min(), x_train.max()) == (0, 1)
    # The first ten labels, as everybody knows them.
    assert t_train[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert t_test[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


def test_memory_stays_near_what_is_returned():
    tracemalloc.start()
    try:
        (x_train, _), (x_test, _) = load_mnist()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    raw = (x_train.size + x_test.size) * np.dtype(np.uint8).itemsize
    assert peak < x_train.nbytes + x_test.nbytes + 1.25 * raw


# --- Flags, shapes, dtypes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("normalize", "flatten", "one_hot"), list(itertools.product([True, False], repeat=3))
)
def test_flags(folder, normalize, flatten, one_hot):
    raw = random_set()
    loaded = load_mnist(normalize, flatten, one_hot, path=folder)
    for (x, t), images, labels in zip(loaded, raw[::2], raw[1::2], strict=True):
        want = images.reshape((len(images), -1) if flatten else (len(images), 1, 4, 3))
        if normalize:
            want = want.astype(np.float32)
            want /= 255.0  # as the book does it
        np.testing.assert_array_equal(x, want, strict=True)
        np.testing.assert_array_equal(t, np.eye(7)[labels] if one_hot else labels, strict=True)
        for array in (x, t):
            assert array.flags.behaved
            assert array.flags.c_contiguous
            array[...] = 0


def test_positions_of_the_flags_are_those_of_the_book(folder):
    (x, t), _ = load_mnist(False, False, True, path=folder)
    assert (x.dtype, x.ndim, t.ndim) == (np.uint8, 4, 2)


@pytest.mark.parametrize("flag", ["normalize", "flatten", "one_hot_label"])
@pytest.mark.parametrize("wrong", ["/a/folder", None, 2, 1.0, np.ones(2)])
def test_a_flag_must_be_a_bool(flag, wrong):
    with pytest.raises(TypeError, match=f"`{flag}` must be True or False"):
        load_mnist(**{flag: wrong})


@per_example
@given(
    n=st.tuples(st.integers(1, 300), st.integers(1, 20)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    classes=st.integers(1, 256),
    compressed=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_size_and_number_of_classes(tmp_path, n, size, classes, compressed, seed):
    raw = random_set(*n, size, classes, seed)
    folder = write_set(tmp_path / "set", raw, pack=gzip.compress if compressed else None)
    (x_train, t_train), (x_test, t_test) = load_mnist(False, True, True, path=folder)
    width = 1 + int(max(raw[1].max(), raw[3].max()))
    for got, want in zip((x_train, x_test), raw[::2], strict=True):
        np.testing.assert_array_equal(got, want.reshape(len(want), -1), strict=True)
    for got, want in zip((t_train, t_test), raw[1::2], strict=True):
        np.testing.assert_array_equal(got, np.eye(width)[want], strict=True)


# --- Names and packing ---------------------------------------------------------------------------


@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    "pack", [None, gzip.compress, zlib.compress], ids=["plain", "gzip", "zlib"]
)
def test_names_and_packing(tmp_path, dotted, suffix, pack):
    names = [(name.replace("-idx", ".idx") if dotted else name) + suffix for name in NAMES]
    folder = write_set(tmp_path / "set", names=names, pack=pack)
    if pack is zlib.compress:
        with pytest.raises(ValueError, match="must be an IDX file"):
            load_mnist(path=folder)
        return
    # A name that belies its content is no obstacle.
    (x, t), _ = load_mnist(False, path=str(folder))
    np.testing.assert_array_equal(x, random_set()[0].reshape(7, -1))
    np.testing.assert_array_equal(t, random_set()[1])


def test_gzip_in_several_members_and_with_padding(folder):
    data = (folder / IMAGES).read_bytes()
    parts = gzip.compress(data[:10]) + gzip.compress(b"") + gzip.compress(data[10:]) + bytes(512)
    (folder / IMAGES).write_bytes(parts)
    np.testing.assert_array_equal(
        load_mnist(False, False, path=folder)[0][0][:, 0], random_set()[0]
    )


def test_an_honest_file_of_zeros_is_loaded(folder):
    # It shrinks a thousandfold, as a bomb does.
    images = np.zeros((7, 1000, 1000), np.uint8)
    for name, array in ((IMAGES, images), (NAMES[2], images[:5])):
        (folder / name).write_bytes(gzip.compress(idx(array)))
    (x, _), _ = load_mnist(False, path=folder)
    np.testing.assert_array_equal(x, images.reshape(7, -1), strict=True)


# --- What is wrong with a folder -----------------------------------------------------------------


@pytest.mark.parametrize("wrong", [1, b"/tmp", ["/tmp"]])
def test_a_path_must_be_a_path(wrong):
    with pytest.raises(TypeError, match="`path` must be the path of a folder"):
        load_mnist(path=wrong)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`path` must be a folder.*nowhere.*missing"):
        load_mnist(path=tmp_path / "nowhere")


def test_a_file_is_no_folder(folder):
    with pytest.raises(NotADirectoryError, match=rf"`path` must be a folder.*{IMAGES}.*a file"):
        load_mnist(path=folder / IMAGES)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"set' must hold the file {name} or {name}\.gz"):
        load_mnist(path=folder)


def test_sizes_of_images_must_agree(folder):
    (folder / NAMES[2]).write_bytes(idx(np.zeros((5, 2, 6), np.uint8)))
    with pytest.raises(ValueError, match=rf"{NAMES[2]}' must hold images of 4 × 3.*Got 2 × 6"):
        load_mnist(path=folder)


@pytest.mark.parametrize(("labels", "images"), [(NAMES[1], NAMES[0]), (NAMES[3], NAMES[2])])
def test_labels_and_images_must_match(folder, labels, images):
    (folder / labels).write_bytes(idx(np.zeros(6, np.uint8)))
    with pytest.raises(ValueError, match=rf"{labels}' must hold one label.*{images}. Got 6"):
        load_mnist(path=folder)


# --- What is wrong with a file -------------------------------------------------------------------

SMALL = random_set()[0]
SOUND = idx(SMALL)
GZIP = gzip.compress(SOUND)
NOISE = np.random.default_rng(0).integers(0, 256, MIB, np.uint8)


def bomb(*shape):
    """Return 64 MiB of zeros, shrunk 200-fold, behind a header that declares `shape`."""
    return gzip.compress(idx(SMALL, shape) + bytes(64 * MIB), 1)


LABEL_MAGIC = bytes([0, 0, 8, 1])

WRONG = {
    "empty": (b"", "Got an empty file"),
    "two bytes": (SOUND[:2], "Got 00 00"),
    "half a header": (SOUND[:9], "must have a header of 16 bytes. Got 9"),
    "labels": (LABEL_MAGIC + SOUND[4:], "of images, which .* 00 00 08 03. Got 00 00 08 01"),
    "floats": (b"\0\0\x0d\3" + SOUND[4:], "Got 00 00 0d 03"),
    "a web page": (b"<!DOCTYPE html>", "Got 3c 21 44 4f"),
    "no images": (idx(SMALL, (0, 4, 3)), "must hold images. Got 0 × 4 × 3"),
    "no pixels": (idx(SMALL, (7, 0, 3)), "must hold images. Got 7 × 0 × 3"),
    "truncated": (SOUND[:-1], "must hold 7 × 4 × 3 bytes .* Got 83"),
    "trailing": (SOUND + b"\0", "must hold 7 × 4 × 3 bytes .* Got more"),
    "lying": (idx(SMALL, (2**31, 28, 28)), "2,147,483,648 × 28 × 28 .* Got a file of 100 bytes"),
    "overflowing": (idx(SMALL, (2**32 - 1,) * 3), "Got a file of 100 bytes"),
    "gzip: empty": (gzip.compress(b""), "Got an empty file"),
    "gzip: half a header": (gzip.compress(SOUND[:9]), "must have a header of 16 bytes. Got 9"),
    "gzip: labels": (gzip.compress(LABEL_MAGIC), "Got 00 00 08 01"),
    "gzip: truncated data": (gzip.compress(SOUND[:-1]), "Got 83"),
    "gzip: trailing data": (gzip.compress(SOUND + b"\0"), "Got more"),
    "gzip: lying": (gzip.compress(idx(SMALL, (2**31, 28, 28))), "Got a file of"),
    "gzip: lying a little": (gzip.compress(idx(SMALL, (80, 28, 28))), "Got 84"),
    "gzip: magic only": (GZIP[:2], "sound gzip"),
    "gzip: lying 60-fold": (gzip.compress(idx(NOISE, (60, MIB, 1))), "Got 1,048,576"),
    "gzip: truncated": (GZIP[:-9], "sound gzip .*end-of-stream"),
    "gzip: no checksum": (GZIP[:-8], "sound gzip .*end-of-stream"),
    "gzip: wrong checksum": (GZIP[:-8] + bytes(4) + GZIP[-4:], "sound gzip .*CRC"),
    "gzip: wrong length": (GZIP[:-4] + bytes(4), "sound gzip .*length"),
    "gzip: wrong method": (GZIP[:2] + b"\7" + GZIP[3:], "sound gzip .*method"),
    "gzip: no deflate stream": (GZIP[:10] + b"\xff" * 50, "sound gzip .*block type"),
    "gzip: garbage behind": (GZIP + b"garbage", "sound gzip .*Not a gzipped file"),
    "gzip: twice": (gzip.compress(GZIP), "Got 1f 8b"),
    "bomb behind a small set": (bomb(7, 4, 3), "must hold 7 × 4 × 3 bytes .* Got more"),
    "bomb with a huge header": (bomb(2**31, 28, 28), "2,147,483,648 × 28 × 28 .* Got"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_file_is_named_and_takes_little_memory(folder, what):
    data, message = WRONG[what]
    (folder / IMAGES).write_bytes(data)
    files = open_files()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"{IMAGES}' .*{message}"):
            load_mnist(path=folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * MIB
    assert open_files() == files


@pytest.mark.parametrize("name", NAMES)
def test_whichever_file_is_wrong_is_named(folder, name):
    with open(folder / name, "ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match=f"{name}' must hold"):
        load_mnist(path=folder)


@pytest.mark.parametrize("whole", [SOUND, GZIP], ids=["plain", "gzip"])
def test_truncated_at_every_length(folder, whole):
    for length in range(len(whole)):
        (folder / IMAGES).write_bytes(whole[:length])
        with pytest.raises(ValueError, match=IMAGES):
            load_mnist(path=folder)


@per_example
@given(
    whole=st.sampled_from([SOUND, GZIP]),
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=5),
)
def test_mutated_bytes_load_or_give_a_value_error(folder, whole, changes):
    mutated = bytearray(whole)
    for position, value in changes:
        mutated[position % len(mutated)] = value
    (folder / IMAGES).write_bytes(mutated)
    try:
        (x, _), _ = load_mnist(False, path=folder)
    except ValueError as error:
        if "-ubyte' must" not in str(error):
            raise
    else:
        assert x.shape == (7, 12)
        assert whole is SOUND or (x == SMALL.reshape(7, 12)).all()


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(folder):
    (folder / IMAGES).chmod(0)
    with pytest.raises(PermissionError, match=IMAGES):
        load_mnist(path=folder)


def test_a_folder_in_place_of_a_file_is_a_missing_file(folder):
    (folder / IMAGES).unlink()
    (folder / IMAGES).mkdir()
    with pytest.raises(FileNotFoundError, match=IMAGES):
        load_mnist(path=folder)


def test_a_folder_name_may_hold_spaces_and_any_letter(folder, tmp_path):
    moved = shutil.move(folder, tmp_path / "数字 データ")
    np.testing.assert_array_equal(load_mnist(path=moved)[0][1], random_set()[1])


def test_the_network_is_never_touched(monkeypatch):
    monkeypatch.delattr("socket.socket")
    load_mnist(normalize=False)
