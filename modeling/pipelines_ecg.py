"""transformers pipelines that take an ECG as a file, a record or a mapping:

    import ecgformers  # makes these tasks known
    from transformers import pipeline

    pipeline("ecg-classification", model=folder)("record.hea")
    pipeline("zero-shot-ecg-classification", model=folder)("record.hea", candidate_labels=["atrial fibrillation", ...])
    pipeline("ecg-to-text", model=folder)("record.hea", max_new_tokens=60)

A list of ECGs gives a list of answers; `batch_size=` sets how many the model takes at a time.  A folder that a model
saved holds no pipeline, so that these tasks need this package; one that a pipeline saved or pushed needs nothing but
`trust_remote_code=True`.

For research use; not a medical device.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import Pipeline
from transformers.utils import ModelOutput

from .reading_ecg import read_ecg


class EcgPipeline(Pipeline):
    """Reads whatever `read_ecg` takes and prepares it with the model's own feature extractor."""

    _load_feature_extractor = True
    _load_processor = False
    _load_tokenizer = False
    _load_image_processor = False

    def preprocess(self, ecg: Any) -> dict[str, Any]:
        return self.feature_extractor(read_ecg(ecg), return_tensors="pt")

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves the pipeline's code, model and processor; with that code, loading takes `trust_remote_code=True`."""
        super().save_pretrained(save_directory, **kwargs)
        if self.processor is not None:
            self.processor.save_pretrained(save_directory)


class EcgClassificationPipeline(EcgPipeline):
    """Scores of a trained head: `[{"label", "score"}, ...]`, highest first; `top_k` limits them.

    Scores are probabilities (sigmoid of multi-label heads, softmax of single-label ones), or a regression's values.
    """

    def _sanitize_parameters(self, top_k: int | None = None) -> tuple[dict, dict, dict]:
        return {}, {}, {} if top_k is None else {"top_k": top_k}

    def _forward(self, inputs: dict[str, Any]) -> ModelOutput:
        return ModelOutput(logits=self.model(**inputs).logits.float())

    def postprocess(self, output: ModelOutput, top_k: int | None = None) -> list[dict[str, Any]]:
        config, logits = self.model.config, output["logits"][0]
        if config.problem_type == "multi_label_classification":
            logits = logits.sigmoid()
        elif (
            config.problem_type != "regression" and config.num_labels > 1
        ):  # one label is a regression, as in training
            logits = logits.softmax(-1)
        return _ranked([config.id2label[index] for index in range(config.num_labels)], logits, top_k)


class ZeroShotEcgClassificationPipeline(EcgPipeline):
    """Similarity of an ECG with texts: `[{"label", "score"}, ...]`, highest first; `top_k` limits them.

    `candidate_labels` is a list of texts, or a mapping from label to one or several texts (their mean counts).  Scores
    are the model's scaled similarities: they order the ECGs for one label, and are no probabilities.
    """

    _load_feature_extractor = False  # it is in the processor
    _load_processor = True

    def _sanitize_parameters(
        self,
        candidate_labels: Iterable[str] | Mapping[str, str | Sequence[str]] | None = None,
        top_k: int | None = None,
    ) -> tuple[dict, dict, dict]:
        limit = {} if top_k is None else {"top_k": top_k}
        if candidate_labels is None:
            return {}, {}, limit
        if isinstance(candidate_labels, str):
            raise ValueError(
                f"candidate_labels must be a list of texts, or a mapping, not the text {candidate_labels!r}"
            )
        if not isinstance(candidate_labels, Mapping):
            candidate_labels = {label: label for label in candidate_labels}
        prompts = {label: [text] if isinstance(text, str) else list(text) for label, text in candidate_labels.items()}
        if not prompts or not all(prompts.values()):
            raise ValueError("candidate_labels needs at least one label, and at least one text for each")
        return {}, {"prompts": prompts}, {"labels": list(prompts), **limit}

    def _forward(self, inputs: dict[str, Any], prompts: Mapping[str, list[str]] | None = None) -> ModelOutput:
        if prompts is None:
            raise ValueError("give candidate_labels: the texts to compare the ECG with")
        texts = [text for class_texts in prompts.values() for text in class_texts]
        tokens = self.processor(text=texts).to(self.device)
        logits = self.model(**inputs, **tokens).logits_per_ecg.float()  # (ECGs, texts)
        return ModelOutput(scores=prompt_scores(logits, [len(class_texts) for class_texts in prompts.values()]))

    def postprocess(self, output: ModelOutput, labels: list[str], top_k: int | None = None) -> list[dict[str, Any]]:
        return _ranked(labels, output["scores"][0], top_k)


class EcgToTextPipeline(EcgPipeline):
    """Writes a report: `[{"generated_text"}]`, one for each returned sequence.  Options go to `generate`."""

    _load_feature_extractor = False
    _load_processor = True

    def _sanitize_parameters(self, **options) -> tuple[dict, dict, dict]:
        return {}, options, {}

    def _forward(self, inputs: dict[str, Any], **options) -> ModelOutput:
        ids = self.model.generate(**inputs, **options)  # (ECGs x sequences, tokens)
        return ModelOutput(ids=ids.reshape(len(inputs["input_values"]), -1, ids.shape[-1]))

    def postprocess(self, output: ModelOutput) -> list[dict[str, str]]:
        texts = self.processor.batch_decode(output["ids"][0], skip_special_tokens=True)
        return [{"generated_text": text} for text in texts]


def prompt_scores(logits_per_ecg: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Zero-shot scores of classes: the mean over each class's prompts.

    Args:
        logits_per_ecg: (ECGs, prompts), a model's similarities, the prompts of a class side by side.
        counts: number of prompts of each class.

    Returns:
        (ECGs, classes).
    """
    return torch.stack([chunk.mean(-1) for chunk in logits_per_ecg.split(list(counts), -1)], -1)


def _ranked(labels: Sequence[str], scores: torch.Tensor, top_k: int | None) -> list[dict[str, Any]]:
    pairs = sorted(zip(labels, scores.tolist(), strict=True), key=lambda pair: -pair[1])
    return [{"label": label, "score": score} for label, score in pairs][:top_k]
