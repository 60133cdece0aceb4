"""The fine-tuning script of the README and its evaluations, run word for word."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom.data import get_testdata_file
from small_evaluation import evaluation_rows, write_echoing_ecg, write_melp, write_melp_encoder, write_rows
from synthetic import REPORTS, write_dataset
from transformers import pipeline

from ecgformers import read_ecg, write_ecg
from ecgformers.datasets_scripts.building import build
from ecgformers.datasets_scripts.ecg_folder import EcgFolder
from ecgformers.evaluation import finetune

ROOT = Path(__file__).parents[1]
MODELS = sorted(path.parent.name for path in ROOT.glob("model_cards/*/config.json"))


def script() -> str:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if "Trainer(" in block]
    return block


@pytest.mark.parametrize("file", ["README.md", *(f"model_cards/{name}/README.md" for name in MODELS)])
def test_the_first_snippet_runs(file, tmp_path, monkeypatch):
    record = read_ecg(get_testdata_file("waveform_ecg.dcm", download=False))
    write_ecg(record, tmp_path / "record.hea")
    (tmp_path / "model_cards").symlink_to(ROOT / "model_cards")
    monkeypatch.chdir(tmp_path)
    first = re.findall(r"```python\n(.*?)```", (ROOT / file).read_text(encoding="utf-8"), re.DOTALL)[0]
    names: dict = {}
    exec(first, names)
    run = names.get("classify") or names["classifier"]
    options = (
        {"candidate_labels": ["normal ECG", "atrial fibrillation"]} if "classify" in names else {"level": "superclass"}
    )
    assert run("record.hea", **options)[0]["label"].lower() == "normal ecg"


def test_it_is_short():
    assert script().count("\n") <= 30


def test_it_runs(tmp_path, monkeypatch, capsys):
    write_dataset(tmp_path / "ptb_xl", records=64, samples=200)
    write_melp_encoder(tmp_path / "model_cards" / "melp-tiny-ptb-xl")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(script(), names)
    assert re.search(r"macro AUROC (0\.\d+|1\.0)", capsys.readouterr().out)
    record = names["row_to_record"](names["data"]["validation"][0])
    found = {entry["label"]: entry["score"] for entry in pipeline("ecg-classification", model="finetuned")(record)}
    expected = 1 / (1 + np.exp(-names["output"].predictions[0].astype(float)))
    assert found == pytest.approx(dict(zip(REPORTS, expected.tolist(), strict=True)), abs=1e-4)


@pytest.mark.skipif("ECGFORMERS_SLOW" not in os.environ, reason="ECGFORMERS_SLOW is not set: this takes half an hour")
def test_it_reaches_what_finetune_reaches(ptb_xl_dir, tmp_path, monkeypatch):
    model = ROOT / "model_cards" / "melp-tiny-ptb-xl"
    subprocess.run([sys.executable, str(ptb_xl_dir / "restore.py"), str(tmp_path / "source")], check=True)
    columns = {"path_column": "filename_lr", "id_column": "ecg_id", "patient_column": "patient_id"}
    folds = {"fold_column": "strat_fold", "validation_folds": "9"}
    table = {"table": "ptbxl_labels.csv", "label_columns": "super_NORM:ISCAS"}
    build(EcgFolder(**columns, **folds, **table, data_dir=str(tmp_path / "source")), tmp_path / "ptb_xl")
    (tmp_path / "model_cards").mkdir()
    (tmp_path / "model_cards" / model.name).symlink_to(model)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(script(), names)
    reached = names["macro"](names["auroc"](names["output"].label_ids, names["output"].predictions))
    options = ["--folds", "1-7/8/9", "--epochs", "5", "--batch-size", "32", "--skip-random", "--resamples", "0"]
    command = ["--model", str(model), "--data", "ptb_xl", "--task", "ptbxl_super", "--output", "out", *options]
    expected = finetune.main(command).rows[0]["auroc_macro"]["value"]
    print(f"macro AUROC: the script {reached:.4f}, finetune {expected:.4f}")
    assert reached > expected - 0.01


def evaluation_lines() -> list[list[str]]:
    """The commands under "Evaluate", word by word."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Evaluate\n")[1]
    lines = re.search(r"```bash\n(.*?)```", text, re.DOTALL)[1].replace("\\\n", "").splitlines()
    return [shlex.split(line) for line in lines]


def test_its_evaluations_run(tmp_path, monkeypatch, capsys):
    write_rows(tmp_path / "data" / "ptb-xl", evaluation_rows(100))
    write_melp(tmp_path / "model_cards" / "melp-tiny-ptb-xl")
    write_echoing_ecg(tmp_path / "model_cards" / "echoing-ecg-tiny-ptb-xl")
    monkeypatch.chdir(tmp_path)
    for python, flag, module, *arguments in evaluation_lines():
        assert (python, flag) == ("python", "-m")
        importlib.import_module(module).main(arguments)
    printed = capsys.readouterr().out
    assert "### model_cards/melp-tiny-ptb-xl compared with model_cards/echoing-ecg-tiny-ptb-xl" in printed
    results = {path.name for path in Path("results").glob("*.json")}
    models = ("melp-tiny-ptb-xl", "echoing-ecg-tiny-ptb-xl")
    assert results == {f"zero_shot_ptbxl_super_{model}.json" for model in models} | {
        f"{name}_ptbxl_super_melp-tiny-ptb-xl.json" for name in ("linear_probe", "finetune")
    }
