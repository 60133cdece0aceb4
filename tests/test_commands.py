"""Every command that the documents, recipes and docstrings name is there, and has the options they give it."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("ecgformers", "modeling", "datasets_scripts", "evaluation", "training", "spaces", "benchmarks", "model_cards")
FILES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
FILES += [path for room in ROOMS for kind in ("py", "md", "yaml") for path in (ROOT / room).rglob(f"*.{kind}")]
# A module or script, then what follows on its line, and on those after it that go on with options.
COMMAND = re.compile(
    r"(?:python|accelerate launch) (-m ecgformers[\w.]*|benchmarks/\w+\.py)"
    r"((?:[^\n`]*?\\+\n|[^\n`]*(?:\n +(?=\[?--)|$))*)",
    re.MULTILINE,
)


def named_commands() -> dict[str, tuple[set[str], set[str]]]:
    """Module or script, with `build` or `push` -> the options it is given, and the files that do."""
    commands: dict[str, tuple[set[str], set[str]]] = {}
    for path in FILES:
        for name, rest in COMMAND.findall(path.read_text(encoding="utf-8")):
            if "NAME" in name or "{" in name or name.endswith("."):
                continue  # a pattern of commands
            sub = re.match(r"\s+(build|push)\b", rest)
            options, files = commands.setdefault(name + (f" {sub[1]}" if sub else ""), (set(), set()))
            options |= set(re.findall(r"(?<![\w-])--[a-z][\w-]*", rest))
            files.add(str(path.relative_to(ROOT)))
    return commands


COMMANDS = named_commands()


def test_they_are_found():
    assert len(COMMANDS) > 30
    assert "--task" in COMMANDS["-m ecgformers.evaluation.zero_shot"][0]
    assert COMMANDS["-m ecgformers.datasets_scripts.ptb_xl build"][0] >= {"--data-dir", "--output", "--rate"}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help(command, monkeypatch, capsys):
    options, files = COMMANDS[command]
    name, *sub = command.removeprefix("-m ").split()
    monkeypatch.setattr(sys, "argv", [name, *sub, "--help"])
    if name.endswith(".py"):
        assert (ROOT / name).is_file(), f"{name}, named in {', '.join(sorted(files))}"
        if "argparse" not in (ROOT / name).read_text(encoding="utf-8"):
            return  # it takes no options
        monkeypatch.syspath_prepend((ROOT / name).parent)  # as `python SCRIPT` does
    with pytest.raises(SystemExit) as end:
        if name.endswith(".py"):
            runpy.run_path(str(ROOT / name), run_name="__main__")
        else:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
    text = capsys.readouterr().out
    assert end.value.code in (0, None) and "usage: " in text.lower()
    unknown = [option for option in sorted(options) if not re.search(rf"{option}\b(?!-)", text)]
    assert not unknown, f"{command} has no {', '.join(unknown)}, named in {', '.join(sorted(files))}"
