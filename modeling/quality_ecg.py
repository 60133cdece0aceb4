"""What can be wrong with a recording, as findings that a clinician would name: `check_ecg`.

For research use; not a medical device.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .electrodes_ecg import CHEST_EXCHANGES, exchanged_electrodes, lead_covariance
from .filtering_ecg import median, resample
from .leads_ecg import LIMB_LEADS, STANDARD_LEADS, derive_limb_leads
from .noise_ecg import (
    MIN_SPIKES,
    MUSCLE_AMPLITUDE,
    STEP_HEIGHT,
    WANDER_RANGE,
    baseline_range,
    baseline_step,
    mains_noise,
    muscle_noise,
    spikes,
)
from .record_ecg import EcgRecord, lead_name
from .rhythm_ecg import MIN_BEAT_RATE, find_beats, qrs_width

PLAUSIBLE_SCALE = (0.02, 20.0)
"""Bounds in mV of a lead's 99th percentile of |x - median|: about 1 in an ECG, 1000 or 0.001 when it is in uV or V."""

MAX_VOLTAGE = 500.0
"""In mV: electrodes' offsets reach 300 (IEC 60601-2-25) and amplifiers are built for little more."""

DEFLECTION_SECONDS, PLAUSIBLE_DEFLECTION = 2.0, (0.4, 8.0)
"""A deflection is a lead's median range in windows so long, which hold a beat; bounds in mV of the largest lead's."""

MAX_FLAT_RANGE = 0.005
"""A lead that spans no more, in mV, is flat: one step of a coarse recorder, a tenth of the smallest QRS complex."""

MIN_RAIL_LEVEL, MIN_RAIL_SECONDS, MIN_RAIL_SAMPLES = 1.0, 0.02, 4
"""A lead is saturated when it rests on its own extreme, so many mV from its median, for so long (and samples)."""

IDENTITY_TOLERANCE, IDENTITY_TOLERANCE_RATIO = 0.01, 0.1
"""An identity fails above this RMS error in mV and this share of the limb leads' RMS; rounding makes some 0.003 mV."""

LIMB_IDENTITIES = {
    "I + III = II": {"I": 1.0, "III": 1.0, "II": -1.0},
    "aVR = -(I + II) / 2": {"aVR": 1.0, "I": 0.5, "II": 0.5},
    "aVL = I - II / 2": {"aVL": 1.0, "I": -1.0, "II": 0.5},
    "aVF = II - I / 2": {"aVF": 1.0, "II": -1.0, "I": 0.5},
    "aVR + aVL + aVF = 0": {"aVR": 1.0, "aVL": 1.0, "aVF": 1.0},
}
"""Sums that are zero in every correctly labelled recording (Einthoven 1912, Goldberger 1942)."""


HUMAN_BEAT = (0.009, 0.075)
"""Bounds in s^2 of the beat-to-beat interval times the width of the QRS complex, at 100 Hz.

Both are wrong by the same factor where the sampling rate is wrong; 99.8 % of PTB-XL's fold 8 lie between.
"""

LEFT_OUT_SECONDS = 0.5
"""Less than a beat may be left out of a recording without a word."""

BELOW_MAINS = 80.0
"""A sampling rate in Hz that no mains noise passes."""

MIN_SECONDS, MIN_RATE = 5.0, 100.0
"""What is shorter or sampled more slowly is not judged by its noise and by how its leads go together."""


class EcgQualityError(ValueError):
    """A recording that a policy of the feature extractor refuses."""


class EcgQualityWarning(UserWarning):
    """A recording that was repaired, or is used in spite of a doubt."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a recording, or worth knowing; prints as its message.

    Attributes:
        kind: what it is, in a word that programs can rely on; `docs/quality.md` lists them.
        leads: the leads it is about, under their standard names; empty when it is about the recording as a whole.
        severity: `"error"` (no model should see it so), `"warning"` (doubtful) or `"note"`.
        message: one sentence for people.
        remedy: what to do about it.
    """

    kind: str
    leads: tuple[str, ...]
    severity: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, eq=False)
class Leads:
    """Leads of one recording as the checks want them."""

    names: tuple[str, ...]  # canonical
    signal: np.ndarray  # (leads, samples), in mV, finite
    low: np.ndarray  # (leads, windows of `DEFLECTION_SECONDS`): least values, see `extremes`
    high: np.ndarray  # greatest values
    sampling_rate: float

    def items(self) -> Iterator[tuple[str, np.ndarray]]:
        """Name and signal (samples,) of each lead."""
        return zip(self.names, self.signal, strict=True)

    @cached_property
    def spans(self) -> list[float]:
        """Range of each lead, in mV."""
        return (self.high.max(axis=1) - self.low.min(axis=1)).tolist()

    @cached_property
    def deflections(self) -> np.ndarray:
        """Median range in windows of `DEFLECTION_SECONDS`: (leads,), in mV."""
        return median(self.high - self.low)[:, 0]


def check_ecg(record: EcgRecord) -> list[Finding]:
    """What a technician would object to in a recording, most severe first; empty when nothing is found.

    How often each kind is found where it is, and where it is not, is told in `docs/quality.md`.  Leads other than the
    twelve standard ones are not judged, nor those with NaN beyond saying so.
    """
    findings, names = [], [lead_name(name) for name in record.lead_names]
    rows = [row for row, name in enumerate(names) if name in STANDARD_LEADS]
    finite = [row for row in rows if np.isfinite(record.signal[row]).all()]
    if broken := tuple(names[row] for row in rows if row not in finite):
        message = f"{list_leads(broken, ('has', 'have'))} samples that were not measured"
        findings.append(Finding("non_finite", broken, "error", message, "Repair the signal"))
    if not finite:
        return findings
    signal = record.signal[finite].astype(np.float64)
    low, high = extremes(signal, record.sampling_rate)
    leads = Leads(tuple(names[row] for row in finite), signal, low, high, record.sampling_rate)
    if suspicion := implausible_scale(leads):
        return [*findings, suspicion]  # the other limits are in mV
    if beyond := tuple(name for name, lead in leads.items() if beyond_amplifier(lead).any()):
        who = list_leads(beyond, ("has", "have"))
        message = f"{who} samples beyond {MAX_VOLTAGE:g} mV, more than an amplifier gives"
        return [*findings, Finding("out_of_range", beyond, "error", message, "Repair the signal")]
    conflict, gain = inconsistent_leads(dict(leads.items()), record.sampling_rate), unusual_gain(leads)
    findings += filter(None, (conflict, gain, flat_leads(leads), saturated_leads(leads)))
    judged = record.duration >= MIN_SECONDS and record.sampling_rate >= MIN_RATE
    if judged and not gain:
        findings += disturbances(leads)
    finding = wrong_rate(signal, record.sampling_rate)
    if judged and finding is None and not {finding.kind for finding in findings} - {"mains_noise", "pacemaker_spikes"}:
        finding = exchanged(dict(leads.items()), record.sampling_rate)  # of ECGs that are sound otherwise
    findings += [finding] if finding else []
    return sorted(findings, key=lambda finding: ("error", "warning", "note").index(finding.severity))


def exchanged(leads: Mapping[str, np.ndarray], sampling_rate: float) -> Finding | None:
    """That limb or chest electrodes seem to be in each other's place."""
    covariance = lead_covariance({**leads, **derive_limb_leads(leads)}, sampling_rate)
    exchange = None if covariance is None else exchanged_electrodes(covariance)
    if exchange is None:
        return None
    if exchange in CHEST_EXCHANGES:
        names = STANDARD_LEADS[6:] if "reverse" in exchange else tuple(exchange.split(" and "))
        message = f"the chest electrodes {exchange} seem exchanged"
        return Finding(
            "exchanged_chest_electrodes", names, "warning", message, "Record again with electrodes in place"
        )
    message = f"{exchange} seem exchanged"
    remedy = 'Record again, or repair_ecg(record, ["swap_limb_leads"])'
    return Finding("exchanged_limb_electrodes", STANDARD_LEADS[:6], "warning", message, remedy)


def wrong_rate(signal: np.ndarray, sampling_rate: float) -> Finding | None:
    """That the beats come and go too fast or too slowly together, so that the sampling rate must be wrong."""
    if sampling_rate <= MIN_BEAT_RATE:
        return None
    product = _beat_product(signal, sampling_rate)
    low, high = HUMAN_BEAT
    if product is not None:
        if low <= product <= high:
            return None
        direction = "high" if product < low else "low"
    else:
        fitting = [
            factor
            for factor in (2, 5, 1 / 2, 1 / 5)
            if low <= (_beat_product(signal, sampling_rate / factor) or 0.0) <= high
        ]
        if not fitting:
            return None
        direction = "high" if fitting[0] > 1 else "low"
    message = (
        f"heart rate and QRS width are not human at {sampling_rate:g} Hz: the sampling rate may be too {direction}"
    )
    return Finding("wrong_rate", (), "warning", message, "Give the right sampling_rate")


def _beat_product(signal: np.ndarray, rate: float) -> float | None:
    beats = find_beats(signal, rate)
    if beats is None:
        return None
    interval = float(np.median(np.diff(beats))) / rate
    if rate > 100:
        signal, beats = resample(signal, rate, 100), np.round(beats * 100 / rate).astype(int)
    return interval * qrs_width(signal, min(rate, 100), beats)


def disturbances(leads: Leads) -> list[Finding]:
    """Mains and muscle noise, wandering baselines, loose electrodes and pacemaker spikes."""
    signal, rate, findings = leads.signal, leads.sampling_rate, []

    def told(kind: str, affected: np.ndarray, verbs: tuple[str, str], what: str, remedy: str) -> None:
        if affected.any():
            names = tuple(name for name, bad in zip(leads.names, affected, strict=True) if bad)
            findings.append(Finding(kind, names, "warning", f"{list_leads(names, verbs)} {what}", remedy))

    mains, amplitudes = mains_noise(signal, rate)
    what = f"mains noise of {mains:g} Hz, up to {amplitudes.max():.2g} mV"
    told("mains_noise", amplitudes > 0, ("has", "have"), what, 'repair_ecg(record, ["notch"]), or record again')
    muscle = np.where(amplitudes > 0, 0.0, muscle_noise(signal, rate))
    what = f"noise between the beats, up to {muscle.max():.2g} mV RMS, as muscles make it"
    told("muscle_noise", muscle > MUSCLE_AMPLITUDE, ("has", "have"), what, "Record again with the patient at ease")

    steps = baseline_step(signal, rate)
    flat_for_a_while = ((leads.high - leads.low) <= MAX_FLAT_RANGE).any(axis=1) & (np.array(leads.spans) > 0.05)
    loose = (steps > STEP_HEIGHT) | flat_for_a_while
    told("loose_electrode", loose, ("jumps", "jump"), "or falls silent, as if an electrode were loose", "Record again")
    wander = np.where(loose, 0.0, baseline_range(signal, rate))
    what = f"by up to {wander.max():.2g} mV"
    told("baseline_wander", wander > WANDER_RANGE, ("wanders", "wander"), what, 'repair_ecg(record, ["high_pass"])')
    if (count := len(spikes(signal, rate))) >= MIN_SPIKES:
        message = f"{count} spikes as of a pacemaker"
        findings.append(Finding("pacemaker_spikes", (), "note", message, "None is needed; read the rhythm with care"))
    return findings


def extremes(signal: np.ndarray, sampling_rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest values of `signal` (leads, samples) in windows of 2 s: (leads, windows) each.

    They decide whether the other checks need to look at the samples at all; NaN and infinity show in them.
    """
    leads, samples = signal.shape
    size = min(samples, max(1, round(DEFLECTION_SECONDS * sampling_rate)))
    whole = samples // size * size
    windows = signal[:, :whole].reshape(leads, -1, size)
    with np.errstate(invalid="ignore"):
        low, high = windows.min(axis=2), windows.max(axis=2)
        if whole < samples:
            rest = signal[:, whole:]
            low = np.column_stack([low, rest.min(axis=1)])
            high = np.column_stack([high, rest.max(axis=1)])
    return low, high


def implausible_scale(leads: Leads) -> Finding | None:
    """Which leads are too large to be in mV, or that all are too small."""
    low, high = PLAUSIBLE_SCALE
    rows = [row for row, span in enumerate(leads.spans) if span > high]  # a scale is at most the span
    scales = {row: _scale(leads.signal[row]) for row in rows}
    suspects = [row for row in rows if scales[row] > high]
    if not suspects and leads.deflections.max() < PLAUSIBLE_DEFLECTION[0]:  # else it is large enough
        scales = {row: _scale(signal) for row, signal in enumerate(leads.signal)}
        suspects = list(scales) if 0 < max(scales.values()) < low else []
    if not suspects:
        return None
    names, largest = [leads.names[row] for row in suspects], max(scales[row] for row in suspects)
    message = f"{list_leads(names)} implausibly scaled: the 99th percentile of the deflections is {largest:.3g} mV"
    return Finding("implausible_scale", tuple(names), "error", message, "Give the right units, or correct the gain")


def beyond_amplifier(signal: np.ndarray) -> np.ndarray:
    """Which samples of one lead no amplifier gives (`MAX_VOLTAGE`): (samples,) bool.

    None where a tenth of the lead is out of scale: that is a matter of units, see `implausible_scale`.
    """
    return (np.abs(signal) > MAX_VOLTAGE) & (_scale(signal, 90) <= PLAUSIBLE_SCALE[1])


def _scale(signal: np.ndarray, percentile: float = 99) -> float:
    return float(np.percentile(np.abs(signal - median(signal)), percentile))


def unusual_gain(leads: Leads) -> Finding | None:
    """That deflections are so small or large as if the gain were wrong by a factor of 10."""
    row = int(leads.deflections.argmax())
    largest = float(leads.deflections[row])
    smallest, greatest = PLAUSIBLE_DEFLECTION
    if largest <= MAX_FLAT_RANGE or smallest <= largest <= greatest:
        return None
    what = "no lead swings by more than" if largest < smallest else f"lead {leads.names[row]} swings by"
    message = f"{what} {largest:.2g} mV in {DEFLECTION_SECONDS:g} s: the gain may be wrong by a factor of 10"
    remedy = "Compare with the calibration pulse, and correct the gain"
    return Finding("unusual_gain", leads.names, "warning", message, remedy)


def flat_leads(leads: Leads) -> Finding | None:
    """Which leads carry no signal."""
    flat = tuple(name for name, span in zip(leads.names, leads.spans, strict=True) if span <= MAX_FLAT_RANGE)
    message = f"{list_leads(flat)} flat, within {MAX_FLAT_RANGE} mV"
    return Finding("flat_leads", flat, "warning", message, "Leave the recording out") if flat else None


def saturated_leads(leads: Leads) -> Finding | None:
    """Which leads are cut off at a rail for a stretch."""
    shortest = max(MIN_RAIL_SAMPLES, round(MIN_RAIL_SECONDS * leads.sampling_rate))
    stretches: dict[str, tuple[int, float]] = {}  # samples at a rail, and the rail in mV
    some = np.ascontiguousarray(leads.signal[:, ::shortest])  # no long enough stretch lies between them
    for extreme in (leads.low.min(axis=1), leads.high.max(axis=1)):
        touched = (some == extreme[:, None]).any(axis=1)
        for row in np.flatnonzero(touched).tolist():
            signal, rail, name = leads.signal[row], float(extreme[row]), leads.names[row]
            resting = signal == rail
            run = longest_run(resting) if np.count_nonzero(resting) >= shortest else 0
            if run >= shortest and abs(rail - median(signal)[0]) >= MIN_RAIL_LEVEL:
                stretches[name] = max(stretches.get(name, (0, 0.0)), (run, rail))
    if not stretches:
        return None
    names = tuple(name for name in leads.names if name in stretches)
    worst = max(names, key=lambda name: stretches[name])
    run, rail = stretches[worst]
    subject, seconds = "it" if len(names) == 1 else worst, run / leads.sampling_rate
    message = f"{list_leads(names)} saturated: {subject} stays at {rail:.2f} mV for {seconds:.3f} s"
    return Finding("saturated_leads", names, "warning", message, "Leave the recording out")


def inconsistent_leads(leads: Mapping[str, np.ndarray], sampling_rate: float) -> Finding | None:
    """That the limb leads among `leads` contradict each other (`limb_lead_conflict`) by more than mains noise."""
    names = tuple(name for name in LIMB_LEADS if name in leads)
    conflict = limb_lead_conflict(leads)
    if conflict and mains_noise(signal := np.stack([leads[name] for name in names]), sampling_rate)[1].any():
        conflict = limb_lead_conflict(dict(zip(names, resample(signal, sampling_rate, BELOW_MAINS), strict=True)))
    return Finding("inconsistent_leads", names, "warning", conflict, "Correct lead_names") if conflict else None


def limb_lead_conflict(leads: Mapping[str, np.ndarray]) -> str:
    """What the limb identities say against the labels of `leads`; empty when nothing.

    The answer names each identity that fails, its RMS error (offsets do not count), and every exchange of two labels
    or inversion of one lead that would make all of them hold.  Swapped *electrodes* keep the identities: not seen.
    """
    names = [name for name in LIMB_LEADS if name in leads]
    texts = [text for text, terms in LIMB_IDENTITIES.items() if terms.keys() <= set(names)]
    if not texts:
        return ""
    identities = np.array([[LIMB_IDENTITIES[text].get(name, 0.0) for name in names] for text in texts])
    signal = np.stack([leads[name] for name in names])  # (leads, samples)
    sums = identities @ signal  # (identities, samples)
    if np.ptp(sums, axis=1).max() <= 2 * IDENTITY_TOLERANCE:  # no RMS error is more than half the range
        return ""
    means = signal.mean(axis=1)
    covariance = signal @ signal.T / signal.shape[1] - np.outer(means, means)  # (leads, leads)
    tolerance = max(IDENTITY_TOLERANCE, IDENTITY_TOLERANCE_RATIO * np.sqrt(np.trace(covariance) / len(names)))

    def failing(relabelling: np.ndarray) -> list[str]:
        sums = identities @ relabelling  # (identities, leads)
        errors = np.sqrt(np.maximum(0.0, (sums @ covariance * sums).sum(axis=1))).tolist()
        errors_of = zip(texts, errors, strict=True)
        return [f"{text} fails by {error:.3f} mV RMS" for text, error in errors_of if error > tolerance]

    labels = np.eye(len(names))
    failures = failing(labels)
    if not failures:
        return ""
    explanations = []
    for i, j in itertools.combinations(range(len(names)), 2):
        exchanged = labels.copy()
        exchanged[[i, j]] = labels[[j, i]]
        if not failing(exchanged):
            explanations.append(f"{names[i]} and {names[j]} exchanged")
    explanations += [f"{names[i]} inverted" for i in range(len(names)) if not failing(labels - 2 * np.diag(labels[i]))]
    conflict = f"the limb leads contradict each other: {', '.join(failures)}"
    return conflict + (f"; all identities hold with {' or with '.join(explanations)}" if explanations else "")


def longest_run(mask: np.ndarray) -> int:
    """Length of the longest stretch of True in `mask` (samples,)."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def list_leads(names: Sequence[str], verbs: tuple[str, str] = ("is", "are")) -> str:
    """ "lead V1 is", "leads V1, V2 are" or "all twelve leads are"."""
    if set(names) == set(STANDARD_LEADS):
        return f"all twelve leads {verbs[1]}"
    return f"lead {names[0]} {verbs[0]}" if len(names) == 1 else f"leads {', '.join(names)} {verbs[1]}"
