"""Reading MATLAB files: versions 4 to 7.2 on struct, zlib and NumPy alone; version 7.3 is HDF5 (`hdf5_ecg.py`).

scipy.io.loadmat ends the interpreter on some damaged files (SIGSEGV, SIGBUS), which no except clause catches.  Loading
in a child process would survive that, but costs the start of an interpreter for each of the ten thousands of files
of a data set, and bounds neither time nor memory.  An ECG file needs little of the format: numeric matrices, by
themselves or in a structure, compressed or not; here nothing is read or unfolded before its size was checked.

The format: "MAT-File Format", The MathWorks.
"""

import math
import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from .hdf5_ecg import read_hdf5
from .record_ecg import RawEcg, refuse_bomb
from .units_ecg import EcgReadError

MAX_VARIABLES = 256  # of a file, and fields of a structure
MAX_NAME_BYTES = 256
MAX_SEARCHED_BYTES = 1 << 26  # of compressed structures unfolded to find the ECG in them

_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}  # version 5
_STORED_4 = ("f8", "f4", "i4", "i2", "u2", "u1")
_MATRIX, _COMPRESSED = 14, 15
_STRUCTURE, _NUMERIC, _OPAQUE = 2, range(6, 16), 17
_COMPLEX, _LOGICAL = 0x800, 0x200


class _DamagedError(Exception):
    """What the file says of itself can't be."""


class _Stream:
    """The bytes of one variable, read forwards, unfolded where they are compressed, never more than asked for."""

    def __init__(self, file: BinaryIO, order: str, start: int, size: int, compressed: bool):
        self.file, self.folded = file, size
        self.inflater = zlib.decompressobj() if compressed else None
        self.position, self.left = 0, size  # in the variable
        file.seek(start)
        if self.inflater is not None:
            self.left = 8
            kind, self.left = struct.unpack(order + "II", self.read(8))
            if kind != _MATRIX:
                raise _DamagedError(f"the compressed data at byte {start} are no variable")

    def read(self, count: int) -> bytes | bytearray:
        if count > self.left:
            raise _DamagedError(f"{count} bytes are announced where {self.left} are left")
        self.left -= count
        self.position += count
        if self.inflater is None:
            return _read(self.file, count)
        data = bytearray()
        while len(data) < count:
            folded = self._folded()
            part = self.inflater.decompress(folded, count - len(data))
            if not part and (not folded or self.inflater.eof):
                raise _DamagedError("its compressed data end too early")
            data += part
        return data

    def skip(self, count: int) -> None:
        while count > 0:
            count -= len(self.read(min(count, 1 << 20)))

    def finish(self) -> None:
        """Make sure that nothing is left; zlib compares the checksum at the end of compressed data."""
        if self.left or (self.inflater and (self.inflater.decompress(self._folded(), 1) or not self.inflater.eof)):
            raise _DamagedError("a variable goes on behind its numbers, or its compressed data lack their end")

    def _folded(self) -> bytes:
        if self.inflater and self.inflater.unconsumed_tail:
            return self.inflater.unconsumed_tail
        data = self.file.read(min(1 << 16, self.folded))
        self.folded -= len(data)
        return data


class _Matrix(NamedTuple):
    """A real numeric matrix, and where its numbers are."""

    name: str  # of a field: structure.field
    shape: tuple[int, ...]
    start: int  # in the file: of its variable (version 5) or its numbers (version 4)
    size: int
    dtype: np.dtype | None = None  # version 5 says it before the numbers
    compressed: bool = False
    position: int = 0  # of its numbers in the (unfolded) variable
    in_structure: bool = False


def read_matlab(file: BinaryIO, source: str, variable: str | None = None, max_bytes: int | None = None) -> RawEcg:
    """The ECG in a MATLAB file: its matrix `val`, or the only one it holds, in a structure or not.

    Args:
        file: a seekable binary file.
        source: names it in messages.
        variable: the name of the matrix, e.g. "val", or "ECG.data" for a field of a structure.
        max_bytes: see `record_ecg.refuse_bomb`.

    Returns:
        the matrix in the type in which it is stored (MATLAB stores a matrix of whole numbers as integers, even if it
        is one of doubles); `metadata` names the variable.

    Raises:
        EcgReadError: the file is damaged, or holds no such matrix, or more than one.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(128)
    try:
        if head[124:] in (b"\0\2IM", b"\2\0MI"):
            return read_hdf5(file, source, variable, matlab=True, max_bytes=max_bytes)
        order = {b"\0\1IM": "<", b"\1\0MI": ">"}.get(head[124:])
        if order is None:
            matrices = list(_matrices_of_version_4(file, size, source))
        else:
            matrices = list(_matrices(file, size, order))
        matrix = _choose(matrices, source, variable)
        if 0 in matrix.shape:
            raise EcgReadError(f"{source}: its matrix {matrix.name} is empty: {matrix.shape}")
        if matrix.dtype is not None:
            file.seek(matrix.start)
            numbers = np.frombuffer(_read(file, matrix.size), matrix.dtype)
        else:
            numbers = _numbers(file, matrix, size, source, order or "<", max_bytes)
        signal = numbers.reshape(matrix.shape, order="F")  # column by column
        return RawEcg(signal.astype(signal.dtype.newbyteorder("=")), metadata={"variable": matrix.name})
    except (_DamagedError, struct.error, zlib.error) as error:
        raise EcgReadError(f"{source}: is not a readable MATLAB file: {error}") from error


def starts_matlab(head: bytes) -> bool:
    """Whether a file that begins with these bytes, at least 128, is one of MATLAB."""
    if head[124:128] in (b"\0\2IM", b"\2\0MI", b"\0\1IM", b"\1\0MI"):
        return True
    if len(head) < 20:
        return False
    kind, rows, columns, imaginary, name = struct.unpack("<5I", head[:20])  # of version 4
    return kind in (0, 10, 20, 30, 40, 50) and min(rows, columns) > 0 and imaginary == 0 and 0 < name <= MAX_NAME_BYTES


def _choose(matrices: list[_Matrix], source: str, variable: str | None) -> _Matrix:
    by_name = {matrix.name: matrix for matrix in matrices}
    if len(by_name) < len(matrices):
        names = [matrix.name for matrix in matrices]
        twice = next(name for name in names if names.count(name) > 1)
        raise EcgReadError(f"{source}: holds {twice!r} twice, and does not say which of them is the ECG")
    wanted = variable or "val"
    if wanted in by_name:
        return by_name[wanted]
    likely = [matrix.name for matrix in matrices if len(matrix.shape) == 2 and math.prod(matrix.shape) > 1]
    if variable is not None or len(likely) != 1:
        raise EcgReadError(f"{source}: has no matrix {wanted!r}, but {sorted(likely)[:20]}; pass dataset= one of them")
    return by_name[likely[0]]


def _read(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise _DamagedError("it ends too early")
    return data


def _text(name: bytes | bytearray) -> str:
    if len(name) > MAX_NAME_BYTES:
        raise _DamagedError(f"a name of {len(name)} bytes")
    return bytes(name).partition(b"\0")[0].decode("utf-8", "replace")


# ---- version 5 (MATLAB 5 to 7.2): elements with a tag (type, size); each variable is one


def _matrices(file: BinaryIO, size: int, order: str) -> Iterator[_Matrix]:
    start, variables, searched = 128, 0, 0
    while start < size:
        variables += 1
        file.seek(start)
        kind, length = struct.unpack(order + "II", _read(file, 8))
        start += 8
        if kind not in (_MATRIX, _COMPRESSED) or length > size - start or variables > MAX_VARIABLES:
            raise _DamagedError(f"no variable at byte {start}, or too long a one, or more than {MAX_VARIABLES}")
        stream = _Stream(file, order, start, length, kind == _COMPRESSED)
        for name, shape, position, in_structure in _in_variable(stream, order, MAX_SEARCHED_BYTES - searched):
            yield _Matrix(name, shape, start, length, None, kind == _COMPRESSED, position, in_structure)
        searched += stream.position if kind == _COMPRESSED else 0
        start += length


def _in_variable(stream: _Stream, order: str, most: int) -> Iterator[tuple[str, tuple[int, ...], int, bool]]:
    """Name, shape, and position of the numbers, of each real numeric matrix in a variable."""
    kind, real, shape, name = _array_header(stream, order)
    if real:
        yield name, shape, stream.position, False
    if kind != _STRUCTURE or math.prod(shape) != 1:
        return
    (name_size,) = struct.unpack(order + "i", _part(stream, order, 4))
    names = _part(stream, order, MAX_VARIABLES * MAX_NAME_BYTES)
    if not 0 < name_size <= MAX_NAME_BYTES or len(names) % name_size or len(names) > MAX_VARIABLES * name_size:
        raise _DamagedError(f"structure {name} has {len(names)} bytes of field names of {name_size}")
    for i in range(0, len(names), name_size):
        field = f"{name}.{_text(names[i : i + name_size])}"
        kind, length = struct.unpack(order + "II", stream.read(8))
        if kind != _MATRIX:
            raise _DamagedError(f"{field} is no array")
        end = stream.position + length
        if length:
            _, real, shape, _ = _array_header(stream, order)
            if real:
                yield field, shape, stream.position, True
        if i + name_size < len(names):  # nothing behind the last field is looked for
            if stream.inflater and end > most:
                raise _DamagedError(
                    f"{field} and what comes before it unfold to {end} bytes or more, too many to search"
                )
            stream.skip(end - stream.position)


def _array_header(stream: _Stream, order: str) -> tuple[int, bool, tuple[int, ...], str]:
    """Class of an array, whether it is one of real numbers, its shape and its name."""
    flags, _ = struct.unpack(order + "II", _part(stream, order, 8))
    kind = flags & 0xFF
    shape: tuple[int, ...] = ()
    if kind != _OPAQUE:
        dimensions = _part(stream, order, 128)
        shape = struct.unpack(f"{order}{len(dimensions) // 4}i", dimensions)
        if len(shape) < 2 or min(shape) < 0:
            raise _DamagedError(f"an array of the dimensions {shape}")
    return kind, kind in _NUMERIC and not flags & (_COMPLEX | _LOGICAL), shape, _text(_part(stream, order, 1 << 16))


def _part(stream: _Stream, order: str, most: int) -> bytes | bytearray:
    """The next element of a header, of at most so many bytes."""
    _, size, small = _tag(stream, order)
    if size > most:
        raise _DamagedError(f"a name or dimensions of {size} bytes")
    return stream.read(size + -size % 8)[:size] if small is None else small


def _tag(stream: _Stream, order: str) -> tuple[int, int, bytes | None]:
    """Type and size of the next element, and its content where that lies in the tag itself: of up to four bytes."""
    tag = bytes(stream.read(8))
    kind, size = struct.unpack(order + "II", tag)
    if not kind >> 16:
        return kind, size, None
    kind, size = kind & 0xFFFF, kind >> 16
    if size > 4:
        raise _DamagedError(f"a small element of {size} bytes")
    return kind, size, tag[4 : 4 + size]


def _numbers(
    file: BinaryIO, matrix: _Matrix, file_size: int, source: str, order: str, max_bytes: int | None
) -> np.ndarray:
    stream = _Stream(file, order, matrix.start, matrix.size, matrix.compressed)
    stream.skip(matrix.position - stream.position)
    kind, size, small = _tag(stream, order)
    if kind not in _STORED or size != math.prod(matrix.shape) * np.dtype(_STORED[kind]).itemsize:
        raise _DamagedError(f"{matrix.name} is {matrix.shape}, but holds {size} bytes of {_STORED.get(kind, kind)}")
    refuse_bomb(size if matrix.compressed else 0, file_size, source, max_bytes)
    data = stream.read(size) if small is None else small
    if small is None:
        stream.skip(min(-size % 8, stream.left))
    if matrix.in_structure:
        refuse_bomb(stream.left if matrix.compressed else 0, file_size, source, max_bytes)
        stream.skip(stream.left)
    stream.finish()
    return np.frombuffer(data, order + _STORED[kind])


# ---- version 4: five integers, name, numbers


def _matrices_of_version_4(file: BinaryIO, size: int, source: str) -> Iterator[_Matrix]:
    start, variables = 0, 0
    while start < size or not variables:
        variables += 1
        file.seek(start)
        header = _read(file, 20)
        order = "<" if int.from_bytes(header[:4], "little") < 1000 else ">"
        kind, rows, columns, imaginary, name_size = struct.unpack(order + "5i", header)
        matrix_type, stored = kind % 10, kind // 10 - 100 * (order == ">")
        if (
            matrix_type > 2
            or stored not in range(len(_STORED_4))
            or min(rows, columns) < 0
            or imaginary not in (0, 1)
            or not 0 < name_size <= MAX_NAME_BYTES
            or variables > MAX_VARIABLES
        ):
            raise _DamagedError(f"no variable at byte {start}, or more than {MAX_VARIABLES}")
        name = _text(_read(file, name_size))
        start += 20 + name_size
        dtype = np.dtype(order + _STORED_4[stored])
        length = rows * columns * dtype.itemsize
        if length * (1 + imaginary) > size - start:
            raise EcgReadError(f"{source}: claims to hold {length} bytes in {name}, but has only {size - start} left")
        if matrix_type == 0 and not imaginary:
            yield _Matrix(name, (rows, columns), start, length, dtype)
        start += length * (1 + imaginary)
