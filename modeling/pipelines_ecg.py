"""transformers pipelines that take an ECG as a file, a record or an array:

    pipeline("ecg-classification", model=folder)("record.hea")
    pipeline("zero-shot-ecg-classification", model=folder)("record.hea", candidate_labels=["atrial fibrillation", ...])
    pipeline("ecg-to-text", model=folder)("record.hea")

For research use; not a medical device.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForSpeechSeq2Seq, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .reading_ecg import read_ecg


class EcgPipeline(Pipeline):
    """Reads whatever `read_ecg` takes and prepares it with the model's own processor."""

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False

    def _sanitize_parameters(self, **kwargs) -> tuple[dict, dict, dict]:
        return {}, {}, kwargs

    def preprocess(self, ecg: Any) -> dict[str, Any]:
        return self.processor(read_ecg(ecg), return_tensors="pt")

    def _forward(self, inputs: dict[str, Any]) -> Any:
        return self.model(**inputs)


class EcgClassificationPipeline(EcgPipeline):
    """Scores of a trained head: `[{"label", "score"}, ...]`, highest first; `top_k` limits them.

    Scores are probabilities (sigmoid of multi-label heads, softmax of single-label ones), or a regression's values.
    """

    def postprocess(self, output: Any, top_k: int | None = None) -> list[dict[str, Any]]:
        logits, problem = output.logits[0].float(), self.model.config.problem_type
        if problem == "multi_label_classification":
            logits = logits.sigmoid()
        elif problem != "regression":
            logits = logits.softmax(-1)
        labels = self.model.config.id2label
        scores = [{"label": labels[index], "score": score} for index, score in enumerate(logits.tolist())]
        return sorted(scores, key=lambda entry: -entry["score"])[:top_k]


def prompt_scores(logits_per_ecg: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Zero-shot scores of classes: the mean over each class's prompts.

    Args:
        logits_per_ecg: (ECGs, prompts), a model's similarities, the prompts of a class side by side.
        counts: number of prompts of each class.

    Returns:
        (ECGs, classes).
    """
    return torch.stack([chunk.mean(-1) for chunk in logits_per_ecg.split(list(counts), -1)], -1)


class ZeroShotEcgClassificationPipeline(EcgPipeline):
    """Similarity of an ECG with texts: `[{"label", "score"}, ...]`, highest first.

    `candidate_labels` is a list of texts, or a mapping from label to one or several texts (their mean counts).  Scores
    are the model's scaled similarities: they order the ECGs for one label, and are no probabilities.
    """

    def _sanitize_parameters(self, candidate_labels: Any = None, **kwargs) -> tuple[dict, dict, dict]:
        if candidate_labels is None:
            return {}, {}, kwargs
        if not isinstance(candidate_labels, Mapping):
            candidate_labels = {label: [label] for label in candidate_labels}
        prompts = {label: [text] if isinstance(text, str) else list(text) for label, text in candidate_labels.items()}
        if not prompts or not all(prompts.values()):
            raise ValueError("candidate_labels needs at least one label, and at least one text for each")
        return {"prompts": prompts}, {}, {"prompts": prompts, **kwargs}

    def preprocess(self, ecg: Any, prompts: dict[str, list[str]] | None = None) -> dict[str, Any]:
        if prompts is None:
            raise ValueError("give candidate_labels: the texts to compare the ECG with")
        texts = [text for class_texts in prompts.values() for text in class_texts]
        return self.processor(read_ecg(ecg), text=texts, return_tensors="pt")

    def postprocess(
        self, output: Any, prompts: dict[str, list[str]], top_k: int | None = None
    ) -> list[dict[str, Any]]:
        scores = prompt_scores(output.logits_per_ecg.float(), [len(texts) for texts in prompts.values()])[0].tolist()
        ranked = sorted(zip(prompts, scores, strict=True), key=lambda entry: -entry[1])
        return [{"label": label, "score": score} for label, score in ranked][:top_k]


class EcgToTextPipeline(EcgPipeline):
    """Writes a report: `[{"generated_text"}]`, one for each returned sequence.  Options go to `generate`."""

    def _sanitize_parameters(self, **options) -> tuple[dict, dict, dict]:
        return {}, options, {}

    def _forward(self, inputs: dict[str, Any], **options) -> torch.Tensor:
        return self.model.generate(**inputs, **options)

    def postprocess(self, ids: torch.Tensor) -> list[dict[str, str]]:
        return [{"generated_text": text} for text in self.processor.batch_decode(ids, skip_special_tokens=True)]


for _task, _pipeline, _auto_class in (
    ("ecg-classification", EcgClassificationPipeline, AutoModelForSequenceClassification),
    ("zero-shot-ecg-classification", ZeroShotEcgClassificationPipeline, AutoModel),
    ("ecg-to-text", EcgToTextPipeline, AutoModelForSpeechSeq2Seq),
):
    PIPELINE_REGISTRY.register_pipeline(_task, pipeline_class=_pipeline, pt_model=_auto_class)

__all__ = [
    "EcgClassificationPipeline",
    "EcgPipeline",
    "EcgToTextPipeline",
    "ZeroShotEcgClassificationPipeline",
    "prompt_scores",
]
