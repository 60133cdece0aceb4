"""A classifier of all PTB-XL statements, from `training.train_classifier`: the statements, and what follows of them.

    python -m ecgformers.evaluation.classifier --model DIR --data DIR --output results [--seeds DIR DIR]
        [--folds 1-7/8/9] [--leads I]

One table for each of `ptbxl_all`, `ptbxl_super`, `ptbxl_sub`, `ptbxl_form` and `ptbxl_rhythm`: AUROC, average
precision, balanced accuracy with the thresholds of best F1 on the validation records, Brier score and calibration
error, means over the classes, and over the seeds where `--seeds` names more.  A superclass's probability is that any
of its statements is true.  Then the AUROC by sex and age.  With `--leads` the model sees those alone (and the limb
leads that follow from them).

For research use; not a medical device.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModelForSequenceClassification

from ecgformers.evaluation.encoders import HubEncoder, encode_records
from ecgformers.evaluation.options import ClassifierOptions
from ecgformers.evaluation.records import TaskData, load_task
from ecgformers.evaluation.scoring import statement_scores
from ecgformers.evaluation.tables import ClassificationTable, write_json
from ecgformers.evaluation.tasks import TASKS, words
from ecgformers.metrics.ranking import auroc, best_thresholds, macro
from ecgformers.metrics.summary import format_figure
from ecgformers.modeling.record_ecg import EcgRecord
from ecgformers.options import parse, run_command

TASK_NAMES = ("ptbxl_all", "ptbxl_super", "ptbxl_sub", "ptbxl_form", "ptbxl_rhythm")
COLUMNS = {
    "macro AUROC": "auroc_macro",
    "macro AP": "average_precision_macro",
    "balanced accuracy": "balanced_accuracy_macro",
    "Brier": "brier_score_macro",
    "ECE": "calibration_error_macro",
}
AGES = {"under 40": (0, 40), "40 to 60": (40, 60), "60 to 75": (60, 75), "75 and above": (75, 200)}


class Classifier(HubEncoder):
    """A model's logits, of recordings that have all leads or `leads` alone."""

    def __init__(self, folder: str, device: str | None, leads: Sequence[str]):
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        missing = {"missing_leads": "zero_fill"} if leads else {}
        super().__init__(model, AutoFeatureExtractor.from_pretrained(folder, **missing), device, ("logits",))
        self.leads = leads
        order = {word: index for index, word in model.config.id2label.items()}
        expected = words(TASKS["ptbxl_all"]).values()
        if unknown := [word for word in expected if word not in order]:
            raise ValueError(
                f"{folder} has no label {', '.join(unknown)}: it is no classifier of all PTB-XL statements"
            )
        self.columns = [order[word] for word in expected]
        self.temperature = getattr(model.config, "logit_temperature", 1.0)

    def encode(self, ecgs: Sequence[EcgRecord]) -> torch.Tensor:
        return super().encode([self.only_leads(ecg) for ecg in ecgs] if self.leads else ecgs)

    def only_leads(self, ecg: EcgRecord) -> EcgRecord:
        kept = [index for index, name in enumerate(ecg.lead_names) if name in self.leads]
        return replace(ecg, signal=ecg.signal[kept], lead_names=tuple(ecg.lead_names[index] for index in kept))

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        return super().fingerprint + "-".join(self.leads)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """(n, labels of the model) -> (n, statements), in the order of `ptbxl_all`."""
        scaled = torch.from_numpy(logits[:, self.columns]).double() / self.temperature
        return scaled.sigmoid().numpy()


def run(options: ClassifierOptions) -> dict[str, ClassificationTable]:
    data = load_task(options.data, "ptbxl_all", options.folds)
    classifiers = {
        folder: Classifier(folder, options.device, options.leads) for folder in (options.model, *options.seeds)
    }
    runs: dict[str, list[np.ndarray]] = {}
    kept: dict[str, TaskData] = {}
    notes: list[str] = []
    for split in ("validation", options.split):
        kept[split], logits, refused = encode_records(classifiers, data.part(split), options)
        runs[split] = [each.probabilities(logits[folder]) for folder, each in classifiers.items()]
        notes += [note for note in refused if "refused" in note]

    protocol = f"{len(classifiers)} seeds" if options.seeds else "one seed"
    if options.leads:
        protocol += f", leads {' '.join(options.leads)} alone"
    tables = {}
    for name in TASK_NAMES:
        validation, chosen = task_part(kept["validation"], name)
        test, takes_part = task_part(kept[options.split], name)
        thresholds = [
            best_thresholds(validation.targets, statement_scores(run, test.task)[chosen]) for run in runs["validation"]
        ]
        scores = np.stack([statement_scores(run, test.task)[takes_part] for run in runs[options.split]])
        table = tables[name] = ClassificationTable("classifier", options, test)
        table.columns = COLUMNS
        table.notes += notes
        table.add(options.model_name, scores, protocol, thresholds=np.stack(thresholds), are_probabilities=True)
        table.notes += [f"thresholds: of best F1 on {len(validation)} validation records", *row_notes(table.rows[0])]
        table.write()
    write_slices(options, kept[options.split], runs[options.split])
    return tables


def task_part(data: TaskData, name: str) -> tuple[TaskData, np.ndarray]:
    """Those records of `ptbxl_all` that take part in another task of PTB-XL, with its labels, and which they are."""
    task = TASKS[name]
    targets = statement_scores(data.targets, task)
    takes_part = np.asarray(targets.any(1))
    return replace(data.take(takes_part), task=task, targets=targets[takes_part]), takes_part


def row_notes(row: Mapping[str, Any]) -> list[str]:
    """The figure of every seed where there are several, the calibration error of every class where there are few."""
    notes = []
    by_seed = [format_figure({"value": value, "low": None, "high": None}) for value in row["auroc_macro_of_runs"]]
    if len(by_seed) > 1:
        notes.append(f"macro AUROC by seed: {', '.join(by_seed)}")
    if len(row["classes"]) < 10:
        errors = (f"{name} {each['calibration_error']['value']:.3f}" for name, each in row["classes"].items())
        notes.append(f"calibration error by class: {', '.join(errors)}")
    return notes


def write_slices(options: ClassifierOptions, data: TaskData, runs: Sequence[np.ndarray]):
    """Macro AUROC of every task by sex and age, with counts: a table and `classifier_slices_MODEL.json`."""
    rows = data.ecgs.with_format(None).select_columns(["age", "sex"]).select(data.rows)
    ages = np.array([np.nan if age is None else age for age in rows["age"]], dtype=float)
    sexes = np.array([sex or "" for sex in rows["sex"]])
    slices = {sex: sexes == sex for sex in sorted(set(sexes) - {""})}
    slices |= {name: (ages >= low) & (ages < high) for name, (low, high) in AGES.items()}
    slices = {name: chosen for name, chosen in slices.items() if chosen.any()}
    if not slices:
        print("No record tells age or sex: there are no figures by them.")
        return
    header = ("records", *TASK_NAMES)
    lines = [f"| | {' | '.join(header)} |", "|---" * (len(header) + 1) + "|"]
    figures: dict[str, dict[str, Any]] = {}
    for slice_name, chosen in slices.items():
        figures[slice_name] = {"records": int(chosen.sum())}
        for name in TASK_NAMES:
            test, takes_part = task_part(data, name)
            part = chosen[takes_part]
            scores = [statement_scores(run, test.task)[takes_part][part] for run in runs]
            values = [macro(auroc(test.targets[part], each)) for each in scores] if part.any() else [np.nan]
            value = float(np.mean(values))
            figures[slice_name][name] = None if np.isnan(value) else value
        cells = [figures[slice_name][name] for name in TASK_NAMES]
        shown = ["–" if cell is None else f"{100 * cell:.1f}" for cell in cells]
        lines.append(f"| {slice_name} | {figures[slice_name]['records']} | {' | '.join(shown)} |")
    print("\n".join(["### macro AUROC by sex and age, in %", "", *lines]))
    write_json(options.output / f"classifier_slices_{options.model_name}.json", figures)


def main(arguments: Sequence[str] | None = None) -> dict[str, ClassificationTable]:
    return run(parse(ClassifierOptions, __doc__, arguments))


if __name__ == "__main__":
    run_command(main)
