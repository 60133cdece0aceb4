"""`evaluate.load("metrics/ecg_classification.py")`: multi-label classification with intervals by patient."""

# ruff: noqa: F401  evaluate copies no other files than those that are named here

import datasets
import evaluate

from .bootstrap import resample_counts
from .decisions import balanced_accuracy
from .ranking import auroc
from .summary import classification_summary


class EcgClassification(evaluate.Metric):
    """`compute(predictions=scores, references=targets, classes=..., patients=...)`: see `classification_summary`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="AUROC, average precision and best F1: macro, micro and by class, with 95 % intervals.",
            citation="",
            inputs_description=classification_summary.__doc__ or "",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(datasets.Value("int8")),
                }
            ),
        )

    def _compute(self, predictions, references, **kwargs):
        return classification_summary(references, predictions, **kwargs)
