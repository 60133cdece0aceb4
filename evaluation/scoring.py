"""Scores of ECGs by texts: all that a training loop needs to see how far zero-shot classification has come.

texts = prompts(task)                                       # class -> texts, see `tasks`
ecg, text = embed_prepared(model, batches), embed_texts(model, processor, texts)
scores = zero_shot_scores(model, ecg, text, texts)          # (ECGs, classes)
figure = zero_shot_auroc(model, processor, batches, targets, texts)     # the same and their macro AUROC
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from ecgformers.datasets_scripts.preparing import ECG_COLUMNS
from ecgformers.evaluation.tasks import TASKS, Task
from ecgformers.metrics.ranking import auroc, macro
from ecgformers.modeling.pipelines_ecg import prompt_scores

TEXTS_A_BATCH, ECGS_A_BATCH = 64, 1024


@torch.no_grad()
def embed_texts(model: Any, processor: Any, texts: Mapping[str, list[str]]) -> torch.Tensor:
    """The embeddings of all prompts, class by class: (prompts, features)."""
    names = [name.replace("ecg", "text") for name in model.embedding_names]
    prompts_of_all = [text for class_texts in texts.values() for text in class_texts]
    features = []
    for start in range(0, len(prompts_of_all), TEXTS_A_BATCH):
        inputs = processor(text=prompts_of_all[start : start + TEXTS_A_BATCH], return_tensors="pt")
        output = model.get_text_features(**inputs.to(model.device))
        features.append(torch.cat([output[name] for name in names], dim=-1).float().cpu())
    return torch.cat(features)


@torch.no_grad()
def similarity(model: Any, ecg: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """The model's logits (ECGs, texts or echo studies) of features side by side, see its `match_logits`."""

    def named(features: torch.Tensor, tower: str) -> dict[str, torch.Tensor]:
        names = [name.replace("ecg", tower) for name in model.embedding_names]
        return dict(zip(names, features.to(model.device).chunk(len(names), dim=-1), strict=True))

    return model.match_logits(named(ecg, "ecg"), named(text, "text")).cpu()


def zero_shot_scores(model: Any, ecg: torch.Tensor, text: torch.Tensor, texts: Mapping[str, list[str]]) -> np.ndarray:
    """Scores (n, classes): mean similarity with each class's prompts.

    Args:
        ecg: (n, features), the outputs `model.embedding_names` side by side.
        text: (prompts, features), from `embed_texts`.
        texts: the prompts of every class.
    """
    counts = [len(class_texts) for class_texts in texts.values()]
    chunks = ecg.split(ECGS_A_BATCH)
    return torch.cat([prompt_scores(similarity(model, chunk, text), counts) for chunk in chunks]).double().numpy()


@torch.no_grad()
def embed_prepared(model: Any, batches: Iterable[Mapping[str, Any]]) -> torch.Tensor:
    """The outputs `model.embedding_names` of prepared ECGs, side by side: (ECGs, features)."""
    features = []
    for batch in batches:
        inputs = {name: batch[name].to(model.device) for name in ECG_COLUMNS if name in batch}
        output = model.get_ecg_features(**inputs)
        features.append(torch.cat([output[name] for name in model.embedding_names], dim=-1).float().cpu())
    return torch.cat(features)


@torch.no_grad()
def zero_shot_auroc(
    model: Any,
    processor: Any,
    batches: Iterable[Mapping[str, Any]],
    targets: np.ndarray,
    texts: Mapping[str, list[str]],
) -> float:
    """Macro AUROC of zero-shot scores, cheap enough for several times an epoch; the model keeps its mode.

    Args:
        batches: prepared inputs of the validation records (`input_values`, `lead_mask`, `sample_mask`; anything else
            in them is ignored), in order.
        targets: (n, classes) of 0 and 1, in that order.
        texts: prompts of every class, in the order of `targets`; see `evaluation.tasks.prompts`.

    Returns:
        NaN if no class has both positives and negatives.
    """
    was_training = model.training
    model.eval()
    scores = zero_shot_scores(model, embed_prepared(model, batches), embed_texts(model, processor, texts), texts)
    model.train(was_training)
    return float(macro(auroc(targets, scores)))


def statement_scores(probabilities: np.ndarray, task: Task) -> np.ndarray:
    """Scores of a task's classes from those of the statements that stand for them: (n, statements) -> (n, classes).

    A class's probability is that any of its statements is true, were they independent; labels of 0 and 1 become the
    class's labels.

    Args:
        probabilities: in the order of the classes of `ptbxl_all`.
    """
    order = {code: index for index, code in enumerate(TASKS["ptbxl_all"].classes)}
    members = [[order[code] for code in task.statements[name]] for name in task.classes]
    return np.stack([1 - np.prod(1 - probabilities[:, member], axis=1) for member in members], axis=1)
