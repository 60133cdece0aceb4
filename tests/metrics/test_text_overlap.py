"""BLEU and ROUGE-L against published examples and plain loops."""

import math
from collections import Counter
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgformers.metrics.text_overlap import bleu, most_frequent_text, rouge_l, words

TEXTS = st.lists(st.sampled_from("abcd"), max_size=9).map(" ".join)


def test_papinenis_example_is_clipped():
    """Papineni et al. 2002, section 2.1, example 2: modified unigram precision 2/7."""
    assert bleu(["the the the the the the the"], ["The cat is on the mat."], order=1) == pytest.approx(2 / 7)


def test_bleu_of_a_known_pair():
    generated, reference = "sinus rhythm normal ecg", "Sinus rhythm. Otherwise normal ECG"
    penalty = math.exp(1 - 5 / 4)
    assert bleu([generated], [reference], 1) == pytest.approx(penalty)
    assert bleu([generated], [reference], 2) == pytest.approx(penalty * math.sqrt(2 / 3))
    assert bleu([generated], [reference], 3) == 0  # no three words in a row are shared


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5), st.integers(1, 4))
def test_bleu_against_a_plain_count(pairs, order):
    candidates, references = zip(*[(a.split(), b.split()) for a, b in pairs], strict=True)
    logs = 0.0
    for n in range(1, order + 1):
        shared = given_ngrams = 0
        for candidate, reference in zip(candidates, references, strict=True):
            ours = [tuple(candidate[i : i + n]) for i in range(len(candidate) - n + 1)]
            theirs = Counter(tuple(reference[i : i + n]) for i in range(len(reference) - n + 1))
            given_ngrams += len(ours)
            shared += sum(min(count, theirs[ngram]) for ngram, count in Counter(ours).items())
        logs += math.log(shared / given_ngrams) / order if shared else -math.inf
    length, reference_length = sum(map(len, candidates)), sum(map(len, references))
    penalty = 1 if length >= reference_length else math.exp(1 - reference_length / max(length, 1))
    assert bleu(*zip(*pairs, strict=True), order) == pytest.approx(penalty * math.exp(logs))


def test_bleu_of_resamples():
    generated, references = ["a b c", "a d", "c"], ["a b d", "a d e", "b"]
    weights = np.array([[1, 1, 1], [2, 0, 1]])
    drawn = [0, 0, 2]
    resampled = bleu(generated, references, 2, weights)
    assert resampled[0] == bleu(generated, references, 2)
    assert resampled[1] == bleu([generated[i] for i in drawn], [references[i] for i in drawn], 2)


def plain_lcs(first, second):
    @cache
    def length(i, j):
        if i == 0 or j == 0:
            return 0
        if first[i - 1] == second[j - 1]:
            return length(i - 1, j - 1) + 1
        return max(length(i - 1, j), length(i, j - 1))

    return length(len(first), len(second))


@given(TEXTS, TEXTS)
def test_rouge_l_against_the_textbook_recursion(generated, reference):
    ours, theirs = words(generated), words(reference)
    common = plain_lcs(tuple(ours), tuple(theirs))
    expected = 0.0
    if common:
        precision, recall = common / len(ours), common / len(theirs)
        expected = 2 * precision * recall / (precision + recall)
    assert rouge_l([generated], [reference]) == pytest.approx([expected])


def test_case_and_punctuation_do_not_count():
    assert words("Sinusrhythmus, T-Welle: NEGATIV (V1).") == ["sinusrhythmus", "t", "welle", "negativ", "v1"]
    assert rouge_l(["SINUS RHYTHM"], ["sinus rhythm."]) == [1.0]


def test_nothing_generated_scores_zero():
    assert bleu([""], ["sinus rhythm"], 1) == 0
    assert rouge_l([""], [""]) == [0.0]
    with pytest.raises(ValueError, match="0 generated texts"):
        bleu([], [])
    with pytest.raises(ValueError, match="1 generated texts for 2"):
        rouge_l(["a"], ["a", "b"])


def test_most_frequent_text():
    assert most_frequent_text(["b", "a", "b", "a", "c"]) == "b"
