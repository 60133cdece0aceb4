"""Transfer: a probe trained on one data set, tested on the classes that another one shares with it.

    python -m ecgformers.evaluation.transfer --model DIR --data PTB_XL --task ptbxl_all --output results \\
        --test-data CPSC2018 --test-task cpsc2018 --test-split-table test=cpsc2018_test.csv \\
        --same VPC=PVC STD=STD_ STE=STE_

Classes are shared where they have the same name, and where `--same` says so (test class = training class).  The
penalty is chosen as in `linear_probe`; nothing of the test data is used before the test.
Beside the encoder the same one with random weights, and the prior of the training data.

For research use; not a medical device.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ecgformers.evaluation.encoders import encode_records, load_with_random
from ecgformers.evaluation.linear_probe import fit_probe, note_unseen
from ecgformers.evaluation.options import TransferOptions
from ecgformers.evaluation.records import TaskData, load_task
from ecgformers.evaluation.tables import ClassificationTable
from ecgformers.options import parse, run_command


def run(options: TransferOptions) -> ClassificationTable:
    source = load_task(options.data, options.task, options.folds, options.split_table)
    target = load_task(options.test_data, options.test_task, options.test_folds, options.test_split_table)
    shared = shared_classes(source, target, options.same)
    source, target = only_classes(source, list(shared.values())), only_classes(target, list(shared))
    target = target.part(options.split)

    encoders = load_with_random(options)
    source, features, source_notes = encode_records(encoders, source, options)
    target, test_features, target_notes = encode_records(encoders, target, options)
    table = ClassificationTable(f"transfer_{source.task.name}", options, target)
    training = f"trained on {source.task.name}: {', '.join(source.notes)}"
    table.notes += [training, f"classes: {', '.join(f'{a}={b}' for a, b in shared.items())}"]
    table.notes += dict.fromkeys([*source_notes, *target_notes])
    protocol = f"probe of {source.task.name}"
    for name in encoders:
        probe, _ = fit_probe(source, features[name], source.training)
        table.add(name, probe(test_features[name]), protocol, are_probabilities=True)
    note_unseen(table, source, protocol, [source.training])
    prior = source.targets[source.training].mean(0)
    scores = np.broadcast_to(prior, target.targets.shape)
    table.add("prior", scores, f"share of positives in {source.task.name}", are_probabilities=True)
    table.write()
    return table


def shared_classes(source: TaskData, target: TaskData, same: Sequence[str]) -> dict[str, str]:
    """Test class -> training class, for the classes that both have and those of `same`, "TEST=TRAINING" each.

    Raises:
        ValueError: `same` has another form or names a class that is not there, or no class is shared.
    """
    pairs = {name: name for name in target.task.classes}
    for pair in same:
        test_class, equals, training_class = pair.partition("=")
        if not equals:
            raise ValueError(f"--same {pair}: give TEST=TRAINING, a class of {target.task.name} and one of training")
        for name, task in ((test_class, target.task), (training_class, source.task)):
            if name not in task.classes:
                raise ValueError(f"--same {pair}: {task.name} has no class {name}")
        pairs[test_class] = training_class
    shared = {name: other for name, other in pairs.items() if other in source.task.classes}
    if not shared:
        raise ValueError(f"{source.task.name} and {target.task.name} share no class: say which are the same by --same")
    return shared


def only_classes(data: TaskData, names: list[str]) -> TaskData:
    """The same records with some of the classes."""
    columns = [data.task.classes.index(name) for name in names]
    return replace(data, task=replace(data.task, classes=tuple(names)), targets=data.targets[:, columns])


def main(arguments: Sequence[str] | None = None) -> ClassificationTable:
    return run(parse(TransferOptions, __doc__, arguments))


if __name__ == "__main__":
    run_command(main)
