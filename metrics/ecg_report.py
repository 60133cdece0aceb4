"""`evaluate.load("metrics/ecg_report.py")`: generated reports beside the true ones."""

import datasets
import evaluate

from .text_overlap import bleu, rouge_l


class EcgReport(evaluate.Metric):
    """`compute(predictions=generated, references=reports)`: BLEU-1 to BLEU-4 and ROUGE-L, in [0, 1]."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="BLEU-1 to BLEU-4 over all texts, and mean ROUGE-L, on lower-case words without punctuation.",
            citation="",
            inputs_description=bleu.__doc__ or "",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references):
        scores = {f"bleu_{order}": bleu(predictions, references, order).item() for order in (1, 2, 3, 4)}
        return {**scores, "rouge_l": float(rouge_l(predictions, references).mean())}
