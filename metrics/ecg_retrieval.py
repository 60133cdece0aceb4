"""`evaluate.load("metrics/ecg_retrieval.py")`: recall@k of a similarity matrix."""

import datasets
import evaluate
import numpy as np

from .retrieval import match_ranks, recall_at_k


class EcgRetrieval(evaluate.Metric):
    """`compute(predictions=similarity, references=matches, ks=(1, 5, 10))`: a row is a query, a column a candidate."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of the queries that find a match among the first k candidates.",
            citation="",
            inputs_description=match_ranks.__doc__ or "",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(datasets.Value("bool")),
                }
            ),
        )

    def _compute(self, predictions, references, ks=(1, 5, 10)):
        ranks = match_ranks(predictions, references)
        unmatched = int(np.isnan(ranks).sum())
        recalls = {f"recall@{k}": recall_at_k(ranks, k).item() for k in ks} if unmatched < len(ranks) else {}
        return {**recalls, "queries_without_match": unmatched}
