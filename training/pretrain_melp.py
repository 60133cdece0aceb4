"""MELP's third stage: ECGs and reports aligned at three scales.

    accelerate launch -m ecgformers.training.pretrain_melp --config training/configs/melp.yaml \
        data=[folder] text=runs/text/best ecg=runs/ecg/best

`data` are data sets with reports, built by `datasets_scripts`; `text` and `ecg` are the models of the first two stages
(either may be left out: random weights).  The best model is that with the highest mean zero-shot AUROC over the tasks
of `validation`.  The negatives are those of all processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoTokenizer, BertForMaskedLM, PreTrainedTokenizerFast

from ecgformers.datasets_scripts.tasks import TASKS, labels, prompts
from ecgformers.modeling.configuration_melp import MelpConfig
from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from ecgformers.modeling.modeling_melp import MelpModel
from ecgformers.modeling.modeling_melp_ecg import MelpEcgForPreTraining
from ecgformers.modeling.processing_ecg import EcgProcessor
from ecgformers.modeling.tokenization_melp import as_report_tokenizer, special_token_settings
from ecgformers.training.loading import (
    ECG_COLUMNS,
    Augmentation,
    EcgTextCollator,
    clean_report,
    load_split,
    prepare,
    training_batches,
)
from ecgformers.training.loop import LoopSettings, make_accelerator, train
from ecgformers.training.settings import parse_settings
from ecgformers.training.zero_shot import zero_shot_auroc


@dataclass
class MelpSettings:
    """data: sources with reports; text, ecg: folders of the first two stages; processor: settings of
    EcgFeatureExtractor; model: fields of MelpConfig; validation: task -> the data set on whose validation split it is
    measured, zero-shot; stream: read so many training records an epoch on the way, 0: prepare all of them first."""

    data: Sequence[str]
    loop: LoopSettings
    text: str = ""
    ecg: str = ""
    tokenizer: str = ""
    processor: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(lead_drop=0.5))
    validation: dict[str, str] = field(default_factory=dict)
    min_words: int = 1
    stream: int = 0
    cache: str = ".cache/prepared"


def build_model(settings: MelpSettings, tokenizer: PreTrainedTokenizerFast) -> MelpModel:
    """The model of `settings.model`, with the weights of the first two stages where there are any."""
    fields = dict(settings.model)
    if settings.ecg:
        encoder = MelpEcgForPreTraining.from_pretrained(settings.ecg)
        trained = {name: getattr(encoder.config, name) for name in encoder.config.to_diff_dict()}
        fields["ecg_config"] = trained | fields.get("ecg_config", {})
    if settings.text:
        bert = BertForMaskedLM.from_pretrained(settings.text)
        fields["text_config"] = bert.config.to_diff_dict() | fields.get("text_config", {})
    fields["text_config"] = fields.get("text_config", {}) | {"vocab_size": len(tokenizer)}
    model = MelpModel(MelpConfig(**fields, **special_token_settings(tokenizer)))
    if settings.ecg:
        model.ecg_model.encoder.load_state_dict(encoder.encoder.state_dict())
    if settings.text:
        bert.resize_token_embeddings(len(tokenizer))
        model.text_model.load_state_dict(bert.bert.state_dict())
    if model.config.ecg_config.encoder_type == "wav2vec2":
        model.ecg_model.encoder.mask_embedding.requires_grad_(False)  # for masked prediction only
    model.freeze_text_layers()
    return model


def validate(
    model: MelpModel, processor: EcgProcessor, datasets: Mapping[str, Dataset], batch_size: int = 128
) -> dict[str, float]:
    """Macro AUROC of zero-shot classification for each task on its prepared data set, and their mean."""
    figures = {}
    for task, dataset in datasets.items():
        targets, takes_part = labels(dataset.with_format(None).remove_columns(list(ECG_COLUMNS)), TASKS[task])
        records = dataset.select(np.flatnonzero(takes_part))
        batches = (
            {name: torch.from_numpy(np.asarray(rows[name])) for name in ECG_COLUMNS}
            for rows in records.iter(batch_size)
        )
        texts = prompts(TASKS[task])
        figures[f"validation_{task}"] = zero_shot_auroc(model, processor, batches, targets[takes_part], texts)
    return figures | {"validation_auroc": sum(figures.values()) / len(figures)}


def save(processor: EcgProcessor, model: MelpModel, folder: Path):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def main(arguments: Sequence[str] | None = None):
    settings = parse_settings(MelpSettings, "melp", __doc__, arguments)
    if not settings.validation:
        raise SystemExit(
            "validation is empty: name at least one task and its data set, e.g. validation.ptbxl_super=DIR"
        )
    accelerator = make_accelerator(settings.loop)
    tokenizer = as_report_tokenizer(AutoTokenizer.from_pretrained(settings.tokenizer or settings.text))
    model = build_model(settings, tokenizer)
    processor = EcgProcessor(
        EcgFeatureExtractor(**settings.processor),
        tokenizer,
        lowercase=True,
        max_text_length=model.config.max_text_length,
    )

    def with_report(rows: Any) -> Any:
        chosen = rows.filter(
            lambda row: row["report"] is not None and len(row["report"].split()) >= settings.min_words
        )
        return chosen.map(lambda row: {"report": clean_report(row["report"])})

    loop, cache = settings.loop, Path(settings.cache)
    num_records, batches = training_batches(
        settings.data,
        processor.feature_extractor,
        partial(EcgTextCollator, processor, settings.augmentation, loop.seed),
        cache,
        loop,
        accelerator,
        settings.stream,
        with_report,
    )
    with accelerator.main_process_first():
        validation = {
            task: prepare(load_split([source], "validation"), processor.feature_extractor, cache)
            for task, source in settings.validation.items()
        }
    accelerator.print(f"{num_records} pairs, {model.num_parameters():,} parameters")
    best = train(
        accelerator,
        model,
        num_records,
        batches,
        loop,
        partial(save, processor),
        lambda trained: validate(trained, processor, validation),
        score="validation_auroc",
    )
    accelerator.print(f"best model: {best}")


if __name__ == "__main__":
    main()
