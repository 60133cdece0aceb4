"""EchoingECG against numbers measured on the reference system, through our converter.

Needs the folder that ECGFORMERS_PARITY names, about 4 GB of memory and a minute.
"""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from ecgformers.modeling.converting.echoing_ecg import main as convert
from ecgformers.modeling.losses_echoing_ecg import pairwise_distance, study_gaussian
from ecgformers.modeling.modeling_echoing_ecg import GeneralizedPooling

ACTIVATION, UNIT_NORM, LOG_VARIANCE = 2e-4, 5e-6, 1e-5


def fill_rule(parity_dir):
    spec = importlib.util.spec_from_file_location("fill", parity_dir / "tools" / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.values


def reference_checkpoint(parity_dir, name):
    keys = json.loads((parity_dir / "out" / name / "state_dict_keys.json").read_text())
    values = fill_rule(parity_dir)
    return {key: torch.from_numpy(values(key, shape)).reshape(shape) for key, shape, _ in keys}


def assert_close(name, ours, theirs, tolerance):
    difference = (ours - theirs).abs().max().item()
    print(f"{name:28s} {difference:.1e}  (tolerance {tolerance:.0e})")
    assert ours.shape == theirs.shape
    assert difference <= tolerance, name


@pytest.fixture(scope="module")
def model(parity_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("echoing_ecg")
    torch.save(reference_checkpoint(parity_dir, "echoingecg_full"), folder / "echoingecg.pt")
    convert(["--checkpoint", str(folder / "echoingecg.pt"), "--output", str(folder / "converted"), "--no-scaler"])
    (folder / "echoingecg.pt").unlink()
    model = AutoModel.from_pretrained(folder / "converted")
    (folder / "converted" / "model.safetensors").unlink()
    return model


@pytest.fixture(scope="module")
def expected(parity_dir):
    return load_file(parity_dir / "out" / "echoingecg_full" / "io.safetensors")


def test_sizes(model):
    assert sum(parameter.numel() for parameter in model.ecg_model.parameters()) == 126_642_944
    # 590,592 parameters of BERT's unused pooler are left out
    assert sum(parameter.numel() for parameter in model.text_model.parameters()) == 109_123_136 - 590_592


@torch.no_grad()
def test_ecg_tower(model, expected):
    outputs = model.get_ecg_features(expected["ecg"], output_hidden_states=True)
    for stage, states in enumerate(outputs.hidden_states):
        assert_close(f"stage {stage}", states[:, :8], expected[f"ecg_stage{stage}_ch0_8"], ACTIVATION)
    assert_close("features", outputs.last_hidden_state[0], expected["ecg_features_sample0"], ACTIVATION)
    head, time = model.ecg_model.head, outputs.last_hidden_state.shape[-1]
    assert_close("GPO", head.mean_pooling.rank_weights(time)[..., None], expected["ecg_gpo_weights"], UNIT_NORM)
    assert_close(
        "GPO std", head.logvar_pooling.rank_weights(time)[..., None], expected["ecg_std_gpo_weights"], UNIT_NORM
    )
    assert_close("mean", outputs.ecg_embeds, expected["ecg_mean"], UNIT_NORM)
    assert_close("log-variance", outputs.ecg_logvar, expected["ecg_std"], LOG_VARIANCE)


@pytest.mark.parametrize("name", ["ecg_b", "zero_ecg"])
@torch.no_grad()
def test_another_length_and_silence(model, expected, name):
    outputs = model.get_ecg_features(expected.get(name, torch.zeros(1, 12, 1000)))
    assert_close(f"{name} mean", outputs.ecg_embeds, expected[f"{name}_mean"], UNIT_NORM)
    assert_close(f"{name} log-variance", outputs.ecg_logvar, expected[f"{name}_std"], LOG_VARIANCE)


@torch.no_grad()
def test_text_tower(model, expected):
    mask = expected["attention_mask"]
    outputs = model.get_text_features(expected["input_ids"], mask)
    assert_close("BERT", outputs.last_hidden_state, expected["bert_last_hidden"], ACTIVATION)
    head, (_, time) = model.text_model.head, mask.shape
    weights = head.mean_pooling.rank_weights(time, mask.sum(1)), head.logvar_pooling.rank_weights(time, mask.sum(1))
    assert_close("text GPO", weights[0][..., None], expected["text_gpo_weights"], UNIT_NORM)
    assert_close("text GPO std", weights[1][..., None], expected["text_std_gpo_weights"], UNIT_NORM)
    assert_close("text mean", outputs.text_embeds, expected["text_mean"], UNIT_NORM)
    assert_close("text log-variance", outputs.text_logvar, expected["text_std"], LOG_VARIANCE)


@pytest.mark.parametrize("row", [0, 1])
@torch.no_grad()
def test_one_text_without_padding(model, expected, row):
    ids = expected["input_ids"][row : row + 1, : expected["attention_mask"][row].sum()]
    outputs = model.get_text_features(ids)
    assert_close(f"text {row} mean", outputs.text_embeds, expected[f"text_single{row}_mean"], UNIT_NORM)
    assert_close(f"text {row} log-variance", outputs.text_logvar, expected[f"text_single{row}_std"], LOG_VARIANCE)


@torch.no_grad()
def test_generalized_pooling(parity_dir):
    expected = load_file(parity_dir / "out" / "echoingecg_gpo" / "io.safetensors")
    weights = reference_checkpoint(parity_dir, "echoingecg_gpo")
    pooling = GeneralizedPooling(32)
    names = {"gru.": "gru.", "linear.": "score."}
    pooling.load_state_dict(
        {
            ours + key.split(theirs, 1)[1]: tensor
            for key, tensor in weights.items()
            for theirs, ours in names.items()
            if theirs in key
        }
    )
    features, lengths = expected["features"], expected["lengths"]
    time = features.shape[1]
    assert_close("rank codes", pooling.rank_codes(time), expected["positional_encoding"], 1e-6)
    mask = torch.arange(time) < lengths[:, None]
    assert_close("pooled", pooling(features, mask), expected["pooled"], LOG_VARIANCE)
    longest = lengths.max()
    assert_close("weights", pooling.rank_weights(time, lengths)[:, :longest, None], expected["weights"], UNIT_NORM)
    assert_close("one row", pooling(features[:1]), expected["one_len_first_pooled"], LOG_VARIANCE)
    assert_close("one length", pooling(features), expected["one_len_batch_pooled"], LOG_VARIANCE)
    weights = pooling.rank_weights(time)[..., None]
    assert_close("one row's weights", weights, expected["one_len_first_weights"], UNIT_NORM)
    assert_close("one length's weights", weights, expected["one_len_batch_weights"], UNIT_NORM)


@pytest.mark.parametrize("case", ["a", "b", "one_frame", "const", "zero"])
def test_study_gaussian(parity_dir, case):
    expected = load_file(parity_dir / "out" / "echoingecg_helpers" / "io.safetensors")
    frames, eps = expected[f"echo/{case}/frames"], expected[f"echo/{case}/epsilon"].item()
    mean, logvar = study_gaussian(frames, eps)
    assert_close(f"study {case} mean", mean, expected[f"echo/{case}/mean"], UNIT_NORM)
    assert_close(f"study {case} log-variance", logvar, expected[f"echo/{case}/logvar"], LOG_VARIANCE)


def test_similarities(parity_dir):
    expected = load_file(parity_dir / "out" / "pcmepp_eval" / "io.safetensors")
    gaussians = [expected[name] for name in ("mean1", "logvar1", "mean2", "logvar2")]
    assert_close("cosine", gaussians[0] @ gaussians[2].T, expected["cosine"], UNIT_NORM)
    magnitude = expected["neg_csd"].abs().max()
    assert_close("CSD", -pairwise_distance(*gaussians), expected["neg_csd"], 1e-6 * magnitude)
    gaussians = [tensor.double() for tensor in gaussians]
    assert_close("CSD, double", -pairwise_distance(*gaussians), expected["neg_csd_double"], 1e-6)
