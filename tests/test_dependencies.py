"""What setup.cfg requires is what the packaged modules import, and the reverse."""

import ast
import re
import sys
from configparser import ConfigParser
from importlib.metadata import packages_distributions

import pytest
import yaml
from test_imports import FILES, ROOT, imports, room_of

import ecgformers

SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg")
DISTRIBUTIONS = packages_distributions()
TRACKERS = {"tensorboard", "trackio"}  # imported by accelerate, which recipes give their names
PACKAGED = {name: path for name, path in FILES.items() if room_of(name) != "benchmarks"}


def requirements(text: str) -> set[str]:
    return {re.split(r"[<>=!~;\[ ]", line)[0].lower().replace("_", "-") for line in text.split("\n") if line}


def distribution(module: str) -> str:
    """The name on the package index of what an import names."""
    top = module.split(".")[0]
    (name, *_) = DISTRIBUTIONS.get(top, [top])
    return name.lower().replace("_", "-")


REQUIRED = requirements(SETUP["options"]["install_requires"])
EXTRAS = {name: requirements(text) for name, text in SETUP["options.extras_require"].items() if name != "test"}
OPTIONAL = {each: extra for extra, names in EXTRAS.items() for each in names}
IMPORTED = {
    module: {
        distribution(name)
        for name in imports(module, types_too=False)
        if name.split(".")[0] not in sys.stdlib_module_names | {"ecgformers"}
    }
    for module in PACKAGED
}


def test_the_modules_are_those_of_the_wheel():
    packages = SETUP["options"]["packages"].split()
    assert {name if path.stem == "__init__" else name.rpartition(".")[0] for name, path in PACKAGED.items()} == set(
        packages
    )


def test_there_is_one_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == ecgformers.__version__
    assert f"\n## {ecgformers.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_requirement_is_imported():
    assert (REQUIRED | OPTIONAL.keys()) - set().union(*IMPORTED.values()) == TRACKERS


@pytest.mark.parametrize("module", PACKAGED)
def test_every_import_is_required(module):
    assert IMPORTED[module] <= REQUIRED | OPTIONAL.keys()


def tries_to_import(node: ast.AST) -> str | None:
    """What is imported where a failure is caught and told."""
    if isinstance(node, ast.Try) and isinstance(node.body[0], ast.Import | ast.ImportFrom):
        first = node.body[0]
        return distribution(first.module or "" if isinstance(first, ast.ImportFrom) else first.names[0].name)
    return None


@pytest.mark.parametrize("module", [module for module, names in IMPORTED.items() if names & OPTIONAL.keys()])
def test_what_an_extra_brings_is_imported_late_with_an_error_that_names_the_extra(module):
    tree = ast.parse(PACKAGED[module].read_text(encoding="utf-8"))
    tried = {name: ast.unparse(node) for node in ast.walk(tree) if (name := tries_to_import(node))}
    for name in IMPORTED[module] & OPTIONAL.keys():
        assert f'pip install "ecgformers[{OPTIONAL[name]}]"' in tried.get(name, ""), name
