"""What a technician would object to in a recording, at first sight and by beats and spectra: `check_ecg`.

For research use; not a medical device.
"""

from collections.abc import Mapping

import numpy as np

from .electrodes_ecg import CHEST_EXCHANGES, exchanged_electrodes, lead_covariance
from .filtering_ecg import resample
from .leads_ecg import STANDARD_LEADS, derive_limb_leads
from .mains_ecg import mains_noise
from .noise_ecg import (
    MIN_SPIKES,
    MUSCLE_AMPLITUDE,
    STEP_HEIGHT,
    WANDER_RANGE,
    baseline_range,
    baseline_step,
    muscle_noise,
    spikes,
)
from .quality_ecg import (
    MAX_FLAT_RANGE,
    MAX_VOLTAGE,
    Finding,
    Leads,
    beyond_amplifier,
    extremes,
    flat_leads,
    implausible_scale,
    inconsistent_leads,
    list_leads,
    saturated_leads,
    unusual_gain,
)
from .record_ecg import EcgRecord, lead_name
from .rhythm_ecg import MIN_BEAT_RATE, find_beats, qrs_width

HUMAN_BEAT = (0.009, 0.075)
"""Bounds in s^2 of the beat-to-beat interval times the width of the QRS complex, at 100 Hz.

Both are wrong by the same factor where the sampling rate is wrong; 99.8 % of PTB-XL's fold 8 lie between.
"""

MIN_SECONDS, MIN_RATE = 5.0, 100.0
"""What is shorter or sampled more slowly is not judged by its noise and by how its leads go together."""


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
