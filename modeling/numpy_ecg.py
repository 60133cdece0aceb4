"""Reading `.npy` and `.npz` files of any origin: sizes are checked before memory is taken, nothing is unpickled."""

import math
import os
import struct
import zipfile
import zlib
from typing import Any, BinaryIO

import numpy as np

from .record_ecg import refuse_bomb
from .units_ecg import EcgReadError

MAX_DIRECTORY_BYTES = 1 << 20  # of the list of files in an archive
MAX_DESCRIPTION_BYTES = 1 << 16  # of lead names, units or sampling rate
_FIELDS = ("signal", "lead_names", "sampling_rate", "units")
_ENCRYPTED = 0x1


def read_npy(file: BinaryIO, source: str) -> np.ndarray:
    """The array in an `.npy` file.

    Args:
        file: a seekable binary file.
        source: names it in messages.

    Raises:
        EcgReadError: it holds no such array, more than one, or one of anything but numbers and text.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return _read_array(file, size, source)


def read_npz(file: BinaryIO, source: str, max_bytes: int | None = None) -> dict[str, Any]:
    """Of an `.npz` file the arrays `signal`, `lead_names`, `sampling_rate` and `units`; all but the first as lists.

    Args:
        file: a seekable binary file.
        source: names it in messages.
        max_bytes: see `record_ecg.refuse_bomb`.

    Raises:
        EcgReadError: the archive is damaged or encrypted, or an array in it is as `read_npy` refuses it.
    """
    stored = file.seek(0, os.SEEK_END)
    fields: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(_Piecemeal(file, stored)) as archive:  # type: ignore[arg-type]
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if name not in _FIELDS:
                    continue
                if name in fields:
                    raise EcgReadError(f"{source}: holds {name!r} twice")
                if member.flag_bits & _ENCRYPTED:
                    raise EcgReadError(f"{source}: {name} is encrypted; decrypt it first")
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise EcgReadError(f"{source}: {name} is compressed as NumPy never does ({member.compress_type})")
                if name == "signal":
                    refuse_bomb(member.file_size, stored, source, max_bytes)
                elif member.file_size > MAX_DESCRIPTION_BYTES:
                    raise EcgReadError(f"{source}: {name} takes {member.file_size} bytes, too many for a description")
                with archive.open(member) as part:
                    array = _read_array(part, member.file_size, f"{source}: {name}")
                fields[name] = array if name == "signal" else array.tolist()
    except (zipfile.BadZipFile, RuntimeError, OSError, EOFError, OverflowError, struct.error, zlib.error) as error:
        raise EcgReadError(f"{source}: is not a readable NumPy file: {error}") from error
    return fields


class _Piecemeal:
    """A file that refuses to give much at once, as a long list of files in an archive would be read."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size = file, size

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def read(self, count: int = -1) -> bytes:
        if (self.size - self.file.tell() if count < 0 else count) > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"the list of its files takes {count} bytes")
        return self.file.read(count)


def _read_array(file: Any, size: int, source: str) -> np.ndarray:
    """The array in `file`, which has `size` bytes, all of them its own."""
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, by_column, dtype = read_header(file)
    except (zipfile.BadZipFile, zlib.error):  # of the archive
        raise
    except Exception as error:  # NumPy meets damaged headers with errors of many classes
        raise EcgReadError(f"{source}: is not a readable NumPy file: {error!r}") from error
    if dtype.hasobject:
        raise EcgReadError(f"{source}: is not a readable NumPy file: it holds Python objects, which are not unpickled")
    if dtype.kind not in "fiuU" or dtype.itemsize == 0:
        raise EcgReadError(f"{source}: holds neither numbers nor text, but {dtype}")
    left = size - file.tell()
    if min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize != left:
        raise EcgReadError(
            f"{source}: is not a readable NumPy file: {shape} numbers of {dtype} are announced, {left} bytes are left"
        )
    data = bytearray()
    while part := file.read(min(MAX_DIRECTORY_BYTES, left - len(data) + 1)):
        data += part
    if len(data) != left:
        raise EcgReadError(f"{source}: is not a readable NumPy file: {len(data)} of {left} bytes are there")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if by_column else "C")
