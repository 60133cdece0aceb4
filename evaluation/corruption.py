"""Recordings made worse on purpose, to see whether a model notices."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ecgformers.datasets_scripts.preparing import record_rng
from ecgformers.modeling.record_ecg import EcgRecord


@dataclass(frozen=True)
class Corruption:
    """What is done to a recording; more noise is the same noise, louder, and more leads are the same ones and others.

    Args:
        noise_db: power of a lead over that of the white noise added to it, in decibels; None: no noise.
        dropped_leads: how many leads are left out, drawn for each recording.
    """

    noise_db: float | None = None
    dropped_leads: int = 0


@dataclass(frozen=True)
class CorruptedExtractor:
    """A feature extractor of corrupted recordings, in place of `EcgFeatureExtractor` in a `HubEncoder`."""

    extractor: Any
    corruption: Corruption
    seed: int

    def __call__(self, ecgs: Sequence[EcgRecord], return_tensors: str) -> Any:
        rngs = [record_rng(self.seed, 0, str(ecg.metadata["record_id"])) for ecg in ecgs]
        orders = [rng.permutation(len(self.extractor.lead_names)) for rng in rngs]
        noisy = [self._with_noise(ecg, rng) for ecg, rng in zip(ecgs, rngs, strict=True)]
        inputs = self.extractor(noisy, return_tensors=return_tensors)
        for mask, order in zip(inputs["lead_mask"], orders, strict=True):
            mask[order[: self.corruption.dropped_leads]] = 0
        return inputs

    def to_dict(self) -> dict[str, Any]:
        """Everything that decides what comes out."""
        return {**self.extractor.to_dict(), **asdict(self.corruption), "corruption_seed": self.seed}

    def _with_noise(self, ecg: EcgRecord, rng: np.random.Generator) -> EcgRecord:
        if self.corruption.noise_db is None:
            return ecg
        scale = np.nanstd(ecg.signal, axis=1, keepdims=True) * 10 ** (-self.corruption.noise_db / 20)
        return replace(ecg, signal=ecg.signal + scale * rng.standard_normal(ecg.signal.shape))
