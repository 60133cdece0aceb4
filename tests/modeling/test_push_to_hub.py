"""Models and processors pushed to a Hub, and loaded back by name and revision, with and without ecgformers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_echoing_ecg
import tiny_melp
import torch
from loopback_hub import LoopbackHub
from safetensors.torch import load_file, save_file
from tiny import ecg_batch

from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from ecgformers.modeling.leads_ecg import STANDARD_LEADS
from ecgformers.modeling.modeling_echoing_ecg import EchoingEcgModel
from ecgformers.modeling.modeling_melp import MelpModel
from ecgformers.modeling.processing_ecg import EcgProcessor

REPOS = ("org/melp", "org/echoing-ecg")
TEXTS = ["sinus rhythm.", "atrial fibrillation. left axis deviation."]
LOAD = """
import json, sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor

folder, revisions, texts = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
signal = load_file(f"{folder}/signal.safetensors")["signal"].numpy()
leads = "I II III aVR aVL aVF V1 V2 V3 V4 V5 V6".split()

def outputs(where, **options):
    for repo, revision in revisions.items():
        model = AutoModel.from_pretrained(repo, revision=revision, **options).eval()
        processor = AutoProcessor.from_pretrained(repo, revision=revision, **options)
        assert type(model).__module__.startswith(where), type(model)
        assert type(processor).__module__.startswith(where), type(processor)
        with torch.no_grad():
            output = model(**processor(signal, texts, 500, leads))
        tensors = {name: output[name].contiguous() for name in ("ecg_embeds", "text_embeds", "logits_per_ecg")}
        save_file(tensors, f"{folder}/{where}-{repo.replace('/', '-')}.safetensors")

sys.modules["ecgformers"] = None  # from here on it cannot be imported
outputs("transformers_modules", trust_remote_code=True)
del sys.modules["ecgformers"]
import ecgformers
outputs("ecgformers")
"""


def build(repo: str, seed: int) -> tuple[torch.nn.Module, EcgProcessor]:
    torch.manual_seed(seed)
    tokenizer = tiny_melp.tiny_tokenizer()
    if repo == "org/melp":
        model = MelpModel(tiny_melp.tiny_config())
        extractor = EcgFeatureExtractor(sampling_rate=500, num_samples=240, normalization="min_max")
    else:
        model = EchoingEcgModel(tiny_echoing_ecg.tiny_config())
        statistics = {"lead_means": [0.1 * lead for lead in range(12)], "lead_scales": [2.0] * 12}
        extractor = EcgFeatureExtractor(sampling_rate=100, num_samples=250, normalization="standard", **statistics)
    return model.eval(), EcgProcessor(extractor, tokenizer, "A report: {text}", lowercase=True)


def test_pushed_and_loaded_by_name(hub: LoopbackHub, tmp_path: Path) -> None:
    signal = ecg_batch(1, samples=2000)[0]
    save_file({"signal": signal}, tmp_path / "signal.safetensors")
    revisions, expected = {}, {}
    for repo in REPOS:
        model, processor = build(repo, seed=0)
        model.push_to_hub(repo)
        revisions[repo] = processor.push_to_hub(repo).oid
        with torch.no_grad():
            output = model(**processor(signal, TEXTS, 500, STANDARD_LEADS))
            expected[repo] = {name: output[name] for name in ("ecg_embeds", "text_embeds", "logits_per_ecg")}
        build(repo, seed=1)[0].push_to_hub(repo)  # later weights, that the revision must keep out
    environment = {**os.environ, **hub.environment, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", LOAD, str(tmp_path), json.dumps(revisions), json.dumps(TEXTS)]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for repo in REPOS:
        alone, installed = (
            load_file(tmp_path / f"{where}-{repo.replace('/', '-')}.safetensors")
            for where in ("transformers_modules", "ecgformers")
        )
        for name, tensor in expected[repo].items():
            assert torch.equal(alone[name], installed[name]), (repo, name)
            torch.testing.assert_close(installed[name], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("repo", REPOS)
def test_what_a_repo_holds(hub: LoopbackHub, repo: str) -> None:
    model, processor = build(repo, seed=0)
    model.push_to_hub(repo, private=True)
    processor.push_to_hub(repo)
    files = hub.files("model", repo)
    assert hub.repos["model", repo].private and not hub.unknown
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= files.keys()
    for file in ("config.json", "processor_config.json"):
        for reference in json.loads(files[file])["auto_map"].values():
            assert f"{reference.partition('.')[0]}.py" in files
    assert not [name for name in files if Path(name).suffix not in {".json", ".py", ".safetensors", ".md", ""}]
