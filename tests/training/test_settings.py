"""Recipes of the wrong shape end in one line that names file or field."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from ecgformers.modeling.configuration_melp import MelpEcgConfig
from ecgformers.training.loop import LoopSettings
from ecgformers.training.settings import parse_settings


@dataclass
class Settings:
    loop: LoopSettings
    model: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("[]", [], "recipe.yaml has no section 'ecg'"),
        ("ecg: 3", [], "recipe.yaml: section 'ecg' holds no settings, but 3"),
        ("ecg: {loop: 7}", [], "loop must hold settings, not 7"),
        ("ecg: {loop: 7}", ["loop.epochs=3"], "loop is 7 and has no settings of its own"),
        ("ecg: {loop: {output: x, epochs: many}}", [], "loop.epochs must be of type int, not 'many'"),
        ("ecg: {loop: {output: x, epochs: true}}", [], "loop.epochs must be of type int, not True"),
        ("ecg: {loop: {output: [x]}}", [], "loop.output must be of type str, not ['x']"),
        ("ecg: {loop: {output: x}, model: 5}", [], "model must hold settings, not 5"),
        ("ecg: &loop [*loop]", [], "section 'ecg' holds no settings"),
        ("ecg: {loop: [", [], "recipe.yaml is no YAML: while parsing"),
        ("\0", [], "recipe.yaml is no YAML"),
        ("[" * 5000, [], "recipe.yaml is no YAML"),
        ("ecg: !!python/object/apply:os.system [ls]", [], "recipe.yaml is no YAML: could not determine a constructor"),
    ],
)
def test_one_line_that_names_file_or_field(tmp_path, capsys, text, overrides, message):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(SystemExit) as error:
        parse_settings(Settings, "ecg", "doc", ["--config", str(tmp_path / "recipe.yaml"), *overrides], MelpEcgConfig)
    printed = capsys.readouterr().err.strip()
    assert error.value.code == 2 and message in printed and "\n" not in printed


def test_a_whole_number_where_any_number_may_be(tmp_path):
    (tmp_path / "recipe.yaml").write_text("ecg: {loop: {output: x, average: 0, learning_rate: 1e-4}}")
    settings = parse_settings(Settings, "ecg", "doc", ["--config", str(tmp_path / "recipe.yaml")])
    assert (settings.loop.average, settings.loop.learning_rate) == (0, 1e-4)
