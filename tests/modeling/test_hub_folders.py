"""Every saved model folder works by itself: with its code where ecgformers is not installed, and without the
`trust_remote_code` flag where it is; reloaded, the numbers are the same to the last bit.

(In memory, where tensors lie at other addresses, another kernel may run: the last digits differ on some CPUs.)"""

import json
import os
import subprocess
import sys

import pytest
import tiny_echo_clip
import tiny_echoing_ecg
import tiny_melp
import tiny_merl
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import ecg_batch, fill

from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from ecgformers.modeling.modeling_echo_clip import EchoClipModel
from ecgformers.modeling.modeling_echoing_ecg import EchoingEcgForSequenceClassification, EchoingEcgModel
from ecgformers.modeling.modeling_melp import MelpForConditionalGeneration, MelpForSequenceClassification, MelpModel
from ecgformers.modeling.modeling_melp_ecg import MelpEcgForSequenceClassification, MelpEcgModel
from ecgformers.modeling.modeling_melp_pretraining import MelpEcgForPreTraining
from ecgformers.modeling.modeling_merl import MerlForSequenceClassification, MerlModel
from ecgformers.modeling.processing_ecg import EcgProcessor

IDS = torch.tensor([[5, 7, 8, 6, 9, 3], [5, 10, 11, 3, 0, 0]])
ECG = ecg_batch(2)
PATIENTS = {"patient_ids": torch.tensor([1, 2]), "input_values": ecg_batch(2, samples=480)}
PATIENTS["input_values"] = PATIENTS["input_values"].unflatten(-1, (2, 240)).transpose(1, 2).contiguous()
PATIENTS["masked_steps"] = torch.zeros(2, 2, 19, dtype=torch.bool)
PATIENTS["masked_steps"][..., 3:9] = True
PATIENTS["negative_indices"] = torch.full((2, 2, 19, 5), 4)

FRAMES = {"pixel_values": tiny_echo_clip.frame_batch(2), "input_ids": tiny_echo_clip.text_batch()}

CASES = {
    MelpModel: ("AutoModel", tiny_melp, {"input_values": ECG, "input_ids": IDS}),
    MelpForConditionalGeneration: (
        "AutoModelForSpeechSeq2Seq",
        tiny_melp,
        {"input_values": ECG, "decoder_input_ids": IDS},
    ),
    MelpForSequenceClassification: ("AutoModelForSequenceClassification", tiny_melp, {"input_values": ECG}),
    MelpEcgModel: ("AutoModel", tiny_melp, {"input_values": ECG}),
    MelpEcgForPreTraining: ("AutoModelForPreTraining", tiny_melp, PATIENTS),
    MelpEcgForSequenceClassification: ("AutoModelForSequenceClassification", tiny_melp, {"input_values": ECG}),
    EchoingEcgModel: ("AutoModel", tiny_echoing_ecg, {"input_values": ECG, "input_ids": IDS}),
    EchoingEcgForSequenceClassification: (
        "AutoModelForSequenceClassification",
        tiny_echoing_ecg,
        {"input_values": ECG},
    ),
    EchoClipModel: ("AutoModel", tiny_echo_clip, FRAMES),
    MerlModel: ("AutoModel", tiny_merl, {"input_values": ECG, "input_ids": IDS}),
    MerlForSequenceClassification: ("AutoModelForSequenceClassification", tiny_merl, {"input_values": ECG}),
}

RUN_ALONE = """
import json, sys
sys.modules["ecgformers"] = None  # from here on it cannot be imported
import torch, transformers
from safetensors.torch import load_file, save_file
for name, auto_class in json.loads(sys.argv[2]).items():
    folder = f"{sys.argv[1]}/{name}"
    model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True).eval()
    assert type(model).__name__ == name and type(model).__module__.startswith("transformers_modules"), type(model)
    with torch.no_grad():
        output = model(**load_file(f"{folder}/inputs.safetensors"))
    tensors = {key: value for key, value in output.items() if isinstance(value, torch.Tensor)}
    tensors = {key: value.clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
    save_file(tensors, f"{folder}/alone.safetensors")
    model.save_pretrained(f"{folder}/again")
    processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    expected = "CLIPProcessor" if name == "EchoClipModel" else "EcgProcessor"
    assert type(processor).__name__ == expected, type(processor)
"""


def build(model_class):
    sizes = CASES[model_class][1]
    is_ecg_only = model_class.__name__.startswith("MelpEcg")
    return fill(model_class(sizes.tiny_ecg_config() if is_ecg_only else sizes.tiny_config())).eval()


def tensors_of(output) -> dict[str, torch.Tensor]:
    tensors = {name: value for name, value in output.items() if isinstance(value, torch.Tensor)}
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One folder a class, with its inputs, its outputs here, and those of a process without ecgformers."""
    root = tmp_path_factory.mktemp("hub")
    for model_class, (_, _, inputs) in CASES.items():
        folder = root / model_class.__name__
        model = build(model_class)
        model.save_pretrained(folder)
        if model_class is EchoClipModel:
            tiny_echo_clip.tiny_processor().save_pretrained(folder)
        else:
            extractor = EcgFeatureExtractor(normalization="min_max")
            EcgProcessor(extractor, tiny_melp.tiny_tokenizer()).save_pretrained(folder)
        save_file(inputs, folder / "inputs.safetensors")
        with torch.no_grad():
            save_file(tensors_of(model(**inputs)), folder / "here.safetensors")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(root / "modules")}
    auto_classes = json.dumps({model_class.__name__: case[0] for model_class, case in CASES.items()})
    result = subprocess.run(
        [sys.executable, "-c", RUN_ALONE, str(root), auto_classes],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return root


@pytest.mark.parametrize("model_class", CASES, ids=lambda c: c.__name__)
def test_without_ecgformers_the_numbers_are_the_same(folders, model_class):
    here, alone = (load_file(folders / model_class.__name__ / f"{name}.safetensors") for name in ("here", "alone"))
    assert here.keys() == alone.keys() and here
    for name in here:
        torch.testing.assert_close(alone[name], here[name], rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("model_class", CASES, ids=lambda c: c.__name__)
def test_with_ecgformers_no_flag_is_needed(folders, model_class):
    auto_class = CASES[model_class][0]
    folder = folders / model_class.__name__
    inputs = load_file(folder / "inputs.safetensors")
    assert (folder / "again" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    for where in (folder, folder / "again"):  # the second was saved by the process without ecgformers
        model = getattr(transformers, auto_class).from_pretrained(where).eval()
        assert type(model) is model_class
        with torch.no_grad():
            outputs = tensors_of(model(**inputs))
        for name, expected in load_file(folder / "alone.safetensors").items():
            assert torch.equal(outputs[name], expected), name


@pytest.mark.parametrize("model_class", CASES, ids=lambda c: c.__name__)
def test_the_folder_says_what_it_holds(folders, model_class):
    folder = folders / model_class.__name__
    for where in (folder, folder / "again"):
        config = json.loads((where / "config.json").read_text())
        auto_class = CASES[model_class][0]
        assert config["auto_map"][auto_class].endswith(f".{model_class.__name__}")
        assert {"AutoConfig", "AutoModel"} <= config["auto_map"].keys()
        for reference in config["auto_map"].values():
            module, _, name = reference.partition(".")
            assert f"class {name}(" in (where / f"{module}.py").read_text()
        assert not [path for path in where.iterdir() if path.suffix in {".bin", ".pt", ".pkl"}]
