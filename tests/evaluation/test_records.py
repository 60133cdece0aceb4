"""Records of a task with labels and splits, and the files of results."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from small_evaluation import CLASSES, evaluation_rows, label_of, write_rows

from ecgformers.evaluation.options import EvaluationOptions, FeatureOptions, TaskOptions
from ecgformers.evaluation.records import load_records, load_task
from ecgformers.evaluation.splits import fold_rule
from ecgformers.evaluation.tables import ClassificationTable
from ecgformers.options import parse, run_command


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_rows(tmp_path_factory.mktemp("data"), evaluation_rows(100))


def test_records_with_labels_and_splits(data):
    task_data = load_task(data, "ptbxl_super")
    assert len(task_data) == 100
    assert task_data.notes == ("folds 1-8/9/10 (train/validation/test)",)
    assert task_data.task.classes == CLASSES
    np.testing.assert_array_equal(task_data.targets.argmax(1), [label_of(index) for index in range(100)])
    test = task_data.part("test")
    assert set(test.patients) == {"p9", "p19", "p29", "p39", "p49"}
    assert [test.ecgs[int(row)]["record_id"] for row in test.rows] == list(test.record_ids)
    assert not set(task_data.part("train").patients) & set(test.patients)


def test_fold_9_is_the_test_fold_where_there_is_no_fold_10(tmp_path):
    rows = [row for row in evaluation_rows(100) if row["fold"] != 10]
    task_data = load_task(write_rows(tmp_path, rows), "ptbxl_super")
    assert task_data.notes == ("folds 1-7/8/9 (train/validation/test)",)
    assert {row % 20 // 2 for row in (int(name[1:]) for name in task_data.part("test").record_ids)} == {8}


def test_where_validation_is_needed_training_patients_are_held_out(data):
    without = load_task(data, "ptbxl_super", "1-8//9")
    assert set(without.splits) == {"train", "test"}
    task_data = without.with_validation()
    train, validation = task_data.part("train"), task_data.part("validation")
    assert not set(train.patients) & set(validation.patients)
    assert len(train) + len(validation) == len(without.training) == 80
    assert "held out" in task_data.notes[1]
    own = load_task(data, "ptbxl_super")
    assert own.with_validation() is own


def test_rows_without_folds_keep_the_splits_of_the_data_set(tmp_path):
    records = load_records(write_rows(tmp_path, evaluation_rows(40, folds=False)))
    assert set(records.splits) == {"train", "validation", "test"}
    assert records.notes == ("splits as the data set was built",)


def test_a_missing_split_is_named(data):
    with pytest.raises(ValueError, match=r"no record that takes part is in split test; there are: .* train"):
        load_task(data, "ptbxl_super", "1-8/9/").part("test")


def test_a_patient_in_two_splits_is_refused(tmp_path):
    rows = evaluation_rows(40)
    rows[-1]["patient_id"] = "p0"
    with pytest.raises(ValueError, match="patient p0 is in the splits train and"):
        load_task(write_rows(tmp_path, rows), "ptbxl_super")


def test_records_without_a_patient_count_as_patients_of_their_own(tmp_path):
    rows = evaluation_rows(40)
    rows[0]["patient_id"] = rows[1]["patient_id"] = None
    assert set(load_records(write_rows(tmp_path, rows)).patients[:2]) == {"record r0", "record r1"}


@pytest.mark.parametrize("table", ["table.csv", "val=table.csv", "test"])
def test_a_split_table_of_no_split_is_named(data, table):
    with pytest.raises(ValueError, match=f"split table {table}: .* one of train, validation, test"):
        load_task(data, "cpsc2018", split_tables=["train=train.csv", table])


def test_a_measurement_is_no_task_with_classes(data):
    with pytest.raises(ValueError, match="lvef is a measurement"):
        load_task(data, "lvef")


@given(st.permutations(range(1, 11)), st.integers(0, 10), st.integers(0, 10))
def test_fold_rules(order, first, second):
    low, high = sorted((first, second))
    parts = [order[:low], order[low:high], order[high:]]
    rule = "/".join(",".join(map(str, part)) for part in parts)
    expected = dict(zip(("train", "validation", "test"), parts, strict=True))
    assert fold_rule(rule) == {fold: split for split, folds in expected.items() for fold in folds}


def test_ranges_in_fold_rules():
    assert fold_rule("1-3,5//7-8") == {1: "train", 2: "train", 3: "train", 5: "train", 7: "test", 8: "test"}
    for wrong in ("1-8", "1-8/9", "a/b/c", "1-8/9/10/11", "1;2/3/4"):
        with pytest.raises(ValueError, match="not TRAIN/VALIDATION/TEST"):
            fold_rule(wrong)
    with pytest.raises(ValueError, match="fold 8 is in train and in validation"):
        fold_rule("1-8/8/9")


def options_for(data: str, output: Path, *more: str) -> TaskOptions:
    arguments = ["--model", "some/model", "--data", data, "--task", "ptbxl_super", "--output", str(output), *more]
    return parse(TaskOptions, None, [*arguments, "--resamples", "20"])


def test_results_are_written_as_json_markdown_and_eval_results(data, tmp_path, capsys):
    options = options_for(data, tmp_path, "--dataset-id", "org/ecgs")
    test = load_task(data, "ptbxl_super").part("test")
    table = ClassificationTable("linear_probe", options, test)
    table.add("model", test.targets + 0.1, "10 % of labels")
    table.add("prior", np.zeros(test.targets.shape), "prior")
    table.write()

    result = json.loads((tmp_path / "linear_probe_ptbxl_super_model.json").read_text())
    assert result["rows"][0]["auroc_macro"]["value"] == 1
    assert result["rows"][1]["auroc_macro"]["value"] == 0.5
    assert result["options"]["seed"] == 0
    assert result["command"].startswith("python ")
    with np.load(tmp_path / "linear_probe_ptbxl_super_model.npz") as arrays:
        assert list(arrays["record_ids"]) == list(test.record_ids)
        assert list(arrays["patients"]) == list(test.patients)
        np.testing.assert_allclose(arrays["model, 10 % of labels"], arrays["targets"] + 0.1, rtol=1e-6)
    markdown = (tmp_path / "linear_probe_ptbxl_super_model.md").read_text()
    assert "| model | 10 % of labels | 100.0 [100.0, 100.0] |" in markdown
    assert "For research use; not a medical device." in markdown
    assert markdown.strip() in capsys.readouterr().out
    entries = yaml.safe_load((tmp_path / ".eval_results" / "linear_probe_ptbxl_super_model.yaml").read_text())
    assert [entry["value"] for entry in entries] == [100.0]  # the baseline is no result of the model
    assert entries[0]["dataset"] == {"id": "org/ecgs", "task_id": "linear_probe_ptbxl_super_10_of_labels"}


def test_without_a_hub_name_of_the_data_there_are_no_eval_results(data, tmp_path, capsys):
    test = load_task(data, "ptbxl_super").part("test")
    table = ClassificationTable("zero_shot", options_for(data, tmp_path), test)
    table.add("model", test.targets, "no labels")
    table.write()
    assert "give --dataset-id" in capsys.readouterr().out
    assert not (tmp_path / ".eval_results").exists()


def test_absent_classes_and_one_patient_leave_words_not_nan(tmp_path):
    rows = [row for row in evaluation_rows(100) if row["fold"] != 10 or row["record_id"] in ("r18", "r19")]
    data = write_rows(tmp_path / "data", rows)
    test = load_task(data, "ptbxl_super", "1-8/9/10").part("test")
    table = ClassificationTable("zero_shot", options_for(data, tmp_path), test)
    table.add("model", np.zeros(test.targets.shape), "no labels")
    table.write()
    text = (tmp_path / "zero_shot_ptbxl_super_model.md").read_text()
    assert "nan" not in text.lower()
    assert "NORM (no positives)" in text
    assert "all records are of one patient: there are no intervals" in text


def test_where_features_alone_do_not_do_an_outside_encoder_is_refused(tmp_path):
    command = ["--model", "theirs:make", "--data", "data", "--output", str(tmp_path)]
    assert parse(FeatureOptions, None, command).model == "theirs:make"
    with pytest.raises(OSError, match="theirs:make gives features alone"):
        parse(EvaluationOptions, None, command)


def test_errors_that_a_user_can_mend_end_with_a_message(capsys):
    def main():
        raise ValueError("fold 10 is missing")

    with pytest.raises(SystemExit, match="ValueError: fold 10 is missing"):
        run_command(main)


def test_no_model_replaces_the_results_of_another(data, tmp_path):
    test = load_task(data, "ptbxl_super").part("test")

    def write(model):
        options = EvaluationOptions(model=model, data=data, output=tmp_path, resamples=0)
        table = ClassificationTable("zero_shot", options, test)
        table.add(table.model, test.targets, "no labels")
        table.write()
        return tmp_path / f"{table.name}.json"

    paths = [write(model) for model in ("org/one", "two", "theirs/two.1", "org/one")]  # the last one once more
    assert len(set(paths)) == 3 and all(json.loads(path.read_text())["rows"] for path in paths)
    before = paths[0].read_text()
    with pytest.raises(FileExistsError, match=r"_one\.json is of org/one, not of other/one: choose another --output"):
        write("other/one")
    assert paths[0].read_text() == before
    (tmp_path / "folder").mkdir()
    same = [str(tmp_path / "folder"), str(tmp_path / "folder" / ".." / "folder")]
    assert write(same[0]) == write(same[1])
    paths[1].write_text(before[:50])
    with pytest.raises(ValueError, match=r"_two\.json is no whole JSON file"):
        write("two")
