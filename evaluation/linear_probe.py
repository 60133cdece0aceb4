"""Linear probe: how far one linear layer on the frozen encoder gets with 1 %, 10 % and 100 % of the training labels.

    python -m ecgformers.evaluation.linear_probe --model DIR --data DIR --task ptbxl_super --output results \\
        [--folds 1-7/8/9] [--shares 1 10 100] [--seeds 3]

Features are computed once and kept in the output folder.  The classifier is a multi-label logistic regression on
standardised features; its penalty is chosen by macro AUROC on the validation split (all of it, whatever the share, as
in the published protocols).  Where the rule has no validation folds (`--folds 1-8//9`), it is chosen by 5-fold
cross-validation by patient among the records whose labels may be used.  A share is drawn at random, anew for every
seed; figures are means over the seeds, and the same draws serve the encoder and the two baselines: the same encoder
with random weights, and the share of positives in training as everybody's probability.

For research use; not a medical device.
"""

from collections.abc import Sequence

import numpy as np

from ecgformers.evaluation.encoders import encode_records, load_with_random
from ecgformers.evaluation.options import LinearProbeOptions
from ecgformers.evaluation.probing import LinearProbe, choose_probe, cross_validated_probe
from ecgformers.evaluation.records import TaskData, load_task
from ecgformers.evaluation.tables import ClassificationTable
from ecgformers.metrics.ranking import best_thresholds
from ecgformers.options import parse, run_command


def run(options: LinearProbeOptions) -> ClassificationTable:
    data = load_task(options.data, options.task, options.folds, options.split_table)
    encoders = load_with_random(options)
    data, features, notes = encode_records(encoders, data, options)

    table = ClassificationTable("linear_probe", options, data.part(options.split))
    table.notes += notes
    for share in options.shares:
        draws = draw_shares(data, share, options.seed, options.seeds)
        runs = f"{len(draws)} draws of " if len(draws) > 1 else ""
        for name, each in features.items():
            probe_records(table, data, each, name, f"probe, {runs}{share:g} % of labels", draws)
    add_prior(table, data)
    table.write()
    return table


def draw_shares(data: TaskData, share: float, seed: int, draws: int) -> list[np.ndarray]:
    """For every seed the indices of the training records whose labels may be used; a single draw for 100 %."""
    training = data.training
    count = max(1, round(len(training) * share / 100))
    seeds = range(seed, seed + (draws if count < len(training) else 1))
    return [np.sort(np.random.default_rng(seed).permutation(training)[:count]) for seed in seeds]


def probe_records(
    table: ClassificationTable,
    data: TaskData,
    features: np.ndarray,
    name: str,
    protocol: str,
    draws: Sequence[np.ndarray],
):
    """Fit a probe on each draw of training records, and add the row of their mean."""
    evaluated = data.splits == table.options.split
    scores, thresholds = [], []
    for draw in draws:
        probe, own_thresholds = fit_probe(data, features, draw)
        scores.append(probe(features[evaluated]))
        thresholds.append(own_thresholds)
    table.add(name, np.stack(scores), protocol, thresholds=np.stack(thresholds), are_probabilities=True)
    note_unseen(table, data, protocol, draws)


def note_unseen(table: ClassificationTable, data: TaskData, protocol: str, draws: Sequence[np.ndarray]):
    """Name the classes of which some draw of training records has no positive."""
    unseen = ~np.all([data.targets[draw].any(0) for draw in draws], axis=0)
    if unseen.any():
        classes = ", ".join(np.array(data.task.classes)[unseen])
        at_times = "at times " if len(draws) > 1 else ""
        table.notes.append(f"{protocol}: {at_times}without a positive among the training labels: {classes}")


def fit_probe(data: TaskData, features: np.ndarray, draw: np.ndarray) -> tuple[LinearProbe, np.ndarray]:
    """The probe of the records `draw`, and a threshold for each class (classes,).

    Penalty and thresholds are chosen on the validation split, or by cross-validation where there is none.
    """
    validation = data.splits == "validation"
    if not validation.any():
        probe, scores = cross_validated_probe(features[draw], data.targets[draw], data.patients[draw])
        return probe, best_thresholds(data.targets[draw], scores)
    targets = data.targets[validation]
    probe = choose_probe(features[draw], data.targets[draw], features[validation], targets)
    return probe, best_thresholds(targets, probe(features[validation]))


def add_prior(table: ClassificationTable, data: TaskData):
    """The row of a predictor that knows nothing but how frequent each class is in training."""
    share = data.targets[data.training].mean(0)
    scores = np.broadcast_to(share, table.data.targets.shape)
    table.add("prior", scores, "share of positives in training", are_probabilities=True)


def main(arguments: Sequence[str] | None = None) -> ClassificationTable:
    return run(parse(LinearProbeOptions, __doc__, arguments))


if __name__ == "__main__":
    run_command(main)
