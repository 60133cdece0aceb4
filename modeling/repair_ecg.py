"""Repairs of a recording, made only when asked for, and written into its history.

For research use; not a medical device.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.signal import butter, iirnotch, sosfiltfilt, tf2sos

from .electrodes_ecg import LIMB_EXCHANGES, exchanged_electrodes, lead_covariance
from .leads_ecg import LIMB_LEADS, derive_limb_leads
from .mains_ecg import mains_noise
from .record_ecg import EcgRecord

HIGH_PASS, NOTCH_QUALITY = 0.5, 30.0  # Hz; frequency over width


def repair_ecg(record: EcgRecord, repair: Sequence[str]) -> EcgRecord:
    """A repaired copy of `record`, whose `metadata["history"]` says what was done.

    Args:
        repair: one or several of `"swap_limb_leads"` (undoes the exchange of limb electrodes that `check_ecg` finds),
            `"notch"` (takes out the mains that `check_ecg` finds), `"high_pass"` (straightens the baseline, 0.5 Hz).

    Raises:
        ValueError: for another repair, for samples that were not measured, and where there is nothing to repair.
    """
    repairs = {"swap_limb_leads": _swap_limb_leads, "notch": _notch, "high_pass": _high_pass}
    if isinstance(repair, str):
        repair = [repair]
    if unknown := [step for step in repair if step not in repairs]:
        raise ValueError(f"{record.source}: {unknown[0]!r} is no repair; there are {', '.join(map(repr, repairs))}")
    if not np.isfinite(record.signal).all():
        raise ValueError(f"{record.source}: samples that were not measured cannot be filtered; leave those leads out")
    history = list(record.metadata.get("history", ()))
    for step in repair:
        signal, done = repairs[step](record)
        record = replace(record, signal=signal.astype(record.signal.dtype), gain=(), baseline=())
        history.append(f"{step}: {done}")
    return replace(record, metadata={**record.metadata, "history": history})


def _swap_limb_leads(record: EcgRecord) -> tuple[np.ndarray, str]:
    leads = dict(zip(record.lead_names, record.signal, strict=True))
    covariance = lead_covariance({**leads, **derive_limb_leads(leads)}, record.sampling_rate)
    exchange = None if covariance is None else exchanged_electrodes(covariance)
    if exchange not in LIMB_EXCHANGES:
        raise ValueError(f"{record.source}: no exchange of limb electrodes is found that could be undone")
    recorded = {**leads, **derive_limb_leads(leads)}
    correct = np.linalg.inv(LIMB_EXCHANGES[exchange][:2, :2]) @ np.stack([recorded["I"], recorded["II"]])
    signal = record.signal.copy()
    for row, name in enumerate(record.lead_names):
        if name in LIMB_LEADS:
            signal[row] = np.array(LIMB_LEADS[name]) @ correct
    return signal, f"{exchange} taken as exchanged"


def _notch(record: EcgRecord) -> tuple[np.ndarray, str]:
    mains, amplitudes = mains_noise(record.signal, record.sampling_rate)
    if not amplitudes.any():
        raise ValueError(f"{record.source}: no mains noise is found that could be taken out")
    sections = tf2sos(*iirnotch(mains, NOTCH_QUALITY, fs=record.sampling_rate))
    return sosfiltfilt(sections, record.signal, axis=1), f"{mains:g} Hz taken out"


def _high_pass(record: EcgRecord) -> tuple[np.ndarray, str]:
    sections = butter(2, HIGH_PASS, "highpass", fs=record.sampling_rate, output="sos")
    return sosfiltfilt(sections, record.signal, axis=1), f"{HIGH_PASS:g} Hz, zero phase"
