"""What HDF5 can hide: numbers in other files, numbers that were never written, bombs."""

import io

import h5py
import numpy as np
import pytest

from ecgformers.modeling.hdf5_ecg import read_hdf5
from ecgformers.modeling.reading_ecg import read_ecg
from ecgformers.modeling.record_ecg import EcgReadError

SIGNAL = np.random.default_rng(0).normal(size=(12, 300))


def file_with(fill) -> io.BytesIO:
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        fill(file)
    return content


def test_one_array_of_a_file(tmp_path):
    tracings = np.random.default_rng(1).normal(size=(4, 12, 50)).astype("f4")

    def fill(file):
        file.create_dataset("ecg/lead_voltages", data=SIGNAL, compression="gzip", shuffle=True, chunks=(12, 100))
        file["tracings"], file["exam_id"], file["name"] = tracings, np.arange(4), "text"
        file["again"] = h5py.SoftLink("/ecg/lead_voltages")

    content = file_with(fill)
    np.testing.assert_array_equal(read_hdf5(content, "a.h5").signal, SIGNAL)
    np.testing.assert_array_equal(read_hdf5(content, "a.h5", "ecg/lead_voltages").signal, SIGNAL)
    for raw in (read_hdf5(content, "a.h5", "tracings", 2), read_hdf5(content, "a.h5", index=2)):
        np.testing.assert_array_equal(raw.signal, tracings[2])
        assert raw.metadata == {"variable": "tracings"}
    (tmp_path / "a.h5").write_bytes(content.getvalue())
    record = read_ecg(tmp_path / "a.h5", lead_names=[f"X{i}" for i in range(12)], sampling_rate=500)
    np.testing.assert_array_equal(record.signal, SIGNAL)


def never_written(file):
    file.create_dataset("x", (12, 5000), "f8")


def half_written(file):
    file.create_dataset("x", (12, 5000), "f8", chunks=(12, 1000))[:, :1000] = 1


def external_storage(file):
    file.create_dataset("x", (2, 8), "f8", external=[("/etc/passwd", 0, 128)])


def virtual(file):
    layout = h5py.VirtualLayout((2, 8), "f8")
    layout[:] = h5py.VirtualSource("/etc/passwd", "y", (2, 8))
    file.create_virtual_dataset("x", layout)


def external_link(file):
    file["x"] = h5py.ExternalLink("/etc/passwd", "y")


def bomb(file):
    file.create_dataset("x", (12, 30_000_000), "f8", compression="gzip", chunks=(12, 100_000))


def large_chunk(file):
    file.create_dataset("x", (12, 10), "f8", compression="gzip", chunks=(12, 20_000_000), maxshape=(12, None))


REFUSED = {
    never_written: "not all of its numbers were written",
    half_written: "not all of its numbers were written",
    external_storage: "lie in other files, which are not opened",
    virtual: "lie in other files, which are not opened",
    external_link: r"it has \[\]",
    bomb: "claims to hold 2880000000 bytes",
    large_chunk: "claims to hold 1920000000 bytes",
    lambda file: file.update(a=SIGNAL, b=SIGNAL): r"name the array \(dataset=\): .* \['a', 'b'\]",
    lambda file: [file.create_group(f"{i}") for i in range(1200)]: "more than 1000 arrays and groups",
    lambda file: file.create_dataset("x", data=np.zeros((3, 12, 10))): r"it has \[\]",
}


@pytest.mark.parametrize("fill", REFUSED)
def test_refused_by_name(fill):
    with pytest.raises(EcgReadError, match=REFUSED[fill]) as error:
        read_hdf5(file_with(fill), "a.h5")
    assert str(error.value).startswith("a.h5: ")


@pytest.mark.parametrize(("dataset", "index", "message"), [("y", None, "no array"), ("x", 9, "no recording 9")])
def test_a_wrong_name_or_index(dataset, index, message):
    with pytest.raises(EcgReadError, match=message):
        read_hdf5(file_with(lambda file: file.update(x=np.ones((3, 12, 10)))), "a.h5", dataset, index)


def test_not_hdf5():
    for content in (b"", b"\x89HDF\r\n\x1a\n" + bytes(500), b"hello" * 100):
        with pytest.raises(EcgReadError, match=r"a\.h5: is not a readable HDF5 file"):
            read_hdf5(io.BytesIO(content), "a.h5")
