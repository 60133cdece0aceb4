"""A training killed at any moment and resumed ends in the very weights of one that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from synthetic import write_dataset

from ecgformers.training.checkpoints import RESUME_ME

SETTINGS = {
    "processor": {"sampling_rate": 100, "num_samples": 400, "normalization": "min_max"},
    "augmentation": {"lead_drop": 0.5, "shift": 0.5, "scale": 0.1, "noise": 0.01},
    "model": {
        "conv_dim": [16, 16, 16],
        "conv_kernel": [5, 3, 2],
        "conv_stride": [2, 2, 2],
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 4,
        "projection_dim": 16,
        "caption_dim": 16,
        "num_pooler_heads": 2,
        "num_codevectors_per_group": 8,
        "codevector_dim": 8,
        "num_negatives": 5,
        "mask_time_length": 3,
        "hidden_dropout": 0.1,
    },
    "loop": {
        "epochs": 15,
        "batch_size": 8,
        "warmup_steps": 2,
        "save_steps": 3,
        "keep": 2,
        "log_steps": 5,
        "average": 0.9,
    },
}
LAST = "checkpoint-00000120"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    settings = SETTINGS | {"data": [str(write_dataset(folder / "data"))], "cache": str(folder / "cache")}
    (folder / "config.yaml").write_text(yaml.safe_dump({"ecg": settings}))
    return folder / "config.yaml"


def start(config: Path, output: Path, *overrides: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "ecgformers.training.pretrain_ecg", "--config", str(config)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [*command, f"loop.output={output}", "loop.resume=true", *overrides],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def finish(process: subprocess.Popen):
    printed, _ = process.communicate()
    assert process.returncode == 0, printed


@pytest.fixture(scope="module")
def uninterrupted(config) -> Path:
    output = config.parent / "uninterrupted"
    finish(start(config, output))
    return output


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_three_times_and_resumed(config, uninterrupted, workers):
    output = config.parent / f"killed-{workers}"
    moments = random.Random(workers)
    for _ in range(3):
        process = start(config, output, f"loop.workers={workers}")
        before = set(output.glob("checkpoint-????????"))
        while set(output.glob("checkpoint-????????")) <= before and process.poll() is None:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.4))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert not (output / LAST).exists(), "the kills came too late to interrupt anything"
    finish(start(config, output, f"loop.workers={workers}"))

    expected, resumed = (load_file(folder / LAST / "model.safetensors") for folder in (uninterrupted, output))
    assert expected.keys() == resumed.keys()
    for name in expected:
        assert torch.equal(expected[name], resumed[name]), name
    best, resumed_best = (load_file(folder / "best" / "model.safetensors") for folder in (uninterrupted, output))
    assert all(torch.equal(best[name], resumed_best[name]) for name in best)
    assert len(list(output.glob("checkpoint-*"))) == SETTINGS["loop"]["keep"]


def test_a_recipe_with_workers_whose_process_group_is_terminated(config, uninterrupted):
    output = config.parent / "terminated"
    process = start(config, output, "loop.workers=2", start_new_session=True)
    while not list(output.glob("checkpoint-????????")) and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    printed, _ = process.communicate()
    assert process.returncode == RESUME_ME, printed
    assert "stopped by SIGTERM" in printed and "Traceback" not in printed
    finish(start(config, output, "loop.workers=2"))
    expected, resumed = (load_file(folder / LAST / "model.safetensors") for folder in (uninterrupted, output))
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
