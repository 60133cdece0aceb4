"""ECGs with the echo study of the same patient: batches for EchoingECG, and how well a model finds the study again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset

from ecgformers.datasets_scripts.preparing import (
    ECG_COLUMNS,
    Augmentation,
    ecg_batches,
    prepare,
    record_rng,
    stable_hash,
)
from ecgformers.evaluation.scoring import embed_prepared, similarity
from ecgformers.training.alignment import AlignmentSettings, Source
from ecgformers.training.loading import keep_rows, load_split, training_batches


@dataclass
class EcgEchoCollator:
    """Rows -> recordings, augmented, and the Gaussians of their echo studies (see `echo_gaussians`)."""

    gaussians: Mapping[str, np.ndarray]
    sampling_rate: float
    augmentation: Augmentation
    seed: int
    epoch: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        record_ids, studies = ([str(row[name]) for row in rows] for name in ("record_id", "echo_study_id"))
        rngs = [record_rng(self.seed, self.epoch, record_id) for record_id in record_ids]
        ecgs = [self.augmentation(row, self.sampling_rate, rng) for row, rng in zip(rows, rngs, strict=True)]
        gaussians = torch.from_numpy(np.stack([self.gaussians[study] for study in studies]))  # (batch, 2 * dim)
        mean, logvar = gaussians.chunk(2, dim=-1)
        return {
            **{name: torch.stack([ecg[name] for ecg in ecgs]) for name in ECG_COLUMNS},
            "echo_embeds": mean,
            "echo_logvar": logvar,
            "study_ids": torch.tensor([stable_hash(study) for study in studies]),
            "record_ids": record_ids,
            "return_loss": True,
            "gather": True,
        }


def echo_source(
    settings: AlignmentSettings,
    sources: Sequence[str],
    gaussians: Mapping[str, np.ndarray],
    extractor: Any,
    accelerator: Accelerator,
) -> Source:
    """What `align` needs to learn from echo studies.

    Args:
        sources: data sets whose rows have an `echo_study_id`, such as those of `datasets_scripts.mimic_iv_echo`; rows
            without one, or of a study without a Gaussian, are left out.

    Raises:
        ValueError: no row is left.
    """
    loop, cache = settings.loop, Path(settings.cache)

    def with_study(rows: Dataset) -> Dataset:
        chosen = keep_rows(rows, "echo_study_id", gaussians.__contains__)
        if not len(chosen):
            names = ", ".join(sources)
            raise ValueError(f"{names}: none of the {len(rows)} ECGs has one of the {len(gaussians)} studies")
        return chosen

    num_records, batches = training_batches(
        sources,
        extractor,
        partial(EcgEchoCollator, gaussians, extractor.sampling_rate, settings.augmentation, loop.seed),
        cache,
        loop,
        accelerator,
        select=with_study,
    )
    with accelerator.main_process_first():
        validation = prepare(with_study(load_split(sources, "validation")), extractor, cache)
    accelerator.print(f"{num_records} ECGs with an echo study")
    return Source(num_records, batches, lambda model: {"validation_echo": study_auroc(model, validation, gaussians)})


@torch.no_grad()
def study_auroc(model: Any, ecgs: Dataset, gaussians: Mapping[str, np.ndarray], batch_size: int = 128) -> float:
    """How well ECGs find their own echo study among those of all `ecgs`: the share of the other studies that are less
    similar (ties count one half), averaged over the ECGs; 0.5 is chance.

    Args:
        ecgs: prepared rows with `echo_study_id`, of two studies at least.
    """
    was_training = model.training
    model.eval()
    studies, own = np.unique(ecgs.with_format(None)["echo_study_id"], return_inverse=True)
    echo = torch.from_numpy(np.stack([gaussians[study] for study in studies]))
    features = embed_prepared(model, ecg_batches(ecgs, batch_size))
    model.train(was_training)
    similarities = similarity(model, features, echo)  # (ECGs, studies)
    right = similarities.gather(1, torch.from_numpy(own)[:, None])
    below = (similarities < right).sum(1) + ((similarities == right).sum(1) - 1) / 2
    return (below / (len(studies) - 1)).mean().item()
