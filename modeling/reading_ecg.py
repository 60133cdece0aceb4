"""Any ECG source -> `EcgRecord`: signal (leads, samples) in millivolts, lead names, sampling rate.

Research use only, not a medical device.
"""

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from .archives_ecg import holds_arrays, unpack
from .channels_ecg import describe
from .dicom_ecg import read_dicom, starts_data_set
from .hdf5_ecg import read_hdf5
from .leads_ecg import STANDARD_LEADS
from .library_ecg import library_format, read_library
from .matlab_ecg import read_matlab, starts_matlab
from .numpy_ecg import read_npy, read_npz
from .record_ecg import SIGNAL_COLUMNS, EcgRecord, RawEcg, as_array, lead_name, row_to_record
from .tables_ecg import looks_like_text, read_frame, read_parquet, read_text_table
from .units_ecg import EcgReadError, to_millivolts
from .wfdb_ecg import header_path, read_annotations, read_wfdb


def read_ecg(
    source: Any,
    *,
    lead_names: Sequence[str] | None = None,
    sampling_rate: float | None = None,
    units: str | Sequence[str] | None = None,
    leads: Sequence[str] | None = None,
    channels: Sequence[int | str] | None = None,
    dataset: int | str | None = None,
    index: int | None = None,
    verify_checksum: bool = True,
    keep_patient: bool = False,
    max_bytes: int | None = None,
    annotations: str | None = None,
) -> EcgRecord:
    """Read an ECG from any source.

    Args:
        source: one of
            - a WFDB record (PhysioNet, CinC challenges): its path with or without `.hea`, or its `.dat` or `.mat`
              file; signal formats 8 to 524, also of several segments (joined by lead name, gaps are NaN);
            - a DICOM ECG (`.dcm`), or a data set of pydicom: of several groups the original one with the most standard
              leads, and the leads that others add to it; `metadata` says which;
            - a MATLAB file of any version with `val`, or just one matrix (it may be a structure's), of shape (leads,
              samples); an HDF5 file with just one array of that shape;
            - `.npy` with a (leads, samples) array; `.npz` with the keys of the mapping below;
            - an array or tensor (leads, samples), or a mapping with `signal` or `array`, `lead_names`, `sampling_rate`
              and maybe `units`; masked samples are NaN;
            - a row of a data set that `datasets_scripts` built, integers with their gain and baseline;
            - a table (CSV, TSV, Parquet, pandas) whose columns are leads; `tables_ecg` says what it may say of itself;
            - with the extra `formats`: HL7 aECG, GE MUSE, Philips and Mortara XML, SCP-ECG, EDF, ISHNE, MFER, Kardia;
            - the content of such a file as `bytes` or as a file opened for reading bytes; a zip archive of one
              recording (for WFDB all its files);
            - an `EcgRecord`, which comes back as it is.
            Files are known by their content, not by their endings.
        lead_names: one name a channel of the source, or a lead of the record.  Like the next two, needed where the
            source does not say, and believed where it says otherwise.
        sampling_rate: in Hz.
        units: `"mV"`, `"uV"`, `"V"` or `"nV"`, one for all leads or one a lead.  Floating point numbers without units
            are taken as mV; integers are refused, as they are mostly ADC counts.
        leads: names of the leads to take, in this order.  By default all but the channels that are no ECG (pressures,
            respiration, markers, other units or rates), which `metadata["left_out"]` names.
        channels: the same by numbers (from 0) or by the source's own names.
        dataset: which part of a file that holds several: the name of a matrix or array of MATLAB and HDF5 files
            (`"ECG.data"`, `"ecg/tracings"`), number or label of a DICOM group, a member of a zip archive,
            `"median"` for the median beat that a cart stores beside the recording.
        index: which recording of an array (recordings, leads, samples), from 0.
        verify_checksum: refuse WFDB files that do not have the checksum in their header.
        keep_patient: put what the source says of the patient (name, id, age, ...) into `metadata`.
        max_bytes: how much the signal may take in memory; by default 100 times its file, or 256 MiB if that is more,
            and 4 GiB at most.
        annotations: ending of a WFDB annotation file beside the record, e.g. `"atr"`; seconds and symbols go into
            `metadata["annotations"]`, and `plot_ecg` shows them.

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
        if not (lead_names is sampling_rate is units is leads is channels is None):
            raise EcgReadError(f"{source.source}: is an EcgRecord already; change it with dataclasses.replace")
        return source
    options = ReadOptions(dataset, index, verify_checksum, keep_patient, max_bytes, annotations)
    label, raw = _read_any(source, options)
    if "format" in raw.metadata and lead_names is leads is channels is None:
        names = [lead_name(name or "") for name in raw.lead_names]
        if set(names).isdisjoint(STANDARD_LEADS):
            listed = ", ".join(names)[:300]
            raise EcgReadError(
                f"{label}: none of its channels ({listed}) has the name of a standard lead: pass leads="
            )
    if annotations is not None and "annotations" not in raw.metadata:
        raise EcgReadError(f"{label}: annotations= is of WFDB records alone")
    said = describe(
        raw,
        label,
        lead_names=lead_names,
        sampling_rate=sampling_rate,
        units=units,
        leads=leads,
        channels=channels,
    )
    if isinstance(raw.signal, np.ndarray) and said.channels == list(range(len(raw.signal))):
        signal = raw.signal  # (leads, samples)
    else:
        signal = np.stack([raw.signal[channel] for channel in said.channels])
    signal, lead_units = to_millivolts(signal, said.lead_names, said.units or None, label)
    metadata = dict(raw.metadata)
    if said.left_out:
        metadata["left_out"] = metadata.get("left_out", {}) | said.left_out
    return EcgRecord(
        signal,
        tuple(said.lead_names),
        said.sampling_rate,
        lead_units,
        label,
        metadata,
        tuple(raw.gain[channel] for channel in said.channels) if raw.gain else (),
        tuple(raw.baseline[channel] for channel in said.channels) if raw.baseline else (),
    )


class ReadOptions(NamedTuple):
    """What the readers of single formats are told; see `read_ecg`."""

    dataset: Any
    record: int | None
    verify_checksum: bool
    keep_patient: bool
    max_bytes: int | None
    annotations: str | None
    unpacked: bool = False  # from an archive


def _read_any(source: Any, options: ReadOptions) -> tuple[str, RawEcg]:
    """What the source is called, and what is in it."""
    if isinstance(source, str | os.PathLike):
        label = os.fspath(source)
        return label, _read_path(label, options)
    if isinstance(source, bytes | bytearray | memoryview):
        return "bytes", _read_file(BytesIO(source), "bytes", "", options)
    if hasattr(source, "read"):
        label = str(getattr(source, "name", None) or "file")
        if not isinstance(source.read(0), bytes):
            raise EcgReadError(f"{label}: is opened as text; open it with mode 'rb'")
        seekable = getattr(source, "seekable", bool)()
        return label, _read_file(source if seekable else BytesIO(source.read()), label, "", options)
    if type(source).__module__.startswith("pydicom."):
        return "data set", read_dicom(source, "data set", options.dataset, options.keep_patient)
    if isinstance(source, Mapping):
        return "mapping", _from_mapping("mapping", source)
    if hasattr(source, "columns") and hasattr(source, "__array__"):
        return "frame", read_frame(source, "frame")
    if hasattr(source, "__array__"):
        return "array", RawEcg(np.array(as_array(source)))
    raise EcgReadError(f"cannot read an ECG from {type(source).__name__}; read_ecg says what it takes")


def _from_mapping(label: str, fields: Mapping[str, Any]) -> RawEcg:
    if "array" in fields and "signal" not in fields:  # as the audio columns of `datasets` call it
        fields = {**fields, "signal": fields["array"]}
    if "signal" not in fields:
        raise EcgReadError(f"{label}: has no 'signal' among its keys {sorted(map(str, fields))}")
    signal = np.array(as_array(fields["signal"], f"{label}, its signal"))
    return RawEcg(signal, **{key: fields[key] for key in RawEcg._fields[1:4] if fields.get(key) is not None})


def _read_path(name: str, options: ReadOptions) -> RawEcg:
    if "://" in name or "::" in name:
        raise EcgReadError(f"{name}: is not a local file; download the record first")
    path = Path(name)
    header = header_path(path)
    if header.is_file():
        raw = read_wfdb(header, options.verify_checksum, options.max_bytes, options.keep_patient)
        if options.annotations is None:
            return raw
        return raw._replace(metadata={**raw.metadata, "annotations": read_annotations(header, options.annotations)})
    if not path.is_file():
        raise FileNotFoundError(f"{name}: there is no such file, nor {header}")
    with path.open("rb") as file:
        return _read_file(file, name, path.suffix.lower(), options)


def _read_file(file: BinaryIO, name: str, suffix: str, options: ReadOptions) -> RawEcg:
    """The recording in a seekable file; its ending counts only where its content does not tell the format."""
    file.seek(0)
    head = file.read(4096)
    file.seek(0)
    limit = options.max_bytes
    if head.startswith(_NPY) or suffix == ".npy":
        return RawEcg(read_npy(file, name))
    if suffix == ".npz" or (head.startswith(_ZIP) and holds_arrays(file)):
        return _from_mapping(name, read_npz(file, name, limit))
    if head.startswith((_ZIP, _GZIP)):
        return _read_archive(file, name, options)
    if suffix == ".mat" or starts_matlab(head):
        return read_matlab(file, name, options.dataset, limit)
    if head.startswith(_HDF5) or suffix in (".h5", ".hdf5"):
        return read_hdf5(file, name, options.dataset, options.record, max_bytes=limit)
    if suffix == ".dcm" or head[128:132] == b"DICM" or starts_data_set(head):
        return read_dicom(file, name, options.dataset, options.keep_patient)
    if kind := library_format(head, suffix):
        return read_library(file, name, kind, options.dataset, options.verify_checksum, options.keep_patient)
    if _WFDB_HEADER.match(head):
        raise EcgReadError(f"{name}: is but the header of a WFDB record; pass its path, or a zip of its files")
    if head.startswith(_PARQUET):
        return read_parquet(file, name, limit)
    if suffix not in (".hea", ".dat") and looks_like_text(head):
        return read_text_table(file, name, suffix, limit)
    raise EcgReadError(
        f"{name}: is not a WFDB record with its .hea, nor a file of DICOM, MATLAB, HDF5, NumPy, Parquet, CSV or "
        "another format that is known"
    )


_ZIP, _GZIP, _NPY, _HDF5, _PARQUET = b"PK\3\4", b"\x1f\x8b", b"\x93NUMPY", b"\x89HDF\r\n\x1a\n", b"PAR1"
_WFDB_HEADER = re.compile(rb"\S+[ \t]+\d+([ \t]+[\d.]+[^\n]*)?\r?\n\S+[ \t]+\d+(x\d+)?[ \t:+]")


def _read_archive(file: BinaryIO, name: str, options: ReadOptions) -> RawEcg:
    if options.unpacked:
        raise EcgReadError(f"{name}: is an archive in an archive; unpack it first")
    with tempfile.TemporaryDirectory(prefix="ecg-") as folder:
        member = None if options.dataset is None else str(options.dataset)
        path = unpack(file, name, Path(folder), member, options.max_bytes)
        try:
            return _read_path(str(path), options._replace(dataset=None, unpacked=True))
        except (EcgReadError, OSError) as error:  # it names the file that the user does not know
            raise type(error)(f"{name}: {str(error).replace(folder + os.sep, '')}") from error
