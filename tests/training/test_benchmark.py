"""The benchmark: every cell once, again only where something changed, and a leaderboard that names what failed."""

import csv
import os
from pathlib import Path

import pytest
import yaml
from small_evaluation import evaluation_rows, write_melp, write_melp_encoder, write_rows

from ecgformers.training import benchmark, linear_probe


@pytest.fixture
def config(tmp_path) -> Path:
    data = write_rows(tmp_path / "data", evaluation_rows(100))
    content = {
        "models": {"both": write_melp(tmp_path / "m1"), "encoder": write_melp_encoder(tmp_path / "m2")},
        "data": {"small": {"data": data, "resamples": 10, "device": "cpu"}},
        "evaluations": {
            "zero-shot": {"recipe": "zero_shot", "data": "small", "tasks": ["ptbxl_super"]},
            "probe": {
                "recipe": "linear_probe",
                "data": "small",
                "tasks": ["ptbxl_super", "ptbxl_sub"],
                "options": {"shares": [50, 100], "seeds": 2},
            },
            "patients": {"recipe": "retrieval", "data": "small"},
        },
    }
    path = tmp_path / "benchmark.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_a_matrix_of_models_and_evaluations(config, tmp_path, monkeypatch):
    output = tmp_path / "results"
    command = ["--config", str(config), "--output", str(output)]
    lines = benchmark.main(command)
    text = (output / "leaderboard.md").read_text()
    assert "| method | ptbxl_super: probe, 2 draws of 50 % of labels |" in text
    assert "- encoder/zero-shot/ptbxl_super:" in text and "which has no text tower" in text
    priors = [line.count("50.0 [50.0, 50.0]") for line in text.splitlines() if line.startswith("| prior |")]
    assert priors == [1, 4]  # of zero-shot, and of two tasks with two shares each
    assert "nan" not in text.lower()
    assert {"both", "encoder", "random encoder (both)", "random encoder (encoder)", "prior", "chance"} == {
        line["method"] for line in lines
    }
    with (output / "leaderboard.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(lines)

    run = []
    monkeypatch.setattr(benchmark, "evaluate", lambda cell: run.append(cell.name) or {"failure": "not run"})
    assert benchmark.main(command) == lines
    assert run == []
    os.utime(tmp_path / "m1" / "model.safetensors", (2e9, 2e9))
    benchmark.main(command)
    assert run == ["both/zero-shot/ptbxl_super", "both/probe/ptbxl_super", "both/probe/ptbxl_sub", "both/patients"]


def test_a_benchmark_that_is_stopped_goes_on(config, tmp_path, monkeypatch):
    command = ["--config", str(config), "--output", str(tmp_path / "results")]
    probe = linear_probe.main

    def stopped(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(linear_probe, "main", stopped)
    with pytest.raises(KeyboardInterrupt):
        benchmark.main(command)
    monkeypatch.setattr(linear_probe, "main", probe)
    monkeypatch.setattr("ecgformers.training.zero_shot.main", stopped)  # is done, and not done again
    assert {line["evaluation"] for line in benchmark.main(command)} == {"zero-shot", "probe", "patients"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": {}}, "lacks models"),
        ({"evaluations": {"x": {"recipe": "magic", "data": "small"}}}, "recipe 'magic' is none of zero_shot"),
        ({"evaluations": {"x": {"recipe": "zero_shot", "data": "large"}}}, "data 'large' is none of small"),
    ],
)
def test_what_is_wrong_in_the_configuration_is_named(change, message, config, tmp_path):
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        benchmark.main(["--config", str(config), "--output", str(tmp_path)])
