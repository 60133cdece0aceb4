"""Mains noise of a recording.  For research use; not a medical device."""

import numpy as np

from .filtering_ecg import median

MAINS = (50.0, 60.0)  # Hz
MAINS_AMPLITUDE, MAINS_CONTRAST = 0.025, 8.0  # mV of the sine; over the spectrum beside it, where QRS complexes are


def mains_noise(signal: np.ndarray, rate: float) -> tuple[float, np.ndarray]:
    """The mains frequency, and its amplitude in each lead of `signal` (leads, samples): (leads,), 0 for no noise."""
    window = np.hanning(signal.shape[1])
    spectrum = 2 / window.sum() * np.abs(np.fft.rfft((signal - median(signal)) * window, axis=1))
    frequencies = np.fft.rfftfreq(signal.shape[1], 1 / rate)
    best = (MAINS[0], np.zeros(len(signal)))
    for mains in MAINS:
        if rate < 2 * (mains + 7):  # what is sampled more slowly had to be filtered below it
            continue
        distance = np.abs(frequencies - mains)
        line = spectrum[:, distance <= 0.5].max(axis=1, initial=0.0)
        beside = np.median(spectrum[:, (distance > 1) & (distance <= 6)], axis=1)
        amplitudes = np.where((line >= MAINS_AMPLITUDE) & (line >= MAINS_CONTRAST * beside), line, 0.0)
        if amplitudes.sum() > best[1].sum():
            best = mains, amplitudes
    return best
