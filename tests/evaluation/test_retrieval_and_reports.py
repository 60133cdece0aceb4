"""Retrieval and report generation as commands, with their baselines."""

import json
import sys
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Value
from small_evaluation import (
    MeanAndSpread,
    evaluation_rows,
    write_echoing_ecg,
    write_melp,
    write_melp_encoder,
    write_rows,
)

from ecgformers.datasets_scripts.rows import row_features
from ecgformers.evaluation import report_generation, retrieval


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
    json.loads((tmp_path / "retrieval_model.json").read_text())


def test_chance_is_what_random_orders_find(monkeypatch):
    rng = np.random.default_rng(0)
    matches = np.zeros((4, 12), dtype=bool)
    for row, count in zip(matches, (1, 2, 5, 12), strict=True):
        row[:count] = True
    found = {}
    monkeypatch.setattr(retrieval, "add_hits", lambda table, method, protocol, hits, rows: found.update(hits=hits))
    retrieval.add_chance(None, "", matches, np.arange(4))
    for column, k in enumerate(retrieval.KS):
        trials = [rng.permuted(matches, axis=1)[:, :k].any(1) for _ in range(4000)]
        np.testing.assert_allclose(found["hits"][:, column], np.mean(trials, axis=0), atol=0.03)


def test_an_outside_encoder_recognises_patients(data, tmp_path, monkeypatch):
    module = types.ModuleType("theirs")
    module.make = MeanAndSpread
    monkeypatch.setitem(sys.modules, "theirs", module)
    table = retrieval.main(arguments("theirs:make", data, tmp_path))
    expected = [("theirs:make", "same patient"), ("chance", "same patient")]
    assert [(row["method"], row["protocol"]) for row in table.rows] == expected
    assert "the model has no text tower: reports were not looked for" in table.notes


def test_a_model_without_text_recognises_patients_only(data, tmp_path):
    table = retrieval.main(arguments(write_melp_encoder(tmp_path / "model"), data, tmp_path))
    assert {row["protocol"] for row in table.rows} == {"same patient"}


@pytest.fixture
def echo(tmp_path) -> dict[str, str]:
    """Data whose recordings of a patient belong to one echo study, except every third patient's, and Gaussians."""
    rows = evaluation_rows(100)
    rng = np.random.default_rng(0)
    features = row_features(12, "int16") | {"echo_study_id": Value("string")}
    for row in rows:
        row["echo_study_id"] = None if int(row["patient_id"][1:]) % 3 == 0 else f"s{row['patient_id']}"
    (tmp_path / "data").mkdir()
    Dataset.from_list(rows, features=Features(features)).to_parquet(tmp_path / "data" / "train.parquet")
    studies = sorted({row["echo_study_id"] for row in rows} - {None})
    means = rng.normal(size=(len(studies), 16))
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    columns = {"study_id": studies, "echo_embeds": means.tolist(), "echo_logvar": (0 * means - 5).tolist()}
    pq.write_table(pa.table(columns), tmp_path / "echo.parquet")
    return {"data": str(tmp_path / "data"), "file": str(tmp_path / "echo.parquet")}


def test_echo_studies_are_found_by_the_ecg_that_lies_nearest(echo, tmp_path, monkeypatch):
    """The ECG tower is made to answer with the Gaussian of the right study, for all but the first recording."""
    gaussians = retrieval.read_gaussians(echo["file"], 16)
    right = []

    def perfect(encoders, data, options):
        study_of = data.ecgs.with_format(None).select(data.rows)["echo_study_id"]
        if None in study_of:  # where the same patient is looked for
            return encode_records(encoders, data, options)
        features = np.stack([gaussians[study] for study in study_of])
        features[0] = gaussians[next(study for study in study_of if study != study_of[0])]
        right.append(len(study_of))
        return data, dict.fromkeys(encoders, features), []

    encode_records = retrieval.encode_records
    monkeypatch.setattr(retrieval, "encode_records", perfect)
    command = arguments(write_echoing_ecg(tmp_path / "model"), echo["data"], tmp_path, "--echo", echo["file"])
    monkeypatch.setattr(retrieval, "find_reports", lambda *_: None)
    table = retrieval.main(command)
    found = {(row["method"], row["protocol"]): row for row in table.rows}
    ecgs = right[0]
    assert found["model", "echo study of an ECG"]["recall_at_1"]["value"] == pytest.approx(1 - 1 / ecgs)
    assert found["model", "echo study of an ECG"]["records"] == ecgs
    assert found["model", "ECG of an echo study"]["records"] == ecgs / 2
    assert found["chance", "echo study of an ECG"]["recall_at_1"]["value"] == pytest.approx(2 / ecgs)
    assert any(note == f"{ecgs // 2} echo studies of {ecgs} recordings" for note in table.notes)


def test_what_is_missing_for_echo_studies_is_named(echo, data, tmp_path):
    echoing, melp = write_echoing_ecg(tmp_path / "echoing"), write_melp(tmp_path / "melp")
    table = pq.read_table(echo["file"])
    pq.write_table(table.set_column(0, "study_id", [["other"] * len(table)]), tmp_path / "others.parquet")
    pq.write_table(
        pa.table({"study_id": ["s"], "echo_embeds": [[1.0]], "echo_logvar": [[0.0]]}), tmp_path / "d.parquet"
    )
    for model, folder, file, message in (
        (melp, echo["data"], echo["file"], "knows no echo studies: --echo needs an EchoingEcgModel"),
        (echoing, data, echo["file"], "has no column echo_study_id"),
        (echoing, echo["data"], str(tmp_path / "others.parquet"), "none of 10 recordings has its echo study in"),
        (
            echoing,
            echo["data"],
            str(tmp_path / "d.parquet"),
            r"echo_embeds are \(1,\), the model's embeddings \(16,\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            retrieval.main(arguments(model, folder, tmp_path / "out", "--echo", file))


def test_nobody_to_recognise(tmp_path):
    data = write_rows(tmp_path / "data", evaluation_rows(100)[::2])
    table = retrieval.main(arguments(write_melp_encoder(tmp_path / "model"), data, tmp_path))
    assert table.rows == []
    assert "no patient has two recordings in this split: nobody to recognise" in table.notes
    assert "the model has no text tower: reports were not looked for" in table.notes


def test_without_reports_none_is_looked_for(tmp_path):
    data = write_rows(tmp_path / "data", [{**row, "report": None} for row in evaluation_rows(100)])
    table = retrieval.main(arguments(write_melp(tmp_path / "model"), data, tmp_path))
    assert {row["protocol"] for row in table.rows} == {"same patient"}
    assert "no recording has a report: reports were not looked for" in table.notes


def test_reports_are_written_and_compared(data, tmp_path):
    more = ["--limit", "6", "--max-new-tokens", "8"]
    table = report_generation.main(arguments(write_melp(tmp_path / "model"), data, tmp_path, *more))
    assert [row["method"] for row in table.rows] == ["model", "random model", "most frequent report"]
    assert all(row["records"] == 6 for row in table.rows)
    lines = [json.loads(line) for line in (tmp_path / "report_generation_model.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert all(line["report"] for line in lines)  # recordings without one take no part
    assert any("the most frequent of" in note for note in table.notes)
    assert "nan" not in table.markdown()
