"""Builds: what comes out, what happens to broken recordings, and what a build that is killed leaves behind."""

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import layouts
import numpy as np
import pytest
import wfdb

from ecgformers.datasets_scripts import building, ecg_builder, plan
from ecgformers.datasets_scripts.building import BrokenRecording, build
from ecgformers.datasets_scripts.command_line import main
from ecgformers.datasets_scripts.digital_ecg import DigitalEcg
from ecgformers.datasets_scripts.ecg_folder import EcgFolder
from ecgformers.datasets_scripts.ptb_xl import PtbXl
from ecgformers.datasets_scripts.rows import row_to_record


@pytest.fixture
def source(tmp_path: Path) -> SimpleNamespace:
    folder = tmp_path / "ptb-xl"
    return SimpleNamespace(folder=folder, signals=layouts.ptb_xl(folder), records=20)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "ROWS_A_CHUNK", 3)
    monkeypatch.setattr(building, "CHUNKS_A_SHARD", 2)


def builder(source: SimpleNamespace, **options: Any) -> PtbXl:
    return PtbXl(data_dir=str(source.folder), rate=100, cache_dir=str(source.folder.parent / "cache"), **options)


def load(folder: Path) -> datasets.DatasetDict:
    return datasets.load_dataset(str(folder), cache_dir=str(folder.parent / f"cache of {folder.name}"))


def rejects(folder: Path) -> dict[str, str]:
    lines = (folder / "rejects.jsonl").read_text().splitlines()
    return {reject["record_id"]: reject["reason"] for reject in map(json.loads, lines)}


def test_every_sample_is_what_wfdb_reads(source: SimpleNamespace, tmp_path: Path) -> None:
    build(builder(source), tmp_path / "out")
    rows = [row for split in load(tmp_path / "out").values() for row in split]
    assert {row["record_id"] for row in rows} == source.signals.keys()
    for row in rows:
        samples = np.array(row["signal"], dtype=np.int16)
        expected = wfdb.rdrecord(str(source.folder / row["source"]), physical=False)
        np.testing.assert_array_equal(samples, expected.d_signal)
        millivolts, fields = wfdb.rdsamp(str(source.folder / row["source"]))
        record = row_to_record(row)
        np.testing.assert_array_equal(record.signal, millivolts.T)
        assert record.sampling_rate == fields["fs"] == 100
        assert record.lead_names == layouts.LEADS
        assert row["record_id"] in record.source and row["source"] in record.source


@pytest.mark.parametrize("format_of_rows", [None, "numpy"])
def test_row_to_record_takes_rows_of_any_format(
    source: SimpleNamespace, tmp_path: Path, format_of_rows: str | None
) -> None:
    build(builder(source, limit=2), tmp_path / "out")
    row = load(tmp_path / "out")["train"].with_format(format_of_rows)[0]
    np.testing.assert_array_equal(row_to_record(row).signal, source.signals["1"].T / 1000)


def test_the_rows_of_ptb_xl(source: SimpleNamespace, tmp_path: Path) -> None:
    summary = build(builder(source), tmp_path / "out")
    built = load(tmp_path / "out")
    assert summary.splits == {name: len(rows) for name, rows in built.items()}
    assert {name: set(rows["fold"]) for name, rows in built.items()} == {
        "train": set(range(1, 9)),
        "validation": {9},
        "test": {10},
    }
    first, second, third = (built["train"][index] for index in range(3))
    assert first["statements"] == [{"code": "NORM", "likelihood": 100.0}, {"code": "SR", "likelihood": 0.0}]
    assert third["statements"] == [{"code": "IMI", "likelihood": 50.0}]
    assert (first["age"], second["age"], third["age"]) == (90.0, None, 56.0)
    assert (first["sex"], second["sex"]) == ("female", "male")
    assert (first["patient_id"], first["report"]) == ("1000", "sinusrhythmus, nummer 1")


def test_the_number_of_processes_changes_nothing(source: SimpleNamespace, tmp_path: Path, small_chunks: None) -> None:
    for processes in (1, 2):
        build(builder(source), tmp_path / str(processes), num_proc=processes)
    one, two = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("1", "2")
    )
    assert len(one) == 3 + 3 + 1 + 1 and one == two  # data of three splits, card, summary, rejects


def test_large_recordings_are_written_in_bounded_pieces(
    source: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ecg_builder, "BYTES_A_ROW_GROUP", 3 * 100 * 12 * 2)  # three recordings
    build(builder(source), tmp_path / "out")
    rows = [row for split in load(tmp_path / "out").values() for row in split]
    assert sorted(int(row["record_id"]) for row in rows) == list(range(1, 21))
    for row in rows:
        np.testing.assert_array_equal(row["signal"], source.signals[row["record_id"]])


def test_it_is_a_datasets_builder(source: SimpleNamespace) -> None:
    ptb_xl = builder(source)
    ptb_xl.download_and_prepare()
    rows = ptb_xl.as_dataset("validation").with_format("numpy")
    np.testing.assert_array_equal(rows[0]["signal"], source.signals[str(rows[0]["record_id"])])


def _damage(source: SimpleNamespace) -> dict[str, str]:
    """Break ten recordings in ten ways; what the reason of each must say."""
    folder = source.folder / "records100" / "00000"
    file = {number: folder / f"{number:05d}_lr" for number in range(1, 21)}
    file[1].with_suffix(".dat").unlink()
    file[2].with_suffix(".hea").unlink()
    data = bytearray(file[3].with_suffix(".dat").read_bytes())
    data[100] ^= 1
    file[3].with_suffix(".dat").write_bytes(data)
    file[4].with_suffix(".dat").write_bytes(file[4].with_suffix(".dat").read_bytes()[:-24])
    missing = layouts.ecg(5, 100)
    missing[7, 3] = -32768
    layouts.write_wfdb(file[5], missing, rate=100)
    layouts.write_wfdb(file[6], layouts.ecg(6, 100, layouts.LEADS[:11]), layouts.LEADS[:11], 100)
    layouts.write_wfdb(file[7], np.zeros((100, 12), np.int16), rate=100)
    layouts.write_wfdb(file[8], layouts.ecg(8, 100), rate=100, gain="0/mV")
    layouts.write_wfdb(file[9], layouts.ecg(9, 100), rate=100, gain="100/mmHg")
    file[10].with_suffix(".hea").write_bytes(b"\xff\xfe not a header")
    return {
        "1": "missing",
        "2": "00002_lr.hea",
        "3": "checksum",
        "4": "bytes of signal",
        "5": "NaN",
        "6": "expected 12 leads",
        "7": "every sample is zero",
        "8": "gain 0",
        "9": "mmHg",
        "10": "not a WFDB header",
    }


@pytest.mark.parametrize("processes", [1, 2])
def test_broken_recordings_are_rejected_with_the_reason(
    source: SimpleNamespace, tmp_path: Path, small_chunks: None, processes: int
) -> None:
    reasons = _damage(source)
    summary = build(builder(source), tmp_path / "out", num_proc=processes)
    rejected = rejects(tmp_path / "out")
    assert rejected.keys() == reasons.keys()
    for record_id, reason in reasons.items():
        assert reason in rejected[record_id]
    assert (summary.broken, sum(summary.splits.values())) == (10, 10)
    assert "10 broken" in str(summary)
    kept = [row["record_id"] for split in load(tmp_path / "out").values() for row in split]
    assert sorted(map(int, kept)) == list(range(11, 21))


def test_a_line_of_the_table_that_makes_no_sense_is_rejected(source: SimpleNamespace, tmp_path: Path) -> None:
    table = source.folder / "ptbxl_database.csv"
    table.write_text(table.read_text().replace("{'IMI': 50.0}", "{'IMI'", 1))
    summary = build(builder(source), tmp_path / "out")
    assert summary.broken == 1 and "{'IMI'" in (tmp_path / "out" / "rejects.jsonl").read_text()


@pytest.mark.parametrize("processes", [1, 2])
def test_strict_stops_at_the_first(source: SimpleNamespace, tmp_path: Path, processes: int) -> None:
    (source.folder / "records100" / "00000" / "00007_lr.dat").unlink()
    with pytest.raises(BrokenRecording, match=r"record 7 .*00007_lr"):
        build(builder(source), tmp_path / "out", num_proc=processes, strict=True)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_not_one_usable_recording_is_an_error(source: SimpleNamespace, tmp_path: Path) -> None:
    shutil.rmtree(source.folder / "records100")
    with pytest.raises(ValueError, match="not one of 20 recordings"):
        build(builder(source), tmp_path / "out")


def test_no_patient_is_in_two_splits(source: SimpleNamespace, tmp_path: Path) -> None:
    table = source.folder / "ptbxl_database.csv"
    table.write_text(table.read_text().replace("1008.0", "1000.0"))  # of fold 9 and of fold 1
    with pytest.raises(ValueError, match=r"patient 1000 is in train and, with record 17, in validation"):
        build(builder(source), tmp_path / "out")


def test_a_record_stands_once(source: SimpleNamespace, tmp_path: Path) -> None:
    table = source.folder / "ptbxl_database.csv"
    table.write_text(table.read_text() + table.read_text().splitlines()[5] + "\n")
    with pytest.raises(ValueError, match="record_id 5 is in the tables twice"):
        build(builder(source), tmp_path / "out")


def test_limit(source: SimpleNamespace, tmp_path: Path) -> None:
    assert build(builder(source, limit=5), tmp_path / "out").splits == {"train": 5}


def test_missing_files_and_columns_are_named(source: SimpleNamespace, tmp_path: Path) -> None:
    table = source.folder / "ptbxl_database.csv"
    table.write_text(table.read_text().replace("scp_codes", "codes", 1))
    with pytest.raises(ValueError, match=r"ptbxl_database.csv has no column scp_codes; it has ecg_id, .*codes"):
        build(builder(source), tmp_path / "out")
    table.unlink()
    with pytest.raises(FileNotFoundError, match=r"ptbxl_database.csv is missing.*physionet.org.*--download"):
        build(builder(source), tmp_path / "out")


def test_a_folder_that_is_something_else_is_not_replaced(source: SimpleNamespace, tmp_path: Path) -> None:
    thesis = tmp_path / "out" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    with pytest.raises(FileExistsError, match="something else"):
        build(builder(source), tmp_path / "out")
    assert thesis.read_text() == "years of work"


def _build_and_die(source: SimpleNamespace, output: Path, step: int) -> None:
    """In a process of its own: build, and be killed at the `step`-th change of the file system."""
    steps = iter(range(step))

    def dying(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(steps, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for holder, name in ((Path, "rename"), (Path, "mkdir"), (Path, "write_text"), (Path, "unlink")):
        setattr(holder, name, dying(getattr(holder, name)))
    shutil.rmtree = dying(shutil.rmtree)
    building._write_shard = dying(building._write_shard)
    build(builder(source), output)


@pytest.mark.parametrize("previous", [True, False])
def test_killed_at_any_moment_it_leaves_the_old_data_set_or_none(
    source: SimpleNamespace, tmp_path: Path, previous: bool, small_chunks: None
) -> None:
    output = tmp_path / "out"
    if previous:
        build(builder(source, limit=4), output)
        shutil.copytree(output, tmp_path / "previous")
    for step in range(100):
        child = multiprocessing.get_context("fork").Process(target=_build_and_die, args=(source, output, step))
        child.start()
        child.join()
        for folder in tmp_path.glob("*out*"):  # the hidden folders of the build too
            if folder.is_dir() and not folder.name.startswith("cache"):
                try:
                    rows = sum(map(len, load(folder).values()))
                except Exception:  # whatever load_dataset raises for a folder that is no data set
                    rows = 0
                assert rows in ((0, 4, 20) if previous else (0, 20)), f"{folder.name} after step {step}"
                shutil.rmtree(tmp_path / f"cache of {folder.name}", ignore_errors=True)
        if child.exitcode == 0:
            break
        shutil.rmtree(output, ignore_errors=True)
        if previous:
            shutil.rmtree(tmp_path / ".out.old", ignore_errors=True)
            shutil.copytree(tmp_path / "previous", output)
    assert step > 10 and child.exitcode == 0
    assert sum(map(len, load(output).values())) == 20
    assert not list(tmp_path.glob(".out*"))


def test_killed_between_the_renames_the_old_data_set_comes_back(source: SimpleNamespace, tmp_path: Path) -> None:
    build(builder(source, limit=4), tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / ".out.old")
    shutil.rmtree(source.folder / "records100")
    with pytest.raises(ValueError, match="not one"):
        build(builder(source), tmp_path / "out")
    assert len(load(tmp_path / "out")["train"]) == 4


def test_a_part_of_a_data_set_is_refused(source: SimpleNamespace, tmp_path: Path, small_chunks: None) -> None:
    build(builder(source), tmp_path / "out")
    next((tmp_path / "out" / "data").glob("train-00001*")).unlink()
    with pytest.raises(datasets.exceptions.NonMatchingSplitsSizesError):
        load(tmp_path / "out")


def test_other_samples_than_the_data_set_holds_are_refused() -> None:
    recording = DigitalEcg(np.full((5, 12), 70000, np.int32), [1.0] * 12, [0] * 12, ["mV"] * 12, layouts.LEADS, 100.0)
    with pytest.raises(ValueError, match="int32, those of the data set int16"):
        recording.astype("int16")
    assert recording.astype("float64").signal.dtype == np.float64


def test_the_command_line(source: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["build", "--data-dir", str(source.folder), "--output", str(tmp_path / "out"), "--rate", "100"]
    main(PtbXl, [*arguments, "--limit", "6", "--num-proc", "1"])
    assert capsys.readouterr().out == "6 records (6 train), none broken\n"
    (source.folder / "ptbxl_database.csv").unlink()
    with pytest.raises(SystemExit, match=r"^FileNotFoundError: .*ptbxl_database.csv is missing"):
        main(PtbXl, arguments)


def test_the_card(source: SimpleNamespace, tmp_path: Path) -> None:
    build(builder(source), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (
        "license: cc-by-4.0",
        "Wagner et al.",
        "20 records",
        "| `signal` |",
        "not a medical device",
        "data/train-*",
    ):
        assert text in card
    assert "$" not in card


def test_every_data_set_has_a_card() -> None:
    cards = {path.stem for path in Path(building.__file__).with_name("cards").glob("*.md")}
    scripts = Path(building.__file__).parent.glob("*.py")
    named = {
        line.split('"')[1]
        for path in scripts
        for line in path.read_text().splitlines()
        if line.startswith('    card = "')
    }
    assert named - {""} == cards


def test_ecg_folder_finds_recordings_by_id_and_by_path(source: SimpleNamespace, tmp_path: Path) -> None:
    layouts.write_csv(tmp_path / "by_id.csv", [{"id": "00003_lr", "AF": 1, "LBBB": ""}])
    layouts.write_csv(tmp_path / "by_path.csv", [{"file": "records100/00000/00003_lr.dat", "AF": 1, "LBBB": ""}])
    for table, options in (("by_id", {"id_column": "id"}), ("by_path", {"path_column": "file"})):
        mine = EcgFolder(
            data_dir=str(source.folder), table=str(tmp_path / f"{table}.csv"), label_columns="AF:LBBB", **options
        )
        build(mine, tmp_path / table)
        row = load(tmp_path / table)["train"][0]
        np.testing.assert_array_equal(row["signal"], source.signals["3"])
        assert row["labels"] == {"AF": 1, "LBBB": None}
