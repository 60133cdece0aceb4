"""Recordings as a model takes them: prepared once by its feature extractor, augmented by record and epoch."""

import hashlib
import inspect
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Array2D, Dataset, IterableDataset, List, Value
from transformers import BatchFeature
from transformers.dynamic_module_utils import get_relative_import_files

from ecgformers import __version__
from ecgformers.datasets_scripts.rows import SIGNAL_COLUMNS, row_to_record
from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from ecgformers.modeling.quality_ecg import EcgQualityError

logger = logging.getLogger(__name__)

ECG_COLUMNS = ("input_values", "lead_mask", "sample_mask")


def prepare(dataset: Dataset, extractor: EcgFeatureExtractor, cache: Path) -> Dataset:
    """Run the feature extractor over a data set once and keep the result in `cache`.

    Adds `input_values` (leads, samples), `lead_mask` (leads) and `sample_mask` (samples); a recording that the
    extractor refuses is left out, with a message that says how many and why.
    """
    key = hashlib.sha256(f"{dataset._fingerprint}{extractor_fingerprint(extractor)}".encode()).hexdigest()[:16]
    features = dataset.features.copy()
    for name in SIGNAL_COLUMNS:
        del features[name]
    features["input_values"] = Array2D((len(extractor.lead_names), extractor.num_samples), "float32")
    features["lead_mask"] = features["sample_mask"] = List(Value("int8"))
    features["refusal"] = Value("string")
    cache.mkdir(parents=True, exist_ok=True)
    prepared = dataset.with_format("numpy").map(
        _prepare_batch,
        fn_kwargs={"extractor": extractor},
        batched=True,
        batch_size=64,
        remove_columns=list(SIGNAL_COLUMNS),
        features=features,
        cache_file_name=str(cache / f"{key}.arrow"),
        load_from_cache_file=True,
        new_fingerprint=key,
        desc="preparing recordings",
    )
    refusals = prepared.with_format(None)["refusal"][:]
    if any(refusals):
        refused = [reason for reason in refusals if reason]
        logger.warning("%d recordings left out: %s", len(refused), "; ".join(refused))
        prepared = prepared.select(np.flatnonzero([not reason for reason in refusals]))
    return prepared.remove_columns("refusal")


def extractor_fingerprint(extractor: Any) -> str:
    """A name for exactly this preparation of a recording: settings, the code that reads them, ecgformers' version."""
    digest = hashlib.sha256(f"{__version__}{json.dumps(extractor.to_dict(), sort_keys=True, default=str)}".encode())
    file = inspect.getfile(type(extractor))
    for path in sorted({file, *get_relative_import_files(file)}):
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()


def stream(rows: IterableDataset, extractor: EcgFeatureExtractor) -> IterableDataset:
    """The rows of `prepare` for a data set too large to keep: read (from the Hub, too) and prepared on the way.

    A recording that the extractor refuses is left out, with a warning.
    """
    prepared = rows.map(
        _prepare_batch,
        fn_kwargs={"extractor": extractor},
        batched=True,
        batch_size=64,
        remove_columns=list(SIGNAL_COLUMNS),
    )
    return prepared.filter(_is_accepted).remove_columns("refusal")


def _is_accepted(row: Mapping[str, Any]) -> bool:
    if row["refusal"]:
        logger.warning("left out: %s", row["refusal"])
    return not row["refusal"]


def _prepare_batch(rows: Mapping[str, Sequence[Any]], extractor: EcgFeatureExtractor) -> dict[str, list[Any]]:
    columns = ("record_id", "source", *SIGNAL_COLUMNS)
    result: dict[str, list[Any]] = {name: [] for name in (*extractor.model_input_names, "refusal")}
    for values in zip(*(rows[name] for name in columns), strict=True):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                inputs = extractor(row_to_record(dict(zip(columns, values, strict=True))))
            result["refusal"].append("")
        except EcgQualityError as error:
            leads, samples = len(extractor.lead_names), extractor.num_samples
            empty = np.zeros((1, leads, samples), np.float32), np.zeros((1, leads), int), np.zeros((1, samples), int)
            inputs = BatchFeature(dict(zip(ECG_COLUMNS, empty, strict=True)))
            result["refusal"].append(str(error))
        for name in extractor.model_input_names:
            result[name].append(inputs[name][0])
    return result


def ecg_batches(prepared: Dataset, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
    """The recordings of a prepared data set in order, as a model takes them."""
    for rows in prepared.iter(batch_size):
        yield {name: torch.from_numpy(np.asarray(rows[name])) for name in ECG_COLUMNS}


def stable_hash(text: str) -> int:
    """A 63-bit number that is the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True)
class Augmentation:
    """What is done to a recording, drawn anew for every record and epoch, and the same whoever draws it.

    Args:
        lead_drop: probability with which each lead is left out (MELP: 0.5).
        shift: largest circular shift, in seconds.
        scale: standard deviation of the logarithm of a factor on the whole recording.
        noise: largest standard deviation of added white noise, in units of the model's input; each recording gets one
            between 0 and it.
        window: length in samples of a stretch drawn at random from the recording (0: the whole).
    """

    lead_drop: float = 0.0
    shift: float = 0.0
    scale: float = 0.0
    noise: float = 0.0
    window: int = 0

    def __call__(self, row: Mapping[str, Any], sampling_rate: float, rng: np.random.Generator) -> dict[str, Any]:
        """`input_values` (leads, samples), `lead_mask` (leads) and `sample_mask` (samples) of a row, changed."""
        values, lead_mask, sample_mask = (np.asarray(row[name]) for name in ECG_COLUMNS)
        keep = rng.random(len(values)) >= self.lead_drop
        where, strength = rng.random(), rng.standard_normal()
        if not (keep & (lead_mask > 0)).any():
            keep = lead_mask > 0
        if self.window:
            start = int(where * (max(0, int(sample_mask.sum()) - self.window) + 1))
            stretch = slice(start, start + self.window)
            values, sample_mask = values[:, stretch], sample_mask[stretch]
        if self.shift:
            values = np.roll(values, int(rng.random() * self.shift * sampling_rate), axis=-1)
        if self.scale:
            values = values * np.exp(self.scale * strength)
        if self.noise:
            values = values + rng.uniform(0, self.noise) * rng.standard_normal(values.shape)
        return {
            "input_values": torch.from_numpy(np.ascontiguousarray(values, np.float32)),
            "lead_mask": torch.from_numpy((lead_mask * keep).astype(np.int64)),
            "sample_mask": torch.from_numpy(sample_mask.astype(np.int64)),
        }


def record_rng(seed: int, epoch: int, record_id: str) -> np.random.Generator:
    """The random numbers of one record in one epoch."""
    return np.random.default_rng([seed, epoch, stable_hash(record_id)])
