"""`ecgformers publish`: what goes to a Hub, what is refused, and that it works for people without ecgformers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import loopback_hub
import numpy as np
import pytest
import tiny_melp
import torch
from huggingface_hub.errors import HfHubHTTPError
from loopback_hub import LoopbackHub
from safetensors.torch import load_file, save_file
from tiny import fill

from ecgformers import command_line
from ecgformers.modeling.converting.checkpoint import mark_license
from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from ecgformers.modeling.leads_ecg import STANDARD_LEADS
from ecgformers.modeling.modeling_melp import MelpForSequenceClassification, MelpModel
from ecgformers.modeling.processing_ecg import EcgProcessor
from ecgformers.publishing import PublishingError, card_faults, check_license, publish, stage, weight_faults

CARD = """---
library_name: transformers
license: apache-2.0
pipeline_tag: zero-shot-classification
language: en
datasets: [ptb-xl]
tags: [ecg]
---

# tiny

For research use; not a medical device.

```python
import ecgformers
```

## How it was trained

Not at all.

## Limits

All.
"""
LOAD = """
import json, sys
sys.modules["ecgformers"] = None  # from here on it cannot be imported
from transformers import AutoModel, AutoProcessor, pipeline

def answers(name, **revision):
    model = AutoModel.from_pretrained(name, trust_remote_code=True, **revision)
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=True, **revision)
    run = {task: pipeline(task, model=name, trust_remote_code=True, device="cpu", **revision) for task in tasks}
    return [run[task](ecg, **options) for task, options in tasks.items()], model, processor, run

repo, revision, ecg, tasks = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
first, model, processor, run = answers(repo, revision=revision)
run["ecg-feature-extraction"].save_pretrained("saved")
assert answers("saved")[0] == first
model.save_pretrained("parts"), processor.save_pretrained("parts")
again = AutoModel.from_pretrained("parts", trust_remote_code=True)
inputs = processor(ecg, text=["sinus rhythm"])
assert (model(**inputs).logits_per_ecg == again(**inputs).logits_per_ecg).all()
json.dump(first, sys.stdout)
"""
TASKS = {
    "ecg-feature-extraction": {},
    "zero-shot-ecg-classification": {"candidate_labels": ["sinus rhythm", "atrial fibrillation"]},
    "ecg-to-text": {},
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("model") / "tiny")


def build(folder: Path) -> Path:
    fill(MelpModel(tiny_melp.tiny_config())).save_pretrained(folder)
    extractor = EcgFeatureExtractor(sampling_rate=100, num_samples=240, normalization="min_max")
    EcgProcessor(extractor, tiny_melp.tiny_tokenizer(), "{text}.").save_pretrained(folder)
    for code in folder.glob("*.py"):
        code.unlink()  # as the folders in model_cards: the code is the package's
    (folder / "README.md").write_text(CARD)
    results = folder / ".eval_results" / "zero_shot.yaml"
    results.parent.mkdir()
    results.write_text("[]\n")
    return folder


def write_ecg(path: Path) -> Path:
    """Ten seconds of noise in which the limb leads agree."""
    one, two, *chest = np.random.default_rng(0).normal(0, 0.25, (8, 1000))
    signal = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2, *chest]
    np.savez(path, signal=signal, lead_names=STANDARD_LEADS, sampling_rate=100)
    return path


def test_a_published_model_works_without_ecgformers_and_offline(hub: LoopbackHub, model_folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        command_line.main(["publish", str(model_folder), "--repo", "org/tiny", "--dry-run"])
    assert ended.value.code == 0 and "model.safetensors" in capsys.readouterr().out and not hub.repos
    with pytest.raises(SystemExit) as ended:
        command_line.main(["publish", str(model_folder), "--repo", "org/tiny", "--private"])
    assert ended.value.code == 0 and "/commit/" in capsys.readouterr().out
    repo = hub.repos["model", "org/tiny"]
    assert repo.private and len(repo.commits) == 2  # the repo's first, and the model's
    files = hub.files("model", "org/tiny")
    assert {"README.md", "generation_config.json", "pipelines_ecg.py", ".eval_results/zero_shot.yaml"} <= files.keys()
    assert set(json.loads(files["config.json"])["custom_pipelines"]) == set(TASKS)

    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HUB_OFFLINE")}
    environment |= {**hub.environment, "HF_HOME": str(tmp_path / "home")}
    revision = repo.refs["main"]
    repo.commit({})  # later, everything is gone
    arguments = ["org/tiny", revision, str(write_ecg(tmp_path / "ecg.npz")), json.dumps(TASKS)]
    answers = []
    for offline in ({}, {"HF_HUB_OFFLINE": "1"}):
        command = [sys.executable, "-c", LOAD, *arguments]
        result = subprocess.run(command, env=environment | offline, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        answers.append(json.loads(result.stdout))
    assert answers[0] == answers[1] and answers[0][1][0]["label"] in ("sinus rhythm", "atrial fibrillation")


@pytest.mark.parametrize("step", ["lfs_upload", "commit"])
def test_an_interrupted_upload_leaves_the_repo_as_it_was(hub, model_folder, monkeypatch, step):
    monkeypatch.setattr("ecgformers.publishing.check_loading", lambda folder: None)
    publish(model_folder, "org/tiny", say=lambda line: None)
    before = dict(hub.files("model", "org/tiny"))
    hub.large_files.clear()
    monkeypatch.setattr(loopback_hub._Handler, step, lambda self, *_, **__: self._send(400))
    routes = [(route, getattr(loopback_hub._Handler, method.__name__)) for route, method in loopback_hub._ROUTES]
    monkeypatch.setattr(loopback_hub, "_ROUTES", routes)
    with pytest.raises((HfHubHTTPError, RuntimeError)):
        publish(model_folder, "org/tiny", say=lambda line: None)
    assert hub.files("model", "org/tiny") == before and len(hub.repos["model", "org/tiny"].commits) == 2


def test_what_is_refused(model_folder, tmp_path, monkeypatch):
    folder = build(tmp_path / "wrong")
    (folder / "training_args.bin").write_bytes(b"")
    weights = load_file(folder / "model.safetensors")
    weights["logit_scale"] = torch.tensor(float("nan"))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "README.md").write_text(CARD.replace("license: apache-2.0\n", "").replace("## Limits", "## Praise"))
    with pytest.raises(PublishingError) as refused:
        stage(folder, tmp_path)
    for reason in ("training_args.bin is a pickle", "no license", "no section 'Limits'", "logit_scale holds NaN"):
        assert reason in str(refused.value)
    assert not card_faults(model_folder / "README.md") and not weight_faults(model_folder)
    with pytest.raises(PublishingError, match=r"no config\.json"):
        stage(tmp_path / "nowhere", tmp_path)


def test_code_that_does_not_work_alone_is_refused(model_folder, monkeypatch):
    monkeypatch.setattr("ecgformers.publishing.write_code", lambda folder: [])
    with pytest.raises(PublishingError, match=r"does not work without ecgformers: .*configuration_melp\.py"):
        publish(model_folder, "org/tiny", dry_run=True)


def test_weights_of_others_need_a_word(tmp_path, monkeypatch):
    folder = build(tmp_path / "theirs")
    model = MelpModel.from_pretrained(folder)
    mark_license(model, "cc-by-nc-nd-4.0", "EchoingECG")
    model.save_pretrained(folder)
    with pytest.raises(PermissionError, match=r"EchoingECG.*cc-by-nc-nd-4\.0.*--i-may-publish"):
        publish(folder, "org/theirs")
    check_license(folder, i_may_publish=True)
    MelpForSequenceClassification.from_pretrained(folder).save_pretrained(tmp_path / "tuned")  # the mark goes on
    with pytest.raises(PermissionError):
        check_license(tmp_path / "tuned", i_may_publish=False)
