"""How much generated reports share with the true ones: BLEU and ROUGE-L, on lower-case words without punctuation."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def bleu(
    generated: Sequence[str], references: Sequence[str], order: int = 4, weights: ArrayLike | None = None
) -> np.ndarray:
    """BLEU of a whole set of texts, one reference each, without smoothing (Papineni et al., ACL 2002).

    Args:
        generated, references: n texts each.
        order: the longest n-gram counted, 1 to 4 for BLEU-1 to BLEU-4.
        weights: (n,) or (resamples, n).

    Returns:
        () or (resamples,), in [0, 1].
    """
    if len(generated) != len(references) or not generated:
        raise ValueError(f"{len(generated)} generated texts for {len(references)} references")
    pairs = [(words(text), words(reference)) for text, reference in zip(generated, references, strict=True)]
    counts = np.array([_overlap_counts(*pair, order) for pair in pairs], dtype=np.float64)  # (n, 2 + 2 * order)
    totals = counts.sum(0) if weights is None else np.asarray(weights) @ counts
    length, reference_length, *_ = np.moveaxis(totals, -1, 0)
    shared, given = totals[..., 2 : 2 + order], totals[..., 2 + order :]
    with np.errstate(divide="ignore"):
        log_precisions = np.log(shared / np.maximum(given, 1)).mean(-1)
    brevity_penalty = np.exp(np.minimum(0, 1 - reference_length / np.maximum(length, 1)))
    return np.asarray(brevity_penalty * np.exp(log_precisions))


def _overlap_counts(generated: list[str], reference: list[str], order: int) -> list[int]:
    """Both lengths, then for every order the n-grams shared, then those generated."""
    ours, theirs = ([_ngrams(text, n) for n in range(1, order + 1)] for text in (generated, reference))
    shared = [(a & b).total() for a, b in zip(ours, theirs, strict=True)]
    return [len(generated), len(reference), *shared, *(ngrams.total() for ngrams in ours)]


def _ngrams(text: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(text[start:] for start in range(n)), strict=False))


def rouge_l(generated: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """ROUGE-L of every text (n,): F1 of the longest common subsequence of words (Lin, 2004); 0 for empty texts."""
    if len(generated) != len(references):
        raise ValueError(f"{len(generated)} generated texts for {len(references)} references")
    result = []
    for text, reference in zip(generated, references, strict=True):
        ours, theirs = words(text), words(reference)
        total = len(ours) + len(theirs)
        result.append(2 * _longest_common_subsequence(ours, theirs) / total if total else 0.0)
    return np.array(result)


def _longest_common_subsequence(first: list[str], second: list[str]) -> int:
    """Its length, with one bit a word of `first` (Hyyrö, 2004)."""
    places: Counter[str] = Counter()
    for index, word in enumerate(first):
        places[word] |= 1 << index
    everything = (1 << len(first)) - 1
    row = everything
    for word in second:
        shared = row & places[word]
        row = ((row + shared) | (row - shared)) & everything
    return len(first) - row.bit_count()


def most_frequent_text(texts: Sequence[str]) -> str:
    """The text that occurs most often (the first of several): what a generator must beat."""
    return Counter(texts).most_common(1)[0][0]
