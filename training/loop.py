"""The training loop that all recipes share: Accelerate, exact resume, best model by validation, trackers.

A run's folder holds `checkpoint-STEP/` (the newest `keep` of them, each whole or absent), `best/` (the model that
validated best), `log.jsonl` (every figure logged) and `settings.json`.  SIGTERM or SIGINT let a run finish its step,
write a checkpoint and leave with exit code 75: start it again with `loop.resume=true`.
"""

import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import ProjectConfiguration, set_seed
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from ecgformers.training.checkpoints import (
    RESUME_ME,
    find_checkpoint,
    in_any_process,
    lock,
    replace_folder,
    save_checkpoint,
    stop_signals,
    tidy,
    writing,
)
from ecgformers.training.diagnostics import CollapseWatch, check_gather, embedding_spread


@dataclass
class LoopSettings:
    """How to train.

    Args:
        output: the run's folder.
        epochs, max_steps: whichever ends first (`max_steps` 0: no limit).
        batch_size: records a process; accumulation: batches an optimiser step.
        warmup_steps: with a rising learning rate; warmup_share: the same as a share of all steps, which goes first.
        decay: "cosine" to zero over the whole run, or "constant".
        average: what is validated and kept is not the model as trained but the exponential moving average of its
            weights with this decay (0.99: over the last hundred steps or so); 0: no average.
        precision: "no", "bf16" or "fp16".
        workers: loader processes; they change nothing but the speed.
        save_steps: optimiser steps between checkpoints; keep: how many remain.
        evaluations_per_epoch: validations an epoch; patience: stop after so many without a better score (0: never).
        trackers: of "tensorboard", "trackio".
        resume: go on from the newest sound checkpoint, if there is one.
    """

    output: str
    seed: int = 0
    epochs: int = 10
    max_steps: int = 0
    batch_size: int = 64
    accumulation: int = 1
    learning_rate: float = 2e-4
    weight_decay: float = 0.2
    betas: Sequence[float] = (0.9, 0.95)
    warmup_steps: int = 100
    warmup_share: float = 0.0
    decay: str = "cosine"
    average: float = 0.0
    max_grad_norm: float = 1.0
    precision: str = "no"
    workers: int = 0
    save_steps: int = 200
    keep: int = 2
    evaluations_per_epoch: int = 1
    patience: int = 0
    trackers: Sequence[str] = ()
    log_steps: int = 10
    resume: bool = False


class NonFiniteError(RuntimeError):
    """NaN or infinity in a batch or its loss."""


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    epoch: int = 0
    batch: int = 0  # batches of this epoch that are done
    step: int = 0  # optimiser steps
    best_score: float = -math.inf
    evaluations_since_best: int = 0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]):
        for name, value in state.items():
            setattr(self, name, value)


def make_accelerator(settings: LoopSettings) -> Accelerator:
    """An Accelerator for these settings; call it once, before any data is loaded."""
    accelerator = Accelerator(
        mixed_precision=settings.precision,
        gradient_accumulation_steps=settings.accumulation,
        log_with=list(settings.trackers) or None,
        project_config=ProjectConfiguration(project_dir=settings.output, logging_dir=settings.output),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    check_gather(accelerator)
    set_seed(settings.seed, device_specific=True)
    return accelerator


def decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters for AdamW: matrices with weight decay; biases, norms and scalars without."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def learning_rate_factor(step: int, warmup_steps: int, total_steps: int, decay: str) -> float:
    """Linear warm-up, then cosine to zero or constant."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if decay == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))


def train(
    accelerator: Accelerator,
    model: torch.nn.Module,
    num_records: int,
    make_batches: Callable[[int, int], Iterable[dict[str, Any]]],
    settings: LoopSettings,
    save_model: Callable[[Any, Path], None],
    evaluate: Callable[[Any], dict[str, float]],
    score: str,
    groups: list[dict[str, Any]] | None = None,
) -> Path:
    """Train `model`, whose forward takes a batch and returns an output with `loss` (and named parts).

    Args:
        num_records: of one epoch, over all processes.
        make_batches: (epoch, first batch) -> this process' batches; see `loading.map_batches` and `stream_batches`.
        save_model: writes the model (and its processor) to a folder.
        evaluate: figures of the model; `score` names the one to be maximised.
        groups: of parameters, for AdamW; by default `decay_groups`.

    Returns:
        the folder of the best model.

    Raises:
        SystemExit: with code 75 after SIGTERM or SIGINT; with one line where the folder is another run's, holds no
            sound checkpoint to resume from, or cannot be written to.
        NonFiniteError: with the record ids; the newest checkpoint is from before.
        CollapseError: the embeddings of both towers have fallen together.
    """
    output = Path(settings.output)
    per_process = settings.batch_size
    batches = num_records // (per_process * accelerator.num_processes)
    if batches < settings.accumulation:
        raise ValueError(f"{num_records} records make no step of {settings.accumulation} x {per_process} records")
    steps_per_epoch = batches // settings.accumulation
    batches = steps_per_epoch * settings.accumulation
    total_steps = int(min(settings.epochs * steps_per_epoch, settings.max_steps or math.inf))
    warmup_steps = round(settings.warmup_share * total_steps) or settings.warmup_steps
    parts = settings.evaluations_per_epoch
    evaluation_steps = {round(steps_per_epoch * part / parts) for part in range(1, parts + 1)}

    optimizer = torch.optim.AdamW(
        groups or decay_groups(model, settings.weight_decay),
        lr=settings.learning_rate,
        betas=(settings.betas[0], settings.betas[1]),
    )
    scheduler = LambdaLR(optimizer, lambda step: learning_rate_factor(step, warmup_steps, total_steps, settings.decay))
    progress = Progress()
    average = None
    if settings.average:
        decay = get_ema_multi_avg_fn(settings.average)
        average = AveragedModel(model, accelerator.device, multi_avg_fn=decay, use_buffers=True)
        accelerator.register_for_checkpointing(average)
    # The scheduler is stepped once an optimiser step here, whatever the number of processes.
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(progress, scheduler)
    plain = accelerator.unwrap_model(model)
    kept = plain if average is None else average.module
    with lock(accelerator, output), stop_signals() as signals:
        newest = find_checkpoint(accelerator, output, settings.resume)
        if accelerator.is_main_process:
            with writing(output):
                tidy(output)
                (output / "settings.json").write_text(json.dumps(asdict(settings), indent=1))
        if newest is not None:
            accelerator.load_state(newest)
            accelerator.print(f"resumed from {newest}: epoch {progress.epoch}, step {progress.step}")
        if settings.trackers:
            accelerator.init_trackers(output.name)

        watch = CollapseWatch()
        since_log: dict[str, list[float]] = {}
        started, seen = time.perf_counter(), 0
        bar = tqdm(total=total_steps, initial=progress.step, disable=not accelerator.is_main_process, unit="step")
        done = progress.step >= total_steps or 0 < settings.patience <= progress.evaluations_since_best
        while not done:
            for batch in itertools.islice(make_batches(progress.epoch, progress.batch), batches - progress.batch):
                record_ids = batch.pop("record_ids")
                batch = {name: x.to(accelerator.device) if torch.is_tensor(x) else x for name, x in batch.items()}
                model.train()
                with accelerator.accumulate(model):
                    with accelerator.autocast():
                        result = model(**batch)
                    stop_at_non_finite(batch, result.loss, record_ids)
                    accelerator.backward(result.loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                progress.batch += 1
                seen += len(record_ids) * accelerator.num_processes
                figures = step_figures(plain, result)
                if "spread_ecg" in figures and "contrastive_loss" in figures and progress.step >= warmup_steps:
                    spreads = figures["spread_ecg"], figures["spread_text"]
                    watch.check(*spreads, figures["contrastive_loss"], per_process * accelerator.num_processes)
                for name, value in figures.items():
                    since_log.setdefault(name, []).append(value)
                if not accelerator.sync_gradients:
                    continue
                progress.step += 1
                scheduler.step()
                if average is not None:
                    average.update_parameters(plain)
                bar.update()
                if progress.step % settings.log_steps == 0:
                    figures = {name: sum(values) / len(values) for name, values in since_log.items()}
                    figures["learning_rate"] = float(scheduler.get_last_lr()[0])
                    figures["records_per_second"] = seen / (time.perf_counter() - started)
                    figures["memory_gib"] = memory(accelerator.device) / 2**30
                    log(accelerator, output, progress, figures)
                    bar.set_postfix({name: f"{value:.3g}" for name, value in figures.items()})
                    since_log = {}
                done = progress.step >= total_steps
                if progress.batch // settings.accumulation in evaluation_steps or done:
                    figures = evaluate(kept)
                    log(accelerator, output, progress, figures)
                    bar.write(f"step {progress.step}: " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()))
                    if not math.isfinite(figures[score]):
                        raise NonFiniteError(f"{score} is {figures[score]}: the validation data cannot measure it")
                    progress.evaluations_since_best += 1
                    if figures[score] > progress.best_score:
                        progress.best_score, progress.evaluations_since_best = figures[score], 0
                        if accelerator.is_main_process:
                            with writing(output):
                                replace_folder(output / "best", lambda folder: save_model(kept, folder))
                    done = done or 0 < settings.patience <= progress.evaluations_since_best
                at_end = progress.batch == batches
                if at_end:
                    progress.epoch, progress.batch = progress.epoch + 1, 0
                stopped = in_any_process(accelerator, bool(signals)) and not done
                if done or stopped or progress.step % settings.save_steps == 0:
                    with writing(output):
                        save_checkpoint(accelerator, output, progress.step, settings.keep)
                if stopped:
                    accelerator.print(
                        f"stopped by {', '.join(signals) or 'another process'} after step {progress.step}: "
                        "go on with loop.resume=true"
                    )
                    accelerator.end_training()
                    raise SystemExit(RESUME_ME)
                if done or at_end:
                    break
        bar.close()
        accelerator.end_training()
    return output / "best"


def stop_at_non_finite(batch: Mapping[str, torch.Tensor], loss: torch.Tensor, record_ids: Sequence[str]):
    """Raise `NonFiniteError` that names the records, before anything is learned from them."""
    values = batch.get("input_values")
    if values is not None:
        finite = torch.isfinite(values).flatten(1).all(1)
        if not finite.all():
            bad = [record for record, good in zip(record_ids, finite.tolist(), strict=True) if not good]
            raise NonFiniteError(f"NaN or infinity in the input of records {', '.join(bad)}")
    if not torch.isfinite(loss):
        raise NonFiniteError(f"the loss is {loss.item()} on a batch of records {', '.join(record_ids)}")


def step_figures(model: Any, result: Any) -> dict[str, float]:
    """Loss parts (those of batches with echo studies apart), temperature and embedding spread of one batch."""
    kind = "echo_" if "echo_embeds" in result else ""
    parts = {name: value for name, value in result.items() if "loss" in name or name == "code_perplexity"}
    figures = {f"{kind}{name}": value.item() for name, value in parts.items()}
    if hasattr(model, "cosine_scale"):
        figures["temperature"] = 1 / model.cosine_scale.item()
    if "logits_per_ecg" in result and "text_embeds" in result:
        figures["spread_ecg"] = embedding_spread(result.ecg_embeds)
        figures["spread_text"] = embedding_spread(result.text_embeds)
    return figures


def memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on a GPU so far, or what this process takes now on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss


def log(accelerator: Accelerator, output: Path, progress: Progress, figures: Mapping[str, float]):
    """One line in `log.jsonl`, and the trackers."""
    accelerator.log(dict(figures), step=progress.step)
    if accelerator.is_main_process:
        with writing(output), (output / "log.jsonl").open("a") as file:
            file.write(json.dumps({"step": progress.step, "epoch": progress.epoch, **figures}) + "\n")


def save_with(companion: Any, model: Any, folder: Path):
    """A model's folder, its processor, feature extractor or tokenizer included."""
    model.save_pretrained(folder)
    companion.save_pretrained(folder)
