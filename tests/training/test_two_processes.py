"""Two processes with half the batch each train the same model as one process with the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from synthetic import write_dataset
from test_resume import SETTINGS
from tiny import ecg_batch, fill
from tiny_melp import tiny_config, tiny_tokenizer

from ecgformers.modeling.modeling_melp import MelpModel

REPORTS = [
    "sinus rhythm. normal ecg.",
    "atrial fibrillation",
    "left axis deviation. no infarction. normal",
    "infarction.",
] * 4
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "modeling")]),
}


def objective_and_gradients(ecg: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """MELP's loss and gradients, dropout off."""
    model = fill(MelpModel(tiny_config()))
    loss = model(ecg, ids, return_loss=True, gather=True).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def half_of_the_batch(folder: Path):
    """What each of the two processes does."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    assert torch.distributed.get_world_size() == 2
    batch = load_file(folder / "batch.safetensors")
    rows = slice(8 * rank, 8 * rank + 8)
    loss, gradients = objective_and_gradients(batch["ecg"][rows], batch["ids"][rows])
    for gradient in gradients.values():  # what DDP does
        torch.distributed.all_reduce(gradient)
        gradient /= 2
    save_file({"loss": loss, **gradients}, folder / f"rank{rank}.safetensors")
    torch.distributed.destroy_process_group()


def test_the_full_objective_and_its_gradients(tmp_path):
    ids = tiny_tokenizer()(REPORTS, padding=True, return_tensors="pt").input_ids
    ecg = ecg_batch(16)
    save_file({"ecg": ecg, "ids": ids}, tmp_path / "batch.safetensors")
    result = subprocess.run([*TORCHRUN, __file__, str(tmp_path)], env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    loss, gradients = objective_and_gradients(ecg, ids)
    for rank in (0, 1):
        halves = load_file(tmp_path / f"rank{rank}.safetensors")
        torch.testing.assert_close(halves.pop("loss"), loss, rtol=1e-5, atol=0)
        assert halves.keys() == gradients.keys()
        for name, gradient in gradients.items():
            scale = gradient.abs().max().item()
            # a key's bias has no gradient but for rounding, hence the absolute 1e-7
            torch.testing.assert_close(halves[name], gradient, rtol=1e-5, atol=1e-5 * scale + 1e-7)


def test_a_recipe_under_torchrun(tmp_path):
    model = SETTINGS["model"] | {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    settings = SETTINGS | {"data": [str(write_dataset(tmp_path / "data"))], "cache": str(tmp_path / "cache")}
    settings |= {"model": model | {"gumbel_temperature": 1e-4}}  # the choice of codes without randomness
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"ecg": settings}))
    recipe = ["-m", "ecgformers.training.pretrain_ecg", "--config", str(tmp_path / "config.yaml")]
    logs = {}
    for name, launcher, batch_size in (("one", [sys.executable], 16), ("two", TORCHRUN, 8)):
        output = tmp_path / name
        overrides = [f"loop.output={output}", f"loop.batch_size={batch_size}", "loop.epochs=1", "loop.log_steps=1"]
        result = subprocess.run(
            [*launcher, *recipe, *overrides], env=ENVIRONMENT, capture_output=True, text=True, cwd=tmp_path
        )
        assert result.returncode == 0, result.stderr
        logs[name] = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    states = [path.name for path in (tmp_path / "two" / "checkpoint-00000004").glob("random_states_*")]
    assert len(states) == 2, "torchrun started one process only"
    for one, two in zip(logs["one"], logs["two"], strict=True):
        for figure in ("cmsc_loss", "validation_cmsc_loss"):
            if figure in one:
                assert two[figure] == pytest.approx(one[figure], rel=1e-3), (one["step"], figure)


if __name__ == "__main__":
    half_of_the_batch(Path(sys.argv[1]))
