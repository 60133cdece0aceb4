"""Fine-tuning of the whole encoder, or of LoRA adapters in it, with transformers' Trainer.

    python -m ecgformers.evaluation.finetune --model DIR --data DIR --task ptbxl_super --output results \\
        [--folds 1-7/8/9] [--share 100] [--epochs 20] [--learning-rate 1e-3] [--layer-decay 0.8]
        [--head-learning-rate 1e-2] [--balance] [--lora 8]

The epoch with the best macro AUROC on the validation split (part of the training patients, where the rule has none:
`--folds 1-8//9`) is kept in OUTPUT/finetune_TASK_MODEL, a folder that AutoModelForSequenceClassification loads, and
training stops when `--patience` epochs brought nothing better.  Layers near the input learn more slowly: by
`--layer-decay` for each layer below the head.  The head learns faster than all of them: as long as it is random it
spoils the layers below (Kumar et al. 2022, "Fine-tuning can distort pretrained features").  `--balance` weights the
positives of rare classes up.  Beside it the same network trained alike from random weights (`--skip-random` leaves
that out), and the prior.
`accelerate launch -m ecgformers.evaluation.finetune ...` uses several GPUs.

For research use; not a medical device.
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForSequenceClassification,
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from ecgformers.datasets_scripts.preparing import ECG_COLUMNS, Augmentation, prepare
from ecgformers.evaluation.linear_probe import add_prior, draw_shares, note_unseen
from ecgformers.evaluation.options import FinetuneOptions
from ecgformers.evaluation.records import TaskData, load_task
from ecgformers.evaluation.tables import ClassificationTable
from ecgformers.metrics.ranking import auroc, best_thresholds, macro
from ecgformers.options import parse, run_command

MAX_POSITIVE_WEIGHT = 20.0


def run(options: FinetuneOptions) -> ClassificationTable:
    data = load_task(options.data, options.task, options.folds, options.split_table).with_validation()
    extractor = AutoFeatureExtractor.from_pretrained(options.model)
    prepared = prepare(data.ecgs, extractor, options.features_folder)
    data, rows = with_prepared_rows(data, prepared["record_id"])

    draw = draw_shares(data, options.share, options.seed, 1)[0]
    augmentation = Augmentation(lead_drop=options.lead_drop, shift=options.shift)
    validation, evaluated = data.splits == "validation", data.splits == options.split
    ecgs = prepared.select_columns(list(ECG_COLUMNS))
    train_set = LabelledEcgs(ecgs, rows[draw], data.targets[draw], extractor.sampling_rate, augmentation)
    validation_set = LabelledEcgs(ecgs, rows[validation], data.targets[validation], extractor.sampling_rate)
    test_set = LabelledEcgs(ecgs, rows[evaluated], data.targets[evaluated], extractor.sampling_rate)

    classes = dict(enumerate(data.task.classes))
    config = AutoConfig.from_pretrained(
        options.model,
        id2label=classes,
        label2id={name: index for index, name in classes.items()},
        problem_type="multi_label_classification",
    )
    name = options.model_name
    torch.manual_seed(options.seed)  # of the head
    models = {name: AutoModelForSequenceClassification.from_pretrained(options.model, config=config)}
    if not options.skip_random:
        torch.manual_seed(options.seed)
        models["random weights"] = AutoModelForSequenceClassification.from_config(config)

    table = ClassificationTable("finetune", options, data.part(options.split))
    protocol = f"fine-tuned, {options.share:g} % of labels" + (f", LoRA {options.lora}" if options.lora else "")
    for method, model in models.items():
        folder = options.output / f"{table.name}{'' if method == name else '_random'}"
        trainer = make_trainer(model, train_set, validation_set, options, folder)
        trainer.train()
        trainer.compute_metrics = None  # they are for validation: test records may have no class with both labels
        save(trainer, extractor, folder)
        thresholds = best_thresholds(validation_set.targets, probabilities(trainer, validation_set))
        scores = probabilities(trainer, test_set)
        table.add(method, scores, protocol, thresholds=thresholds, are_probabilities=True)
    note_unseen(table, data, protocol, [draw])
    add_prior(table, data)
    if trainer.is_world_process_zero():
        table.write()
    return table


def with_prepared_rows(data: TaskData, prepared_ids: list[str]) -> tuple[TaskData, np.ndarray]:
    """The records that were prepared (the extractor did not refuse them), and their rows among the prepared."""
    place = {record_id: row for row, record_id in enumerate(prepared_ids)}
    data = data.take(np.array([record_id in place for record_id in data.record_ids], dtype=bool))
    return data, np.array([place[record_id] for record_id in data.record_ids], dtype=int)


class LabelledEcgs(torch.utils.data.Dataset):
    """Prepared recordings with their labels, augmented when training."""

    def __init__(
        self,
        ecgs: Any,
        rows: np.ndarray,
        targets: np.ndarray,
        sampling_rate: float,
        augmentation: Augmentation | None = None,
    ):
        self.ecgs, self.rows, self.targets = ecgs, rows, targets.astype(np.float32)
        self.sampling_rate, self.augmentation = sampling_rate, augmentation or Augmentation()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        rng = np.random.default_rng(int(torch.randint(2**31, ())))  # torch's seeds differ between workers
        columns = self.ecgs[self.rows[indices]]
        ecgs = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
        return [
            {**self.augmentation(ecg, self.sampling_rate, rng), "labels": torch.from_numpy(self.targets[index])}
            for index, ecg in zip(indices, ecgs, strict=True)
        ]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]


def make_trainer(
    model: PreTrainedModel,
    train_set: LabelledEcgs,
    validation_set: LabelledEcgs,
    options: FinetuneOptions,
    folder: Path,
) -> Trainer:
    """A Trainer that keeps the epoch with the best macro AUROC on the validation set."""
    trained: Any = model
    if options.lora:
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError:
            raise ValueError('--lora needs peft: pip install "ecgformers[train]"') from None

        lora = LoraConfig(r=options.lora, lora_alpha=2 * options.lora, target_modules="all-linear")
        lora.modules_to_save = ["classifier"]
        trained = get_peft_model(model, lora)
    rates = options.learning_rate, options.head_learning_rate, options.layer_decay
    groups = parameter_groups(trained, *rates, options.weight_decay)
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, len(train_set) // options.batch_size // 2),
        max_grad_norm=1.0,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="auroc_macro",
        greater_is_better=True,
        logging_strategy="epoch",
        report_to="none",
        remove_unused_columns=False,
        label_names=["labels"],
        bf16=options.bf16,
        dataloader_num_workers=options.num_workers,
        use_cpu=options.device == "cpu" or not torch.accelerator.is_available(),
        seed=options.seed,
    )
    return Trainer(
        trained,
        arguments,
        train_dataset=train_set,
        eval_dataset=validation_set,
        compute_metrics=validation_auroc,
        compute_loss_func=BalancedLoss(train_set.targets) if options.balance else None,
        callbacks=[EarlyStoppingCallback(options.patience)],
        optimizers=(torch.optim.AdamW(groups), None),
    )


def save(trainer: Trainer, extractor: Any, folder: Path):
    """Leave the best model alone in the folder, adapters merged into its weights."""
    if not trainer.is_world_process_zero():
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    shutil.rmtree(folder / "checkpoints")


def validation_auroc(prediction: EvalPrediction) -> dict[str, float]:
    value = float(macro(auroc(prediction.label_ids, prediction.predictions)))
    if np.isnan(value):
        raise ValueError("no class has positives and negatives among the validation records: nothing to choose by")
    return {"auroc_macro": value}


class BalancedLoss:
    """Binary cross-entropy in which the positives of each class weigh as much as its negatives, up to a limit."""

    def __init__(self, targets: np.ndarray):
        positives = torch.from_numpy(targets.sum(0))
        self.weight = ((len(targets) - positives) / positives.clamp(min=1)).clamp(1, MAX_POSITIVE_WEIGHT)

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        weight = self.weight.to(labels.device)
        return F.binary_cross_entropy_with_logits(outputs.logits.float(), labels, pos_weight=weight)


def parameter_groups(
    model: torch.nn.Module, learning_rate: float, head_learning_rate: float, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for an optimiser: rate * layer_decay ** (layers above), the classifier at a rate of its own; no weight
    decay for biases and norms.

    Layers are those numbered in `layers.N` or `stages.N`; what is defined before them lies below, what is defined
    after them above.
    """
    depths: dict[str, int] = {}
    deepest = 0
    for name, parameter in model.named_parameters():
        numbered = re.search(r"\.(?:layers|stages)\.(\d+)\.", name)
        depth = int(numbered.group(1)) + 1 if numbered else (deepest + 1 if deepest else 0)
        if numbered:
            deepest = max(deepest, depth)
        if parameter.requires_grad:
            depths[name] = depth
    top = max(depths.values())
    groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if name in depths:
            is_head = "classifier" in name.split(".")
            rate = head_learning_rate if is_head else learning_rate * layer_decay ** (top - depths[name])
            groups.setdefault((rate, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": weight_decay if decays else 0.0}
        for (rate, decays), parameters in groups.items()
    ]


def probabilities(trainer: Trainer, dataset: LabelledEcgs) -> np.ndarray:
    """(n, classes)."""
    logits = trainer.predict(dataset, metric_key_prefix="predict").predictions
    return torch.from_numpy(logits).double().sigmoid().numpy()


def main(arguments: Sequence[str] | None = None) -> ClassificationTable:
    return run(parse(FinetuneOptions, __doc__, arguments))


if __name__ == "__main__":
    run_command(main)
