"""The loop that all recipes share: schedules, batches, checkpoints, what stops a training."""

import json
import math
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

from ecgformers.datasets_scripts.preparing import Augmentation, record_rng
from ecgformers.modeling.losses_ecg import contrastive_loss
from ecgformers.training import diagnostics, loop
from ecgformers.training.checkpoints import find_checkpoint, replace_folder
from ecgformers.training.diagnostics import CollapseError, CollapseWatch, check_gather, embedding_spread
from ecgformers.training.loading import crop_report, epoch_batches, map_batches
from ecgformers.training.loop import (
    LoopSettings,
    NonFiniteError,
    learning_rate_factor,
    make_accelerator,
    train,
)


class TwoTowers(nn.Module):
    """Two linear towers with dropout on paired vectors: the smallest thing that can align, or collapse."""

    def __init__(self, size: int = 8):
        super().__init__()
        self.ecg = nn.Sequential(nn.Linear(size, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 8))
        self.text = nn.Sequential(nn.Linear(size, 32), nn.ReLU(), nn.Linear(32, 8))

    def forward(self, input_values: torch.Tensor, texts: torch.Tensor) -> ModelOutput:
        ecg, text = F.normalize(self.ecg(input_values), dim=-1), F.normalize(self.text(texts), dim=-1)
        loss = contrastive_loss(ecg, text, 14.0)
        return ModelOutput(
            loss=loss, contrastive_loss=loss, logits_per_ecg=ecg @ text.T, ecg_embeds=ecg, text_embeds=text
        )


class Pairs:
    """Noisy views of the same vectors."""

    def __init__(self, size: int = 64, poison: int | None = None):
        rng = np.random.RandomState(0)
        latent = rng.randn(size, 8).astype(np.float32)
        self.rows = [
            {"id": str(i), "ecg": latent[i] + 0.1 * rng.randn(8).astype(np.float32), "text": latent[i]}
            for i in range(size)
        ]
        if poison is not None:
            self.rows[poison]["ecg"][3] = math.nan

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int):
        return self.rows[index]


def collate(rows):
    stacked = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in ("ecg", "text")}
    return {
        "input_values": stacked["ecg"],
        "texts": stacked["text"],
        "record_ids": [row["id"] for row in rows],
    }


def save(model: nn.Module, folder: Path):
    folder.mkdir()
    torch.save(model.state_dict(), folder / "model.pt")


def run(tmp_path, data=None, score=None, save_model=save, **changes) -> Path:
    options = {"epochs": 4, "batch_size": 16, "learning_rate": 1e-2, "warmup_steps": 2, "log_steps": 2}
    loop_settings = LoopSettings(output=str(tmp_path / "run"), **(options | changes))
    accelerator = make_accelerator(loop_settings)
    scores = iter([] if score is None or callable(score) else score)

    def evaluate(model):
        return {"score": score(model) if callable(score) else next(scores, 0.0)}

    data = data or Pairs()
    batches = map_batches(data, lambda _: collate, loop_settings.batch_size, seed=0)
    return train(accelerator, TwoTowers(), len(data), batches, loop_settings, save_model, evaluate, score="score")


def logged(tmp_path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]


def test_it_learns_and_logs_what_a_person_watches(tmp_path):
    run(tmp_path, epochs=15)
    lines = [line for line in logged(tmp_path) if "loss" in line]
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert {"contrastive_loss", "spread_ecg", "spread_text", "learning_rate", "records_per_second"} <= lines[0].keys()
    assert 0.01 < lines[0]["memory_gib"] < 64


def test_the_best_model_is_kept_not_the_last(tmp_path):
    kept = []

    def remember(model, folder):
        kept.append({name: value.clone() for name, value in model.state_dict().items()})
        save(model, folder)

    best = run(tmp_path, score=[0.1, 0.9, 0.5, 0.7], save_model=remember)
    assert len(kept) == 2
    stored = torch.load(best / "model.pt", weights_only=True)
    assert all(torch.equal(stored[name], kept[1][name]) for name in stored)


def test_the_average_of_the_weights_is_what_is_validated_and_kept(tmp_path):
    seen: dict[float, list] = {0.0: [], 0.75: []}

    def remember(decay, model, folder):
        seen[decay].append({name: value.clone() for name, value in model.state_dict().items()})
        save(model, folder)

    for decay in seen:  # one step an epoch, each better than the last: every state is saved
        steps = {"data": Pairs(16), "score": [0.1, 0.2, 0.3, 0.4], "save_model": partial(remember, decay)}
        run(tmp_path / str(decay), average=decay, **steps)
    average = seen[0.0][0]
    for trained, kept in zip(seen[0.0], seen[0.75], strict=True):
        average = {name: 0.75 * average[name] + 0.25 * trained[name] for name in average}
        torch.testing.assert_close(kept, average)
    assert any(not torch.allclose(average[name], trained[name]) for name in average)


def test_patience_stops_early(tmp_path):
    run(tmp_path, epochs=10, patience=2, score=[0.5, 0.4, 0.3, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9])
    assert [line["score"] for line in logged(tmp_path) if "score" in line] == [0.5, 0.4, 0.3]


def test_a_run_that_stopped_early_does_not_go_on_when_resumed(tmp_path):
    run(tmp_path, epochs=10, patience=1, score=[0.5, 0.4, 0.9])
    before = logged(tmp_path)
    run(tmp_path, epochs=10, patience=1, score=[0.9], resume=True)
    assert logged(tmp_path) == before


def test_tensorboard_gets_the_figures(tmp_path):
    run(tmp_path, epochs=1, trackers=["tensorboard"])
    (events,) = (tmp_path / "run").rglob("events.out.tfevents.*")
    assert b"spread_ecg" in events.read_bytes()


def test_several_evaluations_an_epoch(tmp_path):
    run(tmp_path, epochs=1, evaluations_per_epoch=4)
    assert [line["step"] for line in logged(tmp_path) if "score" in line] == [1, 2, 3, 4]


def test_nan_in_a_record_stops_and_names_it_and_saves_nothing_more(tmp_path):
    with pytest.raises(NonFiniteError, match=r"record.* 17\b"):
        run(tmp_path, data=Pairs(poison=17), save_steps=1)
    for checkpoint in (tmp_path / "run").glob("checkpoint-*"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(checkpoint / "model.safetensors").values())


def test_a_loss_that_is_not_finite_names_the_batch():
    with pytest.raises(NonFiniteError, match="nan on a batch of records a, b"):
        loop.stop_at_non_finite({}, torch.tensor(math.nan), ["a", "b"])


def test_a_score_that_cannot_be_measured_stops(tmp_path):
    with pytest.raises(NonFiniteError, match="score is nan: the validation data"):
        run(tmp_path, score=[math.nan])


def test_only_the_newest_checkpoints_remain_and_partial_ones_do_not_count(tmp_path):
    run(tmp_path, save_steps=3, keep=2)
    found = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert found == ["checkpoint-00000015", "checkpoint-00000016"]
    (tmp_path / "run" / "checkpoint-00000099.partial").mkdir()
    assert find_checkpoint(Accelerator(), tmp_path / "run", resume=True).name == "checkpoint-00000016"


def test_accumulation_is_one_step_of_several_batches(tmp_path):
    run(tmp_path, epochs=2, accumulation=2)
    assert max(line["step"] for line in logged(tmp_path)) == 4


def test_a_failed_write_leaves_the_old_folder(tmp_path):
    replace_folder(tmp_path / "best", lambda folder: save(nn.Linear(1, 1), folder))
    before = (tmp_path / "best" / "model.pt").read_bytes()

    def fail(folder: Path):
        folder.mkdir()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_folder(tmp_path / "best", fail)
    assert (tmp_path / "best" / "model.pt").read_bytes() == before


def test_too_few_records_are_refused(tmp_path):
    with pytest.raises(ValueError, match="64 records make no step"):
        run(tmp_path, batch_size=128)


def test_a_collapse_is_caught(tmp_path):
    """Without a warm-up and with too large steps both towers give every input one embedding, at the loss of chance."""
    with pytest.raises(CollapseError, match=r"ln 16 .*warmup_steps"):
        run(tmp_path, epochs=100, learning_rate=3.0, warmup_steps=0, decay="constant")


def test_a_healthy_run_is_not_called_collapsed():
    watch = CollapseWatch()
    for _ in range(100):
        watch.check(0.9, 0.8, math.log(64), 64)
        watch.check(0.001, 0.001, 1.0, 64)


def test_spread():
    same, apart = torch.ones(10, 4), torch.cat([torch.eye(4), -torch.eye(4)])
    assert embedding_spread(same) == pytest.approx(0.0, abs=1e-6)
    assert embedding_spread(apart) == pytest.approx(1.0)


def test_a_broken_gather_is_caught(monkeypatch):
    accelerator = Accelerator()
    check_gather(accelerator)
    monkeypatch.setattr(diagnostics, "gather_with_gradient", lambda rows: rows[:1])
    with pytest.raises(RuntimeError, match="negatives of other processes are lost"):
        check_gather(accelerator)
    monkeypatch.setattr(diagnostics, "gather_with_gradient", lambda rows: rows.detach() + 0 * rows)
    with pytest.raises(RuntimeError, match="gradients do not come back"):
        check_gather(accelerator)


def test_learning_rate_warms_up_and_falls_to_zero():
    factors = [learning_rate_factor(step, 10, 100, "cosine") for step in range(101)]
    assert 0 < factors[0] < factors[9] < factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5) and factors[100] == pytest.approx(0.0)
    assert learning_rate_factor(99, 10, 100, "constant") == 1.0


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 4), st.integers(0, 3))
def test_processes_share_each_epoch_without_overlap(size, batch_size, processes, epoch):
    shares = [list(epoch_batches(size, batch_size, 0, epoch, rank, processes)) for rank in range(processes)]
    together = list(epoch_batches(size, batch_size * processes, 0, epoch))
    assert [[*chain(*parts)] for parts in zip(*shares, strict=True)] == together
    seen = [*chain(*together)]
    assert len(seen) == len(set(seen)) and size - len(seen) < batch_size * processes


def test_epochs_differ_and_a_resumed_one_goes_on():
    assert list(epoch_batches(50, 5, 0, 0)) != list(epoch_batches(50, 5, 0, 1))
    assert list(epoch_batches(50, 5, 0, 0, start=4)) == list(epoch_batches(50, 5, 0, 0))[4:]


def row(values: np.ndarray, missing=(), padding: int = 0) -> dict[str, np.ndarray]:
    lead_mask = np.array([name not in missing for name in range(len(values))], np.int8)
    sample_mask = (np.arange(values.shape[1]) < values.shape[1] - padding).astype(np.int8)
    return {"input_values": values, "lead_mask": lead_mask, "sample_mask": sample_mask}


@settings(max_examples=30)
@given(st.text(min_size=1, max_size=8), st.integers(0, 5))
def test_augmentation_depends_on_record_and_epoch_alone(record, epoch):
    augment = Augmentation(lead_drop=0.5, shift=1.0, scale=0.2, noise=0.05, window=80)
    recording = row(np.random.RandomState(1).randn(12, 100).astype(np.float32))
    first, again = (augment(recording, 100, record_rng(3, epoch, record)) for _ in range(2))
    other = augment(recording, 100, record_rng(3, epoch + 1, record))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["input_values"], other["input_values"])
    assert first["lead_mask"].any() and first["input_values"].shape == (12, 80)


def test_augmentation_never_brings_back_a_missing_lead_nor_drops_all():
    recording = row(np.zeros((12, 10), np.float32), missing=(0, 2, 4, 6, 8, 10))
    missing = torch.from_numpy(recording["lead_mask"]).long()
    for record in range(200):
        mask = Augmentation(lead_drop=0.95)(recording, 100, record_rng(0, 0, str(record)))["lead_mask"]
        assert mask.any() and not (mask > missing).any()


def test_a_window_lies_within_the_recording_and_moves():
    recording = row(np.tile(np.arange(100, dtype=np.float32), (12, 1)), padding=30)
    starts = set()
    for record in range(100):
        ecg = Augmentation(window=40)(recording, 100, record_rng(0, 0, str(record)))
        assert ecg["sample_mask"].all() and ecg["input_values"].shape == (12, 40)
        starts.add(int(ecg["input_values"][0, 0]))
    assert min(starts) < 3 and max(starts) > 27 and max(starts) <= 30


@pytest.mark.parametrize(("report", "parts"), [("a b. c. d.", 6), ("a b c.", 6), ("a.", 1)])
def test_a_stretch_of_a_report(report, parts):
    rng = np.random.default_rng(0)
    stretches = {crop_report(report, rng) for _ in range(200)}
    assert len(stretches) == parts and report in stretches
    assert all(stretch[:-1] in report and stretch.endswith(".") for stretch in stretches)
