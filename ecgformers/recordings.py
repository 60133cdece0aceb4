"""Which recordings a list of files and folders stands for, and one of them in a few lines."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ecgformers import EcgRecord

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


def described(record: "EcgRecord", heart_rate: float | None) -> Iterator[str]:
    """Leads, rate, units, range and heart rate of a recording, a line each."""
    missing = int(np.isnan(record.signal).sum())
    yield f"  leads       {' '.join(record.lead_names)}"
    yield f"  rate        {record.sampling_rate:g} Hz, {record.duration:g} s, {record.signal.shape[1]} samples a lead"
    yield f"  units       {', '.join(sorted(set(record.units)))} in the file, mV here"
    yield f"  range       {np.nanmin(record.signal):.2f} to {np.nanmax(record.signal):.2f} mV" + (
        f", {missing} samples not measured" if missing else ""
    )
    yield f"  heart rate  {'no reliable rhythm found' if heart_rate is None else f'{heart_rate:.0f} beats per minute'}"
