import contextlib
import errno
import io
import json
import os
import pickle
import signal
import stat
import struct
import subprocess
import sys
import textwrap
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from processes import open_files

from fastgrad.data import archives
from fastgrad.data.archives import load_arrays, save_arrays

NET = {"W1": np.arange(12.0).reshape(3, 4), "b1": np.arange(4, dtype=np.float32)}
MIB = 1 << 20

as_root = hasattr(os, "geteuid") and os.geteuid() == 0
on_posix = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions and signals")
per_example = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def assert_same(have, want):
    assert list(have) == list(want)
    for name in want:
        assert have[name].dtype == want[name].dtype
        np.testing.assert_array_equal(have[name], want[name], strict=True)


# --- What is saved comes back --------------------------------------------------------------------

identifiers = st.from_regex(r"[A-Za-z_][A-Za-z_0-9]{0,8}", fullmatch=True).filter(
    lambda name: name != "settings"
)
numeric_dtypes = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?"),
    hnp.complex_number_dtypes(endianness="?"),
)
numeric_arrays = numeric_dtypes.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=5))
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@per_example
@given(
    arrays=st.dictionaries(identifiers, numeric_arrays, max_size=4),
    layout=st.sampled_from(["C", "F", "strided"]),
    meta=st.dictionaries(identifiers, json_values, max_size=3),
)
def test_what_is_saved_comes_back(tmp_path, arrays, layout, meta):
    if layout == "strided":
        arrays = {name: np.repeat(a[None], 2, axis=0)[0].T[...] for name, a in arrays.items()}
    elif layout == "F":
        arrays = {name: np.asarray(a, order="F") for name, a in arrays.items()}
    got, got_meta = load_arrays(save_arrays(tmp_path / "net", arrays, **meta))
    assert_same(got, arrays)
    assert got_meta == meta
    assert all(a.flags.writeable for a in got.values())


def test_plain_numpy_reads_the_file_without_pickle(tmp_path):
    path = save_arrays(tmp_path / "net.npz", NET, activation="relu", delta=1e-7)
    with np.load(path, allow_pickle=False) as archive:
        assert_same({name: archive[name] for name in NET}, NET)
        meta = json.loads(archive["settings"].tobytes())
    assert meta == {"activation": "relu", "delta": 1e-7}


def test_a_file_of_plain_numpy_is_read(tmp_path):
    np.savez(tmp_path / "net.npz", **NET)
    got, meta = load_arrays(tmp_path / "net.npz")
    assert_same(got, NET)
    assert meta == {}


def test_the_same_content_gives_the_same_bytes(tmp_path):
    first, second = (save_arrays(tmp_path / name, NET, seed=0) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_numpy_scalars_and_tuples_in_settings_become_plain(tmp_path):
    path = save_arrays(
        tmp_path / "net", {}, size=np.int64(3), scale=np.float32(0.5), on=np.True_, shape=(1, 2)
    )
    assert load_arrays(path)[1] == {"size": 3, "scale": 0.5, "on": True, "shape": [1, 2]}


def test_settings_may_be_called_like_the_parameters(tmp_path):
    path = save_arrays(tmp_path / "net", {}, path="p", arrays="a")
    assert load_arrays(path)[1] == {"path": "p", "arrays": "a"}


@pytest.mark.parametrize("given", ["net", "net.npz", "net.v2"])
def test_suffix_is_appended_once_and_found_again(tmp_path, given):
    (tmp_path / given).write_text("a bystander")
    written = save_arrays(tmp_path / given, NET)
    assert written.name == given.removesuffix(".npz") + ".npz"
    assert_same(load_arrays(tmp_path / given)[0], NET)
    assert_same(load_arrays(os.fsencode(tmp_path / given))[0], NET)


def test_a_renamed_file_is_found(tmp_path):
    save_arrays(tmp_path / "net", NET).rename(tmp_path / "net.backup")
    assert_same(load_arrays(tmp_path / "net.backup")[0], NET)


# --- What cannot be saved ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["settings", "", "a/b", "../a", "a b", "a\0", "1", None])
def test_wrong_names_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="must be an identifier"):
        save_arrays(tmp_path / "net", {name: np.ones(2)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("array", [np.array([{}]), np.array(["a"]), np.zeros(2, "f4,i4"), [None]])
def test_arrays_of_anything_but_numbers_are_refused(tmp_path, array):
    with pytest.raises(TypeError, match="`W1` must be an array of numbers"):
        save_arrays(tmp_path / "net", {"W1": array})
    assert list(tmp_path.iterdir()) == []


def test_settings_that_json_cannot_hold_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"must fit into JSON. Got object"):
        save_arrays(tmp_path / "net", NET, activation=object())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("function", [lambda path: save_arrays(path, {}), load_arrays])
def test_a_path_must_be_a_path(function):
    with pytest.raises(TypeError, match=r"`path` must be the path of a file. Got float"):
        function(1.0)


# --- A save that fails ---------------------------------------------------------------------------


def fail_with(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def fail_in_second_array(monkeypatch, error):
    write, calls = np.lib.format.write_array, []

    def write_array(*args, **kwargs):
        calls.append(None)
        if len(calls) == 2:
            raise error
        write(*args, **kwargs)

    monkeypatch.setattr(np.lib.format, "write_array", write_array)


def fail_in_file(monkeypatch, error):
    class FullDisk(io.FileIO):
        def write(self, data):
            if self.tell() + len(data) > 300:
                raise error
            return super().write(data)

    monkeypatch.setattr(archives, "open", lambda path, mode: FullDisk(path, mode), raising=False)


def fail_in_fsync(monkeypatch, error):
    monkeypatch.setattr(os, "fsync", fail_with(error))


def fail_in_replace(monkeypatch, error):
    monkeypatch.setattr(os, "replace", fail_with(error))


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full"), MemoryError()]
)
@pytest.mark.parametrize(
    "fail", [fail_in_second_array, fail_in_file, fail_in_fsync, fail_in_replace]
)
def test_the_old_file_survives_a_failure(tmp_path, monkeypatch, fail, error, old):
    path = tmp_path / "net.npz"
    if old:
        save_arrays(path, NET, epoch=1)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        fail(patch, error)
        with pytest.raises(type(error)) as caught:
            save_arrays(path, {name: -a for name, a in NET.items()}, epoch=2)
    if isinstance(error, OSError):
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    save_arrays(path, NET, epoch=3)
    assert load_arrays(path)[1] == {"epoch": 3}


def run(code, *args):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@on_posix
def test_the_old_file_survives_a_killed_process(tmp_path):
    path = save_arrays(tmp_path / "net", NET, epoch=1)
    killed = run(
        """
        import os, signal, sys
        import numpy as np
        from fastgrad.data.archives import save_arrays
        os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
        save_arrays(sys.argv[1], {"W1": np.ones(100_000)}, epoch=2)
        """,
        path,
    )
    assert killed.returncode == -signal.SIGKILL
    assert_same(load_arrays(path)[0], NET)


def test_a_missing_folder_is_named(tmp_path):
    path = tmp_path / "missing" / "net.npz"
    with pytest.raises(FileNotFoundError) as caught:
        save_arrays(path, NET)
    assert caught.value.filename == str(path)
    with pytest.raises(FileNotFoundError, match="missing"):
        load_arrays(path)


def test_a_folder_is_not_overwritten(tmp_path):
    (tmp_path / "net.npz").mkdir()
    with pytest.raises(OSError, match="Not a regular file"):
        save_arrays(tmp_path / "net", NET)
    assert [file.name for file in tmp_path.iterdir()] == ["net.npz"]


@on_posix
def test_a_new_file_has_ordinary_permissions_and_an_old_one_keeps_its_own(tmp_path):
    before = os.umask(0o027)
    try:
        path = save_arrays(tmp_path / "net", NET)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o600)
        save_arrays(path, NET)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)


@on_posix
@pytest.mark.skipif(as_root, reason="root may write everything")
def test_a_read_only_file_is_not_replaced(tmp_path):
    path = save_arrays(tmp_path / "net", NET, epoch=1)
    path.chmod(0o444)
    with pytest.raises(PermissionError, match="read-only"):
        save_arrays(path, NET, epoch=2)
    assert load_arrays(path)[1] == {"epoch": 1}


@on_posix
def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "runs").mkdir()
    save_arrays(tmp_path / "runs" / "first", NET, epoch=1)
    (tmp_path / "latest.npz").symlink_to(Path("runs", "first.npz"))
    save_arrays(tmp_path / "latest", NET, epoch=2)
    assert (tmp_path / "latest.npz").is_symlink()
    assert load_arrays(tmp_path / "runs" / "first")[1] == {"epoch": 2}


# --- Files that are no archive, or a hostile one -------------------------------------------------


def npy(array=NET["W1"], **header):
    """Return the bytes of a .npy file, with parts of its header forged."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, np.lib.format.header_data_from_array_1_0(array) | header
    )
    return buffer.getvalue() + array.tobytes()


def archive(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # names that occur twice
        with zipfile.ZipFile(buffer, "w", compression) as file:
            for name, data in members:
                file.writestr(name, data)
    return buffer.getvalue()


def patched(data, signature, offset, fmt, value):
    """Return `data` with a field of its last zip record of one kind overwritten."""
    data = bytearray(data)
    struct.pack_into(fmt, data, data.rindex(signature) + offset, value)
    return bytes(data)


class Malicious:
    def __reduce__(self):
        return (os._exit, (66,))


def pickled_member():
    buffer = io.BytesIO()
    np.save(buffer, np.array([Malicious()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


ONE = archive([("W1.npy", npy())])
CENTRAL, LOCAL, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"
JSON = lambda text: npy(np.frombuffer(text, np.uint8))  # noqa: E731

HOSTILE = {
    "empty file": b"",
    "a .npy file": npy(),
    "a pickle": pickle.dumps(Malicious()),
    "a pickle in a member": archive([("W1.npy", pickled_member())]),
    "an archive behind something else": b"#!/bin/sh\n" + ONE,
    "an archive of nothing": archive([]),
    "compressed": archive([("W1.npy", npy())], zipfile.ZIP_DEFLATED),
    "encrypted": patched(patched(ONE, CENTRAL, 8, "<H", 1), LOCAL, 6, "<H", 1),
    "huge member": patched(patched(ONE, CENTRAL, 20, "<I", 2**31), CENTRAL, 24, "<I", 2**31),
    "member beyond the end": patched(ONE, CENTRAL, 42, "<I", 2**31),
    "wrong checksum": patched(ONE, CENTRAL, 16, "<I", 1),
    "unknown compression": patched(ONE, CENTRAL, 10, "<H", 77),
    "huge shape": archive([("W1.npy", npy(shape=(2**20, 2**20)))]),
    "shape too small": archive([("W1.npy", npy(shape=(2, 2)))]),
    "zero times huge": archive([("W1.npy", npy(np.empty(0), shape=(0, 10**18, 10**18)))]),
    "code for a shape": archive([("W1.npy", npy().replace(b"(3, 4)", b"exit()"))]),
    "objects": archive([("W1.npy", npy(descr="|O"))]),
    "strings": archive([("W1.npy", npy(np.array(["abc"])))]),
    "unknown dtype": archive([("W1.npy", npy(descr="<f7"))]),
    "deep nesting": archive([("W1.npy", b"\x93NUMPY\x01\x00\x10\x27" + b"(" * 10_000)]),
    "header length that lies": archive([("W1.npy", npy().replace(b"\x00v\x00", b"\x00w\x00"))]),
    "empty member": archive([("W1.npy", b"")]),
    "the same name twice": archive([("W1.npy", npy()), ("W1.npy", npy())]),
    "a name outside": archive([("../W1.npy", npy())]),
    "another file": archive([("W1.npy", npy()), ("readme.txt", b"hello")]),
    "settings that are no JSON": archive([("settings.npy", JSON(b"{"))]),
    "settings that are no object": archive([("settings.npy", JSON(b"[1]"))]),
    "settings nested deep": archive([("settings.npy", JSON(b"[" * 100_000))]),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_give_an_error_that_names_the_file(tmp_path, what):
    path = tmp_path / "strange.npz"
    path.write_bytes(HOSTILE[what])
    files = open_files()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"`path` must be an archive.*strange\.npz") as caught:
            load_arrays(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert ("its settings are no JSON object" in str(caught.value)) == what.startswith("settings")
    # JSON's objects are larger than its text: from Python 3.14 on the decoder makes a list of 40
    # bytes of every bracket before it gives up.
    grows = what.startswith("settings") and sys.version_info >= (3, 14)
    growth = 50 if grows else 10
    assert peak < MIB + growth * len(HOSTILE[what])
    assert open_files() == files


def test_forged_fields_are_where_the_tests_think():
    # Without it, a test above might pass for a reason other than the one it names.
    assert zipfile.ZipFile(io.BytesIO(ONE)).infolist()[0].header_offset == 0
    assert ONE[ONE.rindex(END) + 16 :][:4] == struct.pack("<I", ONE.rindex(CENTRAL))
    assert b"\x00v\x00" in npy()
    assert b"(3, 4)" in npy()


def test_truncated_at_every_length(tmp_path):
    path = save_arrays(tmp_path / "net", NET, delta=1e-7)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"net\.npz"):
            load_arrays(path)


@per_example
@given(data=st.data())
def test_mutated_bytes_load_or_give_a_value_error(tmp_path, data):
    path = save_arrays(tmp_path / "net", NET, delta=1e-7)
    mutated = bytearray(path.read_bytes())
    # Headers, where a change does most harm: the numbers themselves are under a checksum.
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(mutated)
    with contextlib.suppress(ValueError):
        got, _ = load_arrays(path)
        assert sum(a.nbytes for a in got.values()) <= len(mutated)
