"""Any ECG source -> `EcgRecord`: signal (leads, samples) in millivolts, lead names, sampling rate.

Research use only, not a medical device.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .dicom_ecg import read_dicom
from .hdf5_ecg import read_hdf5
from .leads_ecg import lead_name
from .matlab_ecg import read_matlab
from .numpy_ecg import read_npy, read_npz
from .record_ecg import SIGNAL_COLUMNS, EcgReadError, EcgRecord, RawEcg, row_to_record, to_millivolts
from .wfdb_ecg import header_path, read_wfdb


def read_ecg(
    source: Any,
    *,
    lead_names: Sequence[str] | None = None,
    sampling_rate: float | None = None,
    units: str | Sequence[str] | None = None,
    verify_checksum: bool = True,
) -> EcgRecord:
    """Read an ECG from any source.

    Args:
        source: one of
            - a WFDB record (PhysioNet, CinC challenges): its path with or without `.hea`, or its `.dat` or `.mat`
              file; signal formats 8 to 524, also of several segments (joined by lead name, gaps are NaN);
            - a DICOM ECG (`.dcm`): of several groups the original one with the most leads, `metadata` says which;
            - a MATLAB file of any version with `val`, or just one matrix (it may be a structure's), of shape (leads,
              samples); an HDF5 file with just one array of that shape;
            - `.npy` with a (leads, samples) array; `.npz` with the keys of the mapping below;
            - an array (leads, samples), or a mapping with `signal` or `array`, `lead_names`, `sampling_rate` and maybe
              `units`;
            - a row of a data set that `datasets_scripts` built, integers with their gain and baseline;
            - an `EcgRecord`, which comes back as it is.
        lead_names: one name a lead.  Like the next two, needed where the source does not say, and believed where it
            says otherwise.
        sampling_rate: in Hz.
        units: `"mV"`, `"uV"`, `"V"` or `"nV"`, one for all leads or one a lead.  Floating point numbers without units
            are taken as mV; integers are refused, as they are mostly ADC counts.
        verify_checksum: refuse WFDB files that do not have the checksum in their header.

    Returns:
        The record, standard leads under their standard names, other leads under the source's.  Samples a source marks
        as invalid are NaN.

    Raises:
        EcgReadError: the content is damaged, ambiguous, incomplete or not an ECG.
        OSError: a file is missing (`FileNotFoundError`) or cannot be read.

    Only the named file, and for WFDB files beside it, are read: never the network, never a pickle.
    """
    if isinstance(source, Mapping) and set(SIGNAL_COLUMNS) <= source.keys():
        source = row_to_record(source)
    if isinstance(source, EcgRecord):
        if not (lead_names is sampling_rate is units is None):
            raise EcgReadError(f"{source.source}: is an EcgRecord already; change it with dataclasses.replace")
        return source
    if isinstance(source, str | os.PathLike):
        label = os.fspath(source)
        raw = _read_file(label, verify_checksum)
    elif isinstance(source, Mapping):
        label, raw = "mapping", _from_mapping("mapping", source)
    elif hasattr(source, "__array__"):
        label, raw = "array", RawEcg(np.asarray(source))
    else:
        raise EcgReadError(f"cannot read an ECG from {type(source).__name__}; read_ecg says what it takes")
    names = raw.lead_names if lead_names is None else lead_names
    leads = tuple(lead_name(str(name or "")) for name in ([names] if isinstance(names, str) else names))
    if not leads or not all(leads):
        raise EcgReadError(f"{label}: does not say its lead names: pass lead_names=('I', 'II', ...)")
    sampling_rate = raw.sampling_rate if sampling_rate is None else sampling_rate
    if sampling_rate is None:
        raise EcgReadError(f"{label}: does not say its sampling rate: pass sampling_rate= in Hz")
    signal, lead_units = to_millivolts(raw.signal, leads, raw.units if units is None else units, label)
    return EcgRecord(signal, leads, sampling_rate, lead_units, label, dict(raw.metadata))


def _from_mapping(label: str, fields: Mapping[str, Any]) -> RawEcg:
    if "array" in fields and "signal" not in fields:  # as the audio columns of `datasets` call it
        fields = {**fields, "signal": fields["array"]}
    if "signal" not in fields:
        raise EcgReadError(f"{label}: has no 'signal' among its keys {sorted(map(str, fields))}")
    try:
        signal = np.asarray(fields["signal"])
    except ValueError as error:
        raise EcgReadError(f"{label}: its signal is not an array (leads, samples): {error}") from error
    return RawEcg(signal, **{key: fields[key] for key in RawEcg._fields[1:4] if fields.get(key) is not None})


def _read_file(name: str, verify_checksum: bool) -> RawEcg:
    if "://" in name or "::" in name:
        raise EcgReadError(f"{name}: is not a local file; download the record first")
    path = Path(name)
    header = header_path(path)
    if header.is_file():
        return read_wfdb(header, verify_checksum)
    if not path.is_file():
        raise FileNotFoundError(f"{name}: there is no such file, nor {header}")
    with path.open("rb") as file:
        if path.suffix == ".mat":
            return read_matlab(file, name)
        if path.suffix in (".h5", ".hdf5"):
            return read_hdf5(file, name)
        if path.suffix == ".npy":
            return RawEcg(read_npy(file, name))
        if path.suffix == ".npz":
            return _from_mapping(name, read_npz(file, name))
        if path.suffix == ".dcm" or file.read(132)[128:] == b"DICM":
            return read_dicom(path)
    raise EcgReadError(f"{name}: is not a WFDB record with its .hea, DICOM, .mat, .h5, .npy or .npz file")
