"""The options of every evaluation, for Python and for the command line alike.

from ecgformers.evaluation import zero_shot
from ecgformers.evaluation.options import ZeroShotOptions

table = zero_shot.run(ZeroShotOptions(model="models/melp", data="ptb_xl", task="ptbxl_super", output="results"))
"""

from dataclasses import dataclass
from pathlib import Path

from ecgformers.datasets_scripts.rows import SPLITS
from ecgformers.evaluation.tasks import LANGUAGES, TASKS
from ecgformers.options import Options, at_least_one, is_missing_folder, option, percent


def is_factory(model: str) -> bool:
    """Whether a model's name is MODULE:FACTORY, an outside encoder's (see `encoders`)."""
    return ":" in model and not Path(model).exists()


def short_name(model: str) -> str:
    """The last part of a model's name, which stands in tables and in the names of files."""
    return Path(model).name or Path(model).resolve().name


def check_encoder(model: str) -> None:
    """A folder, a name on the Hub or MODULE:FACTORY; a folder that is not there is no wrong usage."""
    if is_missing_folder(model):
        raise FileNotFoundError(f"--model: there is no folder {model}")


def check_model(model: str) -> None:
    """As `check_encoder`, where an encoder's features alone do not do."""
    if is_factory(model):
        raise OSError(f"--model: {model} gives features alone; here a model's folder or its name on the Hub is needed")
    check_encoder(model)


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(Options):
    model: str = option("a folder, or a name on the Hub", check=check_model)
    data: str = option("built with datasets_scripts: a folder or a name on the Hub")
    output: Path = option("the folder of results")
    cache: Path | None = option("the folder of computed features; by default OUTPUT/features", None)
    split: str = option("the part to evaluate on", "test", choices=SPLITS)
    folds: str | None = option("TRAIN/VALIDATION/TEST, e.g. 1-8/9/10, 1-7/8/9 or 1-8//9; see splits.py", None)
    batch_size: int = option("recordings at a time", 64, check=at_least_one)
    device: str | None = option("of torch; by default a GPU where there is one", None)
    resamples: int = option("of the patients, for 95 % intervals; 0 for none", 1000)
    seed: int = option("of everything that is drawn", 0)
    dataset_id: str | None = option("name of the data on the Hub, for .eval_results, if --data is a folder", None)

    @property
    def model_name(self) -> str:
        return short_name(self.model)

    @property
    def features_folder(self) -> Path:
        """Where computed features are kept."""
        return self.cache or self.output / "features"


@dataclass(frozen=True, kw_only=True)
class TaskOptions(EvaluationOptions):
    task: str = option(f"a YAML file, or one of {', '.join(TASKS)}", metavar="TASK")
    split_table: tuple[str, ...] = option("for tasks split by tables", (), metavar="SPLIT=CSV")


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(EvaluationOptions):
    model: str = option("a folder, a name on the Hub, or MODULE:FACTORY (encoders.py)", check=check_encoder)
    features: tuple[str, ...] = option(
        "outputs of the model that are read, side by side, e.g. pooler_output mean_state",
        ("pooler_output",),
        metavar="OUTPUT",
    )


@dataclass(frozen=True, kw_only=True)
class PromptOptions(EvaluationOptions):
    language: tuple[str, ...] = option("of the prompts", LANGUAGES)
    prompts: Path | None = option("a YAML file of prompts instead of the task's own", None)


@dataclass(frozen=True, kw_only=True)
class ZeroShotOptions(PromptOptions, TaskOptions):
    """See `zero_shot`."""


@dataclass(frozen=True, kw_only=True)
class ZeroShotValueOptions(PromptOptions):
    """See `zero_shot_value`."""

    teacher: str | None = option("an EchoCLIP whose text tower reads the prompts, instead of the model's own", None)


@dataclass(frozen=True, kw_only=True)
class UncertaintyOptions(ZeroShotValueOptions, TaskOptions):
    """See `uncertainty`."""

    coverages: tuple[float, ...] = option("of conformal sets", (0.8, 0.9))
    trials: int = option("random halves of patients for conformal sets", 20, check=at_least_one)
    corrupted: int = option("records to add noise to and drop leads of; 0: none", 500)
    kept_prompts: float = option("share of each class's prompts that is kept", 0.5)


@dataclass(frozen=True, kw_only=True)
class LinearProbeOptions(FeatureOptions, TaskOptions):
    """See `linear_probe`."""

    shares: tuple[float, ...] = option("of training labels, in %", (1, 10, 100), check=percent)
    seeds: int = option("draws of each share below 100 %", 3, check=at_least_one)


@dataclass(frozen=True, kw_only=True)
class ClassifierOptions(EvaluationOptions):
    """See `classifier`."""

    seeds: tuple[str, ...] = option("folders of the same model trained with other seeds", (), metavar="FOLDER")
    leads: tuple[str, ...] = option("the only leads that the model sees; by default all", (), metavar="LEAD")


@dataclass(frozen=True, kw_only=True)
class FewShotOptions(FeatureOptions, TaskOptions):
    """See `few_shot`."""

    shots: tuple[int, ...] = option("records of every class", (1, 4, 16, 64), check=at_least_one)
    seeds: int = option("draws", 5, check=at_least_one)
    penalty: float = option("on the squared weights, see probing.py", 0.1)


@dataclass(frozen=True, kw_only=True)
class TransferOptions(FeatureOptions, TaskOptions):
    """See `transfer`."""

    test_data: str = option("the data set to test on")
    test_task: str = option("its task, as --task", metavar="TASK")
    test_folds: str | None = option("as --folds, for the test data", None)
    test_split_table: tuple[str, ...] = option("as --split-table", (), metavar="SPLIT=CSV")
    same: tuple[str, ...] = option("classes that mean the same", (), metavar="TEST=TRAINING")


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions(FeatureOptions):
    """See `retrieval`."""

    echo: Path | None = option("Gaussians of echo studies, from training.echo.extract_features", None)


@dataclass(frozen=True, kw_only=True)
class ReportGenerationOptions(EvaluationOptions):
    """See `report_generation`."""

    limit: int | None = option("so many recordings of the split, drawn at random", None, check=at_least_one)
    max_new_tokens: int = option("of a report", 64)
    num_beams: int = option("of the search", 1)


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(TaskOptions):
    """See `finetune`."""

    share: float = option("of the training labels, in %", 100, check=percent)
    epochs: int = option("at most", 20)
    learning_rate: float = option("of the encoder; see --layer-decay", 1e-3)
    head_learning_rate: float = option("of the new head", 1e-2)
    layer_decay: float = option("1: the same rate in all layers", 0.8)
    weight_decay: float = option("of AdamW", 0.01)
    patience: int = option("epochs without a better one before training stops", 5)
    balance: bool = option("weight the positives of rare classes up", False)
    lora: int = option("train adapters of this rank (needs peft)", 0, metavar="RANK")
    lead_drop: float = option("probability that training leaves out a lead", 0.1)
    shift: float = option("largest random shift in training, seconds", 1.0)
    bf16: bool = option("mixed precision", False)
    num_workers: int = option("processes that load batches", 0)
    skip_random: bool = option("no second training from random weights", False)


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Options):
    """See `compare`."""

    first: Path = option("a result, NAME.json", positional=True)
    second: Path = option("what it is compared with", positional=True)
    output: Path | None = option("a folder for the comparison; by default it is printed alone", None)
    rows: tuple[str, str] | None = option(
        'two rows to compare, each "METHOD, PROTOCOL"', None, metavar=("FIRST", "SECOND")
    )
    resamples: int = option("of the patients", 1000)
    seed: int = option("of the resamples", 0)


@dataclass(frozen=True, kw_only=True)
class LeaderboardOptions(Options):
    """See `leaderboard`."""

    config: Path = option("a YAML file, see above")
    output: Path = option("the folder of results and of the leaderboard")
