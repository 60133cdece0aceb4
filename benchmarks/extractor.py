"""Time of `EcgFeatureExtractor` for a 12-lead ECG of 10 s at 500 Hz, against the plain NumPy and SciPy calls.

    python benchmarks/extractor.py

Each row and its baseline run in turn, 200 times each, so that both meet the same load; medians, and their ratio.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import statistics
import time
from collections.abc import Callable

import numpy as np
from measuring import print_table
from scipy.signal import butter, resample_poly, sosfiltfilt

from ecgformers.modeling.feature_extraction_ecg import POLICIES, EcgFeatureExtractor
from ecgformers.modeling.findings_ecg import check_ecg
from ecgformers.modeling.leads_ecg import LIMB_LEADS, MELP_LEADS, STANDARD_LEADS
from ecgformers.modeling.record_ecg import EcgRecord

RUNS = 200
MELP = {"lead_names": MELP_LEADS, "sampling_rate": 500, "num_samples": 5000, "normalization": "min_max"}
SLOWER = {"sampling_rate": 100, "num_samples": 1000}
SCALED = {"normalization": "standard", "lead_means": [0.0] * 12, "lead_scales": [0.2] * 12}
IGNORED = {kind: "ignore" for kind, policies in POLICIES.items() if "ignore" in policies}


def made_up_ecg() -> EcgRecord:
    """Beats at 66 a minute with a little noise, and limb leads that follow from two of them."""
    rng = np.random.default_rng(0)
    phase = (np.arange(5000) / 500) % (60 / 66) - 0.4
    beat = np.exp(-((phase / 0.014) ** 2)) + 0.2 * np.exp(-(((phase - 0.2) / 0.05) ** 2))
    independent = rng.uniform(0.4, 1.2, (8, 1)) * beat + rng.normal(scale=0.01, size=(8, 5000))
    limbs = np.array(list(LIMB_LEADS.values())) @ independent[:2]
    return EcgRecord(np.concatenate([limbs, independent[2:]]), STANDARD_LEADS, 500.0)


def medians(*jobs: Callable[[], object]) -> list[float]:
    """Seconds of each job, run in turn."""
    times: list[list[float]] = [[] for _ in jobs]
    for job in jobs:
        job()
    for _ in range(RUNS):
        for job, taken in zip(jobs, times, strict=True):
            start = time.perf_counter()
            job()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def main() -> None:
    record = made_up_ecg()
    x = record.signal

    def min_max() -> np.ndarray:
        return (x - x.min()) / (x.max() - x.min() + 1e-8)

    def slower() -> np.ndarray:
        return resample_poly(x, 1, 5, axis=-1)

    def filtered() -> np.ndarray:
        sections = butter(4, [0.5, 40], "bandpass", fs=500, output="sos")
        return resample_poly(sosfiltfilt(sections, x, axis=-1), 1, 5, axis=-1)

    rows = []
    for name, settings, baseline, plain in (
        ("MELP settings, all checks", MELP, "min-max in float64", min_max),
        ("MELP settings, checks ignored", MELP | IGNORED, "min-max in float64", min_max),
        ("resampling to 100 Hz", SLOWER | SCALED, "resample_poly", slower),
        (
            "filter and resampling",
            SLOWER | SCALED | {"bandpass": [0.5, 40]},
            "butter, sosfiltfilt, resample_poly",
            filtered,
        ),
    ):
        extractor = EcgFeatureExtractor(**settings)
        ours, theirs = medians(lambda extractor=extractor: extractor(record), plain)
        rows.append([name, f"{1e3 * ours:.2f} ms", baseline, f"{1e3 * theirs:.2f} ms", f"{ours / theirs:.2f}x"])
    ours, theirs = medians(lambda: check_ecg(record), min_max)
    rows.append(
        ["check_ecg", f"{1e3 * ours:.2f} ms", "min-max in float64", f"{1e3 * theirs:.2f} ms", f"{ours / theirs:.0f}x"]
    )
    print_table(f"One record, medians of {RUNS}, one thread", ["ours", "", "plain", "", "ratio"], rows)


if __name__ == "__main__":
    main()
