"""A forward pass talks to other processes when it is asked to, and only then.

Started by torchrun, this file is what each of two processes does.
"""

import datetime
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_echoing_ecg
import tiny_melp
import tiny_merl
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from tiny import ecg_batch, fill, text_batch
from transformers import Trainer, TrainingArguments

from ecgformers.modeling.modeling_melp import MelpModel
from ecgformers.modeling.modeling_melp_pretraining import MelpEcgForPreTraining

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
REPORTS = [
    "sinus rhythm. normal ecg.",
    "atrial fibrillation",
    "left axis deviation. no infarction.",
    "infarction.",
] * 4


def run(launcher: list[str], *arguments: object) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "modeling")])
    command = [*launcher, __file__, *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def lonely_losses() -> None:
    """Losses of every model in the first of two processes, while the second does nothing."""
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=30))  # then a collective gives up
    store = dist.distributed_c10d._get_default_store()
    if dist.get_rank() == 0:
        for model in (MelpModel(tiny_melp.tiny_config()), tiny_echoing_ecg.tiny_model(), tiny_merl.tiny_model()):
            ids = text_batch()["input_ids"].clamp(max=17)  # MELP's vocabulary here
            assert model.eval()(ecg_batch(samples=150), input_ids=ids, return_loss=True).loss.isfinite()
        halves = ecg_batch(2, samples=480).unflatten(-1, (2, 240)).transpose(1, 2)
        stage = MelpEcgForPreTraining(tiny_melp.tiny_ecg_config())
        assert stage(halves, torch.tensor([1, 2])).loss.isfinite()
        store.set("done", "yes")
    store.wait(["done"], datetime.timedelta(seconds=120))


def test_a_process_alone_may_compute_a_loss() -> None:
    run(TORCHRUN, "alone")


def train_a_step(folder: Path, gather: bool) -> None:
    """One step of `Trainer` on 16 pairs of ECG and report, over all processes; the weights go to `folder`."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    no_dropout = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    config = tiny_melp.tiny_config(ecg_config=tiny_melp.tiny_ecg_config(**no_dropout))
    config.text_config.hidden_dropout_prob = config.text_config.attention_probs_dropout_prob = 0.0
    model = fill(MelpModel(config))
    ids = tiny_melp.tiny_tokenizer()(REPORTS, padding=True, return_tensors="pt").input_ids
    pairs = [{"input_values": ecg, "input_ids": words} for ecg, words in zip(ecg_batch(16), ids, strict=True)]

    def collate(rows: list[dict[str, torch.Tensor]]) -> dict:
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return {**batch, "return_loss": True, "gather": gather}

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    arguments = TrainingArguments(
        str(folder),
        max_steps=1,
        per_device_train_batch_size=16 // processes,
        max_grad_norm=0.0,
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )
    trainer = Trainer(model, arguments, collate, pairs, optimizers=(optimizer, schedule))
    trainer.train()
    assert trainer.accelerator.num_processes == processes
    if trainer.is_world_process_zero():
        save_file(trainer.accelerator.unwrap_model(model).state_dict(), folder / f"{processes}-{gather}.safetensors")


def test_trainer_takes_the_negatives_of_all_processes_when_asked(tmp_path: Path) -> None:
    for launcher, gather in (([sys.executable], False), (TORCHRUN, True), (TORCHRUN, False)):
        run(launcher, tmp_path, gather)
    one, asked, unasked = (load_file(tmp_path / f"{name}.safetensors") for name in ("1-False", "2-True", "2-False"))
    start = fill(MelpModel(tiny_melp.tiny_config())).state_dict()
    for name, weights in one.items():
        torch.testing.assert_close(asked[name] - start[name], weights - start[name], rtol=1e-3, atol=1e-6)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(unasked["text_projection.0.weight"], one["text_projection.0.weight"])


if __name__ == "__main__":
    if sys.argv[1] == "alone":
        lonely_losses()
    else:
        train_a_step(Path(sys.argv[1]), sys.argv[2] == "True")
