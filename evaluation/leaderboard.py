"""Models x evaluations from one YAML file, run where a result is missing, and a leaderboard of all.

    python -m ecgformers.evaluation.leaderboard --config leaderboard.yaml --output results

    models:
      melp-tiny: models/melp-tiny             # a folder, a name on the Hub, or MODULE:FACTORY (see encoders.py)
    data:
      ptb-xl: {data: ptb_xl, folds: 1-7/8/9}  # options that say where the recordings are
    evaluations:
      zero-shot: {recipe: zero_shot, data: ptb-xl, tasks: [ptbxl_super, ptbxl_rhythm]}
      probe: {recipe: linear_probe, data: ptb-xl, tasks: [ptbxl_super], options: {shares: [1, 10, 100]}}
      reports: {recipe: report_generation, data: ptb-xl, models: {melp-tiny: {limit: 500}}}  # not all, their options

Results go to OUTPUT/MODEL/EVALUATION, features to OUTPUT/features, and OUTPUT/leaderboard.md, .csv and .png are
written anew after every result.  A run that was stopped goes on where it was; a result is made again when its options
or the files of a local model changed.  What failed (zero-shot without a text tower, a folder that is not there, an
option that the recipe does not have) is named in the leaderboard, the rest goes on, and the next run tries it again.

For research use; not a medical device.
"""

import csv
import importlib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ecgformers.datasets_scripts.tables import inside
from ecgformers.evaluation.leaderboard_figure import leaderboard_figure
from ecgformers.evaluation.options import LeaderboardOptions, short_name
from ecgformers.evaluation.tables import RESEARCH_USE, read_json, write_json
from ecgformers.metrics.summary import format_figure
from ecgformers.options import parse, run_command

RECIPES = ("zero_shot", "linear_probe", "few_shot", "finetune", "transfer", "retrieval", "report_generation")
COLUMNS = ("evaluation", "task", "protocol", "method", "figure", "value", "low", "high", "records", "command")


@dataclass(frozen=True)
class Cell:
    """One evaluation of one model on one task ("" where it has none)."""

    model: str
    evaluation: str
    recipe: str
    task: str
    arguments: tuple[str, ...]
    folder: Path

    @property
    def name(self) -> str:
        return "/".join(filter(None, (self.model, self.evaluation, self.task)))


def run(options: LeaderboardOptions) -> list[dict[str, Any]]:
    config = read_config(options.config)
    cells = list(read_cells(config, options.output))
    record = options.output / "done.json"
    done = read_json(record) if record.exists() else {}
    for number, cell in enumerate(cells, 1):
        state = [list(cell.arguments), newest_change(config["models"][cell.model])]
        outcome = done.get(cell.name, {})
        if outcome.get("state") == state and (options.output / outcome.get("result", "none")).is_file():
            continue
        print(f"{number} of {len(cells)}: {cell.name}", flush=True)
        if "result" in outcome:  # of other options, or of another model under this name
            inside(options.output, outcome["result"]).unlink(missing_ok=True)
        done[cell.name] = {"state": state, **evaluate(cell)}
        write_json(record, done)
        write_leaderboard(options.output, cells, done)
    lines = write_leaderboard(options.output, cells, done)
    if not lines:
        raise ValueError(f"no evaluation has a result: {options.output / 'leaderboard.md'} says why")
    return lines


def read_config(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """The sections of the YAML file.

    Raises:
        ValueError: it is no YAML, lacks a section, or has a name that cannot be a folder's.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from None
    sections = config if isinstance(config, dict) else {}
    missing = [name for name in ("models", "data", "evaluations") if not isinstance(sections.get(name) or None, dict)]
    if missing:
        raise ValueError(f"the configuration {path} lacks {', '.join(missing)}, each a mapping of names")
    for section in ("models", "evaluations"):
        for name in sections[section]:
            if not re.fullmatch(r"\w[\w .+-]*", str(name)):
                raise ValueError(f"{path}: {section}: {name!r} shall name a folder: letters, digits, . _ + - only")
    for name, evaluation in sections["evaluations"].items():
        if not isinstance(evaluation, dict):
            raise ValueError(f"{path}: evaluation {name} is not a mapping with recipe and data")
    return sections


def read_cells(config: Mapping[str, Any], output: Path) -> Iterator[Cell]:
    """Every evaluation of every model and task.

    Raises:
        ValueError: an evaluation names a recipe, data or models that do not exist.
    """
    for name, evaluation in config["evaluations"].items():
        recipe, data = evaluation.get("recipe"), evaluation.get("data")
        if recipe not in RECIPES:
            raise ValueError(f"evaluation {name}: recipe {recipe!r} is none of {', '.join(RECIPES)}")
        if data not in config["data"]:
            raise ValueError(f"evaluation {name}: data {data!r} is none of {', '.join(config['data'])}")
        models = evaluation.get("models", {model: {} for model in config["models"]})
        unknown = [model for model in models if model not in config["models"]]
        if unknown:
            raise ValueError(f"evaluation {name}: models has no {', '.join(unknown)}")
        for task in evaluation.get("tasks", [""]):
            for model, model_options in models.items():
                folder = output / model / name
                own = {"model": config["models"][model], "output": folder, "cache": output / "features"}
                own |= {"task": task} if task else {}
                own |= config["data"][data] | evaluation.get("options", {}) | model_options
                yield Cell(model, name, recipe, task, tuple(command_line(own)), folder)


def command_line(options: Mapping[str, Any]) -> Iterator[str]:
    """{"shares": [1, 10], "balance": True} -> --shares 1 10 --balance."""
    for name, value in options.items():
        if value is False or value is None:
            continue
        yield f"--{name.replace('_', '-')}"
        if value is not True:
            yield from map(str, value if isinstance(value, list) else [value])


def newest_change(model: str) -> float | None:
    """When weights or settings of a local model changed last (its card and code may)."""
    files = [path for suffix in ("safetensors", "json") for path in Path(model).glob(f"*.{suffix}")]
    return max((path.stat().st_mtime for path in files), default=None)


def evaluate(cell: Cell) -> dict[str, Any]:
    """Run a recipe: where its result is, or why there is none."""
    recipe = importlib.import_module(f"ecgformers.evaluation.{cell.recipe}")
    try:
        table = recipe.main(list(cell.arguments))
    except (OSError, ValueError) as error:
        print(f"{cell.name}: {error}")
        return {"failure": str(error)}
    return {"result": str((cell.folder / f"{table.name}.json").relative_to(cell.folder.parents[1]))}


def write_leaderboard(output: Path, cells: list[Cell], done: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Write leaderboard.csv, a line a figure, leaderboard.md, a table an evaluation, and leaderboard.png; give the
    lines."""
    lines: list[dict[str, Any]] = []
    failures = []
    for cell in cells:
        outcome = done.get(cell.name, {})
        if "failure" in outcome:
            failures.append(f"- {cell.name}: {outcome['failure']}")
        if "result" in outcome:
            lines += figures_of(cell, read_json(output / outcome["result"]))
    with (output / "leaderboard.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)
    text = ["# Leaderboard", "", f"In %; in brackets 95 % intervals by patient. {RESEARCH_USE}", ""]
    for evaluation in dict.fromkeys(cell.evaluation for cell in cells):
        own = [line for line in lines if line["evaluation"] == evaluation]
        if own:
            text += [f"## {evaluation}: {own[0]['figure']}", "", *matrix(own), ""]
    text += ["## No result", "", *failures, ""] if failures else []
    (output / "leaderboard.md").write_text("\n".join(text), encoding="utf-8")
    if lines:
        leaderboard_figure(lines).savefig(output / "leaderboard.png", dpi=150)
    return lines


def figures_of(cell: Cell, result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The headline figure of every row of a result; baselines that depend on the model carry its name."""
    heading = next(heading for heading, key in result["columns"].items() if key == result["headline"])
    own = short_name(result["model"])
    for row in result["rows"]:
        method = cell.model if row["method"] == own else row["method"]
        is_random = method.startswith("random")
        if is_random:
            method = f"{method} ({cell.model})"
        yield {
            "evaluation": cell.evaluation,
            "task": cell.task,
            "protocol": row["protocol"],
            "method": method,
            "model": cell.model if is_random or method == cell.model else None,
            "is_model": method == cell.model,
            "figure": heading,
            **row[result["headline"]],
            "records": row["records"],
            "command": f"python -m ecgformers.evaluation.{cell.recipe} {shlex.join(cell.arguments)}",
        }


def matrix(lines: list[dict[str, Any]]) -> list[str]:
    """Markdown: a row a method, a column a task and protocol of the models; a baseline that has a protocol of its own
    (the prior, chance) stands in all columns of its task."""
    columns = list(dict.fromkeys((line["task"], line["protocol"]) for line in lines if line["is_model"]))
    cells: dict[tuple[str, str, str], str] = {}
    for line in lines:
        own = (line["task"], line["protocol"])
        for column in [own] if own in columns else columns:
            if column[0] == line["task"]:
                cells[line["method"], column[0], column[1]] = format_figure(line)
    header = ["method", *(": ".join(filter(None, column)) for column in columns)]
    methods = dict.fromkeys(line["method"] for line in lines)
    rows = [[method, *(cells.get((method, *column), "") for column in columns)] for method in methods]
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    return run(parse(LeaderboardOptions, __doc__, arguments))


if __name__ == "__main__":
    run_command(main)
