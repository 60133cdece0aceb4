"""Retrieval and report generation as commands, with their baselines."""

import json

import numpy as np
import pytest
from small_evaluation import evaluation_rows, write_echoing_ecg, write_melp, write_melp_encoder, write_rows

from ecgformers.training import report_generation, retrieval


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_rows(tmp_path_factory.mktemp("data"), evaluation_rows(100))


def arguments(model, data, output, *more):
    return ["--model", model, "--data", data, "--output", str(output), "--resamples", "20", "--device", "cpu", *more]


@pytest.mark.parametrize("write", [write_melp, write_echoing_ecg])
def test_retrieval_in_all_directions(write, data, tmp_path):
    table = retrieval.main(arguments(write(tmp_path / "model"), data, tmp_path))
    directions = ["report of an ECG", "ECG of a report"]
    expected = [(name, d) for name in ("model", "random encoder") for d in directions]
    expected += [("chance", "report or ECG")]
    expected += [(name, "same patient") for name in ("model", "random encoder", "chance")]
    assert [(row["method"], row["protocol"]) for row in table.rows] == expected
    assert any("5 different reports of 9 recordings" in note for note in table.notes)
    json.loads((tmp_path / "retrieval.json").read_text())


def test_chance_is_what_random_orders_find(data, tmp_path):
    rng = np.random.default_rng(0)
    matches = np.zeros((4, 12), dtype=bool)
    for row, count in zip(matches, (1, 2, 5, 12), strict=True):
        row[:count] = True
    trials = [rng.permuted(matches, axis=1)[:, :5].any(1) for _ in range(4000)]
    options = type("Options", (), {"resamples": 0, "seed": 0, "model": "m"})
    for index, count in enumerate((1, 2, 5, 12)):
        table = type("Table", (), {"rows": [], "options": options, "add_row": lambda s, *row: s.rows.append(row)})()
        retrieval.add_chance(table, "", np.array([count]), 12, np.array(["p"]))
        assert table.rows[-1][2]["recall_at_5"]["value"] == pytest.approx(np.mean(trials, axis=0)[index], abs=0.03)


def test_a_model_without_text_recognises_patients_only(data, tmp_path):
    table = retrieval.main(arguments(write_melp_encoder(tmp_path / "model"), data, tmp_path))
    assert {row["protocol"] for row in table.rows} == {"same patient"}


def test_nobody_to_recognise(tmp_path):
    data = write_rows(tmp_path / "data", evaluation_rows(100)[::2])
    table = retrieval.main(arguments(write_melp_encoder(tmp_path / "model"), data, tmp_path))
    assert table.rows == []
    assert "no patient has two recordings in this split: nobody to recognise" in table.notes


def test_reports_are_written_and_compared(data, tmp_path):
    more = ["--limit", "6", "--max-new-tokens", "8"]
    table = report_generation.main(arguments(write_melp(tmp_path / "model"), data, tmp_path, *more))
    assert [row["method"] for row in table.rows] == ["model", "random model", "most frequent report"]
    assert all(row["records"] == 6 for row in table.rows)
    lines = [json.loads(line) for line in (tmp_path / "report_generation.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert all(line["report"] for line in lines)  # recordings without one take no part
    assert any("the most frequent of" in note for note in table.notes)
    assert "nan" not in table.markdown()
