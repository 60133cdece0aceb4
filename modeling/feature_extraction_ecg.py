"""The one path of an ECG: any recording becomes what a model was trained on.

Leads are matched by name, units scaled, limb leads completed, bad input refused or repaired; then the signal is
filtered, resampled, cropped, normalised and padded.  Every choice is a setting that is saved with the model.
"""

import warnings
from collections.abc import Callable, Sequence
from fractions import Fraction
from numbers import Number
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.signal import butter, resample_poly, sosfiltfilt
from transformers import BatchFeature, FeatureExtractionMixin

from .leads_ecg import LIMB_LEADS, STANDARD_LEADS, canonical_lead_name, derive_limb_leads
from .quality_ecg import (
    MAX_FLAT_RANGE,
    EcgQualityError,
    EcgQualityWarning,
    flat_leads,
    implausible_scale,
    limb_lead_conflict,
    list_leads,
    longest_run,
    saturated_leads,
)
from .reading_ecg import read_ecg
from .record_ecg import check_sampling_rate, to_millivolts

POLICIES = {
    "missing_leads": ("error", "zero_fill"),
    "unknown_leads": ("drop", "error"),
    "non_finite": ("error", "interpolate"),
    "implausible_scale": ("error", "warn", "ignore"),
    "flat_leads": ("warn", "error", "zero_fill", "ignore"),
    "saturated_leads": ("warn", "error", "ignore"),
    "inconsistent_leads": ("warn", "error", "ignore"),
    "short_recordings": ("error", "pad"),
}
"""The policies of `EcgFeatureExtractor`, the values each may have, its default first."""


def bandpass_filter(
    signal: np.ndarray, sampling_rate: float, band: Sequence[float], target_rate: float, order: int = 4
) -> np.ndarray:
    """Zero-phase Butterworth band-pass of `signal` (..., samples), to be applied before resampling to `target_rate`.

    The upper edge is at most 0.45 x `target_rate`; a lower edge of 0 or less makes a low-pass.  Returns float64.

    Raises:
        ValueError: when the sampling rate cannot hold the band, or the signal is too short for the filter.
    """
    low, high = band[0], min(band[1], 0.45 * target_rate)
    if high >= sampling_rate / 2:
        raise ValueError(f"a signal sampled at {sampling_rate:g} Hz cannot hold the band up to {high:g} Hz")
    edges, kind = ((low, high), "bandpass") if low > 0 else (high, "lowpass")
    sections = butter(order, edges, btype=kind, fs=sampling_rate, output="sos")
    if signal.shape[-1] <= 3 * (2 * len(sections) + 1):
        raise ValueError(f"{signal.shape[-1]} samples are too few for the filter")
    return sosfiltfilt(sections, signal.astype(np.float64), axis=-1)


def resample(signal: np.ndarray, source_rate: float, target_rate: float) -> np.ndarray:
    """Polyphase resampling of `signal` (..., samples); any ratio of rates, to 1 part in 10,000 or better."""
    ratio = (Fraction(target_rate) / Fraction(source_rate)).limit_denominator(10_000)
    if ratio == 1:
        return signal
    return resample_poly(signal, ratio.numerator, ratio.denominator, axis=-1, window=("kaiser", 5.0), padtype="median")


def standardize(signal: np.ndarray, means: ArrayLike, scales: ArrayLike) -> np.ndarray:
    """(x - mean) / scale lead by lead, of `signal` (..., leads, samples); scales are taken as 1e-8 at least."""
    centers = np.asarray(means, dtype=np.float64)[:, None]
    return (signal - centers) / np.maximum(np.asarray(scales, dtype=np.float64), 1e-8)[:, None]


def min_max(signal: np.ndarray) -> np.ndarray:
    """(x - min) / (max - min + 1e-8) with one minimum and one maximum for the whole of `signal`."""
    low = signal.min()
    return (signal - low) / (signal.max() - low + 1e-8)


class _Ecg(NamedTuple):
    signal: np.ndarray  # (leads, samples), float64, mV
    lead_names: tuple[str, ...]
    sampling_rate: float
    source: str


Report = Callable[[str, str, str], None]  # setting, finding, advice


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
        implausible_scale: `"error"`, `"warn"` or `"ignore"`, for amplitudes that suggest a wrong unit or gain.
        flat_leads: `"warn"`, `"error"`, `"zero_fill"` (as for missing leads) or `"ignore"`.
        saturated_leads: `"warn"`, `"error"` or `"ignore"`, for leads cut off at a rail.
        inconsistent_leads: `"warn"`, `"error"` or `"ignore"`, for limb leads that contradict each other
            (`limb_lead_conflict`).
        short_recordings: `"error"` or `"pad"`, below `min_duration`.

    The limits of these checks are the constants of `quality_ecg.py`, each with its reason.
    Whatever is repaired or doubted is told by an `EcgQualityWarning`; whatever a policy refuses, by an
    `EcgQualityError` that names the record, the lead and the remedy.
    """

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
        implausible_scale: str = "error",
        flat_leads: str = "warn",
        saturated_leads: str = "warn",
        inconsistent_leads: str = "warn",
        short_recordings: str = "error",
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
        self.implausible_scale = implausible_scale
        self.flat_leads = flat_leads
        self.saturated_leads = saturated_leads
        self.inconsistent_leads = inconsistent_leads
        self.short_recordings = short_recordings
        self._validate()

    def _validate(self) -> None:
        choices = POLICIES | {"normalization": ("min_max", "standard", "none"), "crop": ("start", "center")}
        for setting, values in choices.items():
            if getattr(self, setting) not in values:
                raise ValueError(f"{setting}={getattr(self, setting)!r} is none of {', '.join(map(repr, values))}")
        if not self.lead_names or len(set(self.lead_names)) < len(self.lead_names):
            raise ValueError(f"lead_names must name each lead once, not {self.lead_names}")
        if self.sampling_rate <= 0 or self.num_samples <= 0:
            raise ValueError("sampling_rate and num_samples must be positive")
        if self.bandpass is not None and not (len(self.bandpass) == 2 and self.bandpass[0] < self.bandpass[1] > 0):
            raise ValueError(f"bandpass must be two frequencies [low, high] in Hz or None, not {self.bandpass}")
        for setting in ("lead_means", "lead_scales"):
            values = getattr(self, setting)
            if (values is not None) != (self.normalization == "standard"):
                raise ValueError(f"{setting} belongs to normalization='standard', which needs it")
            if values is not None and len(values) != len(self.lead_names):
                raise ValueError(f"{setting} has {len(values)} values for {len(self.lead_names)} leads")

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
        prepared = []
        for recording in self._recordings(ecg, sampling_rate, lead_names, units):
            prepared.append(self._prepare(recording, self._enforce(recording.source)))
        columns = (np.stack(column) for column in zip(*prepared, strict=True))
        return BatchFeature(dict(zip(self.model_input_names, columns, strict=True)), tensor_type=return_tensors)

    def check_ecg(
        self,
        ecg: Any,
        sampling_rate: float | None = None,
        lead_names: Sequence[str] | None = None,
        units: str | Sequence[str] | None = None,
    ) -> list[str]:
        """Everything that is wrong with one recording, in plain words; empty when nothing is.

        Runs the very steps of `__call__` without refusing or warning, whatever the policies say.
        """
        findings: list[str] = []
        try:
            for recording in self._recordings(ecg, sampling_rate, lead_names, units):
                self._prepare(recording, lambda _setting, finding, _advice: findings.append(finding))
        except (ValueError, TypeError) as error:
            findings.append(str(error))
        return findings

    def _enforce(self, source: str) -> Report:
        """What `__call__` does with a finding: raise or warn, as the policy says."""

        def report(setting: str, finding: str, advice: str) -> None:
            policy = getattr(self, setting)
            if policy == "error":
                others = " or ".join(f"{setting}={value!r}" for value in POLICIES[setting] if value != "error")
                raise EcgQualityError(f"{source}: {finding}.  {advice}, or set {others}.")
            if policy != "ignore":
                warnings.warn(f"{source}: {finding} ({setting}={policy!r})", EcgQualityWarning, stacklevel=4)

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

    def _prepare(self, ecg: _Ecg, report: Report) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Input values (leads, num_samples), lead mask and sample mask of one recording; findings go to `report`."""
        duration = ecg.signal.shape[1] / ecg.sampling_rate
        if duration < self.min_duration:
            finding = f"the recording is {duration:.2f} s long, shorter than min_duration={self.min_duration:g} s"
            report("short_recordings", finding, "Lower min_duration")
        leads = self._complete_leads(ecg, report)
        flat = self._check_amplitudes(leads, ecg.sampling_rate, report) if leads else []
        rows = {
            row: leads[name]
            for row, name in enumerate(self.lead_names)
            if name in leads and not (name in flat and self.flat_leads == "zero_fill")
        }
        if leads.keys() <= set(flat):
            raise EcgQualityError(f"{ecg.source}: no lead of the model carries a signal.  Leave the recording out.")

        signal = np.stack(list(rows.values()))  # (usable leads, samples at the source's rate)
        if self.bandpass is not None:
            try:
                signal = bandpass_filter(signal, ecg.sampling_rate, self.bandpass, self.sampling_rate)
            except ValueError as error:
                advice = "Leave the recording out, or change bandpass."
                raise EcgQualityError(f"{ecg.source}: {error}.  {advice}") from error
        signal = resample(signal, ecg.sampling_rate, self.sampling_rate)
        first = max(0, signal.shape[1] - self.num_samples) // 2 if self.crop == "center" else 0
        signal = signal[:, first : first + self.num_samples]
        length = signal.shape[1]
        if self.pad_before_normalization:
            signal = np.pad(signal, ((0, 0), (0, self.num_samples - length)))
        signal = self._normalize(signal, list(rows))

        input_values = np.zeros((len(self.lead_names), self.num_samples), dtype=np.float32)
        input_values[list(rows), : signal.shape[1]] = signal
        lead_mask = np.zeros(len(self.lead_names), dtype=np.int64)
        lead_mask[list(rows)] = 1
        return input_values, lead_mask, (np.arange(self.num_samples) < length).astype(np.int64)

    def _complete_leads(self, ecg: _Ecg, report: Report) -> dict[str, np.ndarray]:
        """The model's leads by name, gaps bridged and limb leads computed; what is missing is left out."""
        recorded: dict[str, np.ndarray] = {}
        for name, signal in zip(ecg.lead_names, ecg.signal, strict=True):
            try:
                lead = canonical_lead_name(name)
            except ValueError as error:
                report("unknown_leads", str(error), "Correct lead_names")
                continue
            if lead in recorded:
                raise ValueError(
                    f"{ecg.source}: lead {lead} is there twice in {', '.join(ecg.lead_names)}.  Give one."
                )
            recorded[lead] = signal

        leads = {name: recorded[name] for name in self.lead_names if name in recorded}
        for name, signal in list(leads.items()):
            broken = ~np.isfinite(signal)
            if not broken.any():
                continue
            gap = longest_run(broken) / ecg.sampling_rate
            finding = f"lead {name} has {broken.sum()} NaN or infinite samples, the longest gap {gap:.3f} s"
            if gap > self.max_gap or broken.all():
                report("non_finite", f"{finding}, beyond repair: the lead counts as missing", "Repair the signal")
                del leads[name]
            else:
                report("non_finite", finding, "Repair the signal")
                times = np.arange(len(signal))
                leads[name] = np.interp(times, times[~broken], signal[~broken])

        limb_leads = recorded | leads
        limb_leads = {name: limb_leads[name] for name in LIMB_LEADS if name in limb_leads}
        limb_leads = {name: signal for name, signal in limb_leads.items() if np.isfinite(signal).all()}
        if conflict := limb_lead_conflict(limb_leads):
            report("inconsistent_leads", conflict, "Correct lead_names")
        leads |= {name: x for name, x in derive_limb_leads(limb_leads).items() if name in self.lead_names}
        if missing := [name for name in self.lead_names if name not in leads]:
            finding = f"{list_leads(missing)} missing; usable are {', '.join(leads) or 'none'}"
            report("missing_leads", finding, "Give a recording with all leads of the model")
        return leads

    def _check_amplitudes(self, leads: dict[str, np.ndarray], sampling_rate: float, report: Report) -> list[str]:
        """Reports implausible scale, flat and saturated leads; returns the flat ones."""
        if suspicion := implausible_scale(leads):
            report("implausible_scale", suspicion, "Give the right units, or correct the gain")
            return []  # the other limits are in mV
        for sentence in saturated_leads(leads, sampling_rate):
            report("saturated_leads", sentence, "Leave the recording out")
        flat = flat_leads(leads)
        if flat:
            report("flat_leads", f"{list_leads(flat)} flat, within {MAX_FLAT_RANGE} mV", "Leave the recording out")
        return flat

    def _normalize(self, signal: np.ndarray, rows: list[int]) -> np.ndarray:
        if self.normalization == "standard":
            return standardize(signal, np.array(self.lead_means)[rows], np.array(self.lead_scales)[rows])
        return min_max(signal) if self.normalization == "min_max" else signal


def _is_recording(item: Any) -> bool:
    return all(hasattr(item, name) for name in ("signal", "lead_names", "sampling_rate"))


def _is_source(item: Any) -> bool:
    """Whether `read_ecg` is to open it."""
    return not (_is_recording(item) or hasattr(item, "__array__") or isinstance(item, list | tuple | Number))


def _recording(item: Any, sampling_rate: Any, lead_names: Any, units: Any, index: int) -> _Ecg:
    """One item of a batch as a signal in mV with names and rate, or an error that says what it lacks."""
    source = f"record {index}"
    if _is_source(item):
        item = read_ecg(item, lead_names=lead_names, sampling_rate=sampling_rate, units=units)
        sampling_rate = lead_names = units = None
    if _is_recording(item):
        source = str(getattr(item, "source", None) or source)
        if not (sampling_rate is None and lead_names is None and units is None):
            raise ValueError(f"{source}: a recording has its own sampling_rate, lead_names and units (mV); give none.")
        sampling_rate, lead_names, item = item.sampling_rate, item.lead_names, item.signal
    if sampling_rate is None:
        raise ValueError(f"{source}: the sampling rate is not known.  Give sampling_rate in Hz.")
    check_sampling_rate(sampling_rate, source)
    if lead_names is None:
        raise ValueError(f"{source}: the leads are not known.  Give lead_names, one a row, in the order of the rows.")
    if torch.is_tensor(item):
        item = item.detach().cpu()
        item = (item.double() if item.is_floating_point() else item).numpy()
    signal, _ = to_millivolts(np.asarray(item), lead_names, units, source)
    return _Ecg(signal.astype(np.float64), tuple(lead_names), float(sampling_rate), source)


EcgFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
