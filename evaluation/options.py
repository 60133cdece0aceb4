"""The options that all evaluations have.

For research use; not a medical device.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import datasets

from ecgformers.datasets_scripts.rows import SPLITS
from ecgformers.evaluation.tasks import TASKS
from ecgformers.training.settings import is_factory, is_missing_folder


def percent(text: str) -> float:
    """A share in % for `argparse`: above 0, at most 100."""
    value = float(text)
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"{text} % is not above 0 and at most 100")
    return value


def at_least_one(text: str) -> int:
    """A number of things for `argparse`: 1 at least."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def encoder_name(text: str) -> str:
    """A folder, a name on the Hub or MODULE:FACTORY for `argparse`; a folder that is not there is no wrong usage."""
    if is_missing_folder(text):
        raise FileNotFoundError(f"--model: there is no folder {text}")
    return text


def model_name(text: str) -> str:
    """As `encoder_name`, where an encoder's features alone do not do."""
    if is_factory(text):
        raise OSError(f"--model: {text} gives features alone; here a model's folder or its name on the Hub is needed")
    return encoder_name(text)


class ArgumentParser(argparse.ArgumentParser):
    """A parser that raises `ValueError`, so that one wrong command does not end those that come after it."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        raise ValueError(message)


def argument_parser(doc: str | None, task: bool = True, features: bool = False) -> ArgumentParser:
    """The options that all evaluations have.

    Args:
        doc: the module's docstring.
        task: whether the evaluation has one.
        features: whether it needs an encoder's features alone, so that `--model` may be MODULE:FACTORY.
    """
    parser = ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if features:
        name = "a folder, a name on the Hub, or MODULE:FACTORY (encoders.py)"
        parser.add_argument("--model", type=encoder_name, required=True, help=name)
        parser.add_argument(
            "--features",
            nargs="+",
            default=["pooler_output"],
            metavar="OUTPUT",
            help="outputs of the model that are read, side by side, e.g. pooler_output mean_state",
        )
    else:
        parser.add_argument("--model", type=model_name, required=True, help="a folder, or a name on the Hub")
    parser.add_argument("--data", required=True, help="built with datasets_scripts: a folder or a name on the Hub")
    if task:
        parser.add_argument("--task", required=True, choices=TASKS, metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--output", type=Path, required=True, help="the folder of results")
    parser.add_argument("--cache", type=Path, help="the folder of computed features; by default OUTPUT/features")
    parser.add_argument("--split", default="test", choices=SPLITS, help="the part to evaluate on")
    parser.add_argument("--folds", help="TRAIN/VALIDATION/TEST, e.g. 1-8/9/10, 1-7/8/9 or 1-8//9; see fold_rule")
    parser.add_argument("--split-table", nargs="*", default=[], metavar="SPLIT=CSV", help="for tasks split by tables")
    parser.add_argument("--batch-size", type=at_least_one, default=64)
    parser.add_argument("--device", default=None, help="of torch; by default a GPU where there is one")
    parser.add_argument("--resamples", type=int, default=1000, help="of the patients, for 95 %% intervals; 0 for none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dataset-id", help="name of the data on the Hub, for .eval_results, if --data is a folder")
    return parser


def run(main: Callable[[], Any]):
    """Run a recipe's `main`; what a user can mend ends it with a message alone."""
    datasets.disable_progress_bars()
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
