"""NumPy's files of hostile origin."""

import io
import struct
import zipfile

import numpy as np
import pytest

from ecgformers.modeling.numpy_ecg import read_npy, read_npz
from ecgformers.modeling.reading_ecg import read_ecg
from ecgformers.modeling.record_ecg import EcgReadError

SIGNAL = np.random.default_rng(0).normal(size=(2, 50))
FIELDS = {"signal": SIGNAL, "lead_names": ["I", "II"], "sampling_rate": 500.0, "units": "mV"}


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(method=zipfile.ZIP_DEFLATED, **members: bytes) -> bytearray:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, array in FIELDS.items():
            archive.writestr(f"{name}.npy", members.get(name) or npy(array))
    return bytearray(file.getvalue())


def changed(content: bytes | bytearray, old: bytes, new: bytes) -> bytes:
    assert old in content and len(old) == len(new)
    return bytes(content).replace(old, new)


def with_flag(content: bytearray) -> bytes:
    """Marked as encrypted, in the local header and in the directory."""
    for signature, position in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = content.find(signature)
        while start >= 0:
            content[start + position] |= 1
            start = content.find(signature, start + 4)
    return bytes(content)


def bomb() -> bytes:
    """A signal of 900 MB by the directory, where it comes first."""
    content = npz()
    struct.pack_into("<I", content, content.find(b"PK\1\2") + 24, 900_000_000)
    return bytes(content)


def long_directory() -> bytes:
    """An archive whose list of files is long: 60,000 of 30 bytes and no content."""
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", *([0] * 9), 20, *([0] * 6)) + b"x" * 20
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 60_000, 60_000, 60_000 * len(entry), 0, 0)
    return entry * 60_000 + end


def test_arrays_of_any_type_and_order():
    for array in (SIGNAL, np.asfortranarray(SIGNAL), SIGNAL.astype(">f4"), np.arange(6, dtype="u2").reshape(2, 3)):
        read = read_npy(io.BytesIO(npy(array)), "a.npy")
        np.testing.assert_array_equal(read, array)
        assert read.dtype == array.dtype
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        fields = read_npz(io.BytesIO(npz(method)), "a.npz")
        np.testing.assert_array_equal(fields.pop("signal"), SIGNAL)
        assert fields == {name: FIELDS[name] for name in ("lead_names", "sampling_rate", "units")}


VOID = changed(npy(np.zeros((3, 111111))), b"'<f8', ", b"'|V0', ")
DAMAGED = {
    "void.npy": (VOID, "holds neither numbers nor text"),
    "cut.npy": (npy(SIGNAL)[:-1], "800 bytes are left|799 bytes are left"),
    "two.npy": (npy(SIGNAL) * 2, "bytes are left"),
    "objects.npy": (changed(npy(SIGNAL), b"'<f8', ", b"'|O' , "), "Python objects, which are not unpickled"),
    "negative.npy": (changed(npy(SIGNAL), b"(2, 50)", b"(2,-50)"), "is not a readable NumPy file"),
    "code.npy": (changed(npy(SIGNAL), b"(2, 50)", b"print()"), "is not a readable NumPy file"),
    "brackets.npy": (changed(npy(SIGNAL), b"(2, 50)", b"((((((("), "is not a readable NumPy file"),
    "version.npy": (changed(npy(SIGNAL), b"NUMPY\1", b"NUMPY\7"), "is not a readable NumPy file"),
    "lzma.npz": (npz(zipfile.ZIP_LZMA), "signal is compressed as NumPy never does"),
    "bzip2.npz": (npz(zipfile.ZIP_BZIP2), "signal is compressed as NumPy never does"),
    "encrypted.npz": (with_flag(npz()), "signal is encrypted"),
    "text.npz": (npz(lead_names=b"I,II"), "lead_names: is not a readable NumPy file"),
    "empty.npz": (npz(units=npy(["mV"])[:9]), "units: is not a readable NumPy file"),
    "longest.npz": (npz(units=npy("m" * 20_000)), "units takes .* bytes, too many"),
    "bomb.npz": (bomb(), "claims to hold 900000000 bytes"),
    "directory.npz": (long_directory(), "is not a readable NumPy file: the list of its files"),
    "nothing.npz": (b"PK\5\6" + bytes(18), "has no 'signal'"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused_by_name(tmp_path, name):
    content, message = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EcgReadError, match=message) as error:
        read_ecg(tmp_path / name, lead_names=["I", "II"], sampling_rate=500)
    assert str(error.value).startswith(str(tmp_path / name)) and "\n" not in str(error.value)


def test_a_lying_archive(tmp_path):
    """Sizes in the directory that the data do not have, and broken deflate streams."""
    content = npz()
    for position in range(30, len(content), 3):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        (tmp_path / "a.npz").write_bytes(damaged)
        try:
            np.testing.assert_array_equal(read_ecg(tmp_path / "a.npz", units="mV").signal, SIGNAL)  # CRC-32 of all
        except EcgReadError as error:
            assert str(tmp_path / "a.npz") in str(error)
