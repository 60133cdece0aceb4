"""From a data set's folder to batches: prepared once, or streamed."""

import logging
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, load_dataset
from synthetic import write_dataset
from torch.utils.data import DataLoader

from ecgformers.datasets_scripts.preparing import Augmentation, prepare, stream
from ecgformers.datasets_scripts.rows import row_features, row_to_record
from ecgformers.modeling.configuration_melp_ecg import MelpPretrainingConfig
from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from ecgformers.training.loading import EcgHalvesCollator, keep_rows, load_split, streamed_batches

SETTINGS = {"sampling_rate": 100, "num_samples": 300, "normalization": "min_max"}
EXTRACTOR = EcgFeatureExtractor(**SETTINGS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("loading") / "data", records=40)


def test_prepared_rows_are_what_the_extractor_makes_of_each_recording(folder, tmp_path):
    raw = load_split([str(folder)], "train")
    prepared = prepare(raw, EXTRACTOR, tmp_path)
    assert len(prepared) == 40
    for index in (0, 17, 39):
        expected = EXTRACTOR(row_to_record(raw[index]))
        assert prepared[index]["record_id"] == raw[index]["record_id"]
        for name in EXTRACTOR.model_input_names:
            assert np.array_equal(prepared[index][name], expected[name][0])
    again = prepare(raw, EXTRACTOR, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1 and np.array_equal(again[3]["input_values"], prepared[3]["input_values"])
    prepare(raw, EcgFeatureExtractor(sampling_rate=100, num_samples=200, normalization="min_max"), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


OWN_EXTRACTOR = """
from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from .own_scale import SCALE

class OwnExtractor(EcgFeatureExtractor):
    def __call__(self, *args, **kwargs):
        inputs = super().__call__(*args, **kwargs)
        inputs["input_values"] = inputs["input_values"] * SCALE
        return inputs
"""


def test_other_code_of_the_extractor_or_another_version_prepares_anew(folder, tmp_path, monkeypatch):
    package = tmp_path / "own_package"
    package.mkdir()
    (package / "own_extractor.py").write_text(OWN_EXTRACTOR)
    monkeypatch.syspath_prepend(tmp_path)
    raw, cache, first = load_split([str(folder)], "train"), tmp_path / "cache", []
    for scale in (1, 2):  # a mended mistake in a file that the extractor imports
        (package / "own_scale.py").write_text(f"SCALE = {scale}.0  # {'!' * scale}")
        for name in [name for name in sys.modules if name.startswith("own_package")]:
            del sys.modules[name]
        own = import_module("own_package.own_extractor").OwnExtractor(**SETTINGS)
        for _ in range(2):
            first.append(np.asarray(prepare(raw, own, cache)[0]["input_values"]))
        assert len(list(cache.iterdir())) == scale
    assert np.array_equal(first[0], first[1]) and np.array_equal(first[2], 2 * first[0])
    monkeypatch.setattr("ecgformers.datasets_scripts.preparing.__version__", "another")
    prepare(raw, own, cache)
    assert len(list(cache.iterdir())) == 3


def test_what_is_prepared_lies_in_the_named_folder_alone(folder, tmp_path):
    raw = load_split([str(folder)], "train")
    source = Path(raw.cache_files[0]["filename"]).parent
    before = set(source.iterdir())
    prepare(raw, EXTRACTOR, tmp_path)
    assert set(source.iterdir()) == before


def test_settings_that_keep_the_same_rows_share_what_is_prepared(folder, tmp_path):
    raw = load_split([str(folder)], "train")
    for rate in (0.1, 0.2):  # whatever else a function has at hand, such as a whole configuration

        def has_report(report: str, learning_rate: float = rate) -> bool:
            return bool(report) and learning_rate > 0

        kept = keep_rows(raw, "report", has_report)
        assert kept["record_id"][:] == [row["record_id"] for row in raw if row["report"]]
        prepare(kept, EXTRACTOR, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    streamed = keep_rows(load_dataset(str(folder), split="train", streaming=True), "report", has_report)
    assert [row["record_id"] for row in streamed] == kept["record_id"][:]
    prepare(keep_rows(raw, "record_id", lambda record_id: record_id == "train-3"), EXTRACTOR, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_recording_that_is_refused_is_left_out_and_named(folder, tmp_path, caplog):
    rows = list(load_dataset(str(folder), split="train"))
    rows[5]["signal"] = np.zeros_like(rows[5]["signal"]).tolist()
    broken = Dataset.from_list(rows, features=row_features(12, "int16"))
    with caplog.at_level(logging.WARNING):
        prepared = prepare(broken, EXTRACTOR, tmp_path)
    assert len(prepared) == 39 and "train-5" not in prepared["record_id"]
    assert "1 recordings left out" in caplog.text and "train-5" in caplog.text
    again = prepare(broken, EXTRACTOR, tmp_path)
    assert list(again["record_id"]) == list(prepared["record_id"]) and "refusal" not in again.column_names


def test_a_stream_is_the_prepared_data_set(folder, tmp_path):
    prepared = {row["record_id"]: row for row in prepare(load_split([str(folder)], "train"), EXTRACTOR, tmp_path)}
    streamed = list(stream(load_dataset(str(folder), split="train", streaming=True), EXTRACTOR))
    assert {row["record_id"] for row in streamed} == prepared.keys()
    for row in streamed[::7]:
        expected = prepared[row["record_id"]]
        np.testing.assert_allclose(row["input_values"], expected["input_values"], atol=1e-6)
        assert row["report"] == expected["report"]


def test_processes_share_a_stream_and_a_resumed_one_goes_on(folder):
    rows = stream(load_dataset(str(folder), split="train", streaming=True), EXTRACTOR)

    def ids(**where) -> list[str]:
        return [row["record_id"] for batch in streamed_batches(rows, 5, 0, block_size=8, **where) for row in batch]

    shares = [ids(epoch=1, rank=rank, processes=2) for rank in (0, 1)]
    assert not set(shares[0]) & set(shares[1]) and len(set(shares[0] + shares[1])) == 40
    assert ids(epoch=1, rank=1, processes=2, start=2) == shares[1][10:]
    assert ids(epoch=1) != ids(epoch=2) and sorted(ids(epoch=1)) == sorted(ids(epoch=2))


def test_workers_and_order_change_nothing(folder, tmp_path):
    prepared = prepare(load_split([str(folder)], "train"), EXTRACTOR, tmp_path)
    config = MelpPretrainingConfig(num_negatives=5, mask_time_length=3)
    augmentation = Augmentation(lead_drop=0.5, shift=0.5, scale=0.1, noise=0.01)
    collator = EcgHalvesCollator(config, 20, 100, augmentation, seed=1, epoch=3)
    halves = {}
    for workers, order in ((0, range(40)), (2, reversed(range(40)))):
        loader = DataLoader(prepared, batch_sampler=[[i] for i in order], collate_fn=collator, num_workers=workers)
        halves[workers] = {batch.pop("record_ids")[0]: batch for batch in loader}
    assert halves[0].keys() == halves[2].keys()
    for record, batch in halves[0].items():
        again = halves[2][record]
        assert batch.pop("gather") is again.pop("gather") is True
        assert batch.keys() == again.keys()
        assert all(torch.equal(batch[name], again[name]) for name in batch)
        assert batch["input_values"].shape == (1, 2, 12, 150) and batch["masked_steps"].shape == (1, 2, 20)
