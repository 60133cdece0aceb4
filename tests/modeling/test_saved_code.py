"""A saved folder carries the code that it needs, and none that it does not."""

import ast
import json
from collections import defaultdict
from pathlib import Path

import pytest
import tiny_echoing_ecg
import tiny_melp
import tiny_merl
from tiny_melp import tiny_tokenizer

from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from ecgformers.modeling.modeling_echoing_ecg import EchoingEcgModel
from ecgformers.modeling.modeling_melp import MelpModel
from ecgformers.modeling.modeling_melp_ecg import MelpEcgModel
from ecgformers.modeling.modeling_melp_pretraining import MelpEcgForPreTraining
from ecgformers.modeling.modeling_merl import MerlModel
from ecgformers.modeling.processing_ecg import EcgProcessor

MODELS = {
    MelpModel: tiny_melp.tiny_config,
    MelpEcgModel: tiny_melp.tiny_ecg_config,
    MelpEcgForPreTraining: tiny_melp.tiny_ecg_config,
    EchoingEcgModel: tiny_echoing_ecg.tiny_config,
    MerlModel: tiny_merl.tiny_config,
}


def entries(folder: Path) -> set[str]:
    """The classes that the folder's configurations name."""
    maps = []
    for path in folder.glob("*.json"):
        values = json.loads(path.read_text())
        maps += [part.get("auto_map", {}) for part in (values, *values.values()) if isinstance(part, dict)]
    return {reference.rpartition(".")[2] for auto_map in maps for reference in auto_map.values()}


def definitions(tree: ast.Module) -> dict[str, list[ast.stmt]]:
    """What makes each name of a module: its function or class, or the statements that assign to it."""
    made = defaultdict(list)
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            made[statement.name].append(statement)
        elif not isinstance(statement, ast.Import | ast.ImportFrom | ast.Expr):
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id != "__all__":
                    made[node.id].append(statement)
    return made


def unused(folder: Path) -> list[str]:
    """The definitions that nothing needs which a configuration names, directly or through others."""
    made = {path.name: definitions(ast.parse(path.read_text(encoding="utf-8"))) for path in folder.glob("*.py")}
    todo, needed = entries(folder), set()
    while todo:
        needed.add(name := todo.pop())
        for module in made.values():
            for node in (node for statement in module.get(name, ()) for node in ast.walk(statement)):
                found = getattr(node, "id", None) or getattr(node, "attr", None)
                todo |= {found} - needed if isinstance(found, str) else set()
    return sorted(f"{file}: {name}" for file, module in made.items() for name in module if name not in needed)


@pytest.mark.parametrize("model_class", MODELS, ids=lambda model_class: model_class.__name__)
def test_no_definition_in_a_saved_folder_is_unused(model_class, tmp_path):
    model_class(MODELS[model_class]()).save_pretrained(tmp_path)
    assert unused(tmp_path) == []
    EcgProcessor(EcgFeatureExtractor(), tiny_tokenizer()).save_pretrained(tmp_path)
    assert unused(tmp_path) == []


def test_what_is_unused_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModel": "a.Model"}}')
    (tmp_path / "a.py").write_text("from .b import helper\n\nSIZE = 3\n\nclass Model:\n    size = helper(SIZE)\n")
    (tmp_path / "b.py").write_text("def helper(x): return x\n\ndef other(): return left()\n\ndef left(): return 1\n")
    assert unused(tmp_path) == ["b.py: left", "b.py: other"]


@pytest.mark.parametrize(
    ("model_class", "others"),
    [
        (MelpModel, {"losses_echoing_ecg", "gaussians_echoing_ecg", "pairing_ecg", "losses_melp_pretraining"}),
        (EchoingEcgModel, {"losses_melp", "losses_melp_pretraining", "attention_ecg", "averages_ecg"}),
    ],
    ids=["MelpModel", "EchoingEcgModel"],
)
def test_a_folder_carries_no_other_models_losses_and_no_reader(model_class, others, tmp_path):
    model_class(MODELS[model_class]()).save_pretrained(tmp_path)
    EcgProcessor(EcgFeatureExtractor(), tiny_tokenizer()).save_pretrained(tmp_path)
    carried = {path.stem for path in tmp_path.glob("*.py")}
    assert not carried & (
        others | {"reading_ecg", "record_ecg", "findings_ecg", "wfdb_ecg", "dicom_ecg", "modeling_melp_pretraining"}
    )
