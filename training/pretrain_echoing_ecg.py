"""EchoingECG: ECGs aligned with reports and with echo studies, all of them Gaussians.

    accelerate launch -m ecgformers.training.pretrain_echoing_ecg --config training/configs/echoing_ecg.yaml \\
        data=[folder] echo=[folder] echo_features=studies.parquet

`data` are data sets with reports; `echo` are data sets whose ECGs have an `echo_study_id` (`datasets_scripts` builds
both), and `echo_features` is what `echo.extract_features` makes of the studies with the frozen teacher.  Each batch is
of one of the two, at random until both are exhausted.  Without `echo` it is the ECG-text half alone.  The text tower
starts from `text`, a BERT (a folder or Hub name; published: BioBERT), and the ECG tower from `ecg`, the stage of a
residual network of the same sizes (published: random weights).  The best model is that with the highest mean of
the zero-shot AUROC over the tasks of `validation` and of finding the echo studies of ECGs.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoTokenizer, BertModel, PreTrainedTokenizerBase

from ecgformers.datasets_scripts.echo_gaussians import read_gaussians
from ecgformers.datasets_scripts.rows import row_to_record
from ecgformers.modeling.configuration_echoing_ecg import EchoingEcgConfig
from ecgformers.modeling.converting.echoing_ecg import PROMPT_TEMPLATE
from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from ecgformers.modeling.modeling_echoing_ecg import EchoingEcgModel
from ecgformers.modeling.processing_ecg import EcgProcessor
from ecgformers.modeling.quality_ecg import EcgQualityError
from ecgformers.training.alignment import AlignmentSettings, align, check_stages, load_residual_network
from ecgformers.training.echo.pairs import echo_source
from ecgformers.training.loading import load_split
from ecgformers.training.loop import make_accelerator
from ecgformers.training.settings import parse_settings


@dataclass
class EchoingEcgSettings(AlignmentSettings):
    """model: fields of EchoingEcgConfig; prompt_template: the sentence a report is put into; echo: data sets of ECGs
    with an `echo_study_id`; echo_features: the Parquet file of `echo.extract_features`; scaler_records: so many
    recordings of the training split give the means and scales of the leads, where `processor` wants them and has
    none."""

    prompt_template: str = PROMPT_TEMPLATE
    echo: Sequence[str] = ()
    echo_features: str = ""
    scaler_records: int = 2000


def build_model(
    settings: EchoingEcgSettings,
    tokenizer: PreTrainedTokenizerBase,
    model_class: type[EchoingEcgModel] = EchoingEcgModel,
) -> EchoingEcgModel:
    """The model of `settings.model`, its towers with the weights of the stages before where there are any."""
    fields = dict(settings.model)
    text_config = fields.pop("text_config", {})
    if settings.text:
        bert = BertModel.from_pretrained(settings.text, add_pooling_layer=False)
        bert.resize_token_embeddings(len(tokenizer))
        text_config = bert.config.to_diff_dict() | {"architectures": None} | text_config
    text_config |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    model = model_class(EchoingEcgConfig(text_config=text_config, **fields))
    if settings.text:
        model.text_model.bert.load_state_dict(bert.state_dict())
    if settings.ecg:
        load_residual_network(model.ecg_model, settings.ecg)
    return model


def lead_statistics(
    dataset: Dataset, extractor: EcgFeatureExtractor, records: int, seed: int
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each lead, over all samples of so many recordings drawn at random.

    Args:
        dataset: rows built by `datasets_scripts`.
        extractor: the preparation before the normalisation; recordings that it refuses do not count.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(dataset))[:records])
    sums = np.zeros((3, len(extractor.lead_names)))  # of samples, their values, their squares
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # doubts about quality
        for row in dataset.with_format("numpy").select(chosen):
            try:
                inputs = extractor(row_to_record(row), return_tensors="np")
            except EcgQualityError:
                continue
            measured = inputs["lead_mask"][0][:, None] * inputs["sample_mask"][0]  # (leads, samples)
            values = inputs["input_values"][0].astype(np.float64)
            sums += np.stack([measured.sum(1), (measured * values).sum(1), (measured * values**2).sum(1)])
    means = sums[1] / sums[0]
    return means.tolist(), np.sqrt(sums[2] / sums[0] - means**2).tolist()


def make_extractor(settings: EchoingEcgSettings) -> EcgFeatureExtractor:
    """The feature extractor of `settings.processor`, the leads' means and scales measured where they are missing."""
    fields: dict[str, Any] = dict(settings.processor)
    if fields.get("normalization") == "standard" and "lead_means" not in fields and not settings.stream:
        plain = EcgFeatureExtractor(**(fields | {"normalization": "none"}))
        dataset = load_split(settings.data, "train")
        statistics = lead_statistics(dataset, plain, settings.scaler_records, settings.loop.seed)
        fields["lead_means"], fields["lead_scales"] = statistics
    return EcgFeatureExtractor(**fields)


def main(arguments: Sequence[str] | None = None, model_class: type[EchoingEcgModel] = EchoingEcgModel):
    settings = parse_settings(EchoingEcgSettings, "echoing_ecg", __doc__, arguments, EchoingEcgConfig)
    check_stages(settings)
    accelerator = make_accelerator(settings.loop)
    tokenizer = AutoTokenizer.from_pretrained(settings.tokenizer or settings.text)
    model = build_model(settings, tokenizer, model_class)
    processor = EcgProcessor(
        make_extractor(settings),
        tokenizer,
        prompt_template=settings.prompt_template,
        lowercase=True,
        full_stop=True,
        remove_patterns=settings.remove,
        max_text_length=model.text_model.bert.config.max_position_embeddings,
    )
    other = None
    if settings.echo:
        gaussians = read_gaussians(Path(settings.echo_features), model.config.projection_dim)
        other = echo_source(settings, settings.echo, gaussians, processor.feature_extractor, accelerator)
    best = align(settings, accelerator, model, processor, other)
    accelerator.print(f"best model: {best}")


if __name__ == "__main__":
    main()
