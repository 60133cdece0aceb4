"""`evaluate.load("metrics/ecg_selection.py")`: does a model know when it is wrong."""

# ruff: noqa: F401  evaluate copies no other files than those that are named here

import datasets
import evaluate

from .decisions import area_under_risk_coverage
from .ranking import check_scores


class EcgSelection(evaluate.Metric):
    """`compute(predictions=confidences, references=losses)`: area under the risk-coverage curve, lower is better."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean loss of the most confident records, averaged over all coverages.",
            citation="",
            inputs_description=area_under_risk_coverage.__doc__ or "",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions, references):
        return {"area_under_risk_coverage": area_under_risk_coverage(references, predictions)}
