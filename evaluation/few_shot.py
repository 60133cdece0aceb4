"""Few-shot probe: a linear layer on the frozen encoder, from k records of every class.

    python -m ecgformers.evaluation.few_shot --model DIR --data DIR --task ptbxl_rhythm --output results \\
        [--folds 1-7/8/9] [--shots 1 4 16 64] [--seeds 5]

For every seed k recordings of each class are drawn from the training split (all, where a class has fewer); with
several labels a recording can count for several classes.  The penalty is fixed: with so few labels there are none to
choose it by.  Figures are means over the seeds; the encoder with random weights gets the same recordings.

For research use; not a medical device.
"""

from collections.abc import Sequence

import numpy as np

from ecgformers.evaluation.encoders import encode_records, load_with_random
from ecgformers.evaluation.linear_probe import add_prior
from ecgformers.evaluation.options import FewShotOptions
from ecgformers.evaluation.probing import fit_probes
from ecgformers.evaluation.records import TaskData, load_task
from ecgformers.evaluation.tables import ClassificationTable
from ecgformers.options import parse, run_command


def run(options: FewShotOptions) -> ClassificationTable:
    data = load_task(options.data, options.task, options.folds, options.split_table)
    encoders = load_with_random(options)
    data, features, notes = encode_records(encoders, data, options)

    table = ClassificationTable("few_shot", options, data.part(options.split))
    table.notes += [f"penalty {options.penalty:g}", *notes]
    evaluated = data.splits == options.split
    for shots in options.shots:
        draws = [draw_shots(data, shots, seed) for seed in range(options.seed, options.seed + options.seeds)]
        fewer = [
            name
            for name, positives in zip(data.task.classes, data.targets[data.training].sum(0), strict=True)
            if positives < shots
        ]
        if fewer:
            table.notes.append(f"{shots}-shot: the training split has fewer of {', '.join(fewer)}")
        for name, each in features.items():
            probes = (next(fit_probes(each[draw], data.targets[draw], [options.penalty])) for draw in draws)
            scores = np.stack([probe(each[evaluated]) for probe in probes])
            table.add(name, scores, f"{shots}-shot, {len(draws)} draws", are_probabilities=True)
    add_prior(table, data)
    table.write()
    return table


def draw_shots(data: TaskData, shots: int, seed: int) -> np.ndarray:
    """Indices of training records with `shots` of every class."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(data.training)
    return np.unique(np.concatenate([order[positive > 0][:shots] for positive in data.targets[order].T]))


def main(arguments: Sequence[str] | None = None) -> ClassificationTable:
    return run(parse(FewShotOptions, __doc__, arguments))


if __name__ == "__main__":
    run_command(main)
