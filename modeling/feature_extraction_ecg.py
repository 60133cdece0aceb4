"""The one path of an ECG: any recording becomes what a model was trained on.

Leads are matched by name, units scaled, limb leads completed, bad input refused or repaired; then the signal is
filtered, resampled, cropped, normalised and padded.  Every choice is a setting that is saved with the model.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from numbers import Integral, Number, Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from transformers import BatchFeature, FeatureExtractionMixin

from .filtering_ecg import bandpass_filter, resample
from .leads_ecg import LIMB_LEADS, STANDARD_LEADS, canonical_lead_name, derive_limb_leads
from .quality_ecg import (
    LEFT_OUT_SECONDS,
    MAX_VOLTAGE,
    EcgQualityError,
    EcgQualityWarning,
    Finding,
    Leads,
    beyond_amplifier,
    extremes,
    flat_leads,
    implausible_scale,
    inconsistent_leads,
    list_leads,
    longest_run,
    saturated_leads,
    unusual_gain,
)
from .units_ecg import check_sampling_rate, check_shape, to_millivolts

POLICIES = {
    "missing_leads": ("error", "zero_fill"),
    "unknown_leads": ("drop", "error"),
    "non_finite": ("error", "interpolate"),
    "out_of_range": ("error", "interpolate", "ignore"),
    "implausible_scale": ("error", "warn", "ignore"),
    "unusual_gain": ("warn", "error", "ignore"),
    "flat_leads": ("warn", "error", "zero_fill", "ignore"),
    "saturated_leads": ("warn", "error", "ignore"),
    "inconsistent_leads": ("warn", "error", "ignore"),
    "short_recordings": ("error", "pad"),
    "long_recordings": ("warn", "error", "ignore"),
}
"""The policies of `EcgFeatureExtractor`, the values each may have, its default first."""

RATES = (20.0, 1e6)  # Hz; outside, what is given cannot be an ECG's sampling rate
MAX_SAMPLES = 10**8  # of a model's input
LARGEST_VALUE = 1e15  # in any unit; beyond, single precision overflows


def standardize(signal: np.ndarray, means: ArrayLike, scales: ArrayLike) -> np.ndarray:
    """(x - mean) / scale lead by lead, of `signal` (..., leads, samples); scales are taken as 1e-8 at least."""
    result = signal - np.asarray(means, dtype=np.float64)[:, None]
    result /= np.maximum(np.asarray(scales, dtype=np.float64), 1e-8)[:, None]
    return result


class _Ecg(NamedTuple):
    signal: np.ndarray  # (leads, samples), float64, mV
    lead_names: tuple[str, ...]
    sampling_rate: float
    source: str


Report = Callable[[Finding], None]


class EcgFeatureExtractor(FeatureExtractionMixin):
    r"""Turns ECG recordings into the input of one model.

    Args:
        lead_names: the leads of the model, in its order.
        sampling_rate: of the model's input, in Hz.
        num_samples: length of the model's input; longer recordings are cropped, shorter ones padded with 0.
        bandpass: `[low, high]` in Hz, filtered at the source's rate (`bandpass_filter`), or None.
        normalization: `"min_max"` (one minimum and maximum for the record), `"standard"` (`lead_means`, `lead_scales`)
            or `"none"` (mV).
        lead_means, lead_scales: one a lead, in mV, in the order of `lead_names`; for `"standard"` alone.
        pad_before_normalization: pad with 0 mV before normalising, so that padding takes part in it (MELP's protocol
            for CPSC 2018); otherwise the real samples are normalised and padding is 0.
        crop: which part of a longer recording is kept, `"start"` or `"center"`.
        min_duration: in seconds; see `short_recordings`.
        max_gap: in seconds; see `non_finite`.
        missing_leads: `"error"`, or `"zero_fill"`: 0 after normalisation and 0 in `lead_mask`.  Limb leads that follow
            from two others are computed in any case and count as measured.
        unknown_leads: `"drop"` or `"error"`, for names that are not among the twelve standard leads.
        non_finite: `"error"`, or `"interpolate"`: NaN and infinite samples are bridged linearly, for gaps up to
            `max_gap`; a lead with a longer one is missing.
        out_of_range: `"error"`, `"interpolate"` (as for `non_finite`) or `"ignore"`, for samples beyond what an
            amplifier gives (`MAX_VOLTAGE`) in a lead whose scale is plausible otherwise.
        implausible_scale: `"error"`, `"warn"` or `"ignore"`, for amplitudes that suggest a wrong unit or gain.
        unusual_gain: `"warn"`, `"error"` or `"ignore"`, for deflections ten times smaller or larger than a heart's.
        flat_leads: `"warn"`, `"error"`, `"zero_fill"` (as for missing leads) or `"ignore"`.
        saturated_leads: `"warn"`, `"error"` or `"ignore"`, for leads cut off at a rail.
        inconsistent_leads: `"warn"`, `"error"` or `"ignore"`, for limb leads that contradict each other
            (`limb_lead_conflict`).
        short_recordings: `"error"` or `"pad"`, below `min_duration`.
        long_recordings: `"warn"`, `"error"` or `"ignore"`, where cropping leaves half a second or more out.

    The limits of these checks are the constants of `quality_ecg.py`, each with its reason.
    Whatever is repaired or doubted is told by an `EcgQualityWarning`; whatever a policy refuses, by an
    `EcgQualityError` that names the record, the lead and the remedy.
    """

    _auto_class: Any = "AutoFeatureExtractor"  # what register_for_auto_class would set, and load torch for it
    model_input_names = ["input_values", "lead_mask", "sample_mask"]
    padding_value = 0.0  # asked for by pipelines when they batch

    def __init__(
        self,
        *,
        lead_names: Sequence[str] = STANDARD_LEADS,
        sampling_rate: float = 500,
        num_samples: int = 5000,
        bandpass: Sequence[float] | None = None,
        normalization: str = "none",
        lead_means: Sequence[float] | None = None,
        lead_scales: Sequence[float] | None = None,
        pad_before_normalization: bool = False,
        crop: str = "start",
        min_duration: float = 2.5,
        max_gap: float = 0.05,
        missing_leads: str = "error",
        unknown_leads: str = "drop",
        non_finite: str = "error",
        out_of_range: str = "error",
        implausible_scale: str = "error",
        unusual_gain: str = "warn",
        flat_leads: str = "warn",
        saturated_leads: str = "warn",
        inconsistent_leads: str = "warn",
        short_recordings: str = "error",
        long_recordings: str = "warn",
        **kwargs: Any,
    ):
        kwargs.pop("feature_extractor_type", None)
        unknown = kwargs.keys() - {"auto_map", "processor_class"}
        if unknown:
            raise TypeError(f"EcgFeatureExtractor has no setting {', '.join(sorted(unknown))}")
        super().__init__(**kwargs)
        self.lead_names = [canonical_lead_name(name) for name in lead_names]
        self.sampling_rate = sampling_rate
        self.num_samples = num_samples
        self.bandpass = None if bandpass is None else [float(edge) for edge in bandpass]
        self.normalization = normalization
        self.lead_means = None if lead_means is None else [float(mean) for mean in lead_means]
        self.lead_scales = None if lead_scales is None else [float(scale) for scale in lead_scales]
        self.pad_before_normalization = pad_before_normalization
        self.crop = crop
        self.min_duration = min_duration
        self.max_gap = max_gap
        self.missing_leads = missing_leads
        self.unknown_leads = unknown_leads
        self.non_finite = non_finite
        self.out_of_range = out_of_range
        self.implausible_scale = implausible_scale
        self.unusual_gain = unusual_gain
        self.flat_leads = flat_leads
        self.saturated_leads = saturated_leads
        self.inconsistent_leads = inconsistent_leads
        self.short_recordings = short_recordings
        self.long_recordings = long_recordings
        self._validate()

    def _validate(self) -> None:
        choices = POLICIES | {"normalization": ("min_max", "standard", "none"), "crop": ("start", "center")}
        for setting, values in choices.items():
            if getattr(self, setting) not in values:
                raise ValueError(f"{setting}={getattr(self, setting)!r} is none of {', '.join(map(repr, values))}")
        if not self.lead_names or len(set(self.lead_names)) < len(self.lead_names):
            raise ValueError(f"lead_names must name each lead once, not {self.lead_names}")
        low, high = RATES
        if not (_is_number(self.sampling_rate) and low <= self.sampling_rate <= high):
            raise ValueError(f"sampling_rate must be positive, {low:g} to {high:g} Hz, not {self.sampling_rate!r}")
        if isinstance(self.num_samples, bool) or not isinstance(self.num_samples, Integral):
            raise ValueError(f"num_samples must be a whole number, not {self.num_samples!r}")
        if not 0 < self.num_samples <= MAX_SAMPLES:
            raise ValueError(f"num_samples must be positive and at most {MAX_SAMPLES}, not {self.num_samples}")
        for setting in ("min_duration", "max_gap"):
            value = getattr(self, setting)
            if not (_is_number(value) and value >= 0):
                raise ValueError(f"{setting} must be a number of seconds, not {value!r}")
        if self.bandpass is not None and not (
            len(self.bandpass) == 2 and all(map(_is_number, self.bandpass)) and self.bandpass[0] < self.bandpass[1] > 0
        ):
            raise ValueError(f"bandpass must be two frequencies [low, high] in Hz or None, not {self.bandpass}")
        for setting in ("lead_means", "lead_scales"):
            values = getattr(self, setting)
            if (values is not None) != (self.normalization == "standard"):
                raise ValueError(f"{setting} belongs to normalization='standard', which needs it")
            if values is None:
                continue
            if len(values) != len(self.lead_names):
                raise ValueError(f"{setting} has {len(values)} values for {len(self.lead_names)} leads")
            least = 0.0 if setting == "lead_scales" else -LARGEST_VALUE
            for name, value in zip(self.lead_names, values, strict=True):
                if not least <= value <= LARGEST_VALUE:
                    raise ValueError(f"{setting} of lead {name} is {value:g}, which is no {setting[5:-1]} in mV")

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        if "auto_map" in output:  # saving a processor writes its own entry here too, which would follow us elsewhere
            output["auto_map"] = {name: path for name, path in output["auto_map"].items() if name == self._auto_class}
        return output

    def __call__(
        self,
        ecg: Any,
        sampling_rate: float | Sequence[float] | None = None,
        lead_names: Sequence[str] | Sequence[Sequence[str]] | None = None,
        units: str | Sequence[str] | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Prepares one recording or a batch; recordings of a batch may differ in length, rate and leads.

        Args:
            ecg: an array, tensor or nested list (leads, samples), a recording (anything with `signal` in mV,
                `lead_names`, `sampling_rate` and, at best, `source`; such as `EcgRecord`), the path of a file or
                whatever else `read_ecg` takes, a list of these, or an array (batch, leads, samples).
            sampling_rate: of arrays, in Hz: one for all or one each; of files that do not say theirs.
            lead_names: likewise: one list for all or one each.
            units: likewise: `"nV"`, `"uV"`, `"mV"` or `"V"`, one for all or one a lead; mV when not given.
            return_tensors: `"pt"`, or `"np"` (also the default).

        Returns:
            `input_values` (batch, leads, num_samples) float32; `lead_mask` (batch, leads) int64, 1 = measured or
            computed from measured leads; `sample_mask` (batch, num_samples) int64, 1 = real sample, 0 = padding.

        Raises:
            EcgQualityError: for what a policy refuses.
            ValueError, TypeError: for input that is not an ECG with known leads, rate and units.
        """
        recordings = self._recordings(ecg, sampling_rate, lead_names, units)
        ignored = frozenset(kind for kind in POLICIES if getattr(self, kind) == "ignore")
        shape = len(recordings), len(self.lead_names), self.num_samples
        input_values = np.zeros(shape, dtype=np.float32)
        lead_mask, sample_mask = np.zeros(shape[:2], dtype=np.int64), np.zeros(shape[::2], dtype=np.int64)
        for i, recording in enumerate(recordings):
            report = self._enforce(recording.source)
            rows, length = self._prepare(recording, report, ignored, input_values[i])
            lead_mask[i, rows] = 1
            sample_mask[i, :length] = 1
        data = dict(zip(self.model_input_names, (input_values, lead_mask, sample_mask), strict=True))
        return BatchFeature(data, tensor_type=return_tensors)

    def check_ecg(
        self,
        ecg: Any,
        sampling_rate: float | None = None,
        lead_names: Sequence[str] | None = None,
        units: str | Sequence[str] | None = None,
    ) -> list[Finding]:
        """Everything that is wrong with one recording, each finding in plain words; empty when nothing is.

        Runs the very steps of `__call__` without refusing or warning, whatever the policies say; then, where
        ecgformers is installed, what its `check_ecg` finds by beats and spectra, which costs more than `__call__`.
        """
        check_ecg, record_class = _beside("findings_ecg", "check_ecg"), _beside("record_ecg", "EcgRecord")
        findings: list[Finding] = []
        try:
            for recording in self._recordings(ecg, sampling_rate, lead_names, units):
                self._prepare(recording, findings.append)
                if check_ecg is None or record_class is None:
                    continue
                known = {finding.kind for finding in findings}
                signal = np.where(np.isinf(recording.signal), np.nan, recording.signal)
                record = record_class(signal, *recording[1:3], source=recording.source)
                findings += [finding for finding in check_ecg(record) if finding.kind not in known]
        except (ValueError, TypeError) as error:
            findings.append(Finding("unusable", (), "error", str(error), "Give a recording that the model can take"))
        return findings

    def _enforce(self, source: str) -> Report:
        """What `__call__` does with a finding: raise or warn, as the policy says."""

        def report(finding: Finding) -> None:
            policy = getattr(self, finding.kind)
            if policy == "error":
                policies = POLICIES[finding.kind]
                others = " or ".join(f"{finding.kind}={value!r}" for value in policies if value != "error")
                raise EcgQualityError(f"{source}: {finding}.  {finding.remedy}, or set {others}.")
            if policy != "ignore":
                warnings.warn(f"{source}: {finding} ({finding.kind}={policy!r})", EcgQualityWarning, stacklevel=4)

        return report

    def _recordings(self, ecg: Any, sampling_rate: Any, lead_names: Any, units: Any) -> list[_Ecg]:
        if _is_recording(ecg) or _is_source(ecg):
            items = [ecg]
        elif isinstance(ecg, list | tuple):
            one = ecg and not any(_is_recording(item) or _is_source(item) or np.ndim(item) == 2 for item in ecg)
            items = [ecg] if one else list(ecg)
        else:
            items = list(ecg) if np.ndim(ecg) == 3 else [ecg]
        if not items:
            raise ValueError("ecg holds no recording")
        rates = [sampling_rate] * len(items) if np.ndim(sampling_rate) == 0 else list(sampling_rate)
        one_list = lead_names is None or all(isinstance(name, str) for name in lead_names)
        names = [lead_names] * len(items) if one_list else list(lead_names)
        for argument, values in (("sampling_rate", rates), ("lead_names", names)):
            if len(values) != len(items):
                raise ValueError(f"{argument} is given for {len(values)} recordings, ecg holds {len(items)}")
        return [_recording(*each, units, i) for i, each in enumerate(zip(items, rates, names, strict=True))]

    def _prepare(
        self, ecg: _Ecg, report: Report, ignored: frozenset[str] = frozenset(), out: np.ndarray | None = None
    ) -> tuple[list[int], int]:
        """Writes the model's input of one recording to `out` (leads, num_samples), which is 0 before.

        Findings go to `report`, but for the kinds that are `ignored`.  Returns which rows are filled, and how many
        samples are real.
        """
        duration = ecg.signal.shape[1] / ecg.sampling_rate
        if duration < self.min_duration:
            message = f"the recording is {duration:.2f} s long, shorter than min_duration={self.min_duration:g} s"
            report(Finding("short_recordings", (), "error", message, "Lower min_duration"))
        used = self.num_samples / self.sampling_rate
        if duration - used >= LEFT_OUT_SECONDS and "long_recordings" not in ignored:
            part = "first" if self.crop == "start" else "middle"
            message = f"the recording is {duration:.2f} s long, of which the model sees the {part} {used:g} s"
            report(Finding("long_recordings", (), "warning", message, "Give it in windows"))
        leads = self._complete_leads(ecg, report, ignored)
        flat = self._check_amplitudes(leads, report, ignored) if leads.names else ()
        if set(leads.names) <= set(flat):
            raise EcgQualityError(f"{ecg.source}: no lead of the model carries a signal.  Leave the recording out.")
        signal = leads.signal  # (usable leads, samples at the source's rate)
        rows = [self.lead_names.index(name) for name in leads.names]
        if flat and self.flat_leads == "zero_fill":
            kept = [i for i, name in enumerate(leads.names) if name not in flat]
            signal, rows = signal[kept], [rows[i] for i in kept]

        if self.bandpass is not None:
            try:
                signal = bandpass_filter(signal, ecg.sampling_rate, self.bandpass, self.sampling_rate)
            except ValueError as error:
                advice = "Leave the recording out, or change bandpass."
                raise EcgQualityError(f"{ecg.source}: {error}.  {advice}") from error
        signal = resample(signal, ecg.sampling_rate, self.sampling_rate)
        if (surplus := signal.shape[1] - self.num_samples) > 0:
            first = surplus // 2 if self.crop == "center" else 0
            signal = signal[:, first : first + self.num_samples]
        length = signal.shape[1]
        if self.pad_before_normalization:
            signal = np.pad(signal, ((0, 0), (0, self.num_samples - length)))
        if out is None:
            return rows, length

        if self.normalization == "standard":
            signal = standardize(signal, np.array(self.lead_means)[rows], np.array(self.lead_scales)[rows])
        elif self.normalization == "min_max":
            whole = signal is leads.signal
            low, high = (leads.low.min(), leads.high.max()) if whole else (signal.min(), signal.max())
            signal = standardize(signal, [low] * len(rows), [high - low + 1e-8] * len(rows))
        out[rows, : signal.shape[1]] = signal
        return rows, length

    def _complete_leads(self, ecg: _Ecg, report: Report, ignored: frozenset[str]) -> Leads:
        """The model's leads, gaps bridged and limb leads computed; what is missing is left out."""
        row_of: dict[str, int] = {}  # by canonical name
        unknown = []
        for row, name in enumerate(ecg.lead_names):
            try:
                lead = canonical_lead_name(name)
            except ValueError as error:
                unknown.append((name, str(error)))
                continue
            if lead in row_of:
                raise ValueError(
                    f"{ecg.source}: lead {lead} is there twice in {', '.join(ecg.lead_names)}.  Give one."
                )
            row_of[lead] = row
        if unknown:
            message = unknown[0][1]
            if len(unknown) > 1:
                message = f"{message}; likewise {', '.join(repr(name) for name, _ in unknown[1:])}"
            names = tuple(name for name, _ in unknown)
            report(Finding("unknown_leads", names, "note", message, "Correct lead_names"))

        low, high = extremes(ecg.signal, ecg.sampling_rate)
        least, greatest = low.min(axis=1).tolist(), high.max(axis=1).tolist()
        sound = {name for name, row in row_of.items() if -MAX_VOLTAGE <= least[row] <= greatest[row] <= MAX_VOLTAGE}
        leads = {name: ecg.signal[row_of[name]] for name in self.lead_names if name in row_of}
        doubtful = [name for name in leads if name not in sound]
        if doubtful:
            leads = self._repair(leads, doubtful, ecg, report)
        limb_leads = {name: leads[name] for name in LIMB_LEADS if name in leads}
        limb_leads |= {name: ecg.signal[row_of[name]] for name in LIMB_LEADS if name in sound and name not in leads}
        if "inconsistent_leads" not in ignored and (finding := inconsistent_leads(limb_leads, ecg.sampling_rate)):
            report(finding)
        derived = {name: x for name, x in derive_limb_leads(limb_leads).items() if name in self.lead_names}
        leads |= derived
        if missing := [name for name in self.lead_names if name not in leads]:
            message = f"{list_leads(missing)} missing; usable are {', '.join(leads) or 'none'}"
            remedy = "Give a recording with all leads of the model"
            report(Finding("missing_leads", tuple(missing), "error", message, remedy))

        if not leads:
            nothing = np.empty((0, 0))
            return Leads((), nothing, nothing, nothing, ecg.sampling_rate)
        if doubtful or derived:
            signal = np.stack(list(leads.values()))
            return Leads(tuple(leads), signal, *extremes(signal, ecg.sampling_rate), ecg.sampling_rate)
        row_names = {row: name for name, row in row_of.items() if name in leads}  # as the recording has them
        rows = list(row_names)
        if rows == list(range(len(ecg.signal))):
            return Leads(tuple(row_names.values()), ecg.signal, low, high, ecg.sampling_rate)
        return Leads(tuple(row_names.values()), ecg.signal[rows], low[rows], high[rows], ecg.sampling_rate)

    def _repair(
        self, leads: dict[str, np.ndarray], doubtful: list[str], ecg: _Ecg, report: Report
    ) -> dict[str, np.ndarray]:
        """`leads` with the gaps of those that are `doubtful` bridged; without those that are beyond repair."""
        leads = dict(leads)
        for kind, what, is_broken in (
            ("non_finite", "NaN or infinite samples", lambda signal: ~np.isfinite(signal)),
            ("out_of_range", f"samples beyond {MAX_VOLTAGE:g} mV, more than an amplifier gives", beyond_amplifier),
        ):
            broken = {name: is_broken(leads[name]) for name in doubtful if name in leads}  # (samples,) each
            gaps = {name: longest_run(mask) / ecg.sampling_rate for name, mask in broken.items() if mask.any()}
            lost = [name for name, gap in gaps.items() if gap > self.max_gap or broken[name].all()]
            bridged = [name for name in gaps if name not in lost]
            for names in (bridged, lost):
                if not names:
                    continue
                count, gap = sum(int(broken[name].sum()) for name in names), max(gaps[name] for name in names)
                message = f"{list_leads(names, ('has', 'have'))} {count} {what}, the longest gap {gap:.3f} s"
                if names is lost:
                    message += f", beyond repair: the {'lead counts' if len(lost) == 1 else 'leads count'} as missing"
                report(Finding(kind, tuple(names), "error", message, "Repair the signal"))
            if getattr(self, kind) == "ignore":
                continue
            for name in bridged:
                times, sound = np.arange(len(leads[name])), ~broken[name]
                leads[name] = np.interp(times, times[sound], leads[name][sound])
            leads = {name: signal for name, signal in leads.items() if name not in lost}
        for name, signal in leads.items():
            if np.abs(signal).max() > LARGEST_VALUE:
                raise EcgQualityError(
                    f"{ecg.source}: lead {name} reaches {np.abs(signal).max():g}.  Repair the signal."
                )
        return leads

    def _check_amplitudes(self, leads: Leads, report: Report, ignored: frozenset[str]) -> tuple[str, ...]:
        """Reports implausible scale and gain, flat and saturated leads; returns the flat ones."""
        flat = flat_leads(leads)
        saturated = None if "saturated_leads" in ignored else saturated_leads(leads)
        gain = None if "unusual_gain" in ignored else unusual_gain(leads)
        findings = [finding for finding in (gain, saturated, flat) if finding]
        if (findings or "implausible_scale" not in ignored) and (suspicion := implausible_scale(leads)):
            report(suspicion)
            return ()  # the other limits are in mV
        for finding in findings:
            report(finding)
        return flat.leads if flat else ()


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_recording(item: Any) -> bool:
    return all(hasattr(item, name) for name in ("signal", "lead_names", "sampling_rate"))


def _is_source(item: Any) -> bool:
    """Whether `read_ecg` is to open it."""
    return not (_is_recording(item) or hasattr(item, "__array__") or isinstance(item, list | tuple | Number))


def _beside(module: str, name: str) -> Any:
    """What lies in a file of the package, and beside this one in a folder that a pipeline saved; elsewhere None.

    Not imported by name: transformers would copy every reader and check into every folder of a processor.
    """
    try:
        return getattr(import_module(f".{module}", __package__), name)
    except ImportError:
        return None


def _recording(item: Any, sampling_rate: Any, lead_names: Any, units: Any, index: int) -> _Ecg:
    """One item of a batch as a signal in mV with names and rate, or an error that says what it lacks."""
    source = f"record {index}"
    if _is_source(item):
        read_ecg = _beside("reading_ecg", "read_ecg")
        if read_ecg is None:
            raise ValueError(
                "to open files, install ecgformers; without it, give arrays with sampling_rate and lead_names"
            )
        item = read_ecg(item, lead_names=lead_names, sampling_rate=sampling_rate, units=units)
        sampling_rate = lead_names = units = None
    if _is_recording(item):
        source = str(getattr(item, "source", None) or source)
        if not (sampling_rate is None and lead_names is None and units is None):
            raise ValueError(f"{source}: a recording has its own sampling_rate, lead_names and units (mV); give none.")
        sampling_rate, lead_names, item = item.sampling_rate, item.lead_names, item.signal
    if sampling_rate is None:
        raise ValueError(f"{source}: the sampling rate is not known.  Give sampling_rate in Hz.")
    low, high = RATES
    is_number = isinstance(sampling_rate, Real)
    if is_number and sampling_rate > 0 and not low <= sampling_rate <= high:
        rate = float(min(sampling_rate, 1e300))
        raise EcgQualityError(
            f"{source}: no ECG is sampled at {rate:g} Hz; {low:g} to {high:g} Hz are taken.  Correct the rate."
        )
    check_sampling_rate(sampling_rate, source)
    if lead_names is None:
        raise ValueError(f"{source}: the leads are not known.  Give lead_names, one a row, in the order of the rows.")
    if hasattr(item, "detach"):  # a tensor
        item = item.detach().cpu()
        item = (item.double() if item.is_floating_point() else item).numpy()
    signal = np.ma.asarray(item) if isinstance(item, np.ma.MaskedArray | list | tuple) else np.asarray(item)
    invalid = np.ma.getmask(signal)
    signal = np.ma.getdata(signal)
    if units is None and signal.dtype == np.float64:
        check_shape(signal, lead_names, source)
    else:
        signal = to_millivolts(signal, lead_names, units, source)[0].astype(np.float64, copy=False)
    if invalid is not np.ma.nomask:
        signal = np.where(invalid, np.nan, signal)
    return _Ecg(signal, tuple(lead_names), float(sampling_rate), source)
