"""The command `ecgformers`.  For research use; not a medical device.

Each command calls what a Python user calls.  Nothing heavy is imported before a command needs it: `--help` and
`describe` load no torch.
"""

import json
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

SOME_FAILED = 3
EPILOG = (
    "Exit codes: 0 all went well, 1 an error, 2 wrong usage, 3 something is wrong with some of the recordings.  "
    "For research use; not a medical device."
)
TRAINING = {stage: f"ecgformers.training.pretrain_{stage}" for stage in ("text", "ecg", "melp", "merl", "echoing_ecg")}
EVALUATION = {
    protocol: f"ecgformers.evaluation.{protocol}"
    for protocol in (
        "zero_shot",
        "linear_probe",
        "few_shot",
        "finetune",
        "transfer",
        "retrieval",
        "report_generation",
        "uncertainty",
        "zero_shot_value",
        "compare",
        "leaderboard",
    )
}
DATA = {
    name: f"ecgformers.datasets_scripts.{name}"
    for name in (
        "ptb_xl",
        "mimic_iv_ecg",
        "cpsc2018",
        "csn",
        "georgia",
        "code_15",
        "code_test",
        "mimic_iv_echo",
        "music",
        "ecg_folder",
    )
}
CONVERTING = {name: f"ecgformers.modeling.converting.{name}" for name in ("melp", "echoing_ecg", "echo_clip", "merl")}

app = typer.Typer(
    name="ecgformers",
    help="ECG foundation models: read, check, classify, describe in words, embed, train, evaluate, publish.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

OneFile = Annotated[str, typer.Argument(metavar="FILE", help="any recording that read_ecg reads")]
Files = Annotated[list[str], typer.Argument(metavar="FILES...", help="recordings, or folders of them")]
Model = Annotated[str, typer.Option("--model", "-m", help="a model's folder, or its name on the Hub")]
LeadNames = Annotated[
    str | None, typer.Option(help="such as I,II,V1, of files that do not say theirs", metavar="NAMES")
]
SamplingRate = Annotated[float | None, typer.Option(help="in Hz, of files that do not say theirs")]
Units = Annotated[str | None, typer.Option(help="mV, uV, V or nV, of files that do not say theirs")]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON object a line")]
BatchSize = Annotated[int, typer.Option(min=1, help="recordings that the model takes at a time")]
Device = Annotated[str | None, typer.Option(help="of torch; by default a GPU where there is one")]


@dataclass
class Tally:
    """How many recordings a command could use, or found nothing in, and how many it could not."""

    good: int = 0
    bad: int = 0

    def count(self, is_good: bool) -> None:
        self.good, self.bad = self.good + is_good, self.bad + (not is_good)

    def summarise(self, did: str, failed: str) -> None:
        """The last word where there were several, and the exit code."""
        if self.good + self.bad > 1:
            typer.echo(f"{self.good} {did}, {self.bad} {failed}", err=True)
        if self.bad:
            raise typer.Exit(SOME_FAILED)


@app.callback(invoke_without_command=True)
def top(
    version: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error; may stand anywhere")] = False,
) -> None:
    if version:
        typer.echo(import_module("ecgformers").__version__)
        raise typer.Exit


@app.command(epilog="Example: ecgformers describe record.hea")
def describe(
    file: OneFile,
    lead_names: LeadNames = None,
    sampling_rate: SamplingRate = None,
    units: Units = None,
    as_json: AsJson = False,
) -> None:
    """Leads, rate, duration and heart rate of a file."""
    import numpy as np

    from ecgformers import heart_rate
    from ecgformers.recordings import described

    record = _read(file, lead_names, sampling_rate, units)
    rate = heart_rate(record)
    said = {
        "file": file,
        "leads": list(record.lead_names),
        "sampling_rate": record.sampling_rate,
        "duration": record.duration,
        "samples": record.signal.shape[1],
        "units": sorted(set(record.units)),
        "range_mv": [float(np.nanmin(record.signal)), float(np.nanmax(record.signal))],
        "not_measured": int(np.isnan(record.signal).sum()),
        "heart_rate": rate,
    }
    if as_json:
        return typer.echo(json.dumps(said))
    typer.echo("\n".join([file, *described(record, rate)]))


@app.command(epilog="Example: ecgformers check recordings/ --json > findings.jsonl")
def check(
    files: Files,
    model: Annotated[str | None, typer.Option("--model", "-m", help="check for this model's input")] = None,
    lead_names: LeadNames = None,
    sampling_rate: SamplingRate = None,
    units: Units = None,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong with recordings.

    The exit code is 3 if anything is.
    """
    from ecgformers import EcgFeatureExtractor, read_ecg

    extractor = EcgFeatureExtractor() if model is None else EcgFeatureExtractor.from_pretrained(_existing(model))
    options = _reading_options(lead_names, sampling_rate, units)
    tally = Tally()
    for path in _progress(_recordings(files)):
        try:
            findings = [str(finding) for finding in extractor.check_ecg(read_ecg(path, **options))]
        except (OSError, TypeError, ValueError) as error:
            findings = [str(error)]
        tally.count(not findings)
        if as_json:
            typer.echo(json.dumps({"file": path, "findings": findings}, ensure_ascii=False))
        else:
            lines = [line.removeprefix(f"{path}: ") for line in findings] or ["nothing found"]
            typer.echo(f"{path}  " + ("\n" + " " * (len(path) + 2)).join(lines))
    tally.summarise("without a finding", "with findings")


@app.command(epilog="Example: ecgformers plot record.hea --output ecg.pdf")
def plot(
    file: OneFile,
    output: Annotated[Path | None, typer.Option(help="PNG, PDF or SVG; by default FILE's name with .png")] = None,
    start: Annotated[float, typer.Option(help="second at which the sheet begins")] = 0.0,
    lead_names: LeadNames = None,
    sampling_rate: SamplingRate = None,
    units: Units = None,
) -> None:
    """Draw a recording on ECG paper.

    At 25 mm/s and 10 mm/mV, when printed at full size.
    """
    from ecgformers import heart_rate, plot_ecg

    record = _read(file, lead_names, sampling_rate, units)
    output = output or Path(f"{Path(file).stem}.png")
    output.parent.mkdir(parents=True, exist_ok=True)
    plot_ecg(record, heart_rate=heart_rate(record), start=start).savefig(output, dpi=150)
    typer.echo(f"{output}")


@app.command(
    epilog="Example: ecgformers classify recordings/ --model MODEL --labels 'sinus rhythm,atrial fibrillation' --json"
)
def classify(
    files: Files,
    model: Model,
    labels: Annotated[
        str | None,
        typer.Option(
            help="zero-shot: texts with commas between them; a task such as ptbxl_rhythm, or its file; or a YAML "
            "file, label: text or texts.  Without it the model's own, trained labels"
        ),
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="so many labels, the best first (shown: 5)")] = None,
    lead_names: LeadNames = None,
    sampling_rate: SamplingRate = None,
    units: Units = None,
    batch_size: BatchSize = 16,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Label recordings.

    By the model's trained head, or zero-shot with the labels that you give.  Zero-shot scores are shares of these
    labels: they say which fits best, not whether a finding is present.
    """
    task = "ecg-classification" if labels is None else "zero-shot-ecg-classification"
    options = _reading_options(lead_names, sampling_rate, units) | ({} if top_k is None else {"top_k": top_k})
    if labels is not None:
        options["candidate_labels"] = _labels(labels)
    run = load_pipeline(task, model, device)
    is_value = labels is None and run.activation() == "none"
    tally = Tally()
    for path, answer in _answers(run, files, batch_size, tally, as_json, **options):
        if as_json:
            typer.echo(json.dumps({"file": path, "labels": answer}, ensure_ascii=False))
        else:
            shown = "{label} {score:.4g}" if is_value else "{label} {score:.1%}"
            typer.echo(f"{path}  " + ", ".join(shown.format(**entry) for entry in answer[: top_k or 5]))
    tally.summarise("classified", "could not be used")


@app.command(epilog="Example: ecgformers report record.hea --model MODEL")
def report(
    files: Files,
    model: Model,
    beams: Annotated[int, typer.Option(min=1, help="beam search over so many reports; 1: greedy")] = 1,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="of a report, at most")] = None,
    lead_names: LeadNames = None,
    sampling_rate: SamplingRate = None,
    units: Units = None,
    batch_size: BatchSize = 16,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Write the report of recordings."""
    options = _reading_options(lead_names, sampling_rate, units) | {"num_beams": beams}
    if max_new_tokens is not None:
        options["max_new_tokens"] = max_new_tokens
    run = load_pipeline("ecg-to-text", model, device)
    tally = Tally()
    for path, answer in _answers(run, files, batch_size, tally, as_json, **options):
        text = answer[0]["generated_text"]
        typer.echo(json.dumps({"file": path, "report": text}, ensure_ascii=False) if as_json else f"{path}  {text}")
    tally.summarise("described", "could not be used")


@app.command(epilog="Example: ecgformers embed recordings/ --model MODEL --output embeddings.parquet")
def embed(
    files: Files,
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="the Parquet file to write: file, embedding")],
    feature: Annotated[str, typer.Option(help="the model's output, e.g. pooler_output for probes")] = "ecg_embeds",
    lead_names: LeadNames = None,
    sampling_rate: SamplingRate = None,
    units: Units = None,
    batch_size: BatchSize = 16,
    device: Device = None,
) -> None:
    """Write embeddings to a Parquet file."""
    import pyarrow as pa
    from pyarrow import parquet

    options = _reading_options(lead_names, sampling_rate, units) | {"output": feature}
    schema = pa.schema([("file", pa.string()), ("embedding", pa.list_(pa.float32()))])
    unfinished = output.with_name(output.name + ".partial")
    output.parent.mkdir(parents=True, exist_ok=True)
    run = load_pipeline("ecg-feature-extraction", model, device)
    tally = Tally()
    try:
        with parquet.ParquetWriter(unfinished, schema) as writer:
            rows: list[dict[str, Any]] = []
            for path, answer in _answers(run, files, batch_size, tally, **options):
                rows.append({"file": path, "embedding": answer})
                if len(rows) == 256:
                    writer.write_table(pa.Table.from_pylist(rows, schema))
                    rows = []
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, schema))
        if not tally.good:
            raise ValueError(f"{output} is not written: none of the {tally.bad} recordings could be used")
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)
    typer.echo(f"{output}: {tally.good} embeddings")
    tally.summarise("embedded", "could not be used")


def _others(name: str, modules: dict[str, str], argument: str, doc: str, example: str) -> None:
    """A command that gives its arguments to the `main` of one of several modules."""
    choices = Enum(argument, {key: key.replace("_", "-") for key in modules}, type=str)  # type: ignore[misc]
    settings = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}

    def command(
        context: typer.Context,
        which: Annotated[
            choices, typer.Argument(metavar=argument, help=f"one of {', '.join(e.value for e in choices)}")
        ],  # type: ignore[valid-type]
    ) -> None:
        from datasets import disable_progress_bars

        disable_progress_bars()
        module = import_module(modules[which.name])
        typed, sys.argv = sys.argv, [f"ecgformers {name} {which.value}", *context.args]  # results say what was typed
        try:
            if name == "data":
                from ecgformers.datasets_scripts.command_line import builder_of, main

                main(builder_of(module), context.args)
            else:
                module.main(context.args)
        finally:
            sys.argv = typed

    command.__doc__ = f"{doc}\n\nWhat {argument} takes: ecgformers {name} {argument} --help."
    app.command(name, context_settings=settings, epilog=f"Example: {example}")(command)


_others(
    "train",
    TRAINING,
    "STAGE",
    "Train one stage of a model.\n\nSettings come from a YAML file, and KEY=VALUE overrides them.",
    "ecgformers train melp --config training/configs/melp.yaml data=[ptb-xl] loop.epochs=10",
)
_others(
    "evaluate",
    EVALUATION,
    "PROTOCOL",
    "Evaluate a model, or compare results.",
    "ecgformers evaluate zero-shot --model DIR --data DIR --task ptbxl_super --output results",
)
_others(
    "data",
    DATA,
    "NAME",
    "Build a data set, or push it to the Hub.",
    "ecgformers data ptb-xl build --data-dir ptb-xl/1.0.3 --output ptb_xl",
)
_others(
    "convert",
    CONVERTING,
    "NAME",
    "Convert the authors' checkpoint.",
    "ecgformers convert melp --checkpoint model.safetensors --output melp-encoder",
)


Repo = Annotated[str, typer.Option(help="on the Hub", metavar="ORG/NAME")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="check everything, list what would go, send nothing")]
MayPublish = Annotated[
    bool, typer.Option("--i-may-publish", help="the licence of what is not my own lets me publish it")
]


@app.command("publish", epilog="Example: ecgformers publish model_cards/melp-tiny-ptb-xl --repo ORG/NAME --dry-run")
def publish_model(
    model_dir: Annotated[Path, typer.Argument(help="a model's folder, with its card")],
    repo: Repo,
    private: Annotated[bool, typer.Option("--private", help="create a private repo")] = False,
    dry_run: DryRun = False,
    i_may_publish: MayPublish = False,
) -> None:
    """Send a model to the Hub, in one commit.

    Weights, processor, code, card and results; everybody can load it, with or without ecgformers.  Refused are
    pickles, NaN, a card without licence or limits, and code that does not work in a clean process.
    """
    from ecgformers.publishing import publish

    _quieten()
    url = publish(model_dir, repo, private, dry_run, i_may_publish, say=typer.echo)
    typer.echo(f"{repo}: nothing was sent" if url is None else url)


@app.command(epilog="Example: ecgformers publish-data ptb_xl --repo ORG/NAME")
def publish_data(
    folder: Annotated[Path, typer.Argument(help="a data set that `ecgformers data NAME build` built")],
    repo: Repo,
    public: Annotated[bool, typer.Option("--public", help="create a public repo, not a private one")] = False,
    i_may_publish: MayPublish = False,
) -> None:
    """Send a built data set to the Hub, in one commit."""
    from ecgformers.datasets_scripts.publishing import push

    typer.echo(push(folder, repo, public=public, i_may_publish=i_may_publish))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; an error is one line and an exit code."""
    from ecgformers.options import UsageError

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    warnings.showwarning = _show_warning  # type: ignore[assignment]  # it needs no file and line
    raised: BaseException
    try:
        app(arguments, prog_name="ecgformers")
    except UsageError as error:
        raised, code, message = error, 2, str(error)
    except KeyboardInterrupt as error:
        raised, code, message = error, 130, "stopped"
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        sys.exit(0)
    except (OSError, ValueError, ImportError) as error:
        raised, code, message = error, 1, str(error)
    except Exception as error:
        raised, code, message = error, 1, f"{type(error).__name__}: {error} (unexpected: --debug shows where)"
    else:
        return
    if debug:
        traceback.print_exception(raised)
    typer.echo(f"ecgformers: {' '.join(message.split())}", err=True)
    sys.exit(code)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    if category.__module__.startswith("ecgformers") or issubclass(category, UserWarning):
        typer.echo(f"note: {message}", err=True)


def _reading_options(lead_names: str | None, sampling_rate: float | None, units: str | None) -> dict[str, Any]:
    names = None if lead_names is None else [name.strip() for name in lead_names.split(",")]
    options = {"lead_names": names, "sampling_rate": sampling_rate, "units": units}
    return {name: value for name, value in options.items() if value is not None}


def _read(file: str, lead_names: str | None, sampling_rate: float | None, units: str | None) -> Any:
    from ecgformers import read_ecg

    return read_ecg(file, **_reading_options(lead_names, sampling_rate, units))


def _recordings(files: Sequence[str]) -> list[str]:
    from ecgformers.recordings import recordings

    return list(recordings(files))


def _existing(model: str) -> str:
    from ecgformers.options import is_missing_folder

    if is_missing_folder(model):
        raise FileNotFoundError(f"--model: there is no folder {model}")
    return model


def _progress(items: Sequence[Any]) -> Iterable[Any]:
    """A bar where somebody looks on, once two seconds have passed."""
    from tqdm import tqdm

    return tqdm(items, delay=2, disable=None, unit="ECG", leave=False)


def _answers(
    run: Any, files: Sequence[str], batch_size: int, tally: Tally, as_json: bool = False, **options: Any
) -> Iterator[tuple[str, Any]]:
    """Each usable recording with a pipeline's answer, one by one, whatever their number; of others their error."""
    paths = _recordings(files)
    answers = run(iter(paths), batch_size=batch_size, on_error="skip", **options)
    for path, answer in zip(_progress(paths), answers, strict=True):
        failed = isinstance(answer, dict)
        tally.count(not failed)
        if failed:
            _show_error(path, answer["error"], as_json)
        else:
            yield path, answer


def load_pipeline(task: str, model: str, device: str | None = None) -> Any:
    """The pipeline of a folder or repo, with the code of this package rather than the repo's."""
    from transformers import pipeline

    from ecgformers.modeling.pipelines_ecg import PIPELINES

    _quieten()
    (pipeline_class,) = [each for each in PIPELINES if each.task_name == task]
    return pipeline(task, model=_existing(model), device=device, pipeline_class=pipeline_class)


def _quieten() -> None:
    """Bars and reports of loading are for those who load."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _labels(labels: str) -> list[str] | dict[str, list[str]]:
    """What `--labels` names: a YAML file, a task (each class under its first text), or texts."""
    from ecgformers.evaluation.tasks import TASKS, find_task, prompts

    path = Path(labels)
    if path.suffix in (".yaml", ".yml"):
        import yaml

        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and all(isinstance(value, str | list) for value in content.values()):
            return content
    if labels in TASKS or path.suffix in (".yaml", ".yml"):
        return {texts[0]: texts for texts in prompts(find_task(labels)).values()}
    texts = [label.strip() for label in labels.split(",") if label.strip()]
    if not texts:
        raise ValueError("--labels: there is no label")
    return texts


def _show_error(path: str, error: str, as_json: bool = False) -> None:
    if as_json:
        typer.echo(json.dumps({"file": path, "error": error}, ensure_ascii=False))
    else:
        message = " ".join(error.split())
        typer.echo(f"error: {message if path in message else f'{path}: {message}'}", err=True)
