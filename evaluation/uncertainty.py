"""Uncertainty at work: does an EchoingECG model know when it is wrong, and what can be promised nevertheless.

    python -m ecgformers.evaluation.uncertainty --model DIR --data DIR --task ptbxl_super --output results
        [--folds 1-8//9] [--coverages 0.8 0.9] [--trials 20] [--corrupted 500] [--kept-prompts 0.5] [--teacher DIR]

Zero-shot answers to a task with classes, or to `lvef`, an ejection fraction in % (see `zero_shot_value`, also for
`--teacher`).  The uncertainty of an ECG is the total variance of its Gaussian, whose mean has length 1.

`uncertainty_TASK`: all records, and the halves with the lower and the higher uncertainty; beside the model the same
one with random weights.  The error is that the likeliest class is not among a record's labels, or the distance from
the measured value.  The area is that under risk and coverage: the mean error of the surest records at all coverages.
`prompts of lower variance` leaves out, in each class, the prompts that the model is less sure of.

`conformal_TASK`: sets of labels that hold *all* labels of a record, or intervals of the value, as often as stated
(`metrics/conformal.py`): coverage and size (share of the classes, or width) on half of the patients, calibrated on the
others, over `--trials` random halves.  Beside the model the prior, which gives everybody the same set.

`corruption_TASK`: the uncertainty of the same records with added white noise and with leads left out.

Probabilities are calibrated: zero-shot scores by logistic regression for each class, and values by a straight line,
always on other patients than those they are given to.  Figures: risk_coverage, reliability and uncertainty, PNG.

For research use; not a medical device.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoProcessor

from ecgformers.evaluation.answers import answers_to
from ecgformers.evaluation.corruption import CorruptedExtractor, Corruption
from ecgformers.evaluation.encoders import HubEncoder, encode_records, extract_features, with_random
from ecgformers.evaluation.options import EvaluationOptions, UncertaintyOptions
from ecgformers.evaluation.records import TaskData, load_task
from ecgformers.evaluation.scoring import zero_shot_scores
from ecgformers.evaluation.tables import Table
from ecgformers.evaluation.tasks import Task, find_task, prompts
from ecgformers.evaluation.uncertainty_figures import reliability_figure, risk_coverage_figure, uncertainty_figure
from ecgformers.evaluation.zero_shot_value import (
    embed_prompts,
    load_ejection_fractions,
    predict_ejection_fractions,
)
from ecgformers.metrics.bootstrap import counts_for_intervals
from ecgformers.metrics.decisions import balanced_accuracy, risk_coverage
from ecgformers.metrics.ranking import macro
from ecgformers.metrics.summary import as_figure, mean_summary
from ecgformers.modeling.modeling_echoing_ecg import uncertainty
from ecgformers.modeling.quality_ecg import EcgQualityWarning
from ecgformers.options import parse, run_command

NOISE_DB, DROPPED_LEADS = (20, 10, 5, 0), (1, 3, 6)


def run(options: UncertaintyOptions) -> Table:
    task = find_task(options.task)
    if task.is_value and task.measurement != "lvef":
        raise ValueError(f"{task.name}: values are read off texts for the ejection fraction alone: give it limits")
    if task.is_value:
        data = load_ejection_fractions(options.data, options.folds)
    else:
        data = load_task(options.data, options.task, options.folds, options.split_table)
    data = with_contrast(data.part(options.split))
    model, processor = AutoModel.from_pretrained(options.model), AutoProcessor.from_pretrained(options.model)
    if "ecg_logvar" not in getattr(model, "embedding_names", ()):
        raise ValueError(f"{options.model} holds a {type(model).__name__}, which has no Gaussians")
    encoder = HubEncoder(model, processor.feature_extractor, options.device, model.embedding_names)
    name = options.model_name
    encoders = with_random(encoder, name, options.seed)
    data, features, notes = encode_records(encoders, data, options)

    variances = {method: total_variance(each) for method, each in features.items()}
    answers = {
        method: zero_shot_answers(each.model, processor, data.task, features[method], options)
        for method, each in encoders.items()
    }

    table = uncertainty_table(data, options)
    table.notes += notes
    for method, own in answers.items():
        add_halves(table, data, method, "", own, variances[method])
    if not data.task.is_value and options.teacher is None:
        fewer = zero_shot_answers(model, processor, data.task, features[name], options, options.kept_prompts)
        add_halves(table, data, name, ", prompts of lower variance", fewer, variances[name])
    table.write()
    conformal_table(data, answers[name], variances[name], options).write()
    corrupted = {"as recorded": variances[name]}
    if options.corrupted:
        corruptions, corrupted = corruption_table(data, encoder, options)
        corruptions.write()
    draw(data, answers[name], variances[name], corrupted, options)
    return table


def with_contrast(data: TaskData) -> TaskData:
    """The same records with the complementary class of a binary task as a class."""
    if not data.task.contrast:
        return data
    task = replace(data.task, classes=data.task.prompt_classes, contrast="")
    return replace(data, task=task, targets=np.hstack([data.targets, 1 - data.targets]))


def total_variance(features: np.ndarray | torch.Tensor) -> np.ndarray:
    """(n,), of means and log-variances side by side."""
    return uncertainty(torch.as_tensor(features).chunk(2, dim=-1)[1]).double().numpy()


def zero_shot_answers(
    model: Any, processor: Any, task: Task, features: np.ndarray, options: UncertaintyOptions, kept: float = 1.0
) -> np.ndarray:
    """Scores (n, classes), or values (n, 1) in %, from means and log-variances of ECGs side by side.

    Args:
        kept: the share of each class's prompts that counts, those of lower variance.
    """
    ecg = torch.from_numpy(features)
    if task.is_value:
        return predict_ejection_fractions(model, processor, ecg, options)[:, None]
    texts = prompts(task, options.language, options.prompts)
    text = embed_prompts(model, processor, [each for own in texts.values() for each in own], options.teacher)
    if kept < 1:
        text, texts = sure_prompts(text, texts, kept)
    scores = zero_shot_scores(model, ecg, text, texts)
    return scores - scores[:, ::-1] if find_task(options.task).contrast else scores


def sure_prompts(
    text: torch.Tensor, texts: Mapping[str, list[str]], kept: float
) -> tuple[torch.Tensor, dict[str, list[str]]]:
    """The share of each class's prompts that the model is surest of, one at least, with their Gaussians."""
    variances = np.split(total_variance(text), np.cumsum([len(own) for own in texts.values()])[:-1])
    chosen = [np.sort(np.argsort(own)[: math.ceil(kept * len(own))]) for own in variances]
    rows = [part[index] for part, index in zip(text.split([len(own) for own in variances]), chosen, strict=True)]
    names = {name: [own[i] for i in index] for (name, own), index in zip(texts.items(), chosen, strict=True)}
    return torch.cat(rows), names


def parts_of_patients(patients: np.ndarray, parts: int, rng: np.random.Generator) -> np.ndarray:
    """(n,) the part that each record is in, all records of a patient in the same."""
    names, index = np.unique(patients, return_inverse=True)
    return (rng.permutation(len(names)) % parts)[index]


def calibrated(data: TaskData, answers: np.ndarray, seed: int) -> np.ndarray:
    """The answers of either half of the patients, calibrated on the other half."""
    part = parts_of_patients(data.patients, 2, np.random.default_rng(seed))
    result = np.empty_like(answers)
    for half in (0, 1):
        fit = answers_to(data.task).fit(answers[part != half], data.targets[part != half])
        result[part == half] = fit(answers[part == half])
    return result


def uncertainty_table(data: TaskData, options: UncertaintyOptions) -> Table:
    kind = answers_to(data.task)
    columns = {"error": "error", "balanced accuracy": "balanced_accuracy", **kind.columns}
    columns |= {"area under risk and coverage": "area", "uncertainty": "uncertainty"}
    table = Table("uncertainty", options, data, columns, "balanced_accuracy", ("error", "uncertainty"), data.task.name)
    table.notes.append(kind.note)
    table.notes.append("lower area: the errors are among the unsure records; uncertainty in % of the squared mean")
    return table


def add_halves(table: Table, data: TaskData, method: str, detail: str, answers: np.ndarray, variance: np.ndarray):
    """Rows of all records, and of the halves with the lower and the higher uncertainty."""
    kind, predictions = answers_to(data.task), calibrated(data, answers, table.options.seed)
    decisions = kind.decisions(predictions, data.targets)
    lower = np.argsort(np.argsort(variance, kind="stable")) < len(data) / 2
    parts = {"all records": np.full(len(data), True), "lower uncertainty": lower, "higher uncertainty": ~lower}
    for name, which in parts.items():
        values = np.full((len(data), 2), np.nan)
        values[which] = np.stack([kind.errors(predictions, data.targets), variance], axis=1)[which]
        figures = part_figures(
            data.take(which), answers[which], predictions[which], decisions[which], values[which], table.options
        )
        table.add_row(method, name + detail, figures, values)


def part_figures(
    data: TaskData,
    answers: np.ndarray,
    predictions: np.ndarray,
    decisions: np.ndarray,
    values: np.ndarray,
    options: EvaluationOptions,
) -> dict[str, Any]:
    """The figures of some records; `values` (n, 2) are their errors and uncertainties."""
    figures = mean_summary(values[:, :1], ["error"], data.patients, options.resamples, options.seed)
    figures["uncertainty"] = as_figure(values[:, 1].mean())
    figures["area"] = as_figure(risk_coverage(values[:, 0], -values[:, 1]).mean())
    counts = counts_for_intervals(data.patients, options.resamples, options.seed)
    kind = answers_to(data.task)
    figures |= kind.figures(data.targets, answers, predictions, counts)
    truth = kind.truth(data.targets)
    resampled = None if counts is None else macro(balanced_accuracy(truth, decisions, counts))
    figures["balanced_accuracy"] = as_figure(macro(balanced_accuracy(truth, decisions)), resampled)
    return figures


def conformal_table(data: TaskData, answers: np.ndarray, variance: np.ndarray, options: UncertaintyOptions) -> Table:
    """Coverage and size of sets or intervals on held-out halves of the patients, by the stated coverage."""
    columns = {"coverage": "coverage", "lowest": "lowest", "highest": "highest", "size": "size"}
    table = Table("conformal", options, data, columns, "coverage", ("coverage", "size"), data.task.name)
    size = answers_to(data.task).size
    table.notes.append(
        f"size: {size}; means over {options.trials} random halves of the patients, lowest and highest too"
    )
    methods = {table.model: (answers, None), "prior": (np.zeros_like(answers), None)}
    if data.task.is_value:
        methods[f"{table.model}, width by uncertainty"] = answers, np.sqrt(variance)
    for coverage in options.coverages:
        for method, (scores, spreads) in methods.items():
            trials = [
                conformal_trial(data, scores, spreads, coverage, options.seed + i) for i in range(options.trials)
            ]
            values = np.nanmean(trials, axis=0)  # of the trials in which a record was held out
            means = np.nanmean(trials, axis=1)  # (trials, 2)
            figures = {"coverage": means[:, 0].mean(), "size": means[:, 1].mean()}
            figures |= {"lowest": means[:, 0].min(), "highest": means[:, 0].max()}
            figures = {key: as_figure(value) for key, value in figures.items()}
            table.add_row(method, f"{100 * coverage:g} % stated", {"records": len(data), **figures}, values)
    return table


def conformal_trial(
    data: TaskData, answers: np.ndarray, spreads: np.ndarray | None, coverage: float, seed: int
) -> np.ndarray:
    """(n, 2): whether each record of a held-out half of the patients is covered, and how large its set is; NaN for the
    other half, of which one half calibrates the probabilities and the other the sets."""
    part = parts_of_patients(data.patients, 4, np.random.default_rng(seed))
    held_out, fitted, known = part < 2, part == 2, part == 3
    kind = answers_to(data.task)
    predictions = kind.fit(answers[fitted], data.targets[fitted])(answers)
    result = np.full((len(data), 2), np.nan)
    result[held_out] = kind.promises(data.targets, predictions, known, held_out, coverage, spreads)
    return result


def corruption_table(
    data: TaskData, encoder: HubEncoder, options: UncertaintyOptions
) -> tuple[Table, dict[str, np.ndarray]]:
    """The uncertainty of some records as they are, with noise, and with leads left out; and (n,) of each."""
    chosen = np.random.default_rng(options.seed).permutation(len(data))[: options.corrupted]
    data = data.take(np.sort(chosen))
    kinds = {"as recorded": Corruption()}
    kinds |= {f"noise at {level} dB": Corruption(noise_db=level) for level in NOISE_DB}
    kinds |= {f"leads dropped: {number}": Corruption(dropped_leads=number) for number in DROPPED_LEADS}
    cache, variances = options.features_folder, {}
    for name, corruption in kinds.items():
        extractor = CorruptedExtractor(encoder.feature_extractor, corruption, options.seed)
        corrupted = HubEncoder(encoder.model, extractor, encoder.device, ("ecg_logvar",))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EcgQualityWarning)  # leads with noise contradict each other
            logvar, _ = extract_features(corrupted, data.ecgs, data.rows, cache, options.batch_size)
        variances[name] = uncertainty(torch.from_numpy(logvar)).double().numpy()
    accepted = np.all(np.isfinite(list(variances.values())), axis=0)
    data, variances = data.take(accepted), {name: values[accepted] for name, values in variances.items()}
    columns = {"uncertainty": "uncertainty", "share that is more uncertain than recorded": "raised"}
    table = Table("corruption", options, data, columns, "uncertainty", list(columns.values()), data.task.name)
    for name, values in variances.items():
        raised = np.stack([values, values > variances["as recorded"]], axis=1).astype(float)
        figures = mean_summary(raised[:, 1:], ["raised"], data.patients, options.resamples, options.seed)
        table.add_row(table.model, name, {**figures, "uncertainty": as_figure(values.mean())}, raised)
    return table, variances


def draw(
    data: TaskData,
    answers: np.ndarray,
    variance: np.ndarray,
    corrupted: Mapping[str, np.ndarray],
    options: UncertaintyOptions,
):
    """risk_coverage_TASK_MODEL.png, uncertainty_TASK_MODEL.png and, for classes, reliability_TASK_MODEL.png."""
    task, title = data.task, f"{options.model_name}, {data.task.name}"
    predictions = calibrated(data, answers, options.seed)
    kind = answers_to(task)
    error = kind.errors(predictions, data.targets)
    curves = {
        "by uncertainty": risk_coverage(error, -variance),
        "best order": risk_coverage(error, -error),
        "any order": risk_coverage(error, np.zeros(len(error))),
    }
    figures = {"risk_coverage": risk_coverage_figure(title, kind.error, curves)}
    figures["uncertainty"] = uncertainty_figure(title, variance, corrupted)
    if not task.is_value:
        figures["reliability"] = reliability_figure(title, data.targets, {"calibrated": predictions})
    for name, figure in figures.items():
        figure.savefig(options.output / f"{name}_{task.name}_{options.model_name}.png", dpi=150)


def main(arguments: Sequence[str] | None = None) -> Table:
    return run(parse(UncertaintyOptions, __doc__, arguments))


if __name__ == "__main__":
    run_command(main)
