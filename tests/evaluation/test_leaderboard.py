"""The leaderboard: every cell once, again only where something changed, and a leaderboard that names what failed."""

import csv
import json
import os
from pathlib import Path

import pytest
import yaml
from small_evaluation import evaluation_rows, write_echoing_ecg, write_melp, write_melp_encoder, write_rows

from ecgformers.evaluation import leaderboard, linear_probe
from ecgformers.evaluation.leaderboard_figure import leaderboard_figure
from ecgformers.options import run_command


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
            "patients": {"recipe": "retrieval", "data": "small", "models": {"both": {"resamples": 5}}},
        },
    }
    path = tmp_path / "leaderboard.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_a_matrix_of_models_and_evaluations(config, tmp_path, monkeypatch):
    output = tmp_path / "results"
    command = ["--config", str(config), "--output", str(output)]
    lines = leaderboard.main(command)
    text = (output / "leaderboard.md").read_text()
    assert "| method | ptbxl_super: probe, 2 draws of 50 % of labels |" in text
    assert "- encoder/zero-shot/ptbxl_super:" in text and "which has no text tower" in text
    priors = [line.count("50.0 [50.0, 50.0]") for line in text.splitlines() if line.startswith("| prior |")]
    assert all("--resamples 5" in line["command"] for line in lines if line["evaluation"] == "patients")
    assert "| encoder |" not in text.split("## patients")[1] and "encoder/patients" not in text
    assert priors == [1, 4]  # of zero-shot, and of two tasks with two shares each
    assert "nan" not in text.lower()
    assert {"both", "encoder", "random encoder (both)", "random encoder (encoder)", "prior", "chance"} == {
        line["method"] for line in lines
    }
    assert (output / "leaderboard.png").read_bytes().startswith(b"\x89PNG")
    with (output / "leaderboard.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(lines)

    run = []
    monkeypatch.setattr(leaderboard, "evaluate", lambda cell: run.append(cell.name) or {"failure": "not run"})
    failed = ["encoder/zero-shot/ptbxl_super"]
    assert leaderboard.main(command) == lines
    assert run == failed
    (tmp_path / "m1" / "README.md").write_text("a card")
    assert leaderboard.main(command) == lines
    assert run == 2 * failed and all(line["command"].startswith("python -m ecgformers.evaluation.") for line in lines)
    os.utime(tmp_path / "m1" / "model.safetensors", (2e9, 2e9))
    run.clear()
    leaderboard.main(command)
    changed = ["both/zero-shot/ptbxl_super", "both/probe/ptbxl_super", "both/probe/ptbxl_sub", "both/patients"]
    assert sorted(run) == sorted(failed + changed)


def test_a_leaderboard_that_is_stopped_goes_on(config, tmp_path, monkeypatch):
    command = ["--config", str(config), "--output", str(tmp_path / "results")]
    probe = linear_probe.main

    def stopped(arguments):
        raise KeyboardInterrupt

    def fails(arguments):
        raise ValueError("done again")

    monkeypatch.setattr(linear_probe, "main", stopped)
    with pytest.raises(KeyboardInterrupt):
        leaderboard.main(command)
    monkeypatch.setattr(linear_probe, "main", probe)
    monkeypatch.setattr("ecgformers.evaluation.zero_shot.main", fails)  # but its result is there already
    assert {line["evaluation"] for line in leaderboard.main(command)} == {"zero-shot", "probe", "patients"}


def test_a_model_that_is_not_there_is_named_and_tried_again(config, tmp_path):
    output, later = tmp_path / "results", tmp_path / "m3"
    content = yaml.safe_load(config.read_text())
    content["models"] = {"later": str(later)}
    content["evaluations"] = {"zero-shot": content["evaluations"]["zero-shot"]}
    config.write_text(yaml.safe_dump(content))
    command = ["--config", str(config), "--output", str(output)]
    with pytest.raises(ValueError, match="no evaluation has a result"):
        leaderboard.main(command)
    failure = f"- later/zero-shot/ptbxl_super: --model: there is no folder {later}"
    assert failure in (output / "leaderboard.md").read_text()
    write_melp(later)
    assert "later" in {line["method"] for line in leaderboard.main(command)}
    assert "No result" not in (output / "leaderboard.md").read_text()


def test_an_option_that_a_recipe_does_not_have_fails_alone(config, tmp_path):
    content = yaml.safe_load(config.read_text())
    content["evaluations"] = {
        "probe": {"recipe": "linear_probe", "data": "small", "tasks": ["ptbxl_super"], "options": {"sharse": 100}},
        "patients": content["evaluations"]["patients"],
    }
    config.write_text(yaml.safe_dump(content))
    lines = leaderboard.main(["--config", str(config), "--output", str(tmp_path / "results")])
    assert {line["evaluation"] for line in lines} == {"patients"}
    text = (tmp_path / "results" / "leaderboard.md").read_text()
    assert "- both/probe/ptbxl_super: unrecognized arguments: --sharse 100" in text


def line(task: str, protocol: str, method: str, value: float | None, interval: float | None = 0.02, **others) -> dict:
    bounds = (None, None) if None in (value, interval) else (value - interval, value + interval)
    model = method.removeprefix("random encoder ") if method != "prior" else None
    return {
        "evaluation": "probe",
        "task": task,
        "protocol": protocol,
        "method": method,
        "model": model,
        "is_model": model == method,
        "figure": "macro AUROC",
        "value": value,
        "low": bounds[0],
        "high": bounds[1],
    } | others


def test_the_figure_has_a_panel_a_task_and_a_point_a_figure():
    lines = [
        line("super", "probe", "a", 0.9),
        line("super", "probe", "random encoder a", 0.7),
        line("super", "probe", "b", 0.8, None),  # one patient: no interval
        line("super", "the same for all", "prior", 0.5),
        line("rhythm", "probe", "a", None),  # no class has both labels
        line("", "same patient", "b", 0.25, figure="recall@1", evaluation="patients"),
    ]
    figure = leaderboard_figure(lines)
    panels = {axis.get_title(): axis for axis in figure.axes if axis.get_title()}
    assert list(panels) == ["super", "rhythm", "patients"]
    drawn = panels["super"].get_lines()
    points = {tuple(point.get_xdata()): point for point in drawn if point.get_marker() not in ("None", None)}
    assert [x for (x,) in points] == pytest.approx([90, 70, 80])
    assert len({point.get_ydata()[0] for point in points.values()}) == 3
    (model, random, other) = points.values()
    assert model.get_color() == random.get_color() != other.get_color()
    assert model.get_markerfacecolor() != random.get_markerfacecolor() == "white"
    whiskers = [tuple(whisker.get_xdata()) for whisker in drawn if len(set(whisker.get_xdata())) == 2]
    assert whiskers == [pytest.approx((88, 92)), pytest.approx((68, 72))]
    assert [50.0, 50.0] in [list(baseline.get_xdata()) for baseline in drawn]
    assert not panels["rhythm"].get_lines()
    assert panels["patients"].get_xlabel() == "recall@1, %"
    assert "not a medical device" in figure.get_supxlabel()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": {}}, "lacks models"),
        ({"models": ["a", "b"]}, "lacks models, each a mapping"),
        ({"models": {"../../escaped": "m1"}}, r"models: '../../escaped' shall name a folder"),
        ({"models": {"..": "m1"}}, r"models: '\.\.' shall name a folder"),
        ({"evaluations": {"a/b": {"recipe": "zero_shot", "data": "small"}}}, "evaluations: 'a/b' shall name a folder"),
        ({"evaluations": {"x": "zero_shot"}}, "evaluation x is not a mapping"),
        ({"evaluations": {"x": {"recipe": "magic", "data": "small"}}}, "recipe 'magic' is none of zero_shot"),
        ({"evaluations": {"x": {"recipe": "zero_shot", "data": "large"}}}, "data 'large' is none of small"),
        ({"evaluations": {"x": {"recipe": "zero_shot", "data": "small", "models": {"c": {}}}}}, "models has no c"),
    ],
)
def test_what_is_wrong_in_the_configuration_is_named(change, message, config, tmp_path):
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        leaderboard.main(["--config", str(config), "--output", str(tmp_path)])


@pytest.mark.parametrize("text", ["models: [", "- models", "7", ""])
def test_a_configuration_of_another_shape_is_named(text, tmp_path):
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"wrong\.yaml"):
        leaderboard.main(["--config", str(tmp_path / "wrong.yaml"), "--output", str(tmp_path / "results")])
    assert not (tmp_path / "results").exists()


def test_a_cut_record_of_what_is_done_is_named(config, tmp_path):
    (tmp_path / "done.json").write_text('{"both/zero-shot": {"state')
    with pytest.raises(ValueError, match=r"done\.json is no whole JSON file .* remove it"):
        leaderboard.main(["--config", str(config), "--output", str(tmp_path)])


def test_where_nothing_succeeds_the_command_fails(config, tmp_path):
    content = yaml.safe_load(config.read_text())
    content["models"] = {"none": str(tmp_path / "none")}
    content["evaluations"] = {"zero-shot": content["evaluations"]["zero-shot"]}
    config.write_text(yaml.safe_dump(content))
    command = ["--config", str(config), "--output", str(tmp_path / "results")]
    with pytest.raises(SystemExit, match=r"no evaluation has a result: .*leaderboard\.md says why"):
        run_command(lambda: leaderboard.main(command))
    assert "there is no folder" in (tmp_path / "results" / "leaderboard.md").read_text()


def test_another_model_under_the_same_name_is_evaluated_anew(config, tmp_path):
    content = yaml.safe_load(config.read_text())
    content["models"] = {"mine": write_melp(tmp_path / "first" / "best")}
    content["evaluations"] = {"zero-shot": content["evaluations"]["zero-shot"]}
    command = ["--config", str(config), "--output", str(tmp_path / "results")]
    config.write_text(yaml.safe_dump(content))
    leaderboard.main(command)
    content["models"] = {"mine": write_echoing_ecg(tmp_path / "second" / "best")}
    config.write_text(yaml.safe_dump(content))
    assert all("second/best" in line["command"] for line in leaderboard.main(command))
    (result,) = (tmp_path / "results" / "mine" / "zero-shot").glob("*.json")
    assert json.loads(result.read_text())["model"].endswith("second/best")
