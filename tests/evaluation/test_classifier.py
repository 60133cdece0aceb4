"""From statements to their groups, and the words for both."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ecgformers.evaluation.scoring import statement_scores
from ecgformers.evaluation.tasks import TASKS, labels, words
from ecgformers.modeling.groups_ecg import log_none, membership

STATEMENTS = TASKS["ptbxl_all"].classes
PTB_XL = [task for name, task in TASKS.items() if name.startswith("ptbxl_")]


@pytest.mark.parametrize("task", PTB_XL, ids=lambda task: task.name)
@given(st.lists(st.sampled_from(STATEMENTS), unique=True, max_size=6))
def test_labels_of_statements_become_those_of_their_groups(task, codes):
    row = {"record_id": "r", "statements": [*codes, "none of PTB-XL's"]}
    targets, _ = labels([row], TASKS["ptbxl_all"])
    expected, _ = labels([row], task)
    assert np.array_equal(statement_scores(targets, task), expected)


@pytest.mark.parametrize("task", PTB_XL, ids=lambda task: task.name)
@given(arrays(np.float64, (3, len(STATEMENTS)), elements=st.floats(0, 1)))
def test_a_group_is_at_least_as_likely_as_each_of_its_statements(task, probabilities):
    scores = statement_scores(probabilities, task)
    assert ((scores >= 0) & (scores <= 1)).all()
    for index, name in enumerate(task.classes):
        for code in task.statements[name]:
            assert (scores[:, index] >= probabilities[:, STATEMENTS.index(code)] - 1e-12).all()


@given(arrays(np.float64, (3, len(STATEMENTS)), elements=st.floats(-20, 20)))
def test_what_training_learns_is_what_evaluation_scores(logits):
    task = TASKS["ptbxl_super"]
    members = membership(STATEMENTS, task.statements).double()
    found = 1 - log_none(torch.from_numpy(logits), members).exp().numpy()
    assert found == pytest.approx(statement_scores(1 / (1 + np.exp(-logits)), task), abs=1e-9)


@pytest.mark.parametrize("task", PTB_XL, ids=lambda task: task.name)
def test_every_class_has_words_of_its_own(task):
    names = words(task)
    assert tuple(names) == task.classes and len(set(names.values())) == len(names)
    assert not {"_", "/"} & set("".join(names.values()))


def test_classes_of_other_data_sets_have_no_words():
    with pytest.raises(ValueError, match=r"no words for .* of code_test"):
        words(TASKS["code_test"])
