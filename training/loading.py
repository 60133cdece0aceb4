"""From data sets to batches.

Neither the order of records nor the number of workers changes what a model sees of a record in an epoch.
"""

import itertools
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from datasets import (
    Dataset,
    IterableDataset,
    concatenate_datasets,
    load_dataset,
)
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from ecgformers.datasets_scripts.preparing import (
    ECG_COLUMNS,
    Augmentation,
    prepare,
    record_rng,
    stable_hash,
    stream,
)
from ecgformers.modeling.configuration_melp_ecg import MelpPretrainingConfig
from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from ecgformers.modeling.losses_melp_pretraining import sample_negative_indices, sample_span_mask
from ecgformers.training.loop import LoopSettings
from ecgformers.training.mixing import Batches, mix_batches

HALVES_COLUMNS = ("input_values", "lead_mask", "masked_steps", "negative_indices")

_Rows = TypeVar("_Rows", Dataset, IterableDataset)


def load_split(folders: Sequence[str], split: str) -> Dataset:
    """One split of several data sets (folders or Hub names), their common columns one after the other."""
    parts = [load_dataset(folder, split=split) for folder in folders]
    common = set.intersection(*(set(part.column_names) for part in parts))
    return concatenate_datasets([part.select_columns(sorted(common)) for part in parts])


def keep_rows(rows: _Rows, column: str, keep: Callable[[Any], bool]) -> _Rows:
    """The rows for whose value of a column `keep` is true.

    Of a stored data set they are chosen by their place: the same rows are prepared once, whatever chose them.
    """
    if isinstance(rows, IterableDataset):
        return rows.filter(keep, input_columns=column)
    return rows.select(np.flatnonzero([keep(value) for value in rows.with_format(None)[column]]))


def streamed_batches(
    rows: IterableDataset,
    batch_size: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    processes: int = 1,
    start: int = 0,
    block_size: int = 1024,
) -> Iterator[list[dict[str, Any]]]:
    """This process' batches of rows of one epoch from batch `start` on, shuffled within blocks of its share.

    Processes get different rows, none twice; whoever goes on from a batch gets what an uninterrupted run would, after
    reading past the rows before it.
    """
    first, skipped = divmod(start * batch_size, block_size)
    share = itertools.islice(split_dataset_by_node(rows, rank, processes), first * block_size, None)
    waiting: list[dict[str, Any]] = []
    for block_index in itertools.count(first):
        block = list(itertools.islice(share, block_size))
        order = np.random.default_rng([seed, epoch, block_index]).permutation(len(block))
        waiting += [block[i] for i in order[skipped:]]
        skipped = 0
        while len(waiting) >= batch_size:
            yield waiting[:batch_size]
            waiting = waiting[batch_size:]
        if len(block) < block_size:
            return


def epoch_batches(
    size: int, batch_size: int, seed: int, epoch: int, rank: int = 0, processes: int = 1, start: int = 0
) -> Iterator[list[int]]:
    """This process' batches of one epoch from batch `start` on; the last incomplete one is left out.

    The union over processes is the same whatever their number, if `batch_size * processes` is.
    """
    order = np.random.default_rng([seed, epoch]).permutation(size)
    total = batch_size * processes
    for batch in range(start, size // total):
        first = batch * total + rank * batch_size
        yield order[first : first + batch_size].tolist()


Collator = Callable[[Sequence[Any]], dict[str, Any]]


def _ignore_stop_signals(worker: int):
    """A signal to the whole process group asks the main process to stop; its workers help it to finish its step."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def map_batches(
    dataset: Any,
    make_collator: Callable[[int], Collator],
    batch_size: int,
    seed: int,
    workers: int = 0,
    rank: int = 0,
    processes: int = 1,
) -> Batches:
    """(epoch, first batch) -> collated batches of this process, of a data set with `len` and `[index]`."""

    def batches(epoch: int, start: int) -> DataLoader:
        return DataLoader(
            dataset,
            batch_sampler=list(epoch_batches(len(dataset), batch_size, seed, epoch, rank, processes, start)),
            collate_fn=make_collator(epoch),
            num_workers=workers,
            worker_init_fn=_ignore_stop_signals,
            generator=torch.Generator(),  # workers' seeds: keeps the global generator for dropout alone
        )

    return batches


def stream_batches(
    rows: IterableDataset,
    make_collator: Callable[[int], Collator],
    batch_size: int,
    seed: int,
    rank: int = 0,
    processes: int = 1,
) -> Batches:
    """(epoch, first batch) -> collated batches of this process, of a stream."""

    def batches(epoch: int, start: int) -> Iterator[dict[str, Any]]:
        return map(make_collator(epoch), streamed_batches(rows, batch_size, seed, epoch, rank, processes, start))

    return batches


def training_batches(
    sources: Sequence[str],
    extractor: EcgFeatureExtractor,
    make_collator: Callable[[int], Collator],
    cache: Path,
    loop: LoopSettings,
    accelerator: Accelerator,
    stream_records: int = 0,
    select: Callable[[Any], Any] = lambda rows: rows,
    group_of: Callable[[Mapping[str, Any]], int] | None = None,
) -> tuple[int, Batches]:
    """What `train` needs of the recordings of the training split: their number, and how to get batches of them.

    Args:
        stream_records: read so many an epoch from the one source on the way (a stream has no length of its own);
            0: prepare all of them first.
        select: filters or changes the rows before they are prepared.
        group_of: group of a row; batches hold rows of one group only.

    Raises:
        ValueError: for groups of a stream.
    """
    shares = accelerator.process_index, accelerator.num_processes
    if stream_records:
        if group_of is not None:
            raise ValueError("groups need recordings that are prepared first: set stream to 0, or leave out groups")
        (source,) = sources
        rows = stream(select(load_dataset(source, split="train", streaming=True)), extractor)
        return stream_records, stream_batches(rows, make_collator, loop.batch_size, loop.seed, *shares)
    with accelerator.main_process_first():
        dataset = prepare(select(load_split(sources, "train")), extractor, cache)
    if group_of is None:
        return len(dataset), map_batches(dataset, make_collator, loop.batch_size, loop.seed, loop.workers, *shares)
    groups = np.array([group_of(row) for row in dataset.with_format(None).remove_columns(list(ECG_COLUMNS))])
    parts = [dataset.select(np.flatnonzero(groups == group)) for group in np.unique(groups)]
    each = [
        (len(part), map_batches(part, make_collator, loop.batch_size, loop.seed, loop.workers, *shares))
        for part in parts
    ]
    return mix_batches(each, loop.batch_size * accelerator.num_processes, loop.seed)


def crop_report(report: str, rng: np.random.Generator) -> str:
    """A random stretch of a report, like the findings alone that a prompt names: whole sentences, or words where there
    is one sentence only."""
    sentences = report.rstrip(".").split(". ")
    parts, joint = (sentences, ". ") if len(sentences) > 1 else (sentences[0].split(), " ")
    count = int(rng.integers(1, len(parts) + 1))
    start = int(rng.integers(len(parts) - count + 1))
    return f"{joint.join(parts[start : start + count])}."


@dataclass
class EcgTextCollator:
    """Rows -> recordings, augmented, and their tokenised reports.

    Args:
        crop: probability with which a stretch of a report stands for the whole; see `crop_report`.
    """

    processor: Any
    augmentation: Augmentation
    seed: int
    epoch: int
    crop: float = 0.0

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        rate = self.processor.feature_extractor.sampling_rate
        ecgs, reports = [], []
        for row in rows:
            rng = record_rng(self.seed, self.epoch, str(row["record_id"]))
            ecgs.append(self.augmentation(row, rate, rng))
            report = self.processor.clean_text(str(row["report"]))
            reports.append(crop_report(report, rng) if rng.random() < self.crop else report)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a report longer than the model takes is cut
            text = self.processor(text=reports)
        return {
            **{name: torch.stack([ecg[name] for ecg in ecgs]) for name in ECG_COLUMNS},
            "input_ids": text["input_ids"],
            "attention_mask": text["attention_mask"],
            "record_ids": [str(row["record_id"]) for row in rows],
            "return_loss": True,
            "gather": True,
        }


@dataclass
class EcgHalvesCollator:
    """Rows -> the two halves of each recording, augmented apart, with the steps to predict and their negatives.

    `steps` are the time steps of a half, 0 for an encoder that predicts none.
    """

    config: MelpPretrainingConfig
    steps: int
    sampling_rate: float
    augmentation: Augmentation
    seed: int
    epoch: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        columns = HALVES_COLUMNS if self.steps else HALVES_COLUMNS[:2]
        batch: dict[str, list[torch.Tensor]] = {name: [] for name in columns}
        for row in rows:
            rng = record_rng(self.seed, self.epoch, str(row["record_id"]))
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            halves = np.split(np.asarray(row["input_values"]), 2, axis=-1)
            for half, mask in zip(halves, np.split(np.asarray(row["sample_mask"]), 2), strict=True):
                ecg = self.augmentation({**row, "input_values": half, "sample_mask": mask}, self.sampling_rate, rng)
                if self.steps:
                    ecg |= self._steps_to_predict(generator)
                for name in columns:
                    batch[name].append(ecg[name])
        return {
            **{name: torch.stack(values).unflatten(0, (-1, 2)) for name, values in batch.items()},  # (batch, 2, ...)
            "patient_ids": torch.tensor([stable_hash(str(row["patient_id"])) for row in rows]),
            "record_ids": [str(row["record_id"]) for row in rows],
            "gather": True,
        }

    def _steps_to_predict(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        probability, length = self.config.mask_time_prob, self.config.mask_time_length
        masked = sample_span_mask(1, self.steps, probability, length, generator=generator)
        negatives = sample_negative_indices(masked, self.config.num_negatives, generator=generator)
        return {"masked_steps": masked[0], "negative_indices": negatives[0]}
