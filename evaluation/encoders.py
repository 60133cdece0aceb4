"""ECG encoders under evaluation: ours, and any other that is wrapped in a few lines.

An outside model takes part as `--model MODULE:FACTORY`, where FACTORY() gives an object with `encode`:

    class Theirs:
        fingerprint = "theirs-1.0"      # optional: features are cached on disk under this name

        def __init__(self):
            self.network = load_their_network().eval()

        def encode(self, ecgs):         # EcgRecords: .signal (leads, samples) in mV, .lead_names, .sampling_rate
            batch = np.stack([preprocess(ecg.signal, ecg.sampling_rate) for ecg in ecgs])
            with torch.no_grad():
                return self.network(torch.from_numpy(batch)).numpy()      # (batch, features)

        def random(self, seed):         # optional: the same shape with random weights, the baseline of every table
            ...
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import AutoFeatureExtractor, AutoModel

from ecgformers.datasets_scripts.preparing import extractor_fingerprint
from ecgformers.datasets_scripts.rows import row_to_record
from ecgformers.evaluation.options import EvaluationOptions, FeatureOptions, is_factory
from ecgformers.evaluation.records import RecordData
from ecgformers.modeling.quality_ecg import EcgQualityWarning
from ecgformers.modeling.record_ecg import EcgRecord

RANDOM = "random encoder"


class EcgEncoder(Protocol):
    """Anything that turns ECGs into features (batch, features)."""

    def encode(self, ecgs: Sequence[EcgRecord]) -> np.ndarray | torch.Tensor: ...


Encoder = TypeVar("Encoder", bound=EcgEncoder)
Records = TypeVar("Records", bound=RecordData)


class HubEncoder:
    """The ECG tower of a model of this package, with its own feature extractor.

    Features are the outputs of the tower named in `outputs`, side by side.
    """

    def __init__(
        self,
        model: Any,
        feature_extractor: Any,
        device: str | None = None,
        outputs: Sequence[str] = ("pooler_output",),
    ):
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device).eval()
        self.feature_extractor = feature_extractor
        self.outputs = tuple(outputs)

    @classmethod
    def from_pretrained(
        cls, name: str, device: str | None = None, outputs: Sequence[str] = ("pooler_output",)
    ) -> "HubEncoder":
        return cls(AutoModel.from_pretrained(name), AutoFeatureExtractor.from_pretrained(name), device, outputs)

    @torch.inference_mode()
    def encode(self, ecgs: Sequence[EcgRecord]) -> torch.Tensor:
        inputs = self.feature_extractor(list(ecgs), return_tensors="pt").to(self.device)
        output = getattr(self.model, "get_ecg_features", self.model)(**inputs)
        for name in self.outputs:
            if output.get(name) is None:
                raise TypeError(f"{type(self.model).__name__} gives no {name} of an ECG, but {', '.join(output)}")
        return torch.cat([output[name] for name in self.outputs], dim=-1).float().cpu()

    def random(self, seed: int) -> "HubEncoder":
        """The same shape with the weights that training starts from."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModel.from_config(self.model.config)
        return HubEncoder(model, self.feature_extractor, self.device, self.outputs)

    @cached_property
    def fingerprint(self) -> str:
        """A name for exactly these weights and this preparation of the signal."""
        digest = hashlib.sha256(f"{self.outputs}{extractor_fingerprint(self.feature_extractor)}".encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def load_encoder(name: str, device: str | None = None, outputs: Sequence[str] = ("pooler_output",)) -> EcgEncoder:
    """The encoder behind `--model`: a folder, a name on the Hub, or MODULE:FACTORY, which has features of its own."""
    if is_factory(name):
        module, _, factory = name.partition(":")
        encoder = getattr(import_module(module), factory)()
        if not hasattr(encoder, "encode"):
            raise ValueError(f"{name} gives a {type(encoder).__name__}, which has no method encode")
        return encoder
    return HubEncoder.from_pretrained(name, device, outputs)


def load_with_random(options: FeatureOptions) -> dict[str, EcgEncoder]:
    """The encoder that the options of a probe name, and its baseline."""
    encoder = load_encoder(options.model, options.device, options.features)
    return with_random(encoder, options.model_name, options.seed)


def with_random(encoder: Encoder, name: str, seed: int) -> dict[str, Encoder]:
    """An encoder and, where it has a method `random`, its baseline: the same one with random weights."""
    random = getattr(encoder, "random", None)
    return {name: encoder} if random is None else {name: encoder, RANDOM: random(seed)}


def encode_records(
    encoders: Mapping[str, EcgEncoder], data: Records, options: EvaluationOptions
) -> tuple[Records, dict[str, np.ndarray], list[str]]:
    """The features (n, features) of every encoder for the records that none of them refuses.

    Returns:
        Those records, the features by encoder, and notes on what is missing.
    """
    features: dict[str, np.ndarray] = {}
    refused: dict[int, str] = {}
    for name, encoder in encoders.items():
        features[name], refusals = extract_features(
            encoder, data.ecgs, data.rows, options.features_folder, options.batch_size
        )
        refused |= refusals
    notes = []
    if RANDOM not in encoders:
        notes.append("the encoder has no method random: there is no random encoder beside it")
    if refused:
        notes.append(f"{len(refused)} recordings were refused and left out, the first: {next(iter(refused.values()))}")
    kept = ~np.isin(data.rows, list(refused))
    return data.take(kept), {name: each[kept] for name, each in features.items()}, notes


def leave_out_refused(data: Records, feature_extractor: Any) -> tuple[Records, list[str]]:
    """The records that a model's feature extractor takes, and a note about the others.

    Raises:
        ValueError: it takes none.
    """
    refusals: dict[int, str] = {}
    with quality_warnings_together():
        for index, row in enumerate(tqdm(data.rows.tolist(), desc="Checking", unit=" ECGs", delay=2)):
            try:
                feature_extractor(row_to_record(data.ecgs[row]))
            except ValueError as error:
                refusals[index] = str(error)
    if not refusals:
        return data, []
    note = f"{len(refusals)} recordings were refused and left out, the first: {next(iter(refusals.values()))}"
    if len(refusals) == len(data):
        raise ValueError(note)
    return data.take(~np.isin(np.arange(len(data)), list(refusals))), [note]


def extract_features(
    encoder: EcgEncoder, ecgs: Dataset, rows: np.ndarray, cache: Path | None = None, batch_size: int = 64
) -> tuple[np.ndarray, dict[int, str]]:
    """The features of some rows of a data set, computed once.

    Args:
        ecgs: a data set built with `datasets_scripts`, with format "numpy".
        rows: (n,) which of its rows.
        cache: folder for features of encoders that have a `fingerprint`; a run that was stopped goes on from there.

    Returns:
        (n, features) float32, NaN for recordings that the encoder refuses, and those rows, each with the reason.

    Raises:
        ValueError: the encoder refuses every recording, or gives something else than finite (batch, features).
    """
    store = _Store.open(encoder, ecgs, cache)
    todo = [row for row in rows.tolist() if not store.has(row)]
    with quality_warnings_together(), tqdm(total=len(todo), desc="Encoding", unit=" ECGs", delay=2) as bar:
        for start in range(0, len(todo), batch_size):
            batch = todo[start : start + batch_size]
            records = [row_to_record(ecgs[row]) for row in batch]
            try:
                store.put(batch, _encode(encoder, records))
            except ValueError:
                for row, record in zip(batch, records, strict=True):
                    try:
                        features = _encode(encoder, [record])
                    except ValueError as error:
                        store.refuse(row, str(error))
                    else:
                        store.put([row], features)
            bar.update(len(batch))
    store.save()
    refused = {row: store.refused[row] for row in rows.tolist() if row in store.refused}
    if len(refused) == len(rows):
        raise ValueError(f"every one of {len(rows)} recordings was refused, the first: {next(iter(refused.values()))}")
    return store.get(rows), refused


@contextmanager
def quality_warnings_together() -> Iterator[None]:
    """Instead of a warning for every recording of doubtful quality, one at the end that says how many there were."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    doubts = [warning for warning in caught if issubclass(warning.category, EcgQualityWarning)]
    if doubts:
        warnings.warn(f"{len(doubts)} doubts about quality, the first: {doubts[0].message}", EcgQualityWarning, 3)
    for other in (warning for warning in caught if not issubclass(warning.category, EcgQualityWarning)):
        warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)


def _encode(encoder: EcgEncoder, records: list[EcgRecord]) -> np.ndarray:
    features = np.asarray(encoder.encode(records), dtype=np.float32)
    if features.ndim != 2 or len(features) != len(records):
        raise TypeError(f"encode gave shape {features.shape} for {len(records)} ECGs, not (batch, features)")
    broken = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(broken):
        raise ValueError(f"{records[broken[0]].source}: the features are not finite")
    return features


class _Store:
    """Features by row of a data set, in memory or in a file: NaN where there are none yet."""

    def __init__(self, length: int, path: Path | None):
        self.length = length
        self.path = path
        self.values: np.ndarray | None = None
        self.refused: dict[int, str] = {}
        if path is not None and path.exists():
            self.values = np.lib.format.open_memmap(path, mode="r+")
        if path is not None and path.with_suffix(".json").exists():
            saved = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            self.refused = {int(row): reason for row, reason in saved.items()}

    @classmethod
    def open(cls, encoder: EcgEncoder, ecgs: Dataset, cache: Path | None) -> "_Store":
        fingerprint = getattr(encoder, "fingerprint", None)
        if cache is None or fingerprint is None:
            return cls(len(ecgs), None)
        cache.mkdir(parents=True, exist_ok=True)
        key = hashlib.sha256(f"{fingerprint} {ecgs._fingerprint}".encode()).hexdigest()[:24]
        return cls(len(ecgs), cache / f"{key}.npy")

    def has(self, row: int) -> bool:
        return row in self.refused or (self.values is not None and not np.isnan(self.values[row, 0]))

    def put(self, rows: list[int], features: np.ndarray):
        if self.values is None:
            shape = (self.length, features.shape[1])
            if self.path is None:
                self.values = np.empty(shape, np.float32)
            else:
                self.values = np.lib.format.open_memmap(self.path, mode="w+", dtype=np.float32, shape=shape)
            self.values[:] = np.nan
        self.values[rows] = features

    def refuse(self, row: int, reason: str):
        self.refused[row] = reason

    def save(self):
        if self.path is not None and self.refused:
            self.path.with_suffix(".json").write_text(json.dumps(self.refused), encoding="utf-8")
        if isinstance(self.values, np.memmap):
            self.values.flush()

    def get(self, rows: np.ndarray) -> np.ndarray:
        return np.full((len(rows), 0), np.nan, np.float32) if self.values is None else np.array(self.values[rows])
