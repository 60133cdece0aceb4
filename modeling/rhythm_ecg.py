"""Heart rate of an ECG, from its QRS complexes.  Research use only, not a medical device."""

import numpy as np
from scipy.ndimage import uniform_filter1d
from scipy.signal import butter, find_peaks, sosfiltfilt

from .record_ecg import EcgRecord

QRS_BAND = (5.0, 20.0)  # Hz, where a QRS complex stands out from P and T waves, drift and muscle noise
QRS_WIDTH = 0.1  # s
REFRACTORY = 0.25  # s, so at most 240 beats a minute
TYPICAL_WINDOW = 2.0  # s, which holds a beat at 30 beats a minute and more
MIN_BEATS = 4
MIN_HEIGHT = 0.2  # energy of a beat, relative to the typical one
MIN_CONTRAST = 12.0  # energy of the typical beat, relative to the median over time: noise reaches 6, ECGs lie above 25
MIN_AMPLITUDE = 0.02  # mV in the QRS band, the range of a lead that is not flat


def heart_rate(record: EcgRecord) -> float | None:
    """Beats per minute, from the median beat-to-beat interval; None when no reliable rhythm is found.

    The energy of the slope in the QRS band, smoothed over the width of a QRS complex (after Pan and Tompkins, IEEE
    Trans. Biomed. Eng. 32, 1985), is taken per lead and its median over the leads peaks at the beats, whatever a
    minority of bad leads shows.  Leads with NaN and flat leads do not count.  Fewer than four beats, or beats that
    hardly rise over the time between them (noise), give None.
    """
    rate = record.sampling_rate
    signal = record.signal[np.isfinite(record.signal).all(axis=1)]  # (leads, samples)
    if record.duration < TYPICAL_WINDOW or rate <= 2.5 * QRS_BAND[1]:
        return None
    band = sosfiltfilt(butter(2, QRS_BAND, "bandpass", fs=rate, output="sos"), signal)
    band = band[np.ptp(band, axis=1) >= MIN_AMPLITUDE]
    if len(band) == 0:
        return None
    energy = uniform_filter1d(np.gradient(band, axis=1) ** 2, round(QRS_WIDTH * rate), axis=1)
    energy = np.median(energy, axis=0)  # (samples,)
    windows = np.array_split(energy, int(record.duration / TYPICAL_WINDOW))
    typical = np.median([window.max() for window in windows])
    beats, _ = find_peaks(energy, height=MIN_HEIGHT * typical, distance=round(REFRACTORY * rate))
    if len(beats) < MIN_BEATS or typical < MIN_CONTRAST * np.median(energy):
        return None
    return float(60 * rate / np.median(np.diff(beats)))
