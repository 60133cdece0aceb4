"""MATLAB files of every version against scipy's reader, and damaged ones, which end that reader's process."""

import io
import struct
import time
import tracemalloc
import zlib

import h5py
import numpy as np
import pytest
import scipy.io

from ecgformers.modeling.matlab_ecg import read_matlab
from ecgformers.modeling.reading_ecg import read_ecg
from ecgformers.modeling.record_ecg import EcgReadError

SIGNAL = np.random.default_rng(0).normal(scale=0.4, size=(12, 300)).round(3)
DIGITAL = (SIGNAL * 1000).round().astype("i2")


def saved(variables: dict, **options) -> io.BytesIO:
    file = io.BytesIO()
    scipy.io.savemat(file, variables, **options)
    return file


def element(kind: int, content: bytes, order: str = "<", size: int | None = None) -> bytes:
    """A data element of version 5, padded."""
    padding = bytes(-len(content) % 8)
    return struct.pack(order + "II", kind, len(content) if size is None else size) + content + padding


def variable(name: bytes, shape, content: bytes, order: str = "<", kind: int = 6, more: int = 0) -> bytes:
    """A matrix as MATLAB 5 writes it; `content` holds its data elements, of which `more` bytes are missing."""
    parts = element(6, struct.pack(order + "II", kind, 0), order)
    parts += element(5, struct.pack(f"{order}{len(shape)}i", *shape), order) + element(1, name, order)
    return element(14, parts + content, order, len(parts + content) + more)


def doubles(values, order: str = "<") -> bytes:
    return element(9, np.asarray(values, order + "f8").tobytes(order="F"), order)


def compressed(content: bytes) -> bytes:
    folded = zlib.compress(content)
    return struct.pack("<II", 15, len(folded)) + folded


def file_of(*variables: bytes, order: str = "<") -> io.BytesIO:
    ending = b"\0\1IM" if order == "<" else b"\1\0MI"
    return io.BytesIO(b"MATLAB 5.0 MAT-file".ljust(124) + ending + b"".join(variables))


@pytest.mark.parametrize("options", [{"format": "4"}, {"format": "5"}, {"format": "5", "do_compression": True}])
@pytest.mark.parametrize("dtype", ["f8", "f4", "i1", "u1", "i2", "u2", "i4", ">i2", ">f8"])
def test_every_version_and_type_as_scipy_reads_them(options, dtype):
    file = saved({"note": "text", "val": (SIGNAL * 50).astype(dtype), "rate": 500.0}, **options)
    raw, expected = read_matlab(file, "rec.mat"), scipy.io.loadmat(file)["val"]
    np.testing.assert_array_equal(raw.signal, expected)
    assert raw.signal.dtype == expected.dtype and raw.metadata == {"variable": "val"}


@pytest.mark.parametrize("compress", [False, True])
def test_a_structure_as_cpsc_2018_ships_them(compress):
    file = saved({"ECG": {"sex": "Male", "age": 60.0, "data": SIGNAL, "more": np.ones(3)}}, do_compression=compress)
    with pytest.raises(EcgReadError, match=r"has no matrix 'val', but \['ECG.data', 'ECG.more'\]"):
        read_matlab(file, "rec.mat")
    raw = read_matlab(file, "rec.mat", "ECG.data")
    np.testing.assert_array_equal(raw.signal, SIGNAL)
    raw = read_matlab(saved({"ECG": {"sex": "Male", "age": 60.0, "data": SIGNAL}}, do_compression=compress), "rec.mat")
    np.testing.assert_array_equal(raw.signal, SIGNAL)
    assert raw.metadata == {"variable": "ECG.data"}


def test_what_is_no_matrix_of_numbers_is_passed_over():
    others = {
        "c": np.array([[1, "a"], [2, 3]], object),
        "s": np.array(["ab", "cd"]),
        "z": SIGNAL + 1j,
        "l": SIGNAL > 0,
    }
    others["structures"] = np.array([(SIGNAL,), (SIGNAL,)], [("data", object)])
    for compress in (False, True):
        file = saved(others | {"feats": SIGNAL, "x": scipy.sparse.eye(3)}, do_compression=compress)
        np.testing.assert_array_equal(read_matlab(file, "rec.mat").signal, SIGNAL)


@pytest.mark.parametrize("order", "<>")
def test_either_byte_order(order):
    file = file_of(variable(b"val", (2, 3), doubles([[1, 2, 3], [4, 5, 6]], order), order), order=order)
    np.testing.assert_array_equal(read_matlab(file, "rec.mat").signal, [[1, 2, 3], [4, 5, 6]])
    header = struct.pack(f"{order}5i", 1000 * (order == ">"), 2, 2, 0, 4) + b"val\0"
    file = io.BytesIO(header + np.array([1, 3, 2, 4], order + "f8").tobytes())
    np.testing.assert_array_equal(read_matlab(file, "rec.mat").signal, [[1, 2], [3, 4]])


def test_version_7_3(tmp_path):
    with h5py.File(tmp_path / "rec.mat", "w", userblock_size=512) as file:
        file["ECG/data"], file["ECG/age"] = SIGNAL.T, [[60.0]]  # as MATLAB, column by column
    with (tmp_path / "rec.mat").open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM")
    record = read_ecg(tmp_path / "rec.mat", lead_names=[f"X{i}" for i in range(12)], sampling_rate=500)
    np.testing.assert_array_equal(record.signal, SIGNAL)
    assert record.metadata == {"variable": "ECG.data"}


HUGE = 900_000_000  # bytes, announced and never there: they are to be refused before they are missed
DAMAGED = {
    "too small an element": (
        variable(b"val", (0, 0), b"")[:32] + bytes([0, 3, 0, 14]) * 20,
        "is not a readable MATLAB",
    ),
    "empty": (variable(b"val", (0, 0), element(9, b"")), r"its matrix val is empty: \(0, 0\)"),
    "a type of number that is none": (variable(b"val", (1, 2), element(77, bytes(16))), "16 bytes of 77"),
    "longer than its dimensions": (variable(b"val", (1, 2), doubles([1, 2, 3])), r"is \(1, 2\), but holds 24 bytes"),
    "shorter than its dimensions": (variable(b"val", (1, 4), doubles([1, 2, 3])), r"is \(1, 4\), but holds 24 bytes"),
    "negative dimensions": (variable(b"val", (-1, -3), doubles([1, 2, 3])), r"dimensions \(-1, -3\)"),
    "two parts": (variable(b"val", (1, 2), doubles([1, 2]) * 2), "goes on behind its numbers"),
    "data behind compressed ones": (compressed(variable(b"val", (1, 2), doubles([1, 2])) * 2), "goes on behind"),
    "checksum": (compressed(variable(b"val", (1, 2), doubles([1, 2])))[:-1] + b"?", "is not a readable MATLAB file"),
    "cut": (compressed(variable(b"val", (1, 2), doubles([1, 2])))[:-9], "or too long a one"),
    "a bomb": (
        compressed(variable(b"val", (1, HUGE), element(2, b"", size=HUGE), more=HUGE)),
        "claims to hold 900000000 bytes",
    ),
    "a longer bomb": (
        compressed(variable(b"val", (2, 3), element(9, b"", size=HUGE), more=HUGE)),
        "holds 900000000 bytes of f8",
    ),
    "twice": (variable(b"val", (1, 2), doubles([1, 2])) * 2, "holds 'val' twice"),
    "compressed twice": (compressed(variable(b"x", (1, 2), doubles([1, 2]))) * 2, "holds 'x' twice"),
    "very many variables": (variable(b"x", (1, 1), doubles([1])) * 300, "more than 256"),
    "a name of a megabyte": (
        variable(b"x" * (1 << 20), (1, 2), doubles([1, 2])),
        "a name or dimensions of 1048576 bytes",
    ),
}


def structure_bomb() -> bytes:
    names = element(5, struct.pack("<i", 8)) + element(1, b"a".ljust(8, b"\0") + b"b".ljust(8, b"\0"))
    fields = variable(b"", (1, HUGE), element(2, b"", size=HUGE), more=HUGE) + variable(b"", (1, 2), doubles([1, 2]))
    return compressed(variable(b"s", (1, 1), names + fields, kind=2))


@pytest.mark.parametrize("case", [*DAMAGED, "bomb in a structure"])
def test_damaged_files_are_refused_at_once_in_little_memory(case):
    content, message = DAMAGED.get(case) or (structure_bomb(), "too many to search")
    file = file_of(content)
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(EcgReadError, match=message) as error:
        read_matlab(file, "rec.mat")
    elapsed, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(error.value).startswith("rec.mat: ") and "\n" not in str(error.value)
    assert elapsed < 1 and peak < 1 << 28


def test_damage_anywhere_never_ends_in_anything_but_numbers_or_a_clear_error():
    rng = np.random.default_rng(0)
    read = 0
    for content in (
        saved({"val": DIGITAL[:3, :5]}).getvalue(),
        saved({"val": DIGITAL[:3, :5]}, do_compression=True).getvalue(),
        saved({"val": DIGITAL[:3, :5]}, format="4").getvalue(),
        saved({"ECG": {"sex": "M", "data": SIGNAL[:3, :5]}, "n": 1}).getvalue(),
    ):
        for position in range(len(content)):
            for value in (0, 255, int(rng.integers(256))):
                file = io.BytesIO(content[:position] + bytes([value]) + content[position + 1 :])
                try:
                    read += read_matlab(file, "rec.mat").signal.size > 0
                except EcgReadError as error:
                    assert "rec.mat" in str(error)
    assert read > 100
