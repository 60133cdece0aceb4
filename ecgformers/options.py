"""The options of a command as a frozen dataclass: checked when made, from Python or from a command line.

@dataclass(frozen=True, kw_only=True)
class ProbeOptions(Options):
    model: str = option("a folder, or a name on the Hub")
    seeds: int = option("draws", 3, check=at_least_one)

options = ProbeOptions(model="models/melp")
options = parse(ProbeOptions, __doc__)      # --model models/melp --seeds 3
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")


class UsageError(ValueError):
    """A command line that makes no sense."""


def option(
    help: str,
    default: Any = MISSING,
    check: Callable[[Any], None] | None = None,
    metavar: Any = None,
    choices: Sequence[str] | None = None,
    positional: bool = False,
) -> Any:
    """A field of `Options`.

    Args:
        help: what it means, for `--help`.
        default: without one the option must be given.
        check: raises for a value, or for one of several, that makes no sense.
    """
    about = {"help": help, "check": check, "metavar": metavar, "choices": choices, "positional": positional}
    return field(default=default, metadata=about)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a command is told.  Lists become tuples and names of files paths, and every field is checked.

    Raises:
        ValueError: it names the option.
    """

    def __post_init__(self):
        hints = get_type_hints(type(self))
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, list):
                value = tuple(value)
            elif isinstance(value, str) and _single_type(hints[each.name]) is Path:
                value = Path(value)
            object.__setattr__(self, each.name, value)
            check = each.metadata.get("check")
            for one in () if check is None or value is None else value if isinstance(value, tuple) else (value,):
                try:
                    check(one)
                except ValueError as error:
                    raise ValueError(f"{flag(each)}: {error}") from None

    def as_json(self) -> dict[str, Any]:
        """Field -> value, in types that JSON knows."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}


def flag(of: Field) -> str:
    """How an option is written on a command line."""
    return of.name if of.metadata.get("positional") else f"--{of.name.replace('_', '-')}"


def parse(kind: type[Kind], doc: str | None, arguments: Sequence[str] | None = None) -> Kind:
    """The options of a command line.

    Raises:
        UsageError: a wrong command line, so that one wrong command does not end those that come after it.
    """
    import argparse  # here alone, and in the entry points that need more than options

    class Parser(argparse.ArgumentParser):
        def error(self, message: str):
            self.print_usage(sys.stderr)
            raise UsageError(message)

    parser = Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    hints = get_type_hints(kind)
    for each in fields(kind):  # type: ignore[arg-type]
        about, hint = each.metadata, hints[each.name]
        is_given = each.default is MISSING and each.default_factory is MISSING
        settings: dict[str, Any] = {"help": _help(each), "default": argparse.SUPPRESS}
        if hint is bool:
            parser.add_argument(flag(each), action="store_true", **settings)
            continue
        settings |= {name: about[name] for name in ("metavar", "choices") if about[name] is not None}
        settings["type"] = _single_type(hint)
        several = next((each for each in _alternatives(hint) if get_origin(each) is tuple), None)
        if several is not None:
            parts = get_args(several)
            settings["nargs"] = len(parts) if Ellipsis not in parts else "*" if each.default == () else "+"
        if not about["positional"]:
            settings["required"] = is_given
        parser.add_argument(flag(each), **settings)
    return kind(**vars(parser.parse_args(arguments)))


def _alternatives(hint: Any) -> list[Any]:
    """The types of a hint: `X | None` -> [X]."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return [part for part in parts if part is not type(None)]


def _single_type(hint: Any) -> Any:
    """The type of one value: `tuple[float, ...]` -> float."""
    (hint,) = _alternatives(hint)
    return get_args(hint)[0] if get_origin(hint) is tuple else hint


def _help(of: Field) -> str:
    default = " ".join(map(str, of.default)) if isinstance(of.default, tuple) else of.default
    is_said = default is MISSING or default is None or default is False or default == ""
    return (of.metadata["help"] if is_said else f"{of.metadata['help']} (default: {default})").replace("%", "%%")


def at_least_one(value: float) -> None:
    """A check: 1 at least."""
    if value < 1:
        raise ValueError(f"{value} is less than 1")


def percent(value: float) -> None:
    """A check: a share in %, above 0 and at most 100."""
    if not 0 < value <= 100:
        raise ValueError(f"{value:g} % is not above 0 and at most 100")


def is_missing_folder(model: str) -> bool:
    """Whether a model's name can only be a folder's (those on the Hub have one slash at most), and there is none."""
    return (model.count("/") > 1 or model.startswith((".", "/", "~"))) and not Path(model).is_dir()


def run_command(main: Callable[[], Any]):
    """Run a command's `main`; what a user can mend ends it with a message alone."""
    from datasets import disable_progress_bars

    disable_progress_bars()
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
