"""The command line of every data set: `build` from the publisher's files, `push` to the Hub."""

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets

from ecgformers.datasets_scripts.building import build
from ecgformers.datasets_scripts.ecg_builder import EcgBuilder
from ecgformers.datasets_scripts.fetching import PHYSIONET, fetch
from ecgformers.datasets_scripts.publishing import push


def main(builder_class: type[EcgBuilder], arguments: list[str] | None = None) -> None:
    """Run `build` or `push` as the command line says; errors that a user can mend end it with a message alone."""
    given = vars(parser(builder_class).parse_args(arguments))
    run = given.pop("run")
    try:
        run(builder_class, **given)
    except (OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def builder_of(module: ModuleType) -> type[EcgBuilder]:
    """The data set that a script of this folder builds."""
    (builder_class,) = [
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, EcgBuilder) and each.__module__ == module.__name__
        if not each.__subclasses__()  # what two data sets share is none
    ]
    return builder_class


def parser(builder_class: type[EcgBuilder]) -> argparse.ArgumentParser:
    """Its options are those of every data set and the fields of the builder's config class."""
    module = sys.modules[builder_class.__module__]
    top = argparse.ArgumentParser(description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(required=True)

    command = commands.add_parser("build", help="the publisher's files -> a folder that load_dataset opens")
    command.set_defaults(run=_build)
    command.add_argument("--data-dir", type=Path, required=True, help="the files as their publisher ships them")
    command.add_argument("--output", type=Path, required=True, help="the folder to build, replaced at the very end")
    command.add_argument("--num-proc", type=int, default=1, help="processes that read recordings")
    command.add_argument("--strict", action="store_true", help="stop at the first broken recording")
    if builder_class.physionet:
        command.add_argument("--download", action="store_true", help="fetch what --data-dir lacks from PhysioNet")
        command.add_argument("--base-url", default=PHYSIONET, help="fetch from here instead")
    for option in _own_options(builder_class):
        name = f"--{option.name.replace('_', '-')}"
        command.add_argument(name, default=option.default, **option.metadata)

    command = commands.add_parser("push", help="send a built folder to a data set repo of the Hub, in one commit")
    command.set_defaults(run=_push)
    command.add_argument("--output", type=Path, required=True, help="the folder that was built")
    command.add_argument("--repo", required=True, help="ORG/NAME")
    command.add_argument("--public", action="store_true", help="create a public repo, not a private one")
    if builder_class.credentialed:
        command.add_argument(
            "--i-may-publish",
            action="store_true",
            help="the publisher's agreement lets me put this into a public repo",
        )
    return top


def _own_options(builder_class: type[EcgBuilder]) -> list:
    known = {option.name for option in fields(datasets.BuilderConfig)}
    return [option for option in fields(builder_class.BUILDER_CONFIG_CLASS) if option.name not in known]


def _build(
    builder_class: type[EcgBuilder],
    data_dir: Path,
    output: Path,
    num_proc: int = 1,
    strict: bool = False,
    download: bool = False,
    base_url: str = PHYSIONET,
    **own: Any,
) -> None:
    if builder_class.physionet and download:
        config = builder_class.BUILDER_CONFIG_CLASS(**own)
        url = f"{base_url.rstrip('/')}/{builder_class.physionet}"
        fetch(url, data_dir, lambda name: builder_class.wanted(name, config))
    builder = builder_class(data_dir=str(data_dir), **own)
    print(build(builder, output, num_proc=num_proc, strict=strict))


def _push(
    builder_class: type[EcgBuilder], output: Path, repo: str, public: bool = False, i_may_publish: bool = False
) -> None:
    print(push(output, repo, public=public, i_may_publish=i_may_publish))
