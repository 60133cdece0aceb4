"""Recordings longer than a model's input, in windows: cut, chosen, and their answers pooled."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .findings_ecg import check_ecg
from .quality_ecg import LEFT_OUT_SECONDS
from .record_ecg import EcgRecord

WINDOWS = ("first", "all", "best")
POOLINGS = ("mean", "max")
WEIGHTS = {"error": 100, "warning": 10, "note": 0}  # of findings, where the cleanest window is chosen


def cut_windows(record: EcgRecord, seconds: float, overlap: float = 0.5) -> Iterator[tuple[float, EcgRecord]]:
    """Windows of `record` and when each begins, in seconds; the signals are views.

    Neighbours share `overlap` of their length; a last window ends with the recording where more than half a second
    would be left out.  A recording no longer than a window is its only one.

    Raises:
        ValueError: for an overlap that is not from 0 to below 1.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be from 0 to below 1, not {overlap!r}")
    rate, samples = record.sampling_rate, record.signal.shape[1]
    size = max(1, round(seconds * rate))
    hop = max(1, round(size * (1 - overlap)))
    starts = list(range(0, max(1, samples - size + 1), hop))
    if samples - (starts[-1] + size) >= LEFT_OUT_SECONDS * rate:
        starts.append(samples - size)
    for start in starts:
        source = f"{record.source}, {start / rate:g} to {min(samples, start + size) / rate:g} s"
        yield start / rate, replace(record, signal=record.signal[:, start : start + size], source=source)


def cleanest_window(record: EcgRecord, seconds: float, overlap: float = 0.5) -> tuple[float, EcgRecord]:
    """The window with the fewest and mildest findings of `check_ecg`, and when it begins; the first of equals."""
    return min(
        cut_windows(record, seconds, overlap),
        key=lambda window: sum(WEIGHTS[finding.severity] for finding in check_ecg(window[1])),
    )


def pool_answers(answers: Sequence[Any], pooling: str = "mean") -> Any:
    """One answer for the windows of a recording.

    Scores of labels (lists of `{"label", "score"}`) and features (nested lists of numbers) are averaged, or their
    maximum is taken, for findings that come and go; of texts each different one is kept, in order of appearance.
    """
    reduce: Any = {"mean": np.mean, "max": np.max}[pooling]
    first = answers[0]
    if isinstance(first, list) and first and isinstance(first[0], dict) and "label" in first[0]:
        scores: dict[str, list[float]] = {}
        for entry in (entry for answer in answers for entry in answer):
            scores.setdefault(entry["label"], []).append(entry["score"])
        pooled = [{"label": label, "score": float(reduce(values))} for label, values in scores.items()]
        return sorted(pooled, key=lambda entry: -entry["score"])
    if isinstance(first, list) and first and isinstance(first[0], dict):
        texts = dict.fromkeys(entry["generated_text"] for answer in answers for entry in answer)
        return [{"generated_text": text} for text in texts]
    return reduce([np.asarray(answer) for answer in answers], axis=0).tolist()
