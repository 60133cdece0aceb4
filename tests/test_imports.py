"""Who may import whom: the arrows between the rooms of the house, read off the source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("ecgformers", "modeling", "metrics", "datasets_scripts", "evaluation", "training", "spaces", "benchmarks")
OPTIONS = "ecgformers.options"
# Of another room's modules each room may import those that start so; its own it may import all.
ARROWS = {
    "modeling": (),
    "metrics": (),
    "datasets_scripts": ("ecgformers.modeling.",),
    "evaluation": ("ecgformers.modeling.", "ecgformers.datasets_scripts.", "ecgformers.metrics."),
    "training": (
        "ecgformers.modeling.",
        "ecgformers.datasets_scripts.",
        "ecgformers.metrics.",
        "ecgformers.evaluation.scoring",
        "ecgformers.evaluation.splits",
        "ecgformers.evaluation.tasks",
    ),
}
MODELS = ("modeling_", "configuration_", "losses_", "pipelines_", "converting")  # what data sets need not know
ENTRY_HELPERS = {OPTIONS, "ecgformers.datasets_scripts.command_line"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "ecgformers" else parts
    return ".".join(("ecgformers", *(part for part in parts if part != "__init__")))


FILES = {module_name(path): path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))}


def room_of(module: str) -> str:
    room = module.split(".")[1] if "." in module else "ecgformers"
    return room if room in ROOMS else "ecgformers"


def imports(module: str, types_too: bool = True) -> Iterator[str]:
    """The modules that one imports, wherever in it; ours by their full names."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in () if types_too else ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" for alias in node.names]
            yield from (name if name in FILES else base for name in names)


@pytest.mark.parametrize("module", [module for module in FILES if room_of(module) in ARROWS])
def test_a_room_imports_only_what_it_may(module):
    room = room_of(module)
    helpers = () if room in ("modeling", "metrics") else ("ecgformers", OPTIONS)  # the version; options of commands
    for name in imports(module):
        if name.split(".")[0] == "ecgformers" and room_of(name) != room:
            assert name in helpers or name.startswith(ARROWS[room] or "none"), f"{module} imports {name}"
        if room == "datasets_scripts" and name.startswith("ecgformers.modeling."):
            assert not name.split(".")[2].startswith(MODELS), f"{module} imports {name}"


@pytest.mark.parametrize("module", [module for module in FILES if module.startswith("ecgformers.modeling.")])
def test_models_import_each_other_as_files_that_lie_side_by_side(module):
    outside = [name for name in imports(module) if name.split(".")[0] == "ecgformers"]
    assert not [name for name in outside if not name.startswith("ecgformers.modeling")]
    if "converting" not in module:
        assert not [name for name in outside if ".converting" in name], f"{module} needs what never travels"
        tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
        absolute = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
        assert not [name for name in absolute if name and name.startswith("ecgformers")]


def test_options_know_nothing_of_ours():
    assert not [name for name in imports(OPTIONS) if name.startswith("ecgformers")]


@pytest.mark.parametrize("library", ["argparse", "typer"])
def test_command_lines_are_read_in_entry_points_alone(library):
    users = {module for module in FILES if library in {name.split(".")[0] for name in imports(module)}}
    entries = {
        module
        for module, path in FILES.items()
        if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8") or path.name == "__main__.py"
    }
    commands = {module for module in FILES if room_of(module) == "ecgformers"}
    assert users <= entries | ENTRY_HELPERS | commands


def test_what_argparse_gives_stays_in_main():
    rooms = [path for module, path in FILES.items() if room_of(module) != "benchmarks"]
    assert not [path for path in rooms if "Namespace" in path.read_text(encoding="utf-8")]


def test_no_circle():
    graph = {module: {name for name in imports(module, types_too=False) if name in FILES} for module in FILES}
    while leaves := [module for module, needs in graph.items() if not needs & graph.keys() - {module}]:
        for module in leaves:
            del graph[module]
    assert not graph, f"modules that import each other: {', '.join(graph)}"
