"""Features of encoders: computed once, kept on disk, and never silently broken."""

import sys
import types

import numpy as np
import pytest
import torch
from small_evaluation import (
    MeanAndSpread,
    evaluation_rows,
    feature_extractor,
    write_echoing_ecg,
    write_melp,
    write_melp_encoder,
    write_rows,
)
from transformers import AutoModel

from ecgformers.datasets_scripts.rows import row_to_record
from ecgformers.evaluation.encoders import (
    HubEncoder,
    encode_records,
    extract_features,
    leave_out_refused,
    load_encoder,
    with_random,
)
from ecgformers.evaluation.options import EvaluationOptions
from ecgformers.evaluation.records import load_records
from ecgformers.modeling.quality_ecg import EcgQualityWarning


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return load_records(write_rows(tmp_path_factory.mktemp("data"), evaluation_rows(12)))


@pytest.mark.parametrize("write", [write_melp, write_melp_encoder, write_echoing_ecg])
def test_features_are_the_models_pooler_output(write, records, tmp_path):
    folder = write(tmp_path)
    encoder = load_encoder(folder, "cpu")
    features, refused = extract_features(encoder, records.ecgs, records.rows, batch_size=5)
    assert refused == {}
    inputs = feature_extractor()([row_to_record(records.ecgs[row]) for row in range(12)], return_tensors="pt")
    model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        expected = getattr(model, "get_ecg_features", model)(**inputs).pooler_output
    np.testing.assert_allclose(features, expected, atol=1e-5)


def test_several_outputs_stand_side_by_side(records, tmp_path):
    encoder = load_encoder(write_melp_encoder(tmp_path), "cpu", ("pooler_output", "mean_state"))
    features, _ = extract_features(encoder, records.ecgs, records.rows)
    pooled, _ = extract_features(load_encoder(str(tmp_path), "cpu"), records.ecgs, records.rows)
    width = pooled.shape[1]
    np.testing.assert_array_equal(features[:, :width], pooled)
    assert features.shape[1] == width + encoder.model.config.hidden_size
    assert encoder.random(0).outputs == encoder.outputs


def test_an_output_that_the_model_does_not_have_is_named(records, tmp_path):
    encoder = load_encoder(write_melp_encoder(tmp_path), "cpu", ("pooler_output", "mean_stat"))
    with pytest.raises(TypeError, match=r"MelpEcgModel gives no mean_stat of an ECG, but .*mean_state"):
        extract_features(encoder, records.ecgs, records.rows)


class Counted(MeanAndSpread):
    fingerprint = "counted"


def test_features_are_computed_once(records, tmp_path):
    encoder = Counted()
    some, _ = extract_features(encoder, records.ecgs, np.array([3, 1]), tmp_path)
    assert encoder.encoded == 2
    everything, _ = extract_features(encoder, records.ecgs, records.rows, tmp_path)
    assert encoder.encoded == 12
    np.testing.assert_array_equal(everything[[3, 1]], some)
    again, _ = extract_features(encoder, records.ecgs, records.rows, tmp_path)
    assert encoder.encoded == 12
    np.testing.assert_array_equal(again, everything)
    encoder.fingerprint = "other weights"
    extract_features(encoder, records.ecgs, records.rows, tmp_path)
    assert encoder.encoded == 24


def test_a_run_that_stops_goes_on_where_it_was(records, tmp_path):
    class Breaks(Counted):
        def encode(self, ecgs):
            if self.encoded >= 8:
                raise KeyboardInterrupt
            return super().encode(ecgs)

    with pytest.raises(KeyboardInterrupt):
        extract_features(Breaks(), records.ecgs, records.rows, tmp_path, batch_size=4)
    encoder = Counted()
    extract_features(encoder, records.ecgs, records.rows, tmp_path, batch_size=4)
    assert encoder.encoded == 4


def test_without_a_fingerprint_nothing_is_kept(records, tmp_path):
    encoder = MeanAndSpread()
    for _ in range(2):
        extract_features(encoder, records.ecgs, records.rows, tmp_path)
    assert encoder.encoded == 24
    assert not list(tmp_path.iterdir())


def test_fingerprints_tell_weights_and_preparation_apart(tmp_path):
    encoder = load_encoder(write_melp_encoder(tmp_path), "cpu")
    same = load_encoder(str(tmp_path), "cpu")
    other_preparation = HubEncoder(encoder.model, feature_extractor(num_samples=100), "cpu")
    other_output = HubEncoder(encoder.model, encoder.feature_extractor, "cpu", ["ecg_embeds"])
    others = [encoder.random(2), encoder.random(3), other_preparation, other_output]
    assert encoder.fingerprint == same.fingerprint
    assert len({encoder.fingerprint, *(other.fingerprint for other in others)}) == 5
    assert encoder.random(2).fingerprint == encoder.random(2).fingerprint


def test_recordings_that_an_encoder_refuses_are_left_out_for_all(records, tmp_path):
    class Refuses(Counted):
        def encode(self, ecgs):
            for ecg in ecgs:
                if ecg.metadata["record_id"] in ("r2", "r5"):
                    raise ValueError(f"{ecg.metadata['record_id']} is too short")
            return super().encode(ecgs)

        def random(self, seed):
            return MeanAndSpread()

    options = EvaluationOptions(model="theirs", data="data", output=tmp_path, batch_size=4)
    for _ in range(2):  # the second time from the cache
        encoders = with_random(Refuses(), "theirs", seed=0)
        kept, features, notes = encode_records(encoders, records, options)
        assert list(kept.record_ids) == [name for name in records.record_ids if name not in ("r2", "r5")]
        assert all(np.isfinite(each).all() and len(each) == 10 for each in features.values())
        assert notes == ["2 recordings were refused and left out, the first: r2 is too short"]


def test_an_encoder_without_random_weights_is_noted(records, tmp_path):
    options = EvaluationOptions(model="theirs", data="data", output=tmp_path, batch_size=4)
    encoders = with_random(MeanAndSpread(), "theirs", seed=0)
    assert list(encoders) == ["theirs"]
    assert "no method random" in encode_records(encoders, records, options)[2][0]


def test_what_an_encoder_may_not_give(records):
    class Wrong:
        def __init__(self, features):
            self.encode = features

    with pytest.raises(TypeError, match=r"shape \(3,\) for 12 ECGs"):
        extract_features(Wrong(lambda ecgs: np.zeros(3)), records.ecgs, records.rows)
    with pytest.raises(ValueError, match=r"every one of 12 recordings was refused.*not finite"):
        extract_features(Wrong(lambda ecgs: np.full((len(ecgs), 2), np.nan)), records.ecgs, records.rows)


def test_outside_encoders_are_found_by_module_and_factory(monkeypatch):
    module = types.ModuleType("theirs")
    module.make, module.wrong = MeanAndSpread, dict
    monkeypatch.setitem(sys.modules, "theirs", module)
    assert isinstance(load_encoder("theirs:make"), MeanAndSpread)
    with pytest.raises(ValueError, match="theirs:wrong gives a dict, which has no method encode"):
        load_encoder("theirs:wrong")


def test_refused_recordings_are_left_out_before_generation(tmp_path):
    rows = evaluation_rows(6)
    rows[4]["signal"] = rows[4]["signal"][:50]  # half a second
    records = load_records(write_rows(tmp_path, rows), "1-10//")
    kept, notes = leave_out_refused(records, feature_extractor(short_recordings="error"))
    assert "r4" not in kept.record_ids
    assert len(kept) == 5
    assert "1 recordings were refused" in notes[0]


def test_doubts_about_quality_are_one_warning(tmp_path):
    rows = evaluation_rows(4)
    for row in rows[:3]:
        row["signal"][:, 7] = 0
    records = load_records(write_rows(tmp_path, rows), "1-10//")
    encoder = HubEncoder(AutoModel.from_pretrained(write_melp_encoder(tmp_path / "model")), feature_extractor(), "cpu")
    with pytest.warns(EcgQualityWarning, match="3 doubts about quality, the first: .*V2") as caught:
        extract_features(encoder, records.ecgs, records.rows)
    assert len(caught) == 1
