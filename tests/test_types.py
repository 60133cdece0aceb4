"""What a type checker sees of an installed ecgformers (of an editable one it sees nothing)."""

import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import ecgformers

ROOT = Path(__file__).parents[1]
OTHERS = ("torch", "numpy", "scipy", "transformers", "datasets", "matplotlib", "pydicom", "tokenizers", "accelerate")
SETTINGS = "[mypy]\n" + "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in OTHERS)  # else for minutes
TYPES = {
    "EcgFeatureExtractor": "feature_extraction_ecg.EcgFeatureExtractor",
    "EcgProcessor": "processing_ecg.EcgProcessor",
    "EcgRecord": "record_ecg.EcgRecord",
    "EchoingEcgConfig": "configuration_echoing_ecg.EchoingEcgConfig",
    "EchoingEcgForSequenceClassification": "modeling_echoing_ecg.EchoingEcgForSequenceClassification",
    "EchoingEcgModel": "modeling_echoing_ecg.EchoingEcgModel",
    "MelpConfig": "configuration_melp.MelpConfig",
    "MelpForConditionalGeneration": "modeling_melp.MelpForConditionalGeneration",
    "MelpModel": "modeling_melp.MelpModel",
    "read_ecg": "record_ecg.EcgRecord",
}


def test_every_name_has_its_type(tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg")
    folders = re.findall(r"= (\w+)", settings["options"]["package_dir"])
    for name in dict.fromkeys(folders):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--target", site, source], check=True, capture_output=True)

    names = [name for name in ecgformers.__all__ if name not in TYPES]
    lines = [f"reveal_type(ecgformers.{name})" for name in (*TYPES, *names)]
    (tmp_path / "asked.py").write_text("\n".join(["import ecgformers", *lines, "ecgformers.Melp"]))
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", "cache", "asked.py"]
    environment = {"MYPYPATH": str(site), "PATH": ""}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    answers = [line for line in result.stdout.splitlines() if line.startswith("asked.py")]
    assert len(answers) == len(lines) + 1, result.stdout + result.stderr
    for (name, expected), answer in zip(TYPES.items(), answers, strict=False):
        assert f"ecgformers.modeling.{expected}" in answer, f"{name}: {answer}"
    for name, answer in zip(names, answers[len(TYPES) :], strict=False):
        assert 'Revealed type is "Any"' not in answer, f"{name}: {answer}"
    assert 'has no attribute "Melp"' in answers[-1]
