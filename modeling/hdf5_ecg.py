"""Reading one array of an HDF5 file through h5py, which MATLAB 7.3 files are as well.

HDF5 can point to other files (external and virtual storage, external links), promise what it does not hold (numbers
that were never written read as 0) and unfold to any size.  All of this is looked at before a number is read.
"""

import math
from typing import Any, BinaryIO

import numpy as np

from .record_ecg import RawEcg, refuse_bomb
from .units_ecg import EcgReadError

MAX_OBJECTS = 1000  # arrays and groups looked at
_FILTERS = {1, 2, 3, 5, 6}  # deflate, shuffle, Fletcher's checksum, NBit, scale-offset: those of HDF5 itself


def read_hdf5(
    file: BinaryIO,
    source: str,
    dataset: str | None = None,
    index: int | None = None,
    *,
    matlab: bool = False,
    max_bytes: int | None = None,
) -> RawEcg:
    """The ECG in an HDF5 file: the array `dataset`, or the only one of numbers that has the right number of axes.

    Args:
        file: a seekable binary file.
        source: names it in messages.
        dataset: the array's name, e.g. "tracings" or "ecg/lead_voltages".
        index: of the recording, where the first axis of an array of three axes counts recordings.
        matlab: it is a MATLAB 7.3 file: `val` is preferred, fields are named structure.field, and axes are turned
            back to their order in MATLAB.
        max_bytes: see `record_ecg.refuse_bomb`.

    Raises:
        EcgReadError: the file is damaged, points to other files, or holds no such array, or more than one.
    """
    try:  # transformers takes an import outside a try block for a requirement of every model on the Hub
        import h5py

        size = file.seek(0, 2)
        with h5py.File(file, "r") as content:
            arrays = _arrays(content, source, h5py)
            if matlab:
                arrays = {name.replace("/", "."): array for name, array in arrays.items()}
            name = dataset or (
                "val" if matlab and "val" in arrays else _only(arrays, 2 if index is None else 3, source)
            )
            if name not in arrays:
                raise EcgReadError(f"{source}: has no array of numbers {name!r}, but {sorted(arrays)[:20]}")
            signal = _read(arrays[name], name, index, source, size, max_bytes)
    except (EcgReadError, ImportError):
        raise
    except Exception as error:  # h5py meets damaged files with errors of many classes
        raise EcgReadError(f"{source}: is not a readable HDF5 file: {error!r}") from error
    return RawEcg(signal.T if matlab else signal, metadata={"variable": name})


def _arrays(content: Any, source: str, h5py: Any) -> dict[str, Any]:
    """The arrays of numbers in a file, by their path; links are not followed."""
    arrays, groups, seen = {}, [("", content)], 0
    for prefix, group in groups:  # grows
        for key in group:
            seen += 1
            if seen > MAX_OBJECTS:
                raise EcgReadError(f"{source}: holds more than {MAX_OBJECTS} arrays and groups")
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                continue
            item = group[key]
            if isinstance(item, h5py.Group):
                groups.append((f"{prefix}{key}/", item))
            elif isinstance(item, h5py.Dataset) and item.dtype.kind in "fiu" and item.shape:
                arrays[prefix + key] = item
    return arrays


def _only(arrays: dict[str, Any], axes: int, source: str) -> str:
    likely = [name for name, array in arrays.items() if array.ndim == axes and math.prod(array.shape) > 1]
    if len(likely) != 1:
        raise EcgReadError(
            f"{source}: name the array (dataset=): of numbers in {axes} axes it has {sorted(likely)[:20]}"
        )
    return likely[0]


def _read(array: Any, name: str, index: int | None, source: str, stored: int, max_bytes: int | None) -> np.ndarray:
    if array.external or array.is_virtual:
        raise EcgReadError(f"{source}: the numbers of {name} lie in other files, which are not opened")
    shape, chunks = array.shape, array.chunks
    filters = array.id.get_create_plist()
    unknown = {filters.get_filter(i)[0] for i in range(filters.get_nfilters())} - _FILTERS
    if unknown:
        raise EcgReadError(f"{source}: {name} is compressed by {unknown}, which HDF5 itself does not have")
    if index is not None:
        if len(shape) != 3 or not 0 <= index < shape[0]:
            raise EcgReadError(f"{source}: {name} is {shape}, which has no recording {index}")
        shape = shape[1:]
    elif len(shape) == 3:
        raise EcgReadError(f"{source}: {name} is {shape}; say which recording is meant (index=)")
    itemsize = array.dtype.itemsize
    refuse_bomb(max(math.prod(shape), math.prod(chunks or ())) * itemsize, stored, source, max_bytes)
    if chunks is None:
        whole = array.id.get_storage_size() == array.size * itemsize
    else:
        whole = array.id.get_num_chunks() == math.prod(
            -(-n // chunk) for n, chunk in zip(array.shape, chunks, strict=True)
        )
    if not whole:
        raise EcgReadError(f"{source}: {name} is {array.shape}, but not all of its numbers were written")
    return array[() if index is None else index]
