"""The order of leads, verified physically: Einthoven's and Goldberger's identities hold after loading."""

from pathlib import Path
from typing import Any

import datasets
import layouts
import numpy as np
import pytest
import scipy.io

from ecgformers.datasets_scripts.building import build
from ecgformers.datasets_scripts.code_15 import Code15
from ecgformers.datasets_scripts.cpsc2018 import Cpsc2018
from ecgformers.datasets_scripts.csn import Csn
from ecgformers.datasets_scripts.ecg_builder import EcgBuilder
from ecgformers.datasets_scripts.georgia import Georgia
from ecgformers.datasets_scripts.mimic_iv_ecg import MimicIvEcg
from ecgformers.datasets_scripts.ptb_xl import PtbXl
from ecgformers.datasets_scripts.rows import row_to_record
from ecgformers.modeling.record_ecg import EcgRecord


def built_records(builder_class: type[EcgBuilder], source: Path, output: Path, **options: Any) -> list[EcgRecord]:
    build(builder_class(data_dir=str(source), cache_dir=str(output.parent / "cache"), **options), output)
    built = datasets.load_dataset(str(output), cache_dir=str(output.parent / "loaded"))
    return [row_to_record(row) for split in built.values() for row in split]


def limb_lead_errors(record: EcgRecord) -> dict[str, float]:
    """How far each derived limb lead is from what I and II make of it: the 95th percentile, relative to its range."""
    leads = dict(zip(record.lead_names, record.signal.astype(np.float64), strict=True))
    i, ii = leads["I"], leads["II"]
    expected = {"III": ii - i, "aVR": -(i + ii) / 2, "aVL": i - ii / 2, "aVF": ii - i / 2}
    return {
        name: float(np.percentile(np.abs(leads[name] - signal), 95) / max(np.ptp(signal), 0.1))
        for name, signal in expected.items()
    }


def holds(record: EcgRecord, tolerance: float = 0.05) -> bool:
    return max(limb_lead_errors(record).values()) < tolerance


def swapped(record: EcgRecord, one: str, other: str) -> EcgRecord:
    """The record with the names of two leads exchanged."""
    names = [{one: other, other: one}.get(name, name) for name in record.lead_names]
    return EcgRecord(record.signal, tuple(names), record.sampling_rate, record.units, record.source)


LIMB = ("I", "II", "III", "aVR", "aVL", "aVF")
PAIRS = [(one, other) for place, one in enumerate(LIMB) for other in LIMB[place + 1 :]]


def test_small_trees(tmp_path: Path) -> None:
    layouts.ptb_xl(tmp_path / "ptb", records=4)
    layouts.challenge(tmp_path / "csn", ["JS1", "JS2"], ["1", "2"])
    layouts.mimic_iv_ecg(tmp_path / "mimic")
    layouts.code_15(tmp_path / "code")
    records = built_records(PtbXl, tmp_path / "ptb", tmp_path / "1", rate=100)
    records += built_records(Csn, tmp_path / "csn", tmp_path / "2")
    records += built_records(MimicIvEcg, tmp_path / "mimic", tmp_path / "3")
    records += built_records(Code15, tmp_path / "code", tmp_path / "4")
    assert len(records) == 4 + 2 + 4 + 4
    for record in records:
        assert max(limb_lead_errors(record).values()) < 1e-6, record.source


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_two_exchanged_leads_are_noticed(tmp_path: Path, one: str, other: str) -> None:
    leads = [{one: other, other: one}.get(lead, lead) for lead in layouts.LEADS]
    layouts.write_wfdb(tmp_path / "csn" / "JS1", layouts.ecg(1), leads, comments=["Dx: 1"], extension="mat")
    (record,) = built_records(Csn, tmp_path / "csn", tmp_path / "out")
    assert not holds(record)


def check_excerpt(records: list[EcgRecord]) -> None:
    """The identities hold in nine of ten recordings, and would not with any two leads exchanged."""
    assert np.mean([holds(record) for record in records]) >= 0.9
    for one, other in PAIRS:
        assert np.mean([holds(swapped(record, one, other)) for record in records]) < 0.5, f"{one} and {other}"


def test_ptb_xl_500_hz_excerpt(ptb_xl_500hz_dir: Path, tmp_path: Path) -> None:
    check_excerpt(built_records(PtbXl, ptb_xl_500hz_dir, tmp_path / "out", rate=500))


@pytest.mark.parametrize(
    ("builder_class", "folder"), [(Cpsc2018, "cpsc_2018"), (Georgia, "georgia"), (Csn, "chapman_shaoxing_ningbo")]
)
def test_challenge_excerpts(cinc2021_dir: Path, tmp_path: Path, builder_class: type[EcgBuilder], folder: str) -> None:
    records = built_records(builder_class, cinc2021_dir / folder, tmp_path / "out")
    assert len(records) == len(list((cinc2021_dir / folder).glob("*.hea"))) == 14
    assert all(len(record.lead_names) == 12 for record in records)
    check_excerpt(records)


def test_code_15_excerpt(code15_dir: Path, tmp_path: Path) -> None:
    """Ten exams, put back into the publisher's layout."""
    import csv

    import h5py

    with open(code15_dir / "meta.csv", newline="") as file:
        exams = list(csv.DictReader(file))
    layouts.write_csv(tmp_path / "code" / "exams.csv", exams)
    signals = {exam["exam_id"]: scipy.io.loadmat(code15_dir / "org" / exam["save_file"])["feats"].T for exam in exams}
    for part in {exam["trace_file"] for exam in exams}:
        ids = [exam["exam_id"] for exam in exams if exam["trace_file"] == part]
        tracings = np.zeros((len(ids), 4096, 12), np.float32)
        for tracing, exam_id in zip(tracings, ids, strict=True):
            start = (4096 - len(signals[exam_id])) // 2
            tracing[start : start + len(signals[exam_id])] = signals[exam_id]
        with h5py.File(tmp_path / "code" / part, "w") as file:
            file["exam_id"], file["tracings"] = np.array(ids, dtype=np.int64), tracings
    records = built_records(Code15, tmp_path / "code", tmp_path / "out")
    assert len(records) == 10
    for record in records:
        signal = signals[record.metadata["record_id"]]
        recorded = np.flatnonzero(signal.any(axis=1))
        np.testing.assert_array_equal(record.signal.T, signal[recorded[0] : recorded[-1] + 1])
    check_excerpt(records)
