"""Zero-shot classification: an ECG's score for a class is its mean similarity with texts that describe the class.

    python -m ecgformers.evaluation.zero_shot --model DIR --data DIR --task ptbxl_super --output results \\
        [--folds 1-7/8/9] [--language en de] [--prompts FILE]

Beside it the same model with random weights, and the prior (no text, no ECG: the same score for everybody).  Inside a
training loop, `zero_shot_auroc` does the same with batches that are prepared already.

For research use; not a medical device.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoProcessor

from ecgformers.evaluation.encoders import HubEncoder, encode_records, with_random
from ecgformers.evaluation.tables import ClassificationTable, argument_parser, load_task, run
from ecgformers.evaluation.tasks import LANGUAGES, prompts
from ecgformers.metrics.ranking import auroc, macro
from ecgformers.modeling.losses_ecg import pairwise_distance
from ecgformers.modeling.pipelines_ecg import prompt_scores

ECG_INPUTS = ("input_values", "lead_mask", "sample_mask")
TEXTS_A_BATCH, ECGS_A_BATCH = 64, 1024


def main(arguments: list[str] | None = None) -> ClassificationTable:
    parser = argument_parser(__doc__)
    parser.add_argument("--language", nargs="+", default=LANGUAGES, help="of the prompts")
    parser.add_argument("--prompts", type=Path, help="a YAML file of prompts instead of ours")
    options = parser.parse_args(arguments)
    data = load_task(options.data, options.task, options.folds, options.split_table)
    test = data.part(options.split)
    texts = prompts(test.task, tuple(options.language), options.prompts)
    model, processor = AutoModel.from_pretrained(options.model), AutoProcessor.from_pretrained(options.model)
    if not hasattr(model, "get_text_features"):
        raise ValueError(f"{options.model} holds a {type(model).__name__}, which has no text tower")
    encoder = HubEncoder(model, processor.feature_extractor, options.device, embedding_names(model))
    encoders = with_random(encoder, Path(options.model).name, options.seed)
    test, features, notes = encode_records(encoders, test, options)

    table = ClassificationTable("zero_shot", options, test)
    table.notes += [f"{sum(map(len, texts.values()))} prompts, {' and '.join(options.language)}", *notes]
    for name, each in encoders.items():
        text_features = embed_texts(each.model, processor, texts)
        scores = zero_shot_scores(each.model, torch.from_numpy(features[name]), text_features, texts)
        if test.task.contrast:
            scores = scores[:, :1] - scores[:, 1:]
        table.add(name, scores, "no labels")
    table.add("prior", np.zeros(test.targets.shape), "the same score for all")
    table.write()
    return table


def embedding_names(model: Any) -> tuple[str, ...]:
    """The outputs of the ECG tower that texts are compared with; the text tower's are named alike."""
    return ("ecg_embeds", "ecg_logvar") if model.config.model_type == "echoing_ecg" else ("ecg_embeds",)


@torch.no_grad()
def embed_texts(model: Any, processor: Any, texts: Mapping[str, list[str]]) -> torch.Tensor:
    """The embeddings of all prompts, class by class: (prompts, features)."""
    names = [name.replace("ecg", "text") for name in embedding_names(model)]
    prompts_of_all = [text for class_texts in texts.values() for text in class_texts]
    features = []
    for start in range(0, len(prompts_of_all), TEXTS_A_BATCH):
        inputs = processor(text=prompts_of_all[start : start + TEXTS_A_BATCH], return_tensors="pt")
        output = model.get_text_features(**inputs.to(model.device))
        features.append(torch.cat([output[name] for name in names], dim=-1).float().cpu())
    return torch.cat(features)


def similarity(model: Any, ecg: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """(ECGs, texts): minus the distance where embeddings are Gaussians, the cosine otherwise."""
    if len(embedding_names(model)) == 2:
        ecg_mean, ecg_logvar = ecg.chunk(2, dim=-1)
        text_mean, text_logvar = text.chunk(2, dim=-1)
        return -pairwise_distance(ecg_mean, ecg_logvar, text_mean, text_logvar, model.config.distance)
    return ecg @ text.T


def zero_shot_scores(model: Any, ecg: torch.Tensor, text: torch.Tensor, texts: Mapping[str, list[str]]) -> np.ndarray:
    """Scores (n, classes): mean similarity with each class's prompts.

    Args:
        ecg: (n, features), the outputs `embedding_names(model)` side by side.
        text: (prompts, features), from `embed_texts`.
        texts: the prompts of every class.
    """
    counts = [len(class_texts) for class_texts in texts.values()]
    chunks = ecg.split(ECGS_A_BATCH)
    return torch.cat([prompt_scores(similarity(model, chunk, text), counts) for chunk in chunks]).double().numpy()


@torch.no_grad()
def embed_prepared(model: Any, batches: Iterable[Mapping[str, Any]]) -> torch.Tensor:
    """The outputs `embedding_names(model)` of prepared ECGs, side by side: (ECGs, features)."""
    features = []
    for batch in batches:
        inputs = {name: batch[name].to(model.device) for name in ECG_INPUTS if name in batch}
        output = model.get_ecg_features(**inputs)
        features.append(torch.cat([output[name] for name in embedding_names(model)], dim=-1).float().cpu())
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


if __name__ == "__main__":
    run(main)
