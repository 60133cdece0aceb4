"""Unpacking the one recording in a zip archive or a gzip file."""

import gzip
import lzma
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from .record_ecg import MAX_UNFOLDED_BYTES, refuse_bomb
from .units_ecg import EcgReadError

_BESIDE = (".json", ".txt", ".md", ".pdf", ".atr")  # what lies beside a recording
_DAMAGED = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    EOFError,
    ValueError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
)


def holds_arrays(file: BinaryIO) -> bool:
    """Whether a zip archive holds arrays of NumPy and nothing else, as `.npz` files do."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except _DAMAGED:
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


def unpack(file: BinaryIO, source: str, folder: Path, member: str | None = None, max_bytes: int | None = None) -> Path:
    """Unpack a recording, with the files beside it, into `folder`; returns where it lies.

    Args:
        file: a seekable binary file; source: names it in messages.
        member: of several recordings the one that is meant.

    Raises:
        EcgReadError: the archive is damaged or encrypted, unfolds beyond the reading budget, or holds several
            recordings, or none.
    """
    stored = file.seek(0, 2)
    file.seek(0)
    try:
        if file.read(2) == b"\x1f\x8b":
            file.seek(0)
            limit = max_bytes or max(MAX_UNFOLDED_BYTES, 100 * stored)
            with gzip.open(file) as content:
                data = content.read(limit + 1)
            refuse_bomb(len(data), stored, source, max_bytes)
            path = folder / (PurePosixPath(source).stem or "content")
            path.write_bytes(data)
            return path
        with zipfile.ZipFile(file) as archive:
            return _unzip(archive, source, folder, member, stored, max_bytes)
    except EcgReadError:
        raise
    except _DAMAGED as error:
        raise EcgReadError(f"{source}: is not a readable archive: {error}") from error


def _unzip(
    archive: zipfile.ZipFile, source: str, folder: Path, member: str | None, stored: int, max_bytes: int | None
) -> Path:
    files = {PurePosixPath(info.filename): info for info in archive.infolist() if not info.is_dir()}
    files = {path: info for path, info in files.items() if "__MACOSX" not in path.parts and path.name[0] != "."}
    headers = [path for path in files if path.suffix == ".hea"]
    found = headers or [path for path in files if path.suffix not in _BESIDE] or list(files)
    if member is not None:
        found = [path for path in files if member in (str(path), path.name, path.stem)]
        found = [path for path in found if path.suffix == ".hea"] or found
    if len(found) != 1:
        names = ", ".join(map(str, headers or files))
        raise EcgReadError(f"{source}: holds {len(found)} recordings, not one: pass dataset= one of {names[:500]}")
    beside = [path for path in files if path.parent == found[0].parent]
    refuse_bomb(sum(files[path].file_size for path in beside), stored, source, max_bytes)
    for path in beside:
        (folder / path.name).write_bytes(archive.read(files[path]))
    return folder / found[0].name
