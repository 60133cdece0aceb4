"""Disturbances of a recording: muscles, wandering baselines, loose electrodes, pacemaker spikes.

All functions take leads (leads, samples), finite and in mV.  For research use; not a medical device.
"""

from functools import lru_cache

import numpy as np
from scipy.signal import butter, sosfilt

from .filtering_ecg import median

MUSCLE_BAND, MUSCLE_AMPLITUDE = (20.0, 45.0), 0.05  # Hz; mV, RMS between the QRS complexes
WANDER_SECONDS, WANDER_RANGE = 1.0, 4.5  # a median over so long has no QRS complex left in it; mV
STEP_SECONDS, STEP_HEIGHT = 0.4, 4.5  # mV from one such stretch to the next but one
SPIKE_HEIGHT, SPIKE_CONTRAST, MIN_SPIKES = 0.3, 8.0, 4  # mV within 2 ms; over the steepest tenth of the other samples


def muscle_noise(signal: np.ndarray, rate: float) -> np.ndarray:
    """RMS in mV between 20 and 45 Hz between the QRS complexes, by the median over 0.1 s: (leads,)."""
    band = sosfilt(_muscle_filter(rate), signal, axis=1)
    size = round(0.1 * rate)
    power = (band[:, : band.shape[1] // size * size] ** 2).reshape(len(band), -1, size).mean(axis=2)
    return np.sqrt(median(power)[:, 0])


@lru_cache(maxsize=16)
def _muscle_filter(rate: float) -> np.ndarray:
    return butter(2, MUSCLE_BAND, "bandpass", fs=rate, output="sos")


def baseline_range(signal: np.ndarray, rate: float) -> np.ndarray:
    """Range in mV of the medians over one second: (leads,)."""
    return np.ptp(_levels(signal, round(WANDER_SECONDS * rate)), axis=1)


def baseline_step(signal: np.ndarray, rate: float) -> np.ndarray:
    """Largest change in mV of the medians over 0.4 s, from one to the next but one: (leads,)."""
    levels = _levels(signal, round(STEP_SECONDS * rate))
    return np.abs(levels[:, 2:] - levels[:, :-2]).max(axis=1, initial=0.0)


def _levels(signal: np.ndarray, size: int) -> np.ndarray:
    windows = signal.shape[1] // size
    return median(signal[:, : windows * size].reshape(len(signal), windows, size))[..., 0]


def spikes(signal: np.ndarray, rate: float) -> np.ndarray:
    """The samples at which several leads jump and come back within 2 ms or so, as pacemakers make them."""
    if rate < 400:
        return np.empty(0, dtype=int)
    lag = max(1, round(0.002 * rate))
    bends = signal[:, lag:-lag] - (signal[:, 2 * lag :] + signal[:, : -2 * lag]) / 2  # (leads, samples - 2 lag)
    bends = np.abs(bends)
    steep = np.percentile(bends, 98, axis=1, keepdims=True)  # of QRS complexes
    leads = ((bends > SPIKE_HEIGHT) & (bends > SPIKE_CONTRAST * steep)).sum(axis=0)
    found = np.flatnonzero(leads >= min(3, len(signal))) + lag
    apart = np.diff(found, prepend=-rate) > 0.1 * rate  # one a spike
    return found[apart]
