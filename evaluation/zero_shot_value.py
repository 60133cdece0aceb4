"""Zero-shot ejection fraction: which of the prompts for 0 to 100 % is an ECG most similar to.

    python -m ecgformers.evaluation.zero_shot_value --model DIR --data DIR --output results [--teacher DIR]

Each wording of the task `lvef` is filled in with 0 to 100 %, the candidates are sorted by similarity,
and of the first fifth the median counts (EchoCLIP's rule, Christensen et al. 2024).  With `--teacher`, an EchoCLIP,
its text tower reads the prompts: an EchoingECG model trained on its echo embeddings lives in the same space, while the
model's own text tower has only read reports of ECGs.  Data are those with a measured ejection fraction (`music`,
`mimic_iv_echo`).  Beside the model the same one with random weights, and the median of the training split for all.

For research use; not a medical device.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from transformers import AutoModel, AutoProcessor, AutoTokenizer

from ecgformers.evaluation.encoders import HubEncoder, encode_records, with_random
from ecgformers.evaluation.options import ZeroShotValueOptions
from ecgformers.evaluation.records import TaskData, load_records
from ecgformers.evaluation.scoring import ECGS_A_BATCH, TEXTS_A_BATCH, embed_texts, similarity
from ecgformers.evaluation.tables import Table
from ecgformers.evaluation.tasks import TASKS, ejection_fraction_prompts, labels
from ecgformers.evaluation.zero_shot_echo import zero_shot_value
from ecgformers.metrics.bootstrap import counts_for_intervals
from ecgformers.metrics.decisions import balanced_accuracy
from ecgformers.metrics.summary import as_figure, mean_summary
from ecgformers.options import parse, run_command

LIMITS = (40, 50)  # %, of the tasks lvef_below_40 and lvef_below_50


def run(options: ZeroShotValueOptions) -> Table:
    data = load_ejection_fractions(options.data, options.folds)
    test = data.part(options.split)
    model, processor = AutoModel.from_pretrained(options.model), AutoProcessor.from_pretrained(options.model)
    encoder = HubEncoder(model, processor.feature_extractor, options.device, model.embedding_names)
    encoders = with_random(encoder, options.model_name, options.seed)
    test, features, notes = encode_records(encoders, test, options)

    columns = {"mean absolute error": "absolute_error", "rank correlation": "rank_correlation"}
    columns |= {f"balanced accuracy, below {limit} %": f"balanced_accuracy_{limit}" for limit in LIMITS}
    table = Table("zero_shot_value", options, test, columns, "balanced_accuracy_40", ["absolute_error"], "lvef")
    table.notes += [f"prompts read by {options.teacher or 'the text tower of the model'}", *notes]
    for name, each in encoders.items():
        predictions = predict_ejection_fractions(each.model, processor, torch.from_numpy(features[name]), options)
        add_row(table, test, name, "no labels", predictions)
    if len(data.training):
        median = np.median(data.targets[data.training])
        add_row(table, test, "prior", "median of the training split", np.full(len(test), median))
    table.write()
    return table


def load_ejection_fractions(data: str, folds: str | None = None) -> TaskData:
    """The records whose LVEF is known, with their splits; `targets` (n, 1) in %."""
    records = load_records(data, folds)
    rows = records.ecgs.with_format(None).remove_columns("signal").select(records.rows)
    targets, takes_part = labels(rows, TASKS["lvef"])
    return TaskData(**vars(records), task=TASKS["lvef"], targets=targets).take(takes_part)


def predict_ejection_fractions(
    model: Any, processor: Any, ecg: torch.Tensor, options: ZeroShotValueOptions
) -> np.ndarray:
    """(n,) in %, of the outputs `model.embedding_names` of n ECGs side by side."""
    templates = ejection_fraction_prompts(options.language, options.prompts)
    text = embed_prompts(model, processor, [text for template in templates for text in template], options.teacher)
    values = list(range(101)) * len(templates)
    chunks = ecg.split(ECGS_A_BATCH)
    predictions = [zero_shot_value(similarity(model, chunk, text)[:, None], values) for chunk in chunks]
    return torch.cat(predictions).double().numpy()


def embed_prompts(model: Any, processor: Any, texts: Sequence[str], teacher: str | None = None) -> torch.Tensor:
    """(prompts, features) by the model's own text tower, or as Gaussians without spread by that of an EchoCLIP.

    Raises:
        ValueError: the model cannot read, or cannot be compared with what the teacher says.
    """
    if teacher is None:
        if not hasattr(model, "get_text_features"):
            raise ValueError(f"a {type(model).__name__} has no text tower")
        return embed_texts(model, processor, {"": list(texts)})
    echo_clip, tokenizer = AutoModel.from_pretrained(teacher).eval(), AutoTokenizer.from_pretrained(teacher)
    if "ecg_logvar" not in model.embedding_names or echo_clip.config.projection_dim != model.config.projection_dim:
        raise ValueError(f"{teacher} and a {type(model).__name__} have no space of embeddings in common")
    means = []
    with torch.no_grad():
        for start in range(0, len(texts), TEXTS_A_BATCH):
            batch = list(texts[start : start + TEXTS_A_BATCH])
            inputs = tokenizer(batch, padding=True, return_token_type_ids=False, return_tensors="pt")
            means.append(echo_clip.get_text_features(**inputs).text_embeds)
    mean = torch.cat(means)
    return torch.cat([mean, torch.full_like(mean, -torch.inf)], dim=-1)


def add_row(table: Table, data: TaskData, method: str, protocol: str, predictions: np.ndarray):
    """The row of predictions (n,) in %."""
    options, values = table.options, data.targets[:, 0]
    errors = np.abs(predictions - values)[:, None] / 100
    figures = mean_summary(errors, table.names, data.patients, options.resamples, options.seed)
    constant = np.ptp(predictions) == 0 or np.ptp(values) == 0
    figures["rank_correlation"] = as_figure(np.nan if constant else spearmanr(predictions, values).statistic)
    counts = counts_for_intervals(data.patients, options.resamples, options.seed)
    for limit in LIMITS:
        decisions = values < limit, predictions < limit
        resampled = None if counts is None else balanced_accuracy(*decisions, counts)[:, 0]
        figures[f"balanced_accuracy_{limit}"] = as_figure(balanced_accuracy(*decisions)[0], resampled)
    table.add_row(method, protocol, figures, errors)


def main(arguments: Sequence[str] | None = None) -> Table:
    return run(parse(ZeroShotValueOptions, __doc__, arguments))


if __name__ == "__main__":
    run_command(main)
