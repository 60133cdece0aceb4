"""Training losses of MELP and EchoingECG.

Every loss is computed in float32 (float64 inputs stay float64) and outside autocast, whatever the precision of the
model.  With `gather=True` (the default) and torch.distributed initialised, the batch is that of **all** processes:
each returns the loss of the whole batch, and the mean of their gradients, which is what DDP and FSDP apply, is the
gradient a single process would get from the whole batch.  All processes must then call the loss together.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

P = ParamSpec("P")
T = TypeVar("T")


def _in_full_precision(function: Callable[P, T]) -> Callable[P, T]:
    """Run `function` outside autocast, its half-precision tensors raised to float32."""

    def raise_precision(value: Any) -> Any:
        is_half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
        return value.float() if is_half else value

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        device = next(value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with torch.autocast(device.type, enabled=False):
            return function(
                *map(raise_precision, args),  # type: ignore[arg-type]
                **{name: raise_precision(value) for name, value in kwargs.items()},  # type: ignore[arg-type]
            )

    return wrapper


# --------------------------------------------------------------------------------------------- all processes


class _GatherWithGradient(torch.autograd.Function):
    """all_gather whose backward sums what every process' loss says about this process' rows."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        world_size, rank = dist.get_world_size(), dist.get_rank()
        shape = torch.tensor(tensor.shape, device=tensor.device)
        shapes = [torch.empty_like(shape) for _ in range(world_size)]
        dist.all_gather(shapes, shape)
        padded = tensor.new_zeros(torch.stack(shapes).amax(0).tolist())
        padded[tuple(slice(size) for size in tensor.shape)] = tensor
        parts = [torch.empty_like(padded) for _ in range(world_size)]
        dist.all_gather(parts, padded)
        sizes = [int(shape[0]) for shape in shapes]
        start = sum(sizes[:rank])
        ctx.own = (slice(start, start + sizes[rank]), *(slice(size) for size in tensor.shape[1:]))
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad[ctx.own]


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Concatenate the (rows, ...) tensors of all processes, in rank order; gradients flow back to each.

    Processes may hold different numbers of rows; other dimensions are zero-padded to the largest of any process.  With
    one process, or without torch.distributed, the tensor itself is returned.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    return _GatherWithGradient.apply(tensor)


def _mean(values: Tensor, gather: bool) -> Tensor:
    """Mean of all values, those of the other processes included, whose numbers of values may differ."""
    total_and_count = torch.stack([values.sum(), values.new_tensor(values.numel())])[None]  # (1, 2)
    if gather:
        total_and_count = gather_with_gradient(total_and_count)  # (processes, 2)
    total, count = total_and_count.sum(0)
    return total / count


def matched_by_id(
    ids_a: Tensor | Sequence[str],
    ids_b: Tensor | Sequence[str] | None = None,
    gather: bool = True,
    device: torch.device | str | None = None,
) -> Tensor:
    """Match matrix (N, M) bool: which rows of side a belong with which rows of side b.

    Pairs with equal ids match: equal report texts, ECGs of one echo study, recordings of one patient.  Texts are
    compared exactly as given.

    Args:
        ids_a, ids_b: one id per row, both an integer tensor or both texts; `ids_b` defaults to `ids_a`.
        device: where the matrix is to live when the ids are no tensors (with NCCL: this process' GPU).

    Raises:
        TypeError: for an id that is no text, such as None, which would match every other unknown one.
    """
    codes_a = _id_codes(ids_a, device)
    codes_b = codes_a if ids_b is None else _id_codes(ids_b, device)
    if gather:
        codes_a, codes_b = gather_with_gradient(codes_a), gather_with_gradient(codes_b)
    return codes_a[:, None] == codes_b


def _id_codes(ids: Tensor | Sequence[str], device: torch.device | str | None) -> Tensor:
    """64-bit codes, the same in every process, so that no text has to be sent to another."""
    if isinstance(ids, Tensor):
        return ids
    for row, value in enumerate(ids):
        if not isinstance(value, str):
            raise TypeError(f"id {row} is {value!r}, not a text: give a row of unknown identity an id of its own")
    digests = (hashlib.blake2b(value.encode(), digest_size=8).digest() for value in ids)
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests], device=device)


# ------------------------------------------------------------------------------------- contrastive and caption


def _symmetric_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def _match_cross_entropy(logits: Tensor, matched: Tensor) -> Tensor:
    """InfoNCE of both directions where a row, or column, may have several matches: they share it equally."""
    of_rows, of_columns = F.normalize(matched, p=1.0, dim=-1), F.normalize(matched.T, p=1.0, dim=-1)
    return (F.cross_entropy(logits, of_rows) + F.cross_entropy(logits.T, of_columns)) / 2


@_in_full_precision
def contrastive_loss(
    ecg_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor | float, gather: bool = True
) -> Tensor:
    """Symmetric InfoNCE between matched rows (CLIP, Radford et al. 2021; MELP's rhythm level, arXiv 2506.21803).

    Args:
        ecg_embeds, text_embeds: (batch, dim), L2-normalised; row i of one belongs to row i of the other.
        logit_scale: factor of the cosines, 1 / temperature (not its logarithm).
    """
    if gather:
        ecg_embeds, text_embeds = gather_with_gradient(ecg_embeds), gather_with_gradient(text_embeds)
    logits = logit_scale * ecg_embeds @ text_embeds.T  # (batch, batch)
    return _symmetric_cross_entropy(logits, torch.arange(len(logits), device=logits.device))


@_in_full_precision
def cmsc_loss(
    embeds_a: Tensor,
    embeds_b: Tensor,
    patient_ids: Tensor | Sequence[str],
    logit_scale: Tensor | float,
    gather: bool = True,
) -> Tensor:
    """Contrastive multi-segment coding (CLOCS, Kiyasseh et al., ICML 2021): a patient's segments attract each other.

    Every second segment of the same patient, also of another recording, is an equally weighted positive of a first
    segment, and the other way round.

    Args:
        embeds_a, embeds_b: (recordings, dim), first and second segment of each recording; L2-normalised here.
        patient_ids: one per recording, an integer tensor or texts.
        logit_scale: factor of the cosines, 1 / temperature (not its logarithm).
    """
    matched = matched_by_id(patient_ids, gather=gather, device=embeds_a.device)
    if gather:
        embeds_a, embeds_b = gather_with_gradient(embeds_a), gather_with_gradient(embeds_b)
    logits = logit_scale * F.normalize(embeds_a, dim=-1) @ F.normalize(embeds_b, dim=-1).T
    return _match_cross_entropy(logits, matched.to(logits))


@_in_full_precision
def caption_loss(logits: Tensor, labels: Tensor, gather: bool = True) -> Tensor:
    """Next-token cross-entropy, the mean over the tokens of all processes.

    Args:
        logits: (batch, length, vocabulary).
        labels: (batch, length), `labels[b, t]` is the token that `logits[b, t]` has to predict (already shifted);
            -100 is ignored.  Without any token to predict the loss is NaN.
    """
    token_losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100)
    return _mean(token_losses[labels.flatten() != -100], gather)


# --------------------------------------------------------------------------------------------- beat alignment


def _attend_to_beats(products: Tensor, sentence_mask: Tensor, temperature: float) -> Tensor:
    """Attention over beats (dim 1) from the dot products of beats (dim 1) and sentences (dim -1)."""
    over_sentences = products.masked_fill(~sentence_mask, -torch.inf).softmax(-1)
    return (temperature * over_sentences).softmax(1)


@_in_full_precision
def beat_attention(
    beat_embeds: Tensor, sentence_embeds: Tensor, sentence_mask: Tensor, attention_temperature: float = 4.0
) -> Tensor:
    """Attention (batch, sentences, beats) of each report's sentences over the beats of its own ECG.

    Rows of masked sentences have no meaning.  Arguments as in [`beat_alignment_loss`].
    """
    products = beat_embeds @ sentence_embeds.mT  # (batch, beats, sentences)
    return _attend_to_beats(products, sentence_mask.bool()[:, None], attention_temperature).mT


@_in_full_precision
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
    attention = _attend_to_beats(products.unflatten(-1, (reports, sentences)), sentence_mask, attention_temperature)
    attention = attention.flatten(2)
    gram = beat_embeds @ beat_embeds.mT  # (ecgs, beats, beats)
    squared_norms = (attention * (gram @ attention)).sum(1).clamp(min=torch.finfo(gram.dtype).tiny)
    norms = squared_norms.sqrt() * sentence_embeds.norm(dim=-1).flatten()
    cosines = (attention * products).sum(1) / norms.clamp(min=1e-8)  # (ecgs, reports * sentences)
    exponents = (sentence_temperature * cosines).unflatten(-1, (reports, sentences))
    similarity = exponents.masked_fill(~sentence_mask, -torch.inf).logsumexp(-1)
    return similarity if aggregation == "sum" else similarity - sentence_mask.sum(-1).to(similarity).log()


@_in_full_precision
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
    return _symmetric_cross_entropy(pair_temperature * rows, torch.arange(len(rows), device=rows.device))


# -------------------------------------------------------------------------------- wav2vec 2.0 masked prediction


@_in_full_precision
def masked_contrastive_logits(
    context: Tensor, targets: Tensor, negative_indices: Tensor, temperature: float = 0.1
) -> Tensor:
    """Logits (batch, time, 1 + negatives) of telling each step's target (index 0) from its negatives.

    A negative that equals the target gets -inf.  Arguments as in [`masked_contrastive_loss`].
    """
    cosines = F.normalize(context, dim=-1) @ F.normalize(targets, dim=-1).mT  # (batch, time, time)
    negatives = cosines.gather(-1, negative_indices)
    codes = targets.detach().flatten(0, 1).unique(dim=0, return_inverse=True)[1].view(targets.shape[:2])
    negative_codes = codes.gather(1, negative_indices.flatten(1)).view_as(negative_indices)
    negatives = negatives.masked_fill(negative_codes == codes[..., None], -torch.inf)
    return torch.cat([cosines.diagonal(dim1=1, dim2=2)[..., None], negatives], dim=-1) / temperature


@_in_full_precision
def masked_contrastive_loss(
    context: Tensor,
    targets: Tensor,
    negative_indices: Tensor,
    mask: Tensor,
    temperature: float = 0.1,
    gather: bool = True,
) -> Tensor:
    """Contrastive loss of wav2vec 2.0 (Baevski et al., NeurIPS 2020, eq. 3), the mean over all masked steps.

    Args:
        context: (batch, time, dim), projected output of the encoder on the masked signal.
        targets: (batch, time, dim), projected quantised features.
        negative_indices: (batch, time, negatives) time steps of the same record, see [`sample_negative_indices`].
        mask: (batch, time), 1 for a masked step; the others do not count.
    """
    logits = masked_contrastive_logits(context, targets, negative_indices, temperature)[mask.bool()]
    return _mean(torch.logsumexp(logits, -1) - logits[:, 0], gather)


def sample_span_mask(
    batch: int,
    time: int,
    mask_prob: float = 0.65,
    mask_length: int = 10,
    min_spans: int = 2,
    lengths: Tensor | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Mask (batch, time) bool of random, possibly overlapping spans (wav2vec 2.0, section 3.1).

    Each record gets floor(mask_prob * length / mask_length + U(0, 1)) spans, at least `min_spans`, with different
    starts, so about 1 - exp(-mask_prob) of its steps are masked.  For an augmentation that depends on the record
    alone, call it record by record (batch 1) with a generator seeded by the record.

    Args:
        lengths: (batch,) steps of each record that are no padding; default all.

    Raises:
        ValueError: for a record too short to hold `min_spans` spans.
    """
    lengths = torch.full((batch,), time, device=device) if lengths is None else lengths.to(device)
    if lengths.min() < mask_length + min_spans - 1:
        raise ValueError(f"{int(lengths.min())} steps cannot hold {min_spans} different spans of {mask_length} steps")
    starts = lengths[:, None] - mask_length + 1  # (batch, 1) possible starts
    spans = mask_prob * lengths[:, None] / mask_length + torch.rand(batch, 1, generator=generator, device=device)
    spans = spans.long().clamp(min=min_spans).minimum(starts)
    noise = torch.rand(batch, time, generator=generator, device=device)
    noise = noise.masked_fill(torch.arange(time, device=device) >= starts, torch.inf)
    is_start = noise.argsort(-1).argsort(-1) < spans
    return F.max_pool1d(F.pad(is_start.float(), (mask_length - 1, 0)), mask_length, stride=1).bool()


def sample_negative_indices(
    mask: Tensor, num_negatives: int = 100, generator: torch.Generator | None = None
) -> Tensor:
    """For every masked step `num_negatives` **other** masked steps of its record, uniform with replacement.

    Args:
        mask: (batch, time), 1 for a masked step.

    Returns:
        (batch, time, num_negatives) time indices; 0 where the step is not masked.

    Raises:
        ValueError: for a record with fewer than two masked steps.
    """
    mask = mask.bool()
    counts = mask.sum(-1)
    if counts.min() < 2:
        raise ValueError(f"record {int(counts.argmin())} of the batch has fewer than two masked steps")
    masked_first = (~mask).long().argsort(dim=-1, stable=True)  # the masked steps in order, then the others
    draws = torch.rand(*mask.shape, num_negatives, generator=generator, device=mask.device)
    ranks = (draws * (counts - 1)[:, None, None]).long()
    ranks += ranks >= (mask.cumsum(-1) - 1)[..., None]  # leave the step itself out
    indices = masked_first.gather(-1, ranks.flatten(1)).view_as(ranks)
    return indices.masked_fill(~mask[..., None], 0)


# ------------------------------------------------------------------------------------ probabilistic matching


@_in_full_precision
def pairwise_distance(
    mean_a: Tensor, logvar_a: Tensor, mean_b: Tensor, logvar_b: Tensor, distance: str = "csd"
) -> Tensor:
    """Distances (N, M) between diagonal Gaussians, in O(N M + (N + M) D) memory.

    - "csd": closed-form sampled distance |mu_a - mu_b|^2 + sum(var_a + var_b), the expected squared distance of two
      samples (PCME++, Chun, ICLR 2024, arXiv 2305.18171); its variance part is a row term plus a column term.
    - "wdist": squared 2-Wasserstein distance |mu_a - mu_b|^2 + |sigma_a - sigma_b|^2.

    Args:
        mean_a, logvar_a: (N, D) means and log-variances.
        mean_b, logvar_b: (M, D).
    """
    if distance == "csd":
        x, y = mean_a, mean_b
        rows, columns = logvar_a.exp().sum(-1), logvar_b.exp().sum(-1)
    elif distance == "wdist":
        x, y = torch.cat([mean_a, (logvar_a / 2).exp()], -1), torch.cat([mean_b, (logvar_b / 2).exp()], -1)
        rows, columns = x.new_zeros(len(x)), y.new_zeros(len(y))
    else:
        raise ValueError(f"distance must be 'csd' or 'wdist', not {distance!r}")
    # |x - y|^2 = |x|^2 + |y|^2 - 2 x . y, about a common centre, where less is lost to cancellation
    centre = y.detach().mean(0)
    x, y = x - centre, y - centre
    rows, columns = rows + x.square().sum(-1), columns + y.square().sum(-1)
    distances = torch.addmm(columns, x, y.T, alpha=-2) + rows[:, None]
    with torch.no_grad():  # rounding below zero; out of the graph, so that gradients stay exact
        distances.clamp_(min=0)
    return distances


def match_probability(distances: Tensor, negative_scale: Tensor | float, shift: Tensor | float) -> Tensor:
    """Probability sigmoid(-negative_scale * d + shift) that two Gaussians at distance d match.

    This is what the loss trains.  The evaluation code of PCME++ has another score of the same name: the sum over all
    pairs of samples of sigmoid(2 (-negative_scale * |difference| + shift)), which is no probability.
    """
    return torch.sigmoid(shift - negative_scale * distances)


@_in_full_precision
def hellinger_similarity(mean_a: Tensor, logvar_a: Tensor, mean_b: Tensor, logvar_b: Tensor) -> Tensor:
    """1 - Hellinger distance of diagonal Gaussians: 1 if they are equal, 0 if they do not overlap.

    Inputs (..., D) broadcast against each other, the result is (...).  The variances of a pair do not separate here:
    all pairs of N and M Gaussians, `hellinger_similarity(mean_a[:, None], ...)`, need memory for N * M * D numbers.
    """
    log_overlap = (logvar_a + logvar_b) / 4  # log of the Bhattacharyya coefficient, per dimension
    log_mean_variance = torch.logaddexp(logvar_a, logvar_b) - torch.log(logvar_a.new_tensor(2.0))
    log_overlap = log_overlap - log_mean_variance / 2 - (mean_a - mean_b).square() / (8 * log_mean_variance.exp())
    return 1 - torch.sqrt(-torch.expm1(log_overlap.sum(-1).clamp(max=0)))


@dataclass
class ProbabilisticMatchingOutput(ModelOutput):
    """Output of [`ProbabilisticMatchingLoss`]; the parts are unweighted.

    Attributes:
        loss: match_loss + smoothness * pseudo_positive_loss + vib_beta * vib_loss + contrast * contrastive_loss.
        match_loss: binary cross-entropy against the match matrix, both directions.
        pseudo_positive_loss: the same against the match matrix with pseudo-positives.
        vib_loss: KL divergence to N(0, I), both sides.
        contrastive_loss: symmetric InfoNCE of the unit means, their cosines times 2 * negative_scale as in the logits
            (but not training it); the matches of a row, or column, share it equally.  None without `contrast`.
        logits: (N, M) -negative_scale * distance + shift.
        num_pseudo_positives: entries of the match matrix that pseudo-positives changed, both directions.
    """

    loss: Tensor | None = None
    match_loss: Tensor | None = None
    pseudo_positive_loss: Tensor | None = None
    vib_loss: Tensor | None = None
    contrastive_loss: Tensor | None = None
    logits: Tensor | None = None
    num_pseudo_positives: Tensor | None = None


class ProbabilisticMatchingLoss(nn.Module):
    """Matching of Gaussian embeddings (PCME++, Chun, ICLR 2024, arXiv 2305.18171; EchoingECG's loss).

    logits = -negative_scale * d + shift, binary cross-entropy against the match matrix for both directions;
    pseudo-positives: every candidate that scores at least as high as a row's (first) true match is given its label;
    VIB: KL divergence to N(0, I), the mean over all elements, left out for a side where it exceeds 10,000.
    Beyond PCME++, `contrast` above 0 adds InfoNCE of the means; the variances still learn from the matching alone.

    Args:
        init_shift, init_negative_scale: first values of the two learned numbers, parameters of shape (1,).
        vib_beta: weight of the KL divergence.
        smoothness: weight of the loss on pseudo-positives.
        contrast: weight of InfoNCE; PCME++ has none.
        distance: "csd" or "wdist", see [`pairwise_distance`].
        gather: take the batch of all processes.
    """

    max_kl_divergence = 10_000.0

    def __init__(
        self,
        init_shift: float = 5.0,
        init_negative_scale: float = 5.0,
        vib_beta: float = 1e-4,
        smoothness: float = 0.1,
        contrast: float = 0.0,
        distance: str = "csd",
        gather: bool = True,
    ) -> None:
        super().__init__()
        self.init_shift = init_shift
        self.init_negative_scale = init_negative_scale
        self.vib_beta = vib_beta
        self.smoothness = smoothness
        self.contrast = contrast
        self.distance = distance
        self.gather = gather
        self.shift = nn.Parameter(torch.tensor([float(init_shift)]))
        self.negative_scale = nn.Parameter(torch.tensor([float(init_negative_scale)]))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.shift, self.init_shift)
        nn.init.constant_(self.negative_scale, self.init_negative_scale)

    def extra_repr(self) -> str:
        weights = f"vib_beta={self.vib_beta}, smoothness={self.smoothness}, contrast={self.contrast}"
        return f"{weights}, distance={self.distance!r}"

    @_in_full_precision
    def forward(
        self, mean_a: Tensor, logvar_a: Tensor, mean_b: Tensor, logvar_b: Tensor, matched: Tensor | None = None
    ) -> ProbabilisticMatchingOutput:
        """
        Args:
            mean_a, logvar_a: (N, D) means and log-variances of one side (ECGs).
            mean_b, logvar_b: (M, D) those of the other (texts, echo studies).
            matched: (N, M) 1 where a row of a belongs with a row of b, or soft labels; by default row i with row i.
                With several processes, N and M are the rows of all of them: [`matched_by_id`] makes such a matrix.

        Raises:
            ValueError: when `matched` has another shape, or is missing though N and M differ.
        """
        if self.gather:
            mean_a, logvar_a = gather_with_gradient(mean_a), gather_with_gradient(logvar_a)
            mean_b, logvar_b = gather_with_gradient(mean_b), gather_with_gradient(logvar_b)
        distances = pairwise_distance(mean_a, logvar_a, mean_b, logvar_b, self.distance)
        logits = self.shift - self.negative_scale * distances
        if matched is None and len(mean_a) == len(mean_b):
            matched = torch.eye(len(mean_a), device=logits.device)
        if matched is None or matched.shape != logits.shape:
            given = "missing" if matched is None else f"of shape {tuple(matched.shape)}"
            raise ValueError(f"the match matrix is {given}, the rows of all processes need {tuple(logits.shape)}")
        matched = matched.to(logits)

        match_loss = 2 * F.binary_cross_entropy_with_logits(logits, matched)
        added_ab = _pseudo_positives(logits, matched)
        added_ba = _pseudo_positives(logits.T, matched.T).T
        # the cross-entropy of logit x and target y is softplus(x) - x y: what is added to y is taken off times x
        pseudo_loss = match_loss - (logits * (added_ab + added_ba)).mean()
        vib_loss = self._kl_divergence(mean_a, logvar_a) + self._kl_divergence(mean_b, logvar_b)
        loss = match_loss + self.smoothness * pseudo_loss + self.vib_beta * vib_loss
        contrastive = None
        if self.contrast:
            # |x - y|^2 = 2 - 2 x . y between unit vectors: what of the logits the means decide
            contrastive = _match_cross_entropy(2 * self.negative_scale.detach() * mean_a @ mean_b.T, matched)
            loss = loss + self.contrast * contrastive
        return ProbabilisticMatchingOutput(
            loss=loss,
            match_loss=match_loss,
            pseudo_positive_loss=pseudo_loss,
            vib_loss=vib_loss,
            contrastive_loss=contrastive,
            logits=logits,
            num_pseudo_positives=added_ab.count_nonzero() + added_ba.count_nonzero(),
        )

    def _kl_divergence(self, mean: Tensor, logvar: Tensor) -> Tensor:
        """KL divergence to N(0, I), the mean over all elements; 0 where it has exploded."""
        divergence = (mean.square() + logvar.exp() - logvar - 1).mean() / 2
        return torch.where(divergence > self.max_kl_divergence, 0.0, divergence)


def _pseudo_positives(logits: Tensor, matched: Tensor) -> Tensor:
    """What to add to the targets so that all that scores at least as high as a row's first match takes its label."""
    label, first = matched.max(-1, keepdim=True)
    return (logits >= logits.gather(-1, first)) * (label - matched)
