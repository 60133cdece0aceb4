"""Every data set, built from a small tree in its publisher's layout."""

from pathlib import Path
from typing import Any

import datasets
import layouts
import numpy as np
import pytest

from ecgformers.datasets_scripts.building import build
from ecgformers.datasets_scripts.code_15 import Code15
from ecgformers.datasets_scripts.code_test import CodeTest
from ecgformers.datasets_scripts.cpsc2018 import Cpsc2018
from ecgformers.datasets_scripts.csn import Csn
from ecgformers.datasets_scripts.ecg_builder import EcgBuilder
from ecgformers.datasets_scripts.ecg_folder import EcgFolder
from ecgformers.datasets_scripts.georgia import Georgia
from ecgformers.datasets_scripts.mimic_iv_ecg import MimicIvEcg, join_report
from ecgformers.datasets_scripts.mimic_iv_echo import MimicIvEcho
from ecgformers.datasets_scripts.music import Music
from ecgformers.datasets_scripts.ptb_xl import PtbXl
from ecgformers.datasets_scripts.rows import patient_split, row_to_record
from ecgformers.evaluation.tasks import TASKS, labels


class Built:
    """A data set built of `source`: its rows by record id, and what the build said."""

    def __init__(self, builder_class: type[EcgBuilder], source: Path, **options: Any) -> None:
        output = source.parent / "built"
        builder = builder_class(data_dir=str(source), cache_dir=str(source.parent / "cache"), **options)
        self.summary = build(builder, output)
        self.splits = datasets.load_dataset(str(output), cache_dir=str(source.parent / "loaded"))
        rows = [{**row, "split of": name} for name, split in self.splits.items() for row in split]
        self.rows = {row["record_id"]: row for row in rows}
        assert all(row["split"] == row["split of"] for row in rows)

    def millivolts(self, record_id: str) -> np.ndarray:
        return row_to_record(self.rows[record_id]).signal.T  # (samples, leads)


def codes(row: dict[str, Any]) -> list[str]:
    return [statement["code"] for statement in row["statements"]]


def test_ptb_xl_at_500_hz(tmp_path: Path) -> None:
    signals = layouts.ptb_xl(tmp_path / "source", records=3, samples=500, rate=500)
    built = Built(PtbXl, tmp_path / "source", rate=500)
    assert {row["sampling_rate"] for row in built.rows.values()} == {500.0}
    np.testing.assert_array_equal(built.millivolts("2"), signals["2"] / 1000)


@pytest.mark.parametrize(
    ("builder_class", "folder", "names"),
    [
        (Cpsc2018, "training/cpsc_2018", ["A0001", "A0002", "A0003"]),
        (Georgia, "training/georgia", ["E00001", "E00002", "E00003"]),
        (Csn, "WFDBRecords/01/010", ["JS00001", "JS00002", "JS00004"]),
    ],
)
@pytest.mark.parametrize("gain", ["1000/mV", "4880/mV"])
def test_challenge_databases(
    tmp_path: Path, builder_class: type[EcgBuilder], folder: str, names: list[str], gain: str
) -> None:
    dx = ["164889003,59118001", "426783006", "LBBB"]
    signals = layouts.challenge(tmp_path / "source" / folder, names, dx, gain)
    built = Built(builder_class, tmp_path / "source")
    for number, name in enumerate(names):
        np.testing.assert_array_equal(np.array(built.rows[name]["signal"]), signals[name])  # of different lengths
        np.testing.assert_allclose(built.millivolts(name), signals[name] / float(gain.split("/")[0]), rtol=1e-12)
        assert codes(built.rows[name]) == dx[number].split(",")
    first, second, _ = (built.rows[name] for name in names)
    assert (first["sex"], first["age"], second["sex"], second["age"]) == ("male", None, "female", 61.0)
    assert first["patient_id"] is None and first["split"] == "train"
    assert first["source"] == f"{folder}/g1/{names[0]}"


def test_the_folder_of_one_challenge_database_alone(tmp_path: Path) -> None:
    layouts.challenge(tmp_path / "cpsc_2018", ["A0001"], ["426783006"])
    assert Built(Cpsc2018, tmp_path / "cpsc_2018").rows["A0001"]["source"] == "g1/A0001"


def test_split_tables(tmp_path: Path) -> None:
    names = ["JS00001", "JS00002", "JS00004", "JS00005"]
    layouts.challenge(tmp_path / "source" / "WFDBRecords", names, ["426783006"] * 4)
    for name, record in zip(("train", "val", "test"), names, strict=False):
        path = tmp_path / "splits" / f"chapman_{name}.csv"
        layouts.write_csv(path, [{"ecg_path": f"/chapman/WFDBRecords/01/010/{record}.mat", "age": 50, "SR": 1}])
        path.write_text("\n" + path.read_text())  # one of the published tables begins with an empty line
    built = Built(Csn, tmp_path / "source", splits=str(tmp_path / "splits"))
    assert {name: row["split"] for name, row in built.rows.items()} == {
        "JS00001": "train",
        "JS00002": "validation",
        "JS00004": "test",
    }
    assert built.summary.left_out == {"not in the split tables": 1} and built.summary.broken == 0


def test_code_15(tmp_path: Path) -> None:
    signals = layouts.code_15(tmp_path / "source")
    built = Built(Code15, tmp_path / "source")
    assert built.rows.keys() == {"501", "502", "503", "504"}
    for exam_id, row in built.rows.items():
        recorded = np.flatnonzero(signals[exam_id].any(axis=1))  # the fill of zeros is gone
        expected = signals[exam_id][recorded[0] : recorded[-1] + 1] / np.float32(1000)
        np.testing.assert_array_equal(np.array(row["signal"], np.float32), expected)
        assert row["sampling_rate"] == 400.0 and row["lead_names"] == list(layouts.LEADS)
    assert row_to_record(built.splits["train"].with_format("numpy")[0]).signal.dtype == np.float32
    row = built.rows["502"]
    assert row["labels"] == {"1dAVb": 0, "RBBB": 1, "LBBB": 0, "SB": 0, "ST": 0, "AF": 0}
    assert (codes(row), row["sex"], row["age"], row["patient_id"]) == (["RBBB"], "male", 41.0, "71")
    assert built.summary.left_out == {"exams_part2.hdf5 is missing or lacks the exam": 1}


def test_code_15_with_bad_lines(tmp_path: Path) -> None:
    layouts.code_15(tmp_path / "source")
    table = tmp_path / "source" / "exams.csv"
    lines = table.read_text().splitlines()
    lines[1] = lines[1].replace("501,40,False", "501,forty,False")
    lines[2] = lines[2].replace("502,41,True", "502,,")
    table.write_text("\n".join(lines) + "\n")
    built = Built(Code15, tmp_path / "source")
    assert built.rows.keys() == {"502", "503", "504"} and built.summary.broken == 1
    assert (built.rows["502"]["sex"], built.rows["502"]["age"]) == (None, None)


def test_code_15_in_tenths_of_millivolts(tmp_path: Path) -> None:
    layouts.code_15(tmp_path / "source")
    built = Built(Code15, tmp_path / "source", per_millivolt=10.0)
    np.testing.assert_allclose(built.millivolts("501"), np.array(built.rows["501"]["signal"]) / 10, rtol=1e-6)


def test_code_test(tmp_path: Path) -> None:
    layouts.code_test(tmp_path / "source")
    built = Built(CodeTest, tmp_path / "source")
    rows = list(built.splits["test"])
    targets, takes_part = labels(rows, TASKS["code_test"])
    assert targets.sum(axis=0).tolist() == [0, 0, 0, 0, 0, 1] and takes_part.all()
    assert [row["sex"] for row in rows] == ["male", "female", "male"]


def test_code_test_with_a_line_too_few(tmp_path: Path) -> None:
    layouts.code_test(tmp_path / "source")
    layouts.write_csv(tmp_path / "source" / "attributes.csv", [{"age": 1, "sex": "F"}])
    with pytest.raises(ValueError, match="3 tracings, 1 lines of attributes, 3 of gold_standard"):
        Built(CodeTest, tmp_path / "source")


def test_mimic_iv_ecg(tmp_path: Path) -> None:
    signals = layouts.mimic_iv_ecg(tmp_path / "source")
    columns = ("subject_id", "gender", "anchor_age", "anchor_year", "dod")
    patients = [(10000032, "F", 52, 2180, ""), (10000117, "M", 88, 2178, "")]
    layouts.write_csv(tmp_path / "patients.csv.gz", [dict(zip(columns, line, strict=True)) for line in patients])
    built = Built(MimicIvEcg, tmp_path / "source", patients=str(tmp_path / "patients.csv.gz"))
    assert {record_id: row["report"] for record_id, row in built.rows.items()} == {
        "40689238": "sinus rhythm. possible right atrial abnormality. borderline ecg.",
        "44458630": "sinus rhythm. abnormal ecg.",
        "45090959": "atrial fibrillation with pvc(s). low qrs voltages.",
        "48446569": "sinus bradycardia. normal ecg except for rate.",
    }
    assert built.summary.left_out == {"its report has fewer than 4 words": 1}
    row = built.rows["45090959"]
    assert row["lead_names"] == list(layouts.MIMIC_LEADS)
    assert (row["patient_id"], row["sex"], row["age"]) == ("10000117", "male", 90.0)
    assert built.rows["40689238"]["age"] == 52.0
    np.testing.assert_array_equal(built.millivolts("45090959"), signals["45090959"] / 200)


def test_mimic_iv_ecg_whose_tables_differ_in_order(tmp_path: Path) -> None:
    layouts.mimic_iv_ecg(tmp_path / "source")
    table = tmp_path / "source" / "machine_measurements.csv"
    header, *lines = table.read_text().splitlines()
    table.write_text("\n".join([header, *lines[::-1]]) + "\n")
    assert len(Built(MimicIvEcg, tmp_path / "source").rows) == 4


def test_reports_of_no_words_at_all() -> None:
    assert join_report(["", None, " *** ", "="]) == ""


def test_mimic_iv_echo(tmp_path: Path) -> None:
    signals = layouts.mimic_iv_ecg(tmp_path / "ecg")
    layouts.mimic_iv_echo(tmp_path / "echo")
    built = Built(MimicIvEcho, tmp_path / "echo", ecg_dir=str(tmp_path / "ecg"), window_hours=9.0)
    assert built.rows.keys() == {"44458630", "45090959"}  # 8:06 h before the one exam, 5 h after the other
    row = built.rows["44458630"]
    np.testing.assert_array_equal(row["signal"], signals["44458630"])
    assert row["echo_study_id"] == "90000001" and row["echo_hours"] == pytest.approx(8.1)
    assert [Path(path).name for path in row["cine_paths"]] == ["90000001_0001.dcm", "90000001_0002.dcm"]
    assert {k: v for k, v in row["measurements"].items() if v is not None} == pytest.approx({"lvef": 35, "lvedd": 6.1})
    other = built.rows["45090959"]
    assert (other["echo_study_id"], other["cine_paths"], other["echo_hours"]) == (None, [], -5.0)
    assert built.summary.left_out == {"no echocardiogram within 9 hours": 3}
    targets, _ = labels([row, other], TASKS["lvef_below_40"])
    assert targets.tolist() == [[1], [0]]


def test_mimic_iv_echo_with_an_exam_without_a_time(tmp_path: Path) -> None:
    layouts.mimic_iv_ecg(tmp_path / "ecg")
    layouts.mimic_iv_echo(tmp_path / "echo")
    table = tmp_path / "echo" / "echo-study-list.csv"
    table.write_text(table.read_text().replace("2180-07-23 18:00:00", ""))
    built = Built(MimicIvEcho, tmp_path / "echo", ecg_dir=str(tmp_path / "ecg"), window_hours=9.0)
    assert built.rows.keys() == {"45090959"} and built.summary.left_out == {"no echocardiogram within 9 hours": 4}


def test_mimic_iv_echo_without_any_known_measurement(tmp_path: Path) -> None:
    layouts.mimic_iv_ecg(tmp_path / "ecg")
    layouts.mimic_iv_echo(tmp_path / "echo")
    names = ("subject_id", "measurement_id", "measurement_datetime", "measurement", "result")
    line = dict(zip(names, (1, 2, "2180-01-01 00:00:00", "renamed_lvef", 50), strict=True))
    layouts.write_csv(tmp_path / "echo" / "structured-measurement.csv.gz", [line])
    with pytest.raises(ValueError, match=r"none of the measurements lvef, "):
        Built(MimicIvEcho, tmp_path / "echo", ecg_dir=str(tmp_path / "ecg"))


def test_mimic_iv_echo_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ecg_dir is not given.*mimic-iv-ecg/1.0"):
        Built(MimicIvEcho, tmp_path / "echo")
    layouts.mimic_iv_ecg(tmp_path / "ecg")
    with pytest.raises(FileNotFoundError, match=r"echo-record-list.csv is missing.*Sign the agreement"):
        Built(MimicIvEcho, tmp_path / "echo", ecg_dir=str(tmp_path / "ecg"))


def test_music(tmp_path: Path) -> None:
    signals = layouts.music(tmp_path / "source")
    built = Built(Music, tmp_path / "source", start=0.5, seconds=2.0)
    assert built.rows.keys() == signals.keys()
    row = built.rows["P0002_H"]
    np.testing.assert_array_equal(row["signal"], signals["P0002_H"][500:2500])
    assert row["lead_names"] == ["X", "Y", "Z"] and row["sampling_rate"] == 1000.0
    assert (row["age"], row["sex"], row["patient_id"]) == (90.0, "female", "P0002")
    assert row["measurements"]["LVEF (%)"] == 34.5
    assert row["measurements"]["Left ventricular posterior wall thickness (mm)"] == 10.5
    assert built.rows["P0004_H"]["measurements"]["LVEF (%)"] is None
    assert built.summary.left_out == {"no high-resolution ECG": 1}


def test_ecg_folder_with_all_its_columns(tmp_path: Path) -> None:
    signal = layouts.ecg(1)
    layouts.write_wfdb(tmp_path / "source" / "a" / "one", signal)
    rows = [
        {"file": "a/one.hea", "who": "7.0", "text": "Sinusrhythmus", "codes": "AF; LBBB", "part": "val", "old": "63"}
        | {"mf": "w", "AF": "true", "PVC": "0.0"},
    ]
    layouts.write_csv(tmp_path / "table.csv", rows, delimiter=";")
    columns = {"path": "file", "patient": "who", "report": "text", "statement": "codes", "split": "part", "age": "old"}
    options = {f"{name}_column": column for name, column in columns.items()}
    built = Built(
        EcgFolder, tmp_path / "source", table=str(tmp_path / "table.csv"), delimiter=";", **options,
        sex_column="mf", male="m", female="w", label_columns="AF,PVC",
    )  # fmt: skip
    row = built.rows["a/one"]
    assert codes(row) == ["AF", "LBBB"] and row["labels"] == {"AF": 1, "PVC": 0}
    assert (row["patient_id"], row["report"], row["split"]) == ("7", "Sinusrhythmus", "validation")
    assert (row["age"], row["sex"]) == (63.0, "female")


def test_ecg_folder_of_other_formats(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    millivolts = layouts.ecg(1).T / 1000
    np.savez(source / "one.npz", signal=millivolts, lead_names=np.array(layouts.LEADS), sampling_rate=250.0)
    np.save(source / "two.npy", millivolts)
    layouts.write_wfdb(source / "three", layouts.ecg(3))
    layouts.write_csv(source / "table.csv", [{"id": name} for name in ("one", "two", "three")])
    options = {"table": "table.csv", "id_column": "id", "lead_names": ",".join(layouts.LEADS), "sampling_rate": 250.0}
    built = Built(EcgFolder, source, dtype="float32", **options)
    np.testing.assert_array_equal(built.millivolts("one"), millivolts.T.astype(np.float32))
    np.testing.assert_array_equal(built.millivolts("two"), millivolts.T.astype(np.float32))
    np.testing.assert_array_equal(built.rows["three"]["signal"], layouts.ecg(3))  # integers, gain and all
    assert built.rows["three"]["gain"] == [1000.0] * 12


def test_ecg_folder_of_recordings_that_differ(tmp_path: Path) -> None:
    source = tmp_path / "source"
    layouts.write_wfdb(source / "one", layouts.ecg(1))
    layouts.write_wfdb(source / "two", layouts.ecg(2, leads=("I",)), ("I",))
    layouts.write_csv(source / "table.csv", [{"id": "one"}, {"id": "two"}, {"id": "three"}])
    built = Built(EcgFolder, source, table="table.csv", id_column="id")
    assert built.rows.keys() == {"one"}
    reasons = (tmp_path / "built" / "rejects.jsonl").read_text()
    assert "expected 12 leads" in reasons and "holds no file three" in reasons


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id_column": "id"}, "table is not given"),
        ({"table": "table.csv"}, "give --path-column or --id-column"),
        ({"table": "table.csv", "id_column": "name"}, "has no column name; it has id, sex"),
        ({"table": "table.csv", "id_column": "id", "label_columns": "AF"}, "has no column AF"),
        ({"table": "table.csv", "id_column": "id", "sex_column": "sex"}, "sex '0' is neither 'male' nor 'female'"),
    ],
)
def test_ecg_folder_says_what_is_wrong(tmp_path: Path, options: dict[str, str], message: str) -> None:
    layouts.write_wfdb(tmp_path / "source" / "one", layouts.ecg(1))
    layouts.write_csv(tmp_path / "source" / "table.csv", [{"id": "one", "sex": "0"}])
    with pytest.raises(ValueError, match=message):
        Built(EcgFolder, tmp_path / "source", **options)


def test_patient_splits_are_stable_and_of_the_right_size() -> None:
    splits = [patient_split(str(number), validation=0.1, test=0.2) for number in range(20000)]
    assert splits[:12] == [patient_split(str(number), validation=0.1, test=0.2) for number in range(12)]
    assert splits.count("test") / 20000 == pytest.approx(0.2, abs=0.01)
    assert splits.count("validation") / 20000 == pytest.approx(0.1, abs=0.01)
    assert patient_split("10000032", 0.02) == "train"  # for ever


@pytest.mark.parametrize("path", ["../elsewhere/one", "/etc/passwd"])
def test_no_table_leads_out_of_the_data_folder(tmp_path: Path, path: str) -> None:
    layouts.write_wfdb(tmp_path / "elsewhere" / "one", layouts.ecg(1))
    layouts.write_wfdb(tmp_path / "source" / "two", layouts.ecg(2))
    layouts.write_csv(tmp_path / "source" / "table.csv", [{"file": "two"}, {"file": path}])
    built = Built(EcgFolder, tmp_path / "source", table="table.csv", path_column="file")
    assert built.rows.keys() == {"two"}
    assert "does not lie in" in (tmp_path / "built" / "rejects.jsonl").read_text()


def test_ecg_folder_by_folds(tmp_path: Path) -> None:
    for number in range(4):
        layouts.write_wfdb(tmp_path / "source" / str(number), layouts.ecg(number))
    lines = [{"id": number, "fold": fold} for number, fold in enumerate(("1", "9.0", "10", ""))]
    layouts.write_csv(tmp_path / "source" / "table.csv", lines)
    folds = {"fold_column": "fold", "validation_folds": "8, 9", "test_folds": "10"}
    built = Built(EcgFolder, tmp_path / "source", table="table.csv", id_column="id", **folds)
    assert [built.rows[str(number)]["split"] for number in range(4)] == ["train", "validation", "test", "train"]
    assert [built.rows[str(number)]["fold"] for number in range(4)] == [1, 9, 10, None]
