"""Folders whose config and weights contradict each other: one line that names file and field, nothing made up."""

import json
import resource
from pathlib import Path

import pytest
import tiny_echoing_ecg
import tiny_melp
import tiny_merl
import torch
from safetensors.torch import load_file, save_file
from tiny import fill
from transformers import AutoModel, AutoModelForSequenceClassification

from ecgformers.modeling.modeling_echoing_ecg import EchoingEcgModel
from ecgformers.modeling.modeling_melp import MelpModel
from ecgformers.modeling.modeling_merl import MerlModel

MODELS = {
    "melp": lambda: MelpModel(tiny_melp.tiny_config()),
    "echoing_ecg": lambda: EchoingEcgModel(tiny_echoing_ecg.tiny_config()),
    "merl": lambda: MerlModel(tiny_merl.tiny_config()),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    fill(MODELS["melp"]()).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_of_model_checks_its_folder(tmp_path, kind):
    fill(MODELS[kind]()).save_pretrained(tmp_path)
    AutoModel.from_pretrained(tmp_path)
    for lie in ("NaN", "missing"):
        change_weights(tmp_path, LIES[lie][0])
        with pytest.raises(ValueError, match=LIES[lie][1].split("{")[0]):
            AutoModel.from_pretrained(tmp_path)


def change_weights(folder: Path, change):
    weights = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def first_matrix(weights) -> str:
    return next(name for name in sorted(weights) if weights[name].ndim > 1)


def poison(value):
    return lambda weights: weights[first_matrix(weights)].view(-1).__setitem__(3, value)


def cut(at: slice):
    def change(folder):
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[at])

    return change


def pickle_alone(folder: Path):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


LIES = {
    "NaN": (poison(float("nan")), "hold NaN, infinity or huge numbers in {name}"),
    "infinity": (poison(-float("inf")), "hold NaN, infinity or huge numbers in {name}"),
    "huge": (poison(1e30), "hold NaN, infinity or huge numbers in {name}"),
    "missing": (lambda weights: weights.pop(first_matrix(weights)), "hold no weights for {name}"),
    "none": (
        lambda weights: [weights.clear(), weights.update(x=torch.ones(2))],
        r"hold no weights for .* and \d+ more",
    ),
    "surplus": (
        lambda weights: weights.update(extra=torch.ones(2)),
        "hold weights that the model does not have extra",
    ),
    "shape": (lambda weights: weights.update({first_matrix(weights): torch.ones(7)}), r"{name} \(7,\) \(not \("),
    "empty": (cut(slice(0)), "its safetensors are damaged"),
    "cut header": (cut(slice(100)), "its safetensors are damaged"),
    "cut numbers": (cut(slice(-100)), "its safetensors are damaged"),
    "pickle alone": (pickle_alone, "no file named model.safetensors"),
}


@pytest.mark.parametrize("lie", LIES)
def test_weights_that_do_not_fit_are_refused_by_name(folder, lie):
    change, message = LIES[lie]
    name = first_matrix(load_file(folder / "model.safetensors"))
    if lie.startswith(("empty", "cut", "pickle")):
        change(folder)
    else:
        change_weights(folder, change)
    with pytest.raises((ValueError, OSError), match=message.replace("{name}", name)) as error:
        AutoModel.from_pretrained(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_a_pickle_beside_is_not_opened(folder):
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR.")
    AutoModel.from_pretrained(folder)
    with pytest.raises(ValueError, match="weights are read from safetensors alone"):
        AutoModel.from_pretrained(folder, use_safetensors=False)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (("text_config", "num_hidden_layers"), 10**9, r"text_config\.num_hidden_layers is 1e\+09; at most 512"),
        (("text_config", "vocab_size"), 10**12, r"text_config\.vocab_size is 1e\+12; at most 1048576"),
        (("projection_dim",), -(10**9), r"projection_dim is -1e\+09; at most 1048576"),
        (("initializer_range",), float("nan"), "initializer_range is nan, which is no finite number"),
        (("text_config", "vocab_size"), 1 << 20, r"of a shape that config\.json does not give"),
        (("text_config", "num_hidden_layers"), 40, "hold no weights for .* and .* more"),
    ],
)
def test_absurd_sizes_are_refused_at_once_in_little_memory(folder, field, value, message):
    config = json.loads((folder / "config.json").read_text())
    part = config[field[0]] if len(field) > 1 else config
    part[field[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))
    before = peak_bytes()
    with pytest.raises(Exception, match=message):  # of huggingface_hub's own kind where a field is checked
        AutoModel.from_pretrained(folder)
    assert peak_bytes() - before < 1 << 30


def test_only_a_head_may_be_new(folder, caplog):
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, output_loading_info=True)
    assert {name.partition(".")[0] for name in info["missing_keys"]} == {"classifier"}
    assert model.head_is_new
    change_weights(folder, LIES["missing"][0])
    with pytest.raises(ValueError, match="hold no weights for"):
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
