"""A classifier of all 71 PTB-XL statements, calibrated, from a model that was trained without labels or from nothing.

    accelerate launch -m ecgformers.training.train_classifier --config training/configs/tiny_classifier.yaml \\
        model=model_cards/melp-tiny-ptb-xl loop.output=runs/classifier/melp-0 loop.seed=0

It learns from random stretches of the recordings, short ones first (a quarter of a recording costs a quarter of the
time, and no stretch is seen twice), and answers for whole ones: the poolers take any length.  The superclasses and
subclasses of statements are learned along with them: each group's probability, that any of its statements is true, has
a part in the loss.  Some recordings are seen through a few leads only, so that a strip of one lead can be read too.

The validation folds choose: the epoch (macro AUROC of all statements), then a temperature and a threshold for every
statement, which go into the config with the statements' names.  OUTPUT/best is a folder for
`pipeline("ecg-classification", model=...)`; `ecgformers.evaluation.classifier` says how good it is.

For research use; not a medical device.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import ModelOutput

from ecgformers.datasets_scripts.preparing import ECG_COLUMNS, Augmentation, prepare, record_rng
from ecgformers.datasets_scripts.rows import load_ecgs
from ecgformers.evaluation.scoring import statement_scores
from ecgformers.evaluation.splits import own_splits
from ecgformers.evaluation.tasks import TASKS, labels, words
from ecgformers.metrics.ranking import auroc, best_thresholds, macro
from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from ecgformers.modeling.groups_ecg import log_none, membership
from ecgformers.modeling.resnet_ecg import ResidualBlock
from ecgformers.training.loading import map_batches
from ecgformers.training.loop import LoopSettings, decay_groups, make_accelerator, save_with, train
from ecgformers.training.settings import parse_settings

MIN_POSITIVES = 10
TASK = TASKS["ptbxl_all"]
LEVELS = {"superclass": TASKS["ptbxl_super"], "subclass": TASKS["ptbxl_sub"]}
LEAD_SETS = (
    ("I",),
    ("II",),
    ("I", "II"),
    ("I", "II", "III", "aVR", "aVL", "aVF"),
    ("V1", "V2", "V3", "V4", "V5", "V6"),
    ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6"),
)


@dataclass
class ClassifierSettings:
    """data: a data set with PTB-XL's statements.  model: the folder of a model of any kind with a classifier, to start
    from.  random: from its config alone.  encoder: fields of the ECG tower's config to change, such as `depths`;
    blocks that come so into a trained tower change nothing at first.  folds: TRAIN/VALIDATION/TEST; those to test on
    are left alone.  windows: samples of the stretches of each epoch, the last for all epochs after it.  group_weight:
    of the groups' part in the loss.  head_rate: the head learns so many times as fast.  few_leads: share of the
    recordings seen through one of `LEAD_SETS`."""

    data: str
    model: str
    loop: LoopSettings
    random: bool = False
    encoder: dict[str, Any] = field(default_factory=dict)
    folds: str = "1-7/8/9"
    windows: Sequence[int] = (250,)
    group_weight: float = 0.3
    head_rate: float = 3.0
    few_leads: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    cache: str = ".cache/prepared"


class Recordings(torch.utils.data.Dataset):
    """Prepared recordings of one split with their labels, in memory: PTB-XL at 100 Hz takes 1 GB."""

    def __init__(self, prepared: Dataset, targets: np.ndarray):
        columns = prepared.with_format("numpy")[:]
        self.record_ids = [str(record_id) for record_id in columns["record_id"]]
        self.inputs = {name: np.asarray(columns[name]) for name in ECG_COLUMNS}
        self.targets = targets

    def __len__(self) -> int:
        return len(self.record_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        inputs = {name: values[index] for name, values in self.inputs.items()}
        return {**inputs, "labels": self.targets[index], "record_id": self.record_ids[index]}


def load_recordings(settings: ClassifierSettings, extractor: EcgFeatureExtractor) -> tuple[Recordings, Recordings]:
    """Those to learn from, and those to choose by."""
    dataset = load_ecgs(settings.data)
    dataset = dataset.add_column("row", list(range(len(dataset))), new_fingerprint=f"{dataset._fingerprint}-rows")
    rows = dataset.remove_columns("signal").to_list()
    targets, takes_part = labels(rows, TASK)
    split, _ = own_splits(rows, settings.folds)
    found = []
    for name in ("train", "validation"):
        prepared = prepare(
            dataset.select(np.flatnonzero((split == name) & takes_part)), extractor, Path(settings.cache)
        )
        found.append(Recordings(prepared, targets[prepared.with_format(None)["row"][:]]))
    return found[0], found[1]


@dataclass
class Collator:
    """Rows -> a batch of stretches of recordings, drawn anew for every record and epoch."""

    augmentation: Augmentation
    few_leads: float
    lead_names: Sequence[str]
    sampling_rate: float
    seed: int
    epoch: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        ecgs = []
        for row in rows:
            rng = record_rng(self.seed, self.epoch, row["record_id"])
            ecg = self.augmentation(row, self.sampling_rate, rng)
            if rng.random() < self.few_leads:
                chosen = LEAD_SETS[rng.integers(len(LEAD_SETS))]
                ecg["lead_mask"] = torch.tensor([int(name in chosen) for name in self.lead_names])
            ecgs.append(ecg)
        batch: dict[str, Any] = {name: torch.stack([ecg[name] for ecg in ecgs]) for name in ECG_COLUMNS}
        if batch["sample_mask"].all():
            del batch["sample_mask"]  # without padding there is less to compute
        batch["labels"] = torch.from_numpy(np.stack([row["labels"] for row in rows]))
        return batch | {"record_ids": [row["record_id"] for row in rows]}


class StatementsAndGroups(nn.Module):
    """A classifier whose loss counts groups of statements besides the statements."""

    groups: torch.Tensor

    def __init__(self, model: PreTrainedModel, groups: torch.Tensor, group_weight: float):
        super().__init__()
        self.model, self.group_weight = model, group_weight
        self.register_buffer("groups", groups)  # (statements, groups)

    def forward(self, labels: torch.Tensor, **inputs: torch.Tensor) -> ModelOutput:
        logits = self.model(**inputs).logits.float()  # (batch, statements)
        statement_loss = F.binary_cross_entropy_with_logits(logits, labels)
        none = log_none(logits, self.groups)  # (batch, groups)
        any_label = (labels @ self.groups).clamp(max=1)
        some = torch.log(-torch.expm1(none.clamp(max=-1e-6)))
        group_loss = -(any_label * some + (1 - any_label) * none).mean()
        loss = statement_loss + self.group_weight * group_loss
        return ModelOutput(loss=loss, statement_loss=statement_loss, group_loss=group_loss)


@torch.no_grad()
def predict(model: PreTrainedModel, recordings: Recordings, batch_size: int) -> torch.Tensor:
    """Logits (n, statements) of whole recordings."""
    model.eval()
    logits = []
    for start in range(0, len(recordings), batch_size):
        part = slice(start, start + batch_size)
        inputs = {name: torch.from_numpy(values[part]).to(model.device) for name, values in recordings.inputs.items()}
        if inputs["sample_mask"].all():
            del inputs["sample_mask"]
        logits.append(model(**inputs).logits.float().cpu())
    return torch.cat(logits)


def validate(trained: StatementsAndGroups, recordings: Recordings, batch_size: int) -> dict[str, float]:
    """Macro AUROC of all statements and of every level on whole recordings."""
    probabilities = predict(trained.model, recordings, batch_size).double().sigmoid().numpy()
    figures = {}
    for name in ("all", "super", "sub", "form", "rhythm"):
        task = TASKS[f"ptbxl_{name}"]
        targets = statement_scores(recordings.targets, task)
        takes_part = targets.any(1)
        if takes_part.any():
            scores = statement_scores(probabilities, task)
            figures[f"auroc_{name}"] = float(macro(auroc(targets[takes_part], scores[takes_part])))
    return figures


def load_deeper(folder: str, config: PreTrainedConfig) -> PreTrainedModel:
    """A trained model in which residual blocks that its folder does not hold pass on what they get: `relu(x + 0)`."""
    shallow = copy.deepcopy(config)
    wanted, own = encoder_config(config), encoder_config(AutoConfig.from_pretrained(folder))
    if hasattr(own, "depths"):
        encoder_config(shallow).depths = own.depths
    model = AutoModelForSequenceClassification.from_pretrained(folder, config=shallow)
    if [*getattr(wanted, "depths", ())] == [*getattr(own, "depths", ())]:
        return model
    deeper = AutoModelForSequenceClassification.from_config(config)
    new = deeper.load_state_dict(model.state_dict(), strict=False).missing_keys
    for name, block in deeper.named_modules():
        if isinstance(block, ResidualBlock) and f"{name}.norm2.weight" in new:
            nn.init.zeros_(block.norm2.weight)
    deeper._new_head = model._new_head
    return deeper


def encoder_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The part of a classifier's config that describes the encoder of its ECG tower."""
    tower = getattr(config, "ecg_config", config)
    return getattr(tower, "encoder_config", None) or tower


def parameter_groups(model: StatementsAndGroups, loop: LoopSettings, head_rate: float) -> list[dict[str, Any]]:
    """As `decay_groups`, the classifier's with a rate of their own."""
    head = {id(parameter) for parameter in model.model.classifier.parameters()}  # type: ignore[union-attr]
    groups = []
    for group in decay_groups(model, loop.weight_decay):
        for is_head, rate in ((False, loop.learning_rate), (True, head_rate * loop.learning_rate)):
            chosen = [parameter for parameter in group["params"] if (id(parameter) in head) == is_head]
            groups.append(group | {"params": chosen, "lr": rate})
    return groups


def calibrate(folder: Path, recordings: Recordings, batch_size: int):
    """Put temperature and thresholds into a model's config: least cross-entropy, and best F1 of each statement.

    The F1 of a statement with a handful of positives says nothing: its threshold is 0.5.
    """
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    logits, targets = predict(model, recordings, batch_size), torch.from_numpy(recordings.targets)
    temperatures = torch.logspace(-0.5, 0.5, 201)
    losses = [F.binary_cross_entropy_with_logits(logits / temperature, targets) for temperature in temperatures]
    temperature = float(temperatures[int(torch.stack(losses).argmin())])
    probabilities = (logits / temperature).double().sigmoid().numpy()
    is_rare = recordings.targets.sum(0) < MIN_POSITIVES
    thresholds = np.where(is_rare, 0.5, best_thresholds(recordings.targets, probabilities))
    model.config.logit_temperature = round(temperature, 4)
    model.config.thresholds = [round(float(threshold), 4) for threshold in thresholds]
    model.save_pretrained(folder)


def main(arguments: Sequence[str] | None = None):
    settings = parse_settings(ClassifierSettings, "classifier", __doc__, arguments)
    loop = settings.loop
    accelerator = make_accelerator(loop)
    names = words(TASK)
    config = AutoConfig.from_pretrained(
        settings.model,
        id2label=dict(enumerate(names.values())),
        label2id={name: index for index, name in enumerate(names.values())},
        problem_type="multi_label_classification",
    )
    config.groups = {
        level: {words(task)[group]: [names[code] for code in codes] for group, codes in task.statements.items()}
        for level, task in LEVELS.items()
    }
    for name, value in settings.encoder.items():
        parts = [
            part for part in (encoder_config(config), getattr(config, "ecg_config", config)) if hasattr(part, name)
        ]
        if not parts:
            raise ValueError(f"encoder.{name}: the config of {settings.model}'s ECG tower has no such field")
        setattr(parts[0], name, value)
    if settings.random:
        model = AutoModelForSequenceClassification.from_config(config)
    else:
        model = load_deeper(settings.model, config)
    extractor = AutoFeatureExtractor.from_pretrained(settings.model)
    with accelerator.main_process_first():
        training, validation = load_recordings(settings, extractor)
    if settings.random or model.head_is_new:
        share = torch.from_numpy(training.targets.mean(0)).clamp(1e-4, 1 - 1e-4)
        model.classifier.bias.data = share.logit()  # what is rare is unlikely from the first step on

    def make_collator(epoch: int) -> Collator:
        augmentation = replace(settings.augmentation, window=settings.windows[min(epoch, len(settings.windows) - 1)])
        few = settings.few_leads, extractor.lead_names
        return Collator(augmentation, *few, extractor.sampling_rate, loop.seed, epoch)

    shares = accelerator.process_index, accelerator.num_processes
    batches = map_batches(training, make_collator, loop.batch_size, loop.seed, loop.workers, *shares)
    groups = torch.cat([membership(list(names.values()), config.groups[level]) for level in LEVELS], 1)
    classifier = StatementsAndGroups(model, groups, settings.group_weight)
    accelerator.print(f"{len(training)} recordings, {model.num_parameters():,} parameters")
    best = train(
        accelerator,
        classifier,
        len(training),
        batches,
        loop,
        lambda trained, folder: save_with(extractor, trained.model, folder),
        partial(validate, recordings=validation, batch_size=loop.batch_size),
        score="auroc_all",
        groups=parameter_groups(classifier, loop, settings.head_rate),
    )
    if accelerator.is_main_process:
        calibrate(best, validation, loop.batch_size)
    accelerator.print(f"best model: {best}")


if __name__ == "__main__":
    main()
