"""Which recordings a list of files and folders stands for."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

# Endings of files that hold a recording; what lies beside a header of the same name (.dat, .mat) belongs to it.
SUFFIXES = {".hea", ".dcm", ".mat", ".npy", ".npz", ".h5", ".hdf5", ".xml", ".edf", ".bdf", ".scp", ".ecg"}


def recordings(sources: Iterable[str | os.PathLike]) -> Iterator[str]:
    """Files as they are, and for each folder the recordings in it and below, in the order of their names.

    Raises:
        FileNotFoundError: a folder holds no recording.
    """
    for each in sources:
        source = os.fspath(each)
        if not os.path.isdir(source):
            yield source
            continue
        found = False
        for path in sorted(
            path for path in Path(source).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()
        ):
            if path.suffix.lower() == ".hea" or not path.with_suffix(".hea").exists():
                found = True
                yield str(path)
        if not found:
            raise FileNotFoundError(
                f"{source}: there is no recording in this folder (looked for {', '.join(sorted(SUFFIXES))})"
            )
