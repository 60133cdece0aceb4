"""What the recipes share that align ECGs with reports: the pairs, zero-shot validation, the saved folder."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset

from ecgformers.datasets_scripts.preparing import ECG_COLUMNS, Augmentation, ecg_batches, prepare
from ecgformers.evaluation.scoring import zero_shot_auroc
from ecgformers.evaluation.tasks import find_task, labels, prompts
from ecgformers.modeling.modeling_melp_pretraining import MelpEcgForPreTraining
from ecgformers.modeling.processing_ecg import EcgProcessor
from ecgformers.options import is_missing_folder
from ecgformers.training.loading import EcgTextCollator, keep_rows, load_split, training_batches
from ecgformers.training.loop import LoopSettings, save_with, train
from ecgformers.training.mixing import Batches, mix_batches


@dataclass
class AlignmentSettings:
    """What to align, from what, and how it is validated.

    Args:
        data: sources with reports.
        text, ecg: folders of the trained stages before, where there are any.
        processor: settings of `EcgFeatureExtractor`.
        model: fields of the model's configuration.
        remove: patterns (regular expressions, without regard to case) taken out of every report.
        min_words: shorter reports are left out.
        groups: patterns; reports with the same first pattern in them, and those with none, make batches of their own:
            a negative in another language teaches nothing.
        crop_reports: probability with which a stretch of a report stands for the whole, so that a prompt that names
            one finding is nothing new.
        validation: task (a name, or a YAML file) -> the data set on whose validation split it is measured, zero-shot.
        stream: read so many training records an epoch on the way; 0: prepare all of them first.
    """

    data: Sequence[str]
    loop: LoopSettings
    text: str = ""
    ecg: str = ""
    tokenizer: str = ""
    processor: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(lead_drop=0.5))
    remove: Sequence[str] = ()
    min_words: int = 1
    groups: Sequence[str] = ()
    crop_reports: float = 0.0
    validation: dict[str, str] = field(default_factory=dict)
    stream: int = 0
    cache: str = ".cache/prepared"


def check_stages(settings: AlignmentSettings):
    """Raise `FileNotFoundError` where a stage before has left no model in the folder that the settings name."""
    for stage in ("text", "ecg"):
        folder = getattr(settings, stage)
        if is_missing_folder(folder):
            raise FileNotFoundError(f"{stage}: there is no folder {folder}; train that stage first, or name a model")


def load_residual_network(encoder: torch.nn.Module, folder: str):
    """Gives a tower's residual network the weights of a trained ECG stage (`encoder_type: resnet`) of its sizes."""
    own = encoder.state_dict()
    trained = MelpEcgForPreTraining.from_pretrained(folder).encoder.state_dict()
    encoder.load_state_dict(own | {name: weight for name, weight in trained.items() if name in own})


class Source(NamedTuple):
    """What else there is to learn from, beside pairs of ECG and report; its batches are never mixed with those.

    Args:
        num_records: of one epoch, over all processes.
        batches: see `loading.map_batches`.
        validate: figures of a model, named "validation_...", each an AUROC or alike.
    """

    num_records: int
    batches: Batches
    validate: Callable[[Any], dict[str, float]]


def align(
    settings: AlignmentSettings,
    accelerator: Accelerator,
    model: Any,
    processor: EcgProcessor,
    other: Source | None = None,
) -> Path:
    """Train `model` on pairs of ECG and report (and on `other`); the folder of the model that validates best: by the
    mean zero-shot AUROC over the tasks (and the figures of `other`).

    Raises:
        ValueError: there is nothing to validate by.
    """
    if not settings.validation and other is None:
        raise ValueError(
            "validation is empty: name at least one task and its data set, e.g. validation.ptbxl_super=DIR"
        )
    loop, cache = settings.loop, Path(settings.cache)

    def has_report(report: str | None) -> bool:
        return len(processor.clean_text(report or "").split()) >= max(1, settings.min_words)

    def group_of(row: Mapping[str, Any]) -> int:
        matches = (re.search(pattern, row["report"], re.IGNORECASE) for pattern in settings.groups)
        return next((i for i, match in enumerate(matches) if match), len(settings.groups))

    num_records, batches = training_batches(
        settings.data,
        processor.feature_extractor,
        partial(EcgTextCollator, processor, settings.augmentation, loop.seed, crop=settings.crop_reports),
        cache,
        loop,
        accelerator,
        settings.stream,
        partial(keep_rows, column="report", keep=has_report),
        group_of if settings.groups else None,
    )
    with accelerator.main_process_first():
        validation = {
            task: prepare(load_split([source], "validation"), processor.feature_extractor, cache)
            for task, source in settings.validation.items()
        }
    accelerator.print(f"{num_records} pairs, {model.num_parameters():,} parameters")
    if other is not None:
        sources = [(num_records, batches), (other.num_records, other.batches)]
        num_records, batches = mix_batches(sources, loop.batch_size * accelerator.num_processes, loop.seed)

    def evaluate(trained: Any) -> dict[str, float]:
        figures = validate(trained, processor, validation)
        if other is not None:
            figures |= other.validate(trained)
        return figures | {"validation_auroc": sum(figures.values()) / len(figures)}

    return train(
        accelerator,
        model,
        num_records,
        batches,
        loop,
        partial(save_with, processor),
        evaluate,
        score="validation_auroc",
    )


def validate(
    model: Any, processor: EcgProcessor, datasets: Mapping[str, Dataset], batch_size: int = 128
) -> dict[str, float]:
    """Macro AUROC of zero-shot classification for each task on its prepared data set."""
    figures = {}
    for name, dataset in datasets.items():
        task = find_task(name)
        targets, takes_part = labels(dataset.with_format(None).remove_columns(list(ECG_COLUMNS)), task)
        if task.contrast:
            targets = np.hstack([targets, 1 - targets])  # the complementary class has prompts, too
        batches = ecg_batches(dataset.select(np.flatnonzero(takes_part)), batch_size)
        texts = prompts(task)
        figures[f"validation_{task.name}"] = zero_shot_auroc(model, processor, batches, targets[takes_part], texts)
    return figures
