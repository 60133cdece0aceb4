"""Band-pass and resampling of ECGs; what is designed for a pair of rates is designed once."""

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
import scipy  # which loads scipy.signal when a filter is first used

SIDE_LOBES = 10  # of the resampling filter on either side, in periods of the lower rate
MAX_BLOCK_FACTOR = 40  # up to this smaller factor of up and down, resampling is a matrix product


def bandpass_filter(
    signal: np.ndarray, sampling_rate: float, band: Sequence[float], target_rate: float, order: int = 4
) -> np.ndarray:
    """Zero-phase Butterworth band-pass of `signal` (..., samples), to be applied before resampling to `target_rate`.

    The upper edge is at most 0.45 x `target_rate`; a lower edge of 0 or less makes a low-pass.  Returns float64, equal
    to `scipy.signal.sosfiltfilt`.

    Raises:
        ValueError: when the sampling rate cannot hold the band, or the signal is too short for the filter.
    """
    low, high = max(0.0, float(band[0])), min(float(band[1]), 0.45 * target_rate)
    if high >= sampling_rate / 2:
        raise ValueError(f"a signal sampled at {sampling_rate:g} Hz cannot hold the band up to {high:g} Hz")
    sections, steady_state, padding = _butterworth(order, low, high, float(sampling_rate))
    if signal.shape[-1] <= 3 * (2 * len(sections) + 1):
        raise ValueError(f"{signal.shape[-1]} samples are too few for the filter")
    steady_state = steady_state.reshape(len(sections), *[1] * (signal.ndim - 1), 2)
    signal = signal.astype(np.float64, copy=False)
    before = 2 * signal[..., :1] - signal[..., padding:0:-1]
    after = 2 * signal[..., -1:] - signal[..., -2 : -padding - 2 : -1]
    signal = np.concatenate([before, signal, after], axis=-1)
    for _ in range(2):  # forwards and backwards
        signal = scipy.signal.sosfilt(sections, signal, zi=steady_state * signal[..., :1])[0][..., ::-1]
    return signal[..., padding:-padding]


@lru_cache(maxsize=64)
def _butterworth(order: int, low: float, high: float, rate: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Second-order sections, their state after a constant 1, and the samples to pad with on either side."""
    edges, kind = ((low, high), "bandpass") if low > 0 else (high, "lowpass")
    sections = scipy.signal.butter(order, edges, btype=kind, fs=rate, output="sos")
    taps = 2 * len(sections) + 1 - min((sections[:, 2] == 0).sum(), (sections[:, 5] == 0).sum())
    return sections, scipy.signal.sosfilt_zi(sections), 3 * int(taps)


def resample(signal: np.ndarray, source_rate: float, target_rate: float) -> np.ndarray:
    """Polyphase resampling of `signal` (..., samples); any ratio of rates, to 1 part in 10,000 or better.

    Equals `scipy.signal.resample_poly(..., window=("kaiser", 5.0), padtype="median")` but for rounding.
    """
    up, down = _factors(source_rate, target_rate)
    if up == down:
        return signal
    level = median(signal)
    signal = signal - level
    if min(up, down) > MAX_BLOCK_FACTOR:
        window = _taps(up, down).astype(signal.dtype)
        return scipy.signal.resample_poly(signal, up, down, axis=-1, window=window) + level

    previous, current, following = _blocks(up, down).astype(signal.dtype, copy=False)
    samples, size = signal.shape[-1], len(current)
    blocks = np.zeros((*signal.shape[:-1], -(-samples // size) + 2, size), signal.dtype)
    blocks.reshape(*signal.shape[:-1], -1)[..., size : size + samples] = signal
    resampled = blocks[..., :-2, :] @ previous
    resampled += blocks[..., 1:-1, :] @ current
    resampled += blocks[..., 2:, :] @ following
    return resampled.reshape(*signal.shape[:-1], -1)[..., : -(-samples * up // down)] + level


@lru_cache(maxsize=64)
def _factors(source_rate: float, target_rate: float) -> tuple[int, int]:
    return (Fraction(target_rate) / Fraction(source_rate)).limit_denominator(10_000).as_integer_ratio()


@lru_cache(maxsize=64)
def _taps(up: int, down: int) -> np.ndarray:
    """Low-pass filter at `up` times the source's rate."""
    factor = max(up, down)
    return scipy.signal.firwin(2 * SIDE_LOBES * factor + 1, 1 / factor, window=("kaiser", 5.0))


@lru_cache(maxsize=64)
def _blocks(up: int, down: int) -> np.ndarray:
    """(3, samples in, samples out): what a block of samples owes to the block before it, to itself and to the next.

    Output m is the sum over inputs n of input n x tap (m x down - n x up), which repeats every `up` outputs; a block
    is as many repetitions as the filter reaches to one side.
    """
    repeats = -(-SIDE_LOBES // min(up, down))
    taps = up * _taps(up, down)
    inputs, outputs = np.arange(-down * repeats, 2 * down * repeats), np.arange(up * repeats)
    lags = outputs * down - inputs[:, None] * up + len(taps) // 2
    inside = (lags >= 0) & (lags < len(taps))
    return np.where(inside, taps[np.where(inside, lags, 0)], 0.0).reshape(3, down * repeats, up * repeats)


def median(signal: np.ndarray) -> np.ndarray:
    """Median of `signal` (..., samples) without NaN, as (..., 1): that of NumPy to the bit, in a fifth of the time."""
    half = signal.shape[-1] // 2
    ordered = np.partition(signal, half, axis=-1)
    upper = ordered[..., half : half + 1]
    if signal.shape[-1] % 2:
        return upper
    return (ordered[..., :half].max(axis=-1, keepdims=True) + upper) / 2
