"""MELP's losses at the token and the beat level; see `losses_ecg` for what they share with all others."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .averages_ecg import mean_over_processes
from .losses_ecg import gather_with_gradient, in_full_precision, symmetric_cross_entropy


@in_full_precision
def caption_loss(logits: Tensor, labels: Tensor, gather: bool = True) -> Tensor:
    """Next-token cross-entropy, the mean over the tokens of all processes.

    Args:
        logits: (batch, length, vocabulary).
        labels: (batch, length), `labels[b, t]` is the token that `logits[b, t]` has to predict (already shifted);
            -100 is ignored.  Without any token to predict the loss is NaN.
    """
    token_losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100)
    return mean_over_processes(token_losses[labels.flatten() != -100], gather)


def attend_to_beats(products: Tensor, sentence_mask: Tensor, temperature: float) -> Tensor:
    """Attention over beats (dim 1) from the dot products of beats (dim 1) and sentences (dim -1)."""
    over_sentences = products.masked_fill(~sentence_mask, -torch.inf).softmax(-1)
    return (temperature * over_sentences).softmax(1)


@in_full_precision
def beat_similarity(
    beat_embeds: Tensor,
    sentence_embeds: Tensor,
    sentence_mask: Tensor,
    attention_temperature: float = 4.0,
    sentence_temperature: float = 5.0,
    aggregation: str = "sum",
) -> Tensor:
    """Similarity (ECGs, reports) of every ECG with every report; the numbers of both may differ.

    Arguments as in [`beat_alignment_loss`].  The beat mixture v = sum_q a_q c_q that a sentence s attends to is never
    formed: s . v = sum_q a_q (c_q . s) and |v|^2 = a' C a with the Gram matrix C of the beats, so memory grows with
    the number of beats (about 10) and not with the embedding size.
    """
    reports, sentences, _ = sentence_embeds.shape
    sentence_mask = sentence_mask.bool()
    sentence_embeds = sentence_embeds.masked_fill(~sentence_mask[..., None], 0.0)
    products = beat_embeds @ sentence_embeds.flatten(0, 1).T  # (ecgs, beats, reports * sentences)
    attention = attend_to_beats(products.unflatten(-1, (reports, sentences)), sentence_mask, attention_temperature)
    attention = attention.flatten(2)
    gram = beat_embeds @ beat_embeds.mT  # (ecgs, beats, beats)
    squared_norms = (attention * (gram @ attention)).sum(1).clamp(min=torch.finfo(gram.dtype).tiny)
    norms = squared_norms.sqrt() * sentence_embeds.norm(dim=-1).flatten()
    cosines = (attention * products).sum(1) / norms.clamp(min=1e-8)  # (ecgs, reports * sentences)
    exponents = (sentence_temperature * cosines).unflatten(-1, (reports, sentences))
    similarity = exponents.masked_fill(~sentence_mask, -torch.inf).logsumexp(-1)
    return similarity if aggregation == "sum" else similarity - sentence_mask.sum(-1).to(similarity).log()


@in_full_precision
def beat_alignment_loss(
    beat_embeds: Tensor,
    sentence_embeds: Tensor,
    sentence_mask: Tensor,
    attention_temperature: float = 4.0,
    sentence_temperature: float = 5.0,
    pair_temperature: float = 10.0,
    aggregation: str = "sum",
    chunk_size: int | None = None,
    gather: bool = True,
) -> Tensor:
    """Local alignment of heart beats and sentences (GLoRIA, Huang et al., ICCV 2021; MELP's beat level).

    For ECG i with beats c_q and report j with sentences s_k:
    a_qk = softmax over q of (attention_temperature * softmax over k of c_q . s_k), v_k = sum_q a_qk c_q,
    S_ij = log sum_k exp(sentence_temperature * cos(s_k, v_k)), or log mean_k; the loss is the symmetric cross-entropy
    of pair_temperature * S.  With "sum", the reference's choice, long reports score higher with every ECG.

    Args:
        beat_embeds: (batch, beats, dim).
        sentence_embeds: (batch, sentences, dim), padded to the longest report.
        sentence_mask: (batch, sentences), 1 for a sentence and 0 for padding, which has no part in the result.
        aggregation: "sum" or "mean" over the sentences of a report.
        chunk_size: compare so many ECGs at a time with all reports and recompute them in the backward pass, which
            bounds memory by chunk_size * reports * sentences * beats.

    Raises:
        ValueError: for a report without any sentence, which has no similarity, or an unknown aggregation.
    """
    if aggregation not in ("sum", "mean"):
        raise ValueError(f"aggregation must be 'sum' or 'mean', not {aggregation!r}")
    has_sentence = sentence_mask.bool().any(-1)
    if not has_sentence.all():
        empty = (~has_sentence).nonzero().flatten().tolist()
        raise ValueError(f"reports {empty} of the batch have no sentence: give each at least one or leave them out")
    if gather:
        beat_embeds, sentence_embeds = gather_with_gradient(beat_embeds), gather_with_gradient(sentence_embeds)
        sentence_mask = gather_with_gradient(sentence_mask.long())
    similarity = functools.partial(
        beat_similarity,
        sentence_embeds=sentence_embeds,
        sentence_mask=sentence_mask,
        attention_temperature=attention_temperature,
        sentence_temperature=sentence_temperature,
        aggregation=aggregation,
    )
    if chunk_size is None:
        rows = similarity(beat_embeds)
    else:
        chunks = beat_embeds.split(chunk_size)
        rows = torch.cat([checkpoint(similarity, chunk, use_reentrant=False) for chunk in chunks])
    return symmetric_cross_entropy(pair_temperature * rows)
