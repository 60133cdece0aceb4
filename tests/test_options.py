"""Options: from Python and from a command line alike, checked in both."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgformers.options import Options, at_least_one, option, parse, percent


@dataclass(frozen=True, kw_only=True)
class Base(Options):
    model: str = option("a folder")
    output: Path = option("a folder")
    batch_size: int = option("at a time", 64, check=at_least_one)


@dataclass(frozen=True, kw_only=True)
class Own(Base):
    first: Path = option("a file", positional=True)
    shares: tuple[float, ...] = option("in %", (1, 10), check=percent)
    tables: tuple[str, ...] = option("any number", (), metavar="SPLIT=CSV")
    rows: tuple[str, str] | None = option("two", None, metavar=("FIRST", "SECOND"))
    split: str = option("a part", "test", choices=("train", "test"))
    folds: str | None = option("a rule", None)
    balance: bool = option("weigh", False)


GIVEN = ["a.json", "--model", "m", "--output", "o"]


def test_defaults():
    options = parse(Own, None, GIVEN)
    assert options == Own(model="m", output=Path("o"), first=Path("a.json"))
    assert (options.batch_size, options.shares, options.tables, options.rows) == (64, (1, 10), (), None)
    assert not options.balance and options.split == "test"


def test_a_command_line_is_what_python_says():
    more = ["--shares", "0.5", "100", "--tables", "a", "b", "--rows", "x, y", "z", "--split", "train", "--balance"]
    found = parse(Own, None, [*GIVEN, *more, "--folds", "1-8//9", "--batch-size", "8"])
    expected = {"shares": [0.5, 100], "tables": ["a", "b"], "rows": ["x, y", "z"], "split": "train", "balance": True}
    assert found == Own(model="m", output="o", first="a.json", folds="1-8//9", batch_size=8, **expected)
    assert found.output / "x" == Path("o/x")
    assert found.as_json()["output"] == "o" and found.as_json()["shares"] == (0.5, 100)
    assert parse(Own, None, [*GIVEN, "--tables"]).tables == ()


@settings(deadline=None)
@given(st.integers(-5, 5), st.floats(-10, 200, allow_nan=False))
def test_checks_hold_in_both(batch_size, share):
    is_right = batch_size >= 1 and 0 < share <= 100
    for make in (
        lambda: Own(model="m", output="o", first="a.json", batch_size=batch_size, shares=(1, share)),
        lambda: parse(Own, None, [*GIVEN, f"--batch-size={batch_size}", f"--shares={share!r}"]),
    ):
        if is_right:
            assert make().batch_size == batch_size
        else:
            with pytest.raises(ValueError, match=r"^--batch-size: .* is less than 1|^--shares: .* % is not above 0"):
                make()


@pytest.mark.parametrize(("arguments", "message"), [
    (GIVEN[1:], "the following arguments are required: first"),
    (GIVEN[:3], "the following arguments are required: --output"),
    ([*GIVEN, "--split", "all"], "invalid choice: 'all'"),
    ([*GIVEN, "--batch-size", "many"], "argument --batch-size: invalid int value: 'many'"),
    ([*GIVEN, "--rows", "one"], "argument --rows: expected 2 arguments"),
    ([*GIVEN, "--shapes", "1"], "unrecognized arguments: --shapes 1"),
])  # fmt: skip
def test_a_wrong_command_line_is_named_and_ends_nothing(arguments, message, capsys):
    with pytest.raises(ValueError, match=message):
        parse(Own, None, arguments)
    assert "usage: " in capsys.readouterr().err


def test_help_says_what_is_meant_and_the_default(capsys):
    with pytest.raises(SystemExit):
        parse(Own, "What it does.", ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "What it does." in text and "in % (default: 1 10)" in text and "at a time (default: 64)" in text
    assert "--folds FOLDS a rule" in text and "None" not in text
