"""Zero-shot classification: an ECG's score for a class is its mean similarity with texts that describe the class.

    python -m ecgformers.evaluation.zero_shot --model DIR --data DIR --task ptbxl_super --output results \\
        [--folds 1-7/8/9] [--language en de] [--prompts FILE]

Beside it the same model with random weights, and the prior (no text, no ECG: the same score for everybody).

For research use; not a medical device.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoModel, AutoProcessor

from ecgformers.evaluation.encoders import HubEncoder, encode_records, with_random
from ecgformers.evaluation.options import ZeroShotOptions
from ecgformers.evaluation.records import load_task
from ecgformers.evaluation.scoring import embed_texts, zero_shot_scores
from ecgformers.evaluation.tables import ClassificationTable
from ecgformers.evaluation.tasks import prompts
from ecgformers.options import parse, run_command


def run(options: ZeroShotOptions) -> ClassificationTable:
    data = load_task(options.data, options.task, options.folds, options.split_table)
    test = data.part(options.split)
    texts = prompts(test.task, options.language, options.prompts)
    model, processor = AutoModel.from_pretrained(options.model), AutoProcessor.from_pretrained(options.model)
    if not hasattr(model, "get_text_features"):
        raise ValueError(f"{options.model} holds a {type(model).__name__}, which has no text tower")
    encoder = HubEncoder(model, processor.feature_extractor, options.device, model.embedding_names)
    encoders = with_random(encoder, options.model_name, options.seed)
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


def main(arguments: Sequence[str] | None = None) -> ClassificationTable:
    return run(parse(ZeroShotOptions, __doc__, arguments))


if __name__ == "__main__":
    run_command(main)
