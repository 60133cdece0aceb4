"""Heart rate of an ECG, from its QRS complexes.  Research use only, not a medical device."""

import numpy as np
from scipy.ndimage import uniform_filter1d
from scipy.signal import butter, find_peaks, sosfiltfilt

from .record_ecg import EcgRecord

QRS_BAND = (5.0, 20.0)  # Hz, where a QRS complex stands out from P and T waves, drift and muscle noise
MIN_BEAT_RATE = 2.5 * QRS_BAND[1]  # Hz, above which that band can be seen
QRS_WIDTH = 0.1  # s
REFRACTORY = 0.25  # s, so at most 240 beats a minute
TYPICAL_WINDOW = 2.0  # s, which holds a beat at 30 beats a minute and more
MIN_BEATS = 4
MIN_HEIGHT = 0.2  # energy of a beat, relative to the typical one
MIN_CONTRAST = 12.0  # energy of the typical beat, relative to the median over time: noise reaches 6, ECGs lie above 25
MIN_AMPLITUDE = 0.02  # mV in the QRS band, the range of a lead that is not flat


def heart_rate(record: EcgRecord) -> float | None:
    """Beats per minute, from the median beat-to-beat interval; None when no reliable rhythm is found.

    Leads with NaN and flat leads do not count.  Fewer than four beats, or beats that hardly rise over the time between
    them (noise), give None.
    """
    beats = find_beats(record.signal[np.isfinite(record.signal).all(axis=1)], record.sampling_rate)
    return None if beats is None else float(60 * record.sampling_rate / np.median(np.diff(beats)))


def find_beats(signal: np.ndarray, rate: float) -> np.ndarray | None:
    """The samples at which `signal` (leads, samples), finite and in mV, has its QRS complexes; None without rhythm.

    The energy of the slope in the QRS band, smoothed over the width of a QRS complex (after Pan and Tompkins, IEEE
    Trans. Biomed. Eng. 32, 1985), is taken per lead and its median over the leads peaks at the beats, whatever a
    minority of bad leads shows.
    """
    duration = signal.shape[1] / rate
    if duration < TYPICAL_WINDOW or rate <= MIN_BEAT_RATE:
        return None
    band = sosfiltfilt(butter(2, QRS_BAND, "bandpass", fs=rate, output="sos"), signal)
    band = band[np.ptp(band, axis=1) >= MIN_AMPLITUDE]
    if len(band) == 0:
        return None
    energy = uniform_filter1d(np.gradient(band, axis=1) ** 2, round(QRS_WIDTH * rate), axis=1)
    energy = np.median(energy, axis=0)  # (samples,)
    windows = np.array_split(energy, int(duration / TYPICAL_WINDOW))
    typical = np.median([window.max() for window in windows])
    beats, _ = find_peaks(energy, height=MIN_HEIGHT * typical, distance=round(REFRACTORY * rate))
    if len(beats) < MIN_BEATS or typical < MIN_CONTRAST * np.median(energy):
        return None
    return beats


def qrs_width(signal: np.ndarray, rate: float, beats: np.ndarray) -> float:
    """Seconds for which the slope of the mean beat of `signal` (leads, samples) is steep: about half of QRS.

    The area under the slope's energy over its maximum, within a third of a beat-to-beat interval around the beats.
    """
    reach = max(2, int(np.median(np.diff(beats)) / 6))
    beats = beats[(beats >= reach) & (beats < signal.shape[1] - reach - 1)]
    slopes = np.diff(signal, axis=1)[:, beats[:, None] + np.arange(-reach, reach)].mean(axis=1)  # (leads, 2 reach)
    energy = (slopes**2 / (slopes**2).max(axis=1, keepdims=True).clip(1e-12)).mean(axis=0)
    return float(energy.sum() / energy.max() / rate)
