"""Formats of carts and Holters through PyPI's ecgdatakit (Apache-2.0), the extra `formats`; checked with 2.0.3.

HL7 aECG, GE MUSE, Philips Sierra, Mortara, SCP-ECG, EDF, ISHNE, MFER and AliveCor Kardia.  What that version does that
is not wanted of an ECG is mended here:
- Philips Sierra: the last second, in which the ECG ends and a calibration pulse follows, is given as ECG; it is cut
  off.
- a wrong checksum (SCP-ECG, ISHNE) is a warning; here it is an error, unless `verify_checksum=False`.
- EDAN and XLE files, whose scale its authors guessed, are refused.
- it reads any size; here the file is bounded before.
"""

import tempfile
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .record_ecg import RawEcg
from .units_ecg import EcgReadError

MAX_BYTES = 1 << 28  # of a file: a day of Holter in 3 leads takes a third
MIN_CALIBRATION = 0.3  # seconds in which all leads are the same

_MAGIC = {
    b"<": "XML",
    b"\xef\xbb\xbf<": "XML",
    b"\xff\xfe<": "XML",
    b"\xfe\xff\0<": "XML",
    b"0       ": "EDF",
    b"\xffBIOSEMI": "BDF",
    b"ISHNE": "ISHNE",
    b"MFR ": "MFER",
    b"@ MFR": "MFER",
    b"{": "JSON",
}
_GUESSED = ("EDANARCParser", "XLEParser")
_PATIENT = ("patient_id", "first_name", "last_name", "birth_date", "sex", "age")


def library_format(head: bytes, suffix: str) -> str | None:
    """The kind of file that begins with `head` (4096 bytes), if the library is the one to ask."""
    if head[16:22] == b"SCPECG" or suffix == ".scp":
        return "SCP-ECG"
    kinds = (kind for magic, kind in _MAGIC.items() if head.lstrip().startswith(magic) or head.startswith(magic))
    return next(kinds, {".mwf": "MFER", ".mfer": "MFER", ".mfr": "MFER", ".xle": "XLE", ".arc": "EDAN"}.get(suffix))


def read_library(
    file: BinaryIO, source: str, kind: str, part: Any = None, verify_checksum: bool = True, patient: bool = False
) -> RawEcg:
    """The recording in a file of `kind`, or with `part="median"` its median beat.

    Raises:
        ImportError: the extra `formats` is not installed.
        EcgReadError: the file is damaged, too large, or none of the formats above.
    """
    size = file.seek(0, 2)
    file.seek(0)
    if size > MAX_BYTES:
        raise EcgReadError(f"{source}: has {size} bytes, more than the {MAX_BYTES} that {kind} files may have here")
    if kind == "BDF":
        raise EcgReadError(f"{source}: is a BDF file; convert it to EDF first")
    try:  # transformers takes an import outside a try block for a requirement of every model on the Hub
        from ecgdatakit import FileParser
    except ImportError as error:
        raise ImportError(f'{source}: is a {kind} file; to read it: pip install "ecgformers[formats]"') from error
    path = Path(str(getattr(file, "name", "")))
    with nullcontext() if path.is_file() else tempfile.TemporaryDirectory(prefix="ecg-") as folder:
        if folder is not None:
            path = Path(folder) / f"content.{kind.lower()}"
            path.write_bytes(file.read())
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                found = FileParser.detect_format(path)
                if found is None:
                    raise EcgReadError(f"{source}: is {kind}, but no ECG of a format that is known")
                if found["parser"] in _GUESSED:
                    raise EcgReadError(
                        f"{source}: is a {found['name']} file, whose scale is not known; it is not read"
                    )
                record = FileParser.parse(path, auto_scale=False)
        except (EcgReadError, ImportError):
            raise
        except Exception as error:  # the library meets damaged files with errors of many classes
            raise EcgReadError(f"{source}: is not a readable {kind} file: {str(error)[:300]}") from error
    broken = [str(warning.message) for warning in told if warning.category.__name__ == "ChecksumWarning"]
    if broken and verify_checksum:
        raise EcgReadError(f"{source}: {broken[0]}; read it all the same with verify_checksum=False")
    if part not in (None, "median"):
        raise EcgReadError(f"{source}: has no part {part!r}; of {found['name']} files dataset='median' can be read")
    leads = record.leads if part is None else record.median_beats
    if not leads:
        raise EcgReadError(f"{source}: holds no {'ECG' if part is None else 'median beat'}")
    metadata: dict[str, Any] = {"format": found["name"]}
    if patient:
        metadata["patient"] = {name: str(getattr(record.patient, name)) for name in _PATIENT}
    columns = [_lead(lead) for lead in leads]
    if found["parser"] == "SierraXMLParser":
        samples = [column[0] for column in columns]
        end = _end_of_ecg(samples, float(leads[0].sampling_rate))
        if end is not None:
            metadata["trimmed"] = (0, samples[0].size - end)
            columns = [(values[:end], unit, gain, baseline) for values, unit, gain, baseline in columns]
    signal, units, gain, baseline = ([*column] for column in zip(*columns, strict=True))
    rates = [float(lead.sampling_rate) or None for lead in leads]
    alike = len(set(rates)) == 1 and len({row.size for row in signal}) == 1
    return RawEcg(
        np.stack(signal) if alike else signal,
        [lead.label for lead in leads],
        rates[0] if alike else rates,
        units,
        metadata,
        gain,
        baseline,
    )


def _lead(lead: Any) -> tuple[np.ndarray, str | None, float, float]:
    """Values (samples,) of a lead, their unit, and gain and baseline of its counts."""
    samples = np.asarray(lead.samples, np.float64)
    if not lead.is_raw:
        return samples, lead.units or None, 1.0, 0.0
    if not lead.resolution_unit or not lead.resolution:
        return samples, None, 1.0, 0.0
    return (
        samples * lead.resolution + lead.offset,
        lead.resolution_unit,
        1 / lead.resolution,
        -lead.offset / lead.resolution,
    )


def _end_of_ecg(leads: list[np.ndarray], rate: float) -> int | None:
    """The last whole second before the calibration pulse, in which all `leads`, of (samples,) each, are the same."""
    if len(leads) < 3 or len({lead.size for lead in leads}) > 1:
        return None
    signal = np.stack(leads)
    differs = np.flatnonzero((signal != signal[0]).any(axis=0))
    end = int(differs[-1]) + 1 if differs.size else 0
    pulse = signal[0, end:]
    return int(end // rate * rate) if end >= rate and pulse.size >= MIN_CALIBRATION * rate and np.any(pulse) else None
