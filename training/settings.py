"""Settings of a recipe: a section of a YAML file, overridden by `key=value` or `key.sub=value` on the command line."""

import dataclasses
import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from transformers import PreTrainedConfig

from ecgformers.modeling.configuration_melp_ecg import ENCODERS, MelpEcgConfig, MelpPretrainingConfig
from ecgformers.options import Options, option, parse

Settings = TypeVar("Settings")
_PLAIN = (int, float, str, bool)


@dataclass(frozen=True, kw_only=True)
class RecipeOptions(Options):
    config: Path | None = option("a YAML file with a section for this recipe", None)
    overrides: tuple[str, ...] = option("e.g. loop.epochs=3 data=[folder]", (), metavar="key=value", positional=True)


def parse_settings(
    kind: type[Settings],
    section: str,
    doc: str,
    arguments: Sequence[str] | None = None,
    model: type[PreTrainedConfig] | None = None,
) -> Settings:
    """The dataclass `kind` from `--config FILE` (its `section`) and the overrides that follow.

    Args:
        model: the configuration whose fields the setting `model` may name.

    Raises:
        SystemExit: with a message, for a file that cannot be read or lacks the section, and for an unknown or missing
            key (it lists the known ones).
    """
    values: dict[str, Any] = {}
    try:
        args = parse(RecipeOptions, doc, arguments)
        if args.config is not None:
            sections = _read_yaml(args.config)
            if not isinstance(sections, dict) or section not in sections:
                raise ValueError(f"{args.config} has no section '{section}'")
            values = sections[section] or {}
            if not isinstance(values, dict):
                raise ValueError(f"{args.config}: section '{section}' holds no settings, but {values!r:.40}")
        for override in args.overrides:
            key, equals, text = override.partition("=")
            if not equals:
                raise ValueError(f"{override!r} is not key=value")
            _put(values, key.split("."), yaml.safe_load(text))
        if model is not None:
            check_fields(model, values.get("model") or {})
        return build(kind, values)
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from None


def _put(values: dict[str, Any], keys: list[str], value: Any):
    for depth, key in enumerate(keys[:-1], 1):
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ValueError(f"{'.'.join(keys[:depth])} is {values!r:.40} and has no settings of its own")
    values[keys[-1]] = value


def check_fields(config: type[PreTrainedConfig], values: dict[str, Any], where: str = "model."):
    """Raise `ValueError` for fields that a configuration does not have: it would keep them, and nobody read them."""
    known = config().to_dict()
    if not isinstance(values, dict):
        raise ValueError(f"{where.removesuffix('.')} must hold settings, not {values!r:.40}")
    if config is MelpEcgConfig:  # it takes the fields of its parts without their names
        known |= {"encoder_type": None, "encoder_config": None, "pretraining_config": None}
        known |= {name: None for part in (*ENCODERS.values(), MelpPretrainingConfig) for name in part.__annotations__}
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f" ({close[0]}?)" if close else ""
            raise ValueError(f"unknown setting {where}{name}{hint} of {config.__name__}")
    for name, part in config.sub_configs.items():
        if own := values.get(name):
            if config is MelpEcgConfig:  # the encoder's own fields say which it is
                part = type(getattr(config(**{name: own}), name))
            check_fields(part, own, f"{where}{name}.")


def build(kind: type[Settings], values: dict[str, Any], where: str = "") -> Settings:
    """A (nested) settings dataclass from nested mappings.

    Raises:
        ValueError: for keys that it does not have, or lacks, and for a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where.removesuffix('.')} must hold settings, not {values!r:.40}")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = [f"{where}{key}" for key in values if key not in fields]
    if unknown:
        raise ValueError(f"unknown settings {', '.join(unknown)}; known are {', '.join(fields)}")
    required = (dataclasses.MISSING, dataclasses.MISSING)
    missing = [
        f"{where}{name}"
        for name, field in fields.items()
        if name not in values and (field.default, field.default_factory) == required
    ]
    if missing:
        raise ValueError(f"settings missing: {', '.join(missing)}")
    nested = {
        name: build(fields[name].type, value, f"{where}{name}.")  # type: ignore[arg-type]
        for name, value in values.items()
        if dataclasses.is_dataclass(fields[name].type)
    }
    numbers = {  # YAML reads 1e-4 as a string
        name: float(value) for name, value in values.items() if isinstance(value, str) and fields[name].type is float
    }
    values = values | nested | numbers
    for name, value in values.items():
        wanted = fields[name].type
        fits = isinstance(value, int | float if wanted is float else wanted) if wanted in _PLAIN else True
        if not fits or (isinstance(value, bool) and wanted in (int, float)):
            raise ValueError(f"{where}{name} must be of type {wanted.__name__}, not {value!r:.40}")  # type: ignore[union-attr]
    return kind(**values)
