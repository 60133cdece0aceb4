"""MELP's second stage: the ECG encoder without labels (masked prediction of wav2vec 2.0, and CMSC).

    accelerate launch -m ecgformers.training.pretrain_ecg --config training/configs/melp.yaml data=[folder]

`data` are data sets built by `datasets_scripts`.  Every recording is cut into two halves that attract each other, like
all recordings of one patient; leads are left out at random in each half (section 3.1 of arXiv 2506.21803).  A residual
network (`model.encoder_type=resnet`) has no masked prediction: it learns from the halves alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from ecgformers.datasets_scripts.preparing import Augmentation, prepare
from ecgformers.modeling.configuration_melp_ecg import MelpEcgConfig
from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from ecgformers.modeling.modeling_melp_pretraining import MelpEcgForPreTraining
from ecgformers.training.loading import EcgHalvesCollator, epoch_batches, load_split, training_batches
from ecgformers.training.loop import LoopSettings, make_accelerator, save_with, train
from ecgformers.training.settings import parse_settings


@dataclass
class EcgSettings:
    """data: sources; processor: settings of EcgFeatureExtractor; model: fields of MelpEcgConfig; stream: read so
    many training records an epoch from the one source on the way, 0: prepare all of them first."""

    data: Sequence[str]
    loop: LoopSettings
    processor: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(lead_drop=0.5))
    stream: int = 0
    cache: str = ".cache/prepared"


@torch.no_grad()
def validate(
    model: MelpEcgForPreTraining, dataset: Dataset, make_collator, batch_size: int, rank: int, processes: int
) -> dict[str, float]:
    """Losses on the validation recordings, with the same masks every time; `score` is the negative loss.

    The losses are those of the batches of all processes, so each process takes its share, as in training.
    """
    model.eval()
    collator, sums = make_collator(0), dict.fromkeys(("masked_loss", "cmsc_loss", "code_perplexity"), 0.0)
    batches = list(epoch_batches(len(dataset), batch_size, 0, 0, rank, processes))
    for indices in batches:
        batch = collator([dataset[index] for index in indices])
        batch.pop("record_ids")
        output = model(**{name: x.to(model.device) if torch.is_tensor(x) else x for name, x in batch.items()})
        sums = {name: total + output[name].item() for name, total in sums.items() if name in output}
    figures = {f"validation_{name}": total / len(batches) for name, total in sums.items()}
    losses = (value for name, value in figures.items() if name.endswith("loss"))
    return figures | {"validation_score": -sum(losses)}


def main(arguments: Sequence[str] | None = None):
    settings = parse_settings(EcgSettings, "ecg", __doc__, arguments, MelpEcgConfig)
    accelerator = make_accelerator(settings.loop)
    extractor = EcgFeatureExtractor(**settings.processor)
    model = MelpEcgForPreTraining(MelpEcgConfig(**settings.model))
    loop = settings.loop
    half = torch.tensor(extractor.num_samples // 2)
    steps = 0 if model.config.encoder_type == "resnet" else int(model.encoder.output_length(half))

    def make_collator(epoch: int, augmentation: Augmentation = settings.augmentation) -> EcgHalvesCollator:
        stage, rate = model.config.pretraining_config, extractor.sampling_rate
        return EcgHalvesCollator(stage, steps, rate, augmentation, loop.seed, epoch)

    cache = Path(settings.cache)
    num_records, batches = training_batches(
        settings.data, extractor, make_collator, cache, loop, accelerator, settings.stream
    )
    with accelerator.main_process_first():
        validation = prepare(load_split(settings.data, "validation"), extractor, cache)
    accelerator.print(f"{num_records} recordings, {model.num_parameters():,} parameters")
    best = train(
        accelerator,
        model,
        num_records,
        batches,
        loop,
        partial(save_with, extractor),
        lambda trained: validate(
            trained,
            validation,
            partial(make_collator, augmentation=Augmentation()),
            loop.batch_size,
            accelerator.process_index,
            accelerator.num_processes,
        ),
        score="validation_score",
    )
    accelerator.print(f"best model: {best}")


if __name__ == "__main__":
    main()
