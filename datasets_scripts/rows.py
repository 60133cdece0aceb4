"""The row that every data set built here has, and the way from a row to an ECG in millivolts.

| column | |
|---|---|
| `record_id`, `patient_id` | as published; no patient is in two splits |
| `signal` | (samples, leads), at its native rate, as stored: millivolts by `row_to_record` |
| `gain`, `baseline`, `units` | per lead: (signal - baseline) / gain is in `units` |
| `lead_names`, `sampling_rate` | standard names where they are standard leads; Hz |
| `report` | the text that came with the recording |
| `statements` | list of {code, likelihood in percent}, in the source's own codes |
| `age`, `sex` | years (90 where the source says "over 89"); "female" or "male" |
| `fold`, `split` | the published fold; "train", "validation" or "test" |
| `source` | the file, relative to the folder of the source |

What is unknown is null.  Sets with 0/1 columns add them as `labels`, sets with echo measurements as `measurements`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Array2D, Dataset, Features, List, Value, concatenate_datasets, load_dataset

from ecgformers.datasets_scripts.digital_ecg import DigitalEcg
from ecgformers.modeling.record_ecg import SIGNAL_COLUMNS, lead_name, row_to_record

__all__ = [
    "SIGNAL_COLUMNS",
    "SPLITS",
    "load_ecgs",
    "patient_split",
    "row_features",
    "row_to_record",
    "signal_columns",
    "statements",
]

SPLITS = ("train", "validation", "test")


def row_features(leads: int, dtype: str) -> Features:
    """The columns that every data set has, for signals of so many leads and of this numpy type."""
    text = Value("string")
    return Features(
        {
            "record_id": text,
            "patient_id": text,
            "signal": Array2D((None, leads), dtype),
            "gain": List(Value("float64")),
            "baseline": List(Value("int32")),
            "units": List(text),
            "lead_names": List(text),
            "sampling_rate": Value("float64"),
            "report": text,
            "statements": List({"code": text, "likelihood": Value("float32")}),
            "age": Value("float32"),
            "sex": text,
            "fold": Value("int32"),
            "split": text,
            "source": text,
        }
    )


def statements(codes: Sequence[str] | Mapping[str, float]) -> list[dict[str, Any]]:
    """The `statements` of a row, from codes alone or from codes with their likelihoods in percent."""
    if isinstance(codes, Mapping):
        return [{"code": code, "likelihood": likelihood} for code, likelihood in codes.items()]
    return [{"code": code, "likelihood": None} for code in codes]


def patient_split(patient_id: str, validation: float, test: float = 0.0) -> str:
    """A split for a patient of a data set that publishes none: always the same one, in these shares on average."""
    place = int.from_bytes(hashlib.sha256(patient_id.encode()).digest()[:8], "big") / 2**64
    return "test" if place < test else "validation" if place < test + validation else "train"


def signal_columns(recordings: Sequence[DigitalEcg], schema: pa.Schema) -> dict[str, pa.Array]:
    """The Arrow columns of the signals, without a detour through Python lists of samples."""
    signals = [recording.signal for recording in recordings]  # (samples, leads) each
    values = np.concatenate([signal.reshape(-1) for signal in signals])
    leads = signals[0].shape[1]
    rows = pa.ListArray.from_arrays(np.arange(0, len(values) + 1, leads, dtype=np.int32), pa.array(values))
    ends = np.cumsum([0] + [len(signal) for signal in signals], dtype=np.int32)
    storage = pa.ListArray.from_arrays(ends, rows)
    columns = {
        "gain": [list(recording.gain) for recording in recordings],
        "baseline": [list(recording.baseline) for recording in recordings],
        "units": [list(recording.units) for recording in recordings],
        "lead_names": [[lead_name(name) for name in recording.lead_names] for recording in recordings],
        "sampling_rate": [recording.sampling_rate for recording in recordings],
    }
    arrays = {name: pa.array(column, schema.field(name).type) for name, column in columns.items()}
    return {"signal": pa.ExtensionArray.from_storage(schema.field("signal").type, storage), **arrays}


def load_ecgs(name: str) -> Dataset:
    """All splits of a data set built with `datasets_scripts`, one after the other."""
    parts = load_dataset(name)
    return concatenate_datasets([parts[split] for split in sorted(parts)])
