"""A small data set of simulated ECGs with reports, as a folder that `load_dataset` opens."""

from pathlib import Path

import numpy as np
from datasets import Dataset

from ecgformers.datasets_scripts.rows import row_features
from ecgformers.modeling.leads_ecg import STANDARD_LEADS

REPORTS = {
    "NORM": "sinus rhythm. normal ecg.",
    "MI": "sinus rhythm. inferior infarction.",
    "STTC": "non-specific st changes",
    "CD": "left bundle branch block. left axis deviation.",
    "HYP": "left ventricular hypertrophy.",
}
CODES = {"NORM": "NORM", "MI": "IMI", "STTC": "NST_", "CD": "CLBBB", "HYP": "LVH"}


def simulated_signal(label: int, rng: np.random.Generator, samples: int) -> np.ndarray:
    """(samples, 12) microvolts: beats whose shape depends on the label, with noise; the limb leads are consistent."""
    time = np.arange(samples) / 100
    phase = (time * rng.uniform(0.9, 1.4)) % 1
    beat = np.exp(-((phase - 0.3) ** 2) / (0.0008 * (1 + label))) + (label - 2) * 0.15 * np.sin(2 * np.pi * phase)
    independent = beat[:, None] * rng.uniform(0.5, 1.5, 8) * 1000 + rng.normal(0, 20, (samples, 8))
    one, two, chest = independent[:, 0], independent[:, 1], independent[:, 2:]
    limb = np.stack([one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2], 1)
    return np.concatenate([limb, chest], 1).round().astype(np.int16)


def write_dataset(folder: Path, records: int = 64, samples: int = 400, seed: int = 0) -> Path:
    """`records` training and a quarter as many validation recordings at 100 Hz, two of each patient."""
    rng = np.random.default_rng(seed)
    names = list(REPORTS)
    for split, count, fold in (("train", records, 1), ("validation", records // 4, 9)):
        rows = []
        for index in range(count):
            label = int(rng.integers(len(names)))
            rows.append(
                {
                    "record_id": f"{split}-{index}",
                    "patient_id": f"{split}-{index // 2}",
                    "signal": simulated_signal(label, rng, samples),
                    "gain": [1000.0] * 12,
                    "baseline": [0] * 12,
                    "units": ["mV"] * 12,
                    "lead_names": list(STANDARD_LEADS),
                    "sampling_rate": 100.0,
                    "report": REPORTS[names[label]],
                    "statements": [{"code": CODES[names[label]], "likelihood": 100.0}],
                    "age": 50.0,
                    "sex": "female",
                    "fold": fold,
                    "split": split,
                    "source": "simulated",
                }
            )
        folder.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(rows, features=row_features(12, "int16")).to_parquet(folder / f"{split}.parquet")
    return folder
