"""What an ECG is in this package: signal in millivolts, lead names, sampling rate."""

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from .leads_ecg import canonical_lead_name
from .units_ecg import EcgReadError, check_sampling_rate, check_shape, millivolts

# The reading budget, as bytes of signal in float64: a record may unfold to the first of these, or to this many times
# what its file takes on the disk, and in no case to more than the last, which holds 24 h of 12 leads at 500 Hz.
MAX_UNFOLDED_BYTES = 1 << 26
MAX_UNFOLDING = 100
MAX_BYTES = 1 << 32

# Of a row of a data set that `datasets_scripts` built; the signal in them is (samples, leads), as stored.
SIGNAL_COLUMNS = ("signal", "gain", "baseline", "units", "lead_names", "sampling_rate")

_BY_LEAD = ("units", "gain", "baseline")

_IDENTIFYING = re.compile(
    r"(\b|_)(sur|first|last|vor|nach)?(name|patients?|ids?|mrn|ssn|birth\w*|geburts\w*|born|dob|address|street|city|phone"
    r"|e-?mail|insurance|accession|physician|doctor|technician|operator|nurse|hospital|institution)(\b|_)",
    re.IGNORECASE,
)


def lead_name(name: str) -> str:
    """The standard name of a standard lead; any other lead (the X, Y, Z of Frank) keeps its own."""
    try:
        return canonical_lead_name(name)
    except ValueError:
        return name.strip()


@dataclass(frozen=True, eq=False, repr=False)
class EcgRecord:
    """One ECG recording: `record["II"]`, `record[["I", "II"]]`, `record[2.5:5]` (seconds), `record["II", 2.5:5]`.

    Attributes:
        signal: (leads, samples) float64 (float32 where the source is float32), in millivolts; NaN = not measured.
        lead_names: one name a lead; standard leads under their standard names (`leads_ecg.STANDARD_LEADS`).
        sampling_rate: samples per second and lead, in Hz.
        units: the unit each lead had in the source, before the conversion to millivolts.
        source: where the record came from; names it in messages.
        metadata: what else the source says: `comments` of a WFDB header, `left_out` (channels that are no ECG or were
            not chosen, and why), `annotations` (seconds and symbols).  Nothing that names the patient,
            unless it was read with `keep_patient=True`, which adds `patient`.
        gain, baseline: of integers in the source, one each a lead: integer = value in `units` * gain + baseline.

    Raises:
        EcgReadError: when the fields do not make an ECG.
    """

    signal: np.ndarray
    lead_names: tuple[str, ...]
    sampling_rate: float
    units: tuple[str, ...] = ()
    source: str = "array"
    metadata: dict[str, Any] = field(default_factory=dict)
    gain: tuple[float, ...] = ()
    baseline: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_shape(self.signal, self.lead_names, self.source)
        if self.signal.dtype not in (np.float32, np.float64):
            raise EcgReadError(f"{self.source}: the signal must be float32 or float64, not {self.signal.dtype}")
        for i, name in enumerate(self.lead_names):
            if name in self.lead_names[:i]:
                raise EcgReadError(f"{self.source}: lead {name} occurs twice; leads are told apart by name")
        check_sampling_rate(self.sampling_rate, self.source)
        infinite = np.isinf(self.signal).any(axis=1)
        if infinite.any():
            raise EcgReadError(f"{self.source}: lead {self.lead_names[infinite.argmax()]} holds infinite values")

    @property
    def duration(self) -> float:
        """Length of the recording in seconds."""
        return self.signal.shape[1] / self.sampling_rate

    def __repr__(self) -> str:
        leads = " ".join(self.lead_names[:12]) + (" ..." if len(self.lead_names) > 12 else "")
        return f"EcgRecord({leads}; {self.sampling_rate:g} Hz, {self.duration:g} s; {self.source!r})"

    def __getitem__(self, key: Any) -> "EcgRecord":
        """The leads with these names, the part between these seconds, or both.

        Raises:
            KeyError: there is no such lead.
            IndexError: there is nothing between these seconds.
        """
        names, seconds = self.lead_names, slice(None)
        if isinstance(key, slice):
            seconds = key
        elif isinstance(key, tuple) and len(key) == 2 and isinstance(key[1], slice):
            names, seconds = key
        else:
            names = key
        wanted = [lead_name(name) for name in ([names] if isinstance(names, str) else names)]
        absent = [name for name in wanted if name not in self.lead_names]
        if absent:
            raise KeyError(f"{self.source}: has no lead {', '.join(absent)} among {', '.join(self.lead_names)}")
        rows = [self.lead_names.index(name) for name in wanted]
        start, stop = seconds.start or 0, self.duration if seconds.stop is None else min(seconds.stop, self.duration)
        first, last = round(start * self.sampling_rate), round(stop * self.sampling_rate)
        if not 0 <= first < last or seconds.step is not None:
            raise IndexError(f"{self.source}: has no part from {start:g} to {stop:g} s; it lasts {self.duration:g} s")
        metadata = dict(self.metadata)
        if "annotations" in metadata:
            begin = first / self.sampling_rate
            metadata["annotations"] = tuple(
                (time - begin, symbol) for time, symbol in metadata["annotations"] if start <= time < stop
            )
        by_lead: dict[str, Any] = {
            name: tuple(getattr(self, name)[row] for row in rows) for name in _BY_LEAD if getattr(self, name)
        }
        signal = self.signal[rows, first:last]
        return replace(self, signal=signal, lead_names=tuple(wanted), metadata=metadata, **by_lead)

    def resample(self, sampling_rate: float) -> "EcgRecord":
        """The recording at another rate; around samples that were not measured, nothing is."""
        from .filtering_ecg import resample

        check_sampling_rate(sampling_rate, self.source)
        missing = np.isnan(self.signal)
        times = np.arange(self.signal.shape[1])
        bridged = self.signal.copy()
        for row, gaps in zip(bridged, missing, strict=True):
            if gaps.any():
                row[gaps] = 0 if gaps.all() else np.interp(times[gaps], times[~gaps], row[~gaps])
        signal = resample(bridged, self.sampling_rate, sampling_rate)
        if missing.any():
            places = np.arange(signal.shape[1]) * (self.sampling_rate / sampling_rate)
            for place in (np.floor(places), np.ceil(places)):
                signal[missing[:, np.minimum(place.astype(int), times[-1])]] = np.nan
        return replace(self, signal=signal, sampling_rate=sampling_rate, gain=(), baseline=())

    def plot(self, **options: Any) -> Any:
        """`plotting_ecg.plot_ecg` of this recording."""
        from .plotting_ecg import plot_ecg

        return plot_ecg(self, **options)

    def _repr_png_(self) -> bytes:
        content = BytesIO()
        self.plot().savefig(content, format="png", dpi=80)
        return content.getvalue()


class RawEcg(NamedTuple):
    """An ECG as its source has it, with all channels; empty or None = the source does not say."""

    signal: np.ndarray | Sequence[np.ndarray]  # (channels, samples) in `units`, or (samples,) each where they differ
    lead_names: Sequence[str | None] = ()
    sampling_rate: float | Sequence[float | None] | None = None  # one for all channels, or one each
    units: Sequence[str | None] = ()  # None = no gain, or no unit: the values are counts
    metadata: Mapping[str, Any] = MappingProxyType({})
    gain: Sequence[float] = ()
    baseline: Sequence[float] = ()


def as_array(values: Any, source: str = "array") -> np.ndarray:
    """Any array or tensor as an ndarray; masked samples are NaN, types that NumPy lacks (bfloat16) become float32.

    Raises:
        EcgReadError: it is no array.
    """
    try:
        if isinstance(values, np.ma.MaskedArray):
            if not np.ma.is_masked(values):
                return np.asarray(values.data)
            return np.ma.filled(values if values.dtype.kind == "f" else values.astype(np.float64), np.nan)
        if hasattr(values, "detach"):  # of torch, on any device, also with gradients
            values = values.detach().cpu()
            values = values.float() if values.is_floating_point() and values.element_size() < 4 else values
        array = np.asarray(values)
        return array.astype(np.float32) if array.dtype.name in ("bfloat16", "float8_e4m3fn") else array
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise EcgReadError(f"{source}: is not an array (leads, samples): {error}") from error


def decode_text(content: bytes) -> str:
    """Text in UTF-8, with or without byte order mark, in UTF-16 with one, else in Latin-1."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def without_patient(lines: Iterable[str]) -> tuple[str, ...]:
    """Those lines of free text whose key ("Name: ...") does not announce a person."""
    return tuple(line for line in lines if not _IDENTIFYING.search(re.split("[:=]", line)[0]))


def is_voltage(unit: str) -> bool:
    """Whether `millivolts` knows the unit."""
    try:
        return millivolts(unit) > 0
    except ValueError:
        return False


def row_to_record(row: Mapping[str, Any]) -> EcgRecord:
    """The ECG of a row in millivolts, exactly what wfdb reads of its source, as `EcgFeatureExtractor` takes it.

    Args:
        row: of a data set that `datasets_scripts` built, its columns Python lists or numpy arrays
            (`dataset.with_format("numpy")` is the fast way); columns beside `SIGNAL_COLUMNS` become the record's
            metadata.
    """
    stored = np.asarray(row["signal"])  # (samples, leads)
    scale = np.array([millivolts(unit) for unit in row["units"]])
    signal = (stored - np.asarray(row["baseline"], np.float64)) / np.asarray(row["gain"], np.float64) * scale
    if stored.dtype == np.float32:
        signal = signal.astype(np.float32)
    metadata = {name: value for name, value in row.items() if name not in SIGNAL_COLUMNS}
    return EcgRecord(
        signal=np.ascontiguousarray(signal.T),  # (leads, samples)
        lead_names=tuple(str(name) for name in row["lead_names"]),
        sampling_rate=float(row["sampling_rate"]),
        units=tuple(str(unit) for unit in row["units"]),
        source=f"{row.get('source')} (record {row.get('record_id')})",
        metadata=metadata,
        gain=tuple(map(float, row["gain"])),
        baseline=tuple(map(float, row["baseline"])),
    )


def refuse_bomb(unfolded: int, stored: int, source: Any, max_bytes: int | None = None) -> None:
    """Raise `EcgReadError` for a source that claims to hold more than the reading budget, before it is read.

    Args:
        unfolded: bytes of its signal in float64; stored: bytes of its file.
        max_bytes: the budget, instead of the constants above.
    """
    limit = max_bytes or min(max(MAX_UNFOLDED_BYTES, MAX_UNFOLDING * stored), MAX_BYTES)
    if unfolded > limit:
        raise EcgReadError(
            f"{source}: claims to hold {unfolded} bytes of signal in {stored} bytes of data; if you trust it, pass "
            f"max_bytes={unfolded}"
        )


def stored_bytes(path: Path) -> int:
    """What a file takes on the disk: less than its length where it has holes."""
    status = path.stat()
    blocks = getattr(status, "st_blocks", None)
    return status.st_size if blocks is None or status.st_size <= 4096 else min(status.st_size, 512 * blocks)
