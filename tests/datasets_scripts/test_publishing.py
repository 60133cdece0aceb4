"""Built data sets on a Hub: pushed in one commit, loaded by name, and kept private where they must be."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest
from loopback_hub import LoopbackHub

from ecgformers.datasets_scripts import building, plan
from ecgformers.datasets_scripts.building import build
from ecgformers.datasets_scripts.command_line import main
from ecgformers.datasets_scripts.ecg_builder import EcgBuilder
from ecgformers.datasets_scripts.mimic_iv_echo import MimicIvEcho
from ecgformers.datasets_scripts.ptb_xl import PtbXl
from ecgformers.datasets_scripts.publishing import push

LOAD = """
import datasets, json, sys
name, cache = sys.argv[1:]
rows = datasets.load_dataset(name, cache_dir=cache)
streamed = [row["record_id"] for row in datasets.load_dataset(name, split="train", streaming=True)]
signals = {row["record_id"]: row["signal"] for split in rows.values() for row in split}
splits = {name: len(split) for name, split in rows.items()}
json.dump({"splits": splits, "signals": signals, "streamed": streamed}, sys.stdout)
"""


def load(hub: LoopbackHub, name: str, cache: Path) -> dict[str, Any]:
    """Load a repo in a process that knows nothing of this package."""
    environment = {**os.environ, **hub.environment, "HF_HOME": str(cache), "PYTHONPATH": ""}
    command = [sys.executable, "-c", LOAD, name, str(cache)]
    return json.loads(
        subprocess.run(command, env=environment, check=True, capture_output=True, cwd=cache.parent).stdout
    )


def built_ptb_xl(folder: Path, records: int = 20) -> dict[str, np.ndarray]:
    signals = layouts.ptb_xl(folder / "source", records)
    build(PtbXl(data_dir=str(folder / "source"), rate=100, cache_dir=str(folder / "cache")), folder / "built")
    return signals


def test_pushed_and_loaded_by_name(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan, "ROWS_A_CHUNK", 3)
    monkeypatch.setattr(building, "CHUNKS_A_SHARD", 1)
    signals = built_ptb_xl(tmp_path)
    main(PtbXl, ["push", "--output", str(tmp_path / "built"), "--repo", "org/ptb_xl"])
    assert capsys.readouterr().out.startswith(f"{hub.endpoint}/org/ptb_xl/commit/")
    repo = hub.repos["dataset", "org/ptb_xl"]
    assert repo.private and len(repo.commits) == 2  # the empty repo, and one commit
    loaded = load(hub, "org/ptb_xl", tmp_path / "home")
    assert loaded["splits"] == {"train": 16, "validation": 2, "test": 2}
    assert loaded["signals"].keys() == signals.keys() and len(loaded["streamed"]) == 16
    for record_id, signal in loaded["signals"].items():
        np.testing.assert_array_equal(signal, signals[record_id])


def test_a_smaller_build_replaces_a_larger_one(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "ROWS_A_CHUNK", 3)
    monkeypatch.setattr(building, "CHUNKS_A_SHARD", 1)
    for records in (20, 4):
        built_ptb_xl(tmp_path, records)
        push(tmp_path / "built", "org/ptb_xl")
    names = {path.relative_to(tmp_path / "built").as_posix() for path in (tmp_path / "built").rglob("*.*")}
    assert set(hub.files("dataset", "org/ptb_xl")) == names - {"rejects.jsonl"} | {".gitattributes"}


def credentialed(folder: Path) -> type[EcgBuilder]:
    layouts.mimic_iv_ecg(folder / "ecg")
    layouts.mimic_iv_echo(folder / "echo")
    builder = MimicIvEcho(data_dir=str(folder / "echo"), ecg_dir=str(folder / "ecg"), cache_dir=str(folder / "cache"))
    build(builder, folder / "built")
    return MimicIvEcho


def test_a_credentialed_data_set_is_not_published_unasked(hub: LoopbackHub, tmp_path: Path) -> None:
    arguments = ["push", "--output", str(tmp_path / "built"), "--repo", "org/echo"]
    builder_class = credentialed(tmp_path)
    with pytest.raises(SystemExit, match=r"PermissionError: org/echo would be public.*--i-may-publish"):
        main(builder_class, [*arguments, "--public"])
    with pytest.raises(SystemExit, match=r"PermissionError: org/echo would be public"):
        main(PtbXl, [*arguments, "--public"])  # by the command of an open data set
    assert not hub.repos
    main(builder_class, arguments)
    assert hub.repos["dataset", "org/echo"].private
    hub.repos["dataset", "org/echo"].private = False
    with pytest.raises(SystemExit, match="org/echo is public"):
        main(builder_class, arguments)
    assert len(hub.repos["dataset", "org/echo"].commits) == 2
    main(builder_class, [*arguments, "--i-may-publish"])
    assert len(hub.repos["dataset", "org/echo"].commits) == 3


def test_only_what_was_built_is_pushed(hub: LoopbackHub, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no data set built here"):
        push(tmp_path, "org/name")
    assert not hub.repos
