"""A small data set in ten folds and small models, for tests of the evaluations."""

from pathlib import Path

import numpy as np
import tiny_echoing_ecg
import tiny_melp
import torch
from datasets import Dataset
from synthetic import CODES, REPORTS, simulated_signal

from ecgformers.datasets_scripts.rows import row_features
from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from ecgformers.modeling.leads_ecg import STANDARD_LEADS
from ecgformers.modeling.modeling_echoing_ecg import EchoingEcgModel
from ecgformers.modeling.modeling_melp import MelpModel
from ecgformers.modeling.modeling_melp_ecg import MelpEcgModel
from ecgformers.modeling.processing_ecg import EcgProcessor

CLASSES = tuple(REPORTS)
SAMPLES = 200


def label_of(index: int) -> int:
    """Every fold gets all labels."""
    return (index + index // 20) % len(CLASSES)


def evaluation_rows(records: int, folds: bool = True, seed: int = 0) -> list[dict]:
    """Two recordings of each patient; patient p is in fold p % 10 + 1; every seventh recording has no report."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(records):
        label, patient = label_of(index), index // 2
        fold = patient % 10 + 1
        rows.append(
            {
                "record_id": f"r{index}",
                "patient_id": f"p{patient}",
                "signal": simulated_signal(label, rng, SAMPLES),
                "gain": [1000.0] * 12,
                "baseline": [0] * 12,
                "units": ["mV"] * 12,
                "lead_names": list(STANDARD_LEADS),
                "sampling_rate": 100.0,
                "report": REPORTS[CLASSES[label]] if index % 7 else None,
                "statements": [{"code": CODES[CLASSES[label]], "likelihood": 100.0}],
                "age": 50.0,
                "sex": "female",
                "fold": fold if folds else None,
                "split": {9: "validation", 10: "test"}.get(fold, "train"),
                "source": "simulated",
            }
        )
    return rows


def write_rows(folder: Path, rows: list[dict]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=row_features(12, "int16")).to_parquet(folder / "train.parquet")
    return str(folder)


def feature_extractor(**kwargs) -> EcgFeatureExtractor:
    settings = {"sampling_rate": 100, "num_samples": SAMPLES, "normalization": "none", "min_duration": 1.0}
    return EcgFeatureExtractor(**{"lead_names": list(STANDARD_LEADS), **settings, **kwargs})


def write_melp(folder: Path, **kwargs) -> str:
    torch.manual_seed(1)
    MelpModel(tiny_melp.tiny_config()).save_pretrained(folder)
    processor = EcgProcessor(feature_extractor(**kwargs), tiny_melp.tiny_tokenizer(), max_text_length=31)
    processor.save_pretrained(folder)
    return str(folder)


def write_melp_encoder(folder: Path) -> str:
    torch.manual_seed(1)
    MelpEcgModel(tiny_melp.tiny_ecg_config()).save_pretrained(folder)
    feature_extractor().save_pretrained(folder)
    return str(folder)


def write_echoing_ecg(folder: Path) -> str:
    torch.manual_seed(1)
    EchoingEcgModel(tiny_echoing_ecg.tiny_config()).save_pretrained(folder)
    EcgProcessor(feature_extractor(), tiny_melp.tiny_tokenizer(), max_text_length=31).save_pretrained(folder)
    return str(folder)


class MeanAndSpread:
    """An outside model in ten lines: standard deviation and range of every lead."""

    def __init__(self):
        self.encoded = 0

    def encode(self, ecgs) -> np.ndarray:
        self.encoded += len(ecgs)
        return np.stack([np.concatenate([ecg.signal.std(1), np.ptp(ecg.signal, axis=1)]) for ecg in ecgs])
