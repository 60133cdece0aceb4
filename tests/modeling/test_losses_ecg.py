"""The losses against plain loops written from their formulas, and over two processes."""

import math

import numpy as np
import pytest
import torch
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_melp import beat_attention
from torch import Tensor, nn

from ecgformers.modeling.losses_ecg import contrastive_loss
from ecgformers.modeling.losses_echoing_ecg import (
    ProbabilisticMatchingLoss,
    hellinger_similarity,
    match_probability,
    pairwise_distance,
)
from ecgformers.modeling.losses_melp import beat_alignment_loss, beat_similarity, caption_loss
from ecgformers.modeling.losses_melp_pretraining import (
    cmsc_loss,
    masked_contrastive_loss,
    sample_negative_indices,
    sample_span_mask,
)
from ecgformers.modeling.pairing_ecg import matched_by_id

SEEDS = st.integers(0, 2**31)
quick = settings(max_examples=25, deadline=None)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(seed: int, *shape: int) -> Tensor:
    return nn.functional.normalize(randn(seed, *shape), dim=-1)


def sentence_mask(seed: int, reports: int, sentences: int) -> Tensor:
    counts = torch.randint(1, sentences + 1, (reports,), generator=torch.Generator().manual_seed(seed))
    return torch.arange(sentences) < counts[:, None]


def log_softmax_at(scores: np.ndarray, index: int) -> float:
    return scores[index] - scores.max() - math.log(np.exp(scores - scores.max()).sum())


def symmetric_cross_entropy(logits: np.ndarray) -> float:
    rows = range(len(logits))
    return -np.mean([log_softmax_at(logits[i], i) + log_softmax_at(logits[:, i], i) for i in rows]) / 2


# ------------------------------------------------------------------------------------- contrastive and caption


@quick
@given(SEEDS, st.integers(1, 6), st.integers(1, 5), st.floats(0.1, 100))
def test_contrastive_loss_is_the_symmetric_cross_entropy(seed: int, batch: int, dim: int, scale: float) -> None:
    ecg, text = unit(seed, batch, dim), unit(seed + 1, batch, dim)
    expected = symmetric_cross_entropy(scale * ecg.numpy() @ text.numpy().T)
    assert contrastive_loss(ecg, text, scale).item() == pytest.approx(expected, abs=1e-9)


@quick
@given(SEEDS, st.integers(1, 4), st.integers(1, 6), st.integers(2, 7))
def test_caption_loss_is_the_mean_over_the_tokens_that_are_not_padding(
    seed: int, batch: int, length: int, vocabulary: int
) -> None:
    logits = randn(seed, batch, length, vocabulary)
    labels = torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))
    labels[:, 1:] = labels[:, 1:].masked_fill(randn(seed + 1, batch, length - 1) > 0, -100)
    expected = [
        -log_softmax_at(logits[b, t].numpy(), int(labels[b, t]))
        for b in range(batch)
        for t in range(length)
        if labels[b, t] != -100
    ]
    assert caption_loss(logits, labels).item() == pytest.approx(np.mean(expected), abs=1e-9)


@quick
@given(SEEDS, st.lists(st.sampled_from(["p1", "p2", "p3"]), min_size=1, max_size=6))
def test_cmsc_loss_spreads_the_target_over_all_recordings_of_the_patient(seed: int, patients: list[str]) -> None:
    a, b = randn(seed, len(patients), 4), randn(seed + 1, len(patients), 4)
    expected = []
    for one, other in ((a, b), (b, a)):
        for i, patient in enumerate(patients):
            scores = np.array([3 * torch.cosine_similarity(one[i], row, dim=0).item() for row in other])
            same = [j for j, other_patient in enumerate(patients) if other_patient == patient]
            expected.append(-np.mean([log_softmax_at(scores, j) for j in same]))
    assert cmsc_loss(a, b, patients, 3.0).item() == pytest.approx(np.mean(expected), abs=1e-9)
    codes = torch.tensor([["p1", "p2", "p3"].index(patient) for patient in patients])
    assert cmsc_loss(a, b, codes, 3.0) == cmsc_loss(a, b, patients, 3.0)


# ------------------------------------------------------------------------------------------ match matrices


def test_match_matrix_joins_equal_ids() -> None:
    texts = ["sinus rhythm", "normal ECG", "sinus rhythm"]
    assert matched_by_id(texts).tolist() == [[True, False, True], [False, True, False], [True, False, True]]
    assert matched_by_id(texts, ["normal ECG"]).tolist() == [[False], [True], [False]]
    assert matched_by_id(torch.tensor([4, 7]), torch.tensor([7, 4, 5])).long().tolist() == [[0, 1, 0], [1, 0, 0]]


def test_match_matrix_refuses_unknown_ids() -> None:
    with pytest.raises(TypeError, match="id 1 is None"):
        matched_by_id(["study", None])  # type: ignore[list-item]


# --------------------------------------------------------------------------------------------- beat alignment


def literal_beat_similarity(beats: Tensor, sentences: Tensor, mask: Tensor, mean: bool) -> np.ndarray:
    """GLoRIA's local similarity, one pair at a time, with the attended mixture of beats."""
    similarity = np.zeros((len(beats), len(sentences)))
    for i, c in enumerate(beats):
        for j, padded in enumerate(sentences):
            s = padded[mask[j]]  # (sentences of this report, dim)
            attention = (4.0 * (c @ s.T).softmax(1)).softmax(0)
            cosines = torch.cosine_similarity(s, attention.T @ c, dim=1)
            exponentials = torch.exp(5.0 * cosines)
            similarity[i, j] = math.log(exponentials.mean() if mean else exponentials.sum())
    return similarity


@quick
@given(
    SEEDS,
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(1, 4),
    st.sampled_from(["sum", "mean"]),
)
def test_beat_alignment_is_the_loop_over_pairs(
    seed: int, batch: int, beats: int, sentences: int, dim: int, chunk_size: int, aggregation: str
) -> None:
    beat_embeds, sentence_embeds = randn(seed, batch, beats, dim), randn(seed + 1, batch, sentences, dim)
    mask = sentence_mask(seed, batch, sentences)
    expected = literal_beat_similarity(beat_embeds, sentence_embeds, mask, aggregation == "mean")
    actual = beat_similarity(beat_embeds, sentence_embeds, mask, aggregation=aggregation)
    np.testing.assert_allclose(actual, expected, atol=1e-9)
    loss = symmetric_cross_entropy(10 * expected)
    for chunk in (None, chunk_size):
        arguments = {"aggregation": aggregation, "chunk_size": chunk}
        assert beat_alignment_loss(beat_embeds, sentence_embeds, mask, **arguments).item() == pytest.approx(loss)


def test_masked_sentences_play_no_part_whatever_they_hold() -> None:
    beats, sentences = randn(0, 3, 4, 5).requires_grad_(), randn(1, 3, 2, 5)
    mask = sentence_mask(2, 3, 2)
    expected = beat_alignment_loss(beats, sentences, mask)
    expected_grad = torch.autograd.grad(expected, beats)[0]
    longer = torch.cat([sentences, torch.full((3, 1, 5), torch.nan)], dim=1)
    longer_mask = torch.cat([mask, torch.zeros(3, 1, dtype=torch.bool)], dim=1)
    loss = beat_alignment_loss(beats, longer, longer_mask.long())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, beats)[0], expected_grad)


def test_beat_attention_sums_to_one_and_is_uniform_for_a_single_sentence() -> None:
    attention = beat_attention(randn(0, 2, 4, 5), randn(1, 2, 3, 5), torch.tensor([[1, 0, 0], [1, 1, 1]]))
    assert attention.shape == (2, 3, 4)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 3, dtype=torch.float64))
    torch.testing.assert_close(attention[0, 0], torch.full((4,), 0.25, dtype=torch.float64))


def test_chunks_keep_the_gradient() -> None:
    mask = sentence_mask(2, 5, 3)
    grads = []
    for chunk_size in (None, 2):
        beats, sentences = randn(0, 5, 4, 6).requires_grad_(), randn(1, 5, 3, 6).requires_grad_()
        beat_alignment_loss(beats, sentences, mask, chunk_size=chunk_size).backward()
        grads.append((beats.grad, sentences.grad))
    torch.testing.assert_close(grads[0], grads[1])


def test_beat_alignment_refuses_a_report_without_sentences() -> None:
    mask = torch.tensor([[1, 0], [0, 0], [1, 1]])
    with pytest.raises(ValueError, match=r"reports \[1\] of the batch have no sentence"):
        beat_alignment_loss(randn(0, 3, 4, 5), randn(1, 3, 2, 5), mask)
    with pytest.raises(ValueError, match="'max'"):
        beat_alignment_loss(randn(0, 1, 4, 5), randn(1, 1, 2, 5), mask[:1], aggregation="max")


# -------------------------------------------------------------------------------- wav2vec 2.0 masked prediction


@quick
@given(SEEDS, st.integers(1, 3), st.integers(2, 6), st.integers(1, 5))
def test_masked_contrastive_loss_is_the_loop_over_masked_steps(
    seed: int, batch: int, time: int, negatives: int
) -> None:
    context, codebook = randn(seed, batch, time, 3), randn(seed + 1, 3, 3)
    generator = torch.Generator().manual_seed(seed)
    targets = codebook[torch.randint(0, 3, (batch, time), generator=generator)]  # equal targets are frequent
    mask = torch.rand(batch, time, generator=generator) < 0.5
    mask[:, :2] = True
    indices = sample_negative_indices(mask, negatives, generator)
    expected = []
    for b, t in mask.nonzero().tolist():
        candidates = [targets[b, k] for k in indices[b, t] if not torch.equal(targets[b, k], targets[b, t])]
        cosines = [torch.cosine_similarity(context[b, t], c, dim=0).item() for c in (targets[b, t], *candidates)]
        expected.append(-log_softmax_at(np.array(cosines) / 0.1, 0))
    actual = masked_contrastive_loss(context, targets, indices, mask)
    assert actual.item() == pytest.approx(np.mean(expected), abs=1e-9)


@quick
@given(SEEDS, st.integers(2, 30), st.integers(2, 30))
def test_negatives_are_other_masked_steps_of_the_record(seed: int, time: int, negatives: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(4, time, generator=generator) < 0.5
    mask[:, :2] = True
    indices = sample_negative_indices(mask, negatives, generator)
    assert indices.shape == (4, time, negatives)
    itself = torch.arange(time)[None, :, None]
    allowed = mask.gather(1, indices.flatten(1)).view_as(indices) & (indices != itself)
    assert allowed[mask].all()
    assert (indices[~mask] == 0).all()


def test_negatives_are_uniform() -> None:
    mask = torch.tensor([[1, 0, 1, 1, 0, 1]])
    indices = sample_negative_indices(mask, 30_000, torch.Generator().manual_seed(0))
    frequency = indices[0, 2].bincount(minlength=6) / 30_000
    torch.testing.assert_close(frequency, torch.tensor([1, 0, 0, 1, 0, 1]) / 3, atol=0.01, rtol=0)
    with pytest.raises(ValueError, match="record 1 of the batch has fewer than two"):
        sample_negative_indices(torch.tensor([[1, 1], [1, 0]]))


@quick
@given(SEEDS, st.integers(1, 12), st.integers(1, 4), st.integers(0, 60))
def test_masks_are_spans_inside_the_record(seed: int, span: int, min_spans: int, more: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shortest = span + min_spans - 1
    lengths = torch.tensor([shortest, shortest + more])
    mask = sample_span_mask(2, shortest + more, 0.65, span, min_spans, lengths, generator)
    assert not mask[0, shortest:].any()
    for row in mask.tolist():
        runs = "".join("x" if step else " " for step in row).split()
        assert all(len(run) >= span for run in runs)
        assert sum(map(len, runs)) >= span + min_spans - 1 or len(runs) > 1
    with pytest.raises(ValueError, match="cannot hold"):
        sample_span_mask(2, shortest + more, 0.65, span, min_spans, lengths - 1, generator)


def test_spans_cover_the_expected_part_and_every_step() -> None:
    mask = sample_span_mask(4000, 156, generator=torch.Generator().manual_seed(0)).float()
    spans = 0.65 * 156 / 10
    assert mask.mean().item() == pytest.approx(1 - math.exp(-0.65), abs=0.02)
    middle, first = mask[:, 20:-20].mean().item(), mask[:, 0].mean().item()
    assert middle == pytest.approx(1 - (1 - 10 / 147) ** spans, abs=0.02)
    assert first == pytest.approx(mask[:, -1].mean().item(), abs=0.02) == pytest.approx(spans / 147, abs=0.02)


def test_a_mask_depends_on_its_generator_alone() -> None:
    one, same, other = (sample_span_mask(1, 100, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert one.equal(same) and not one.equal(other)


# ------------------------------------------------------------------------------------ probabilistic matching


def literal_distance(mean_a: Tensor, logvar_a: Tensor, mean_b: Tensor, logvar_b: Tensor, distance: str) -> Tensor:
    squares = (mean_a[:, None] - mean_b).square()  # (N, M, D)
    if distance == "csd":
        return (squares + logvar_a.exp()[:, None] + logvar_b.exp()).sum(-1)
    return (squares + ((logvar_a / 2).exp()[:, None] - (logvar_b / 2).exp()).square()).sum(-1)


def literal_matching_loss(gaussians: list[Tensor], matched: np.ndarray, distance: str) -> tuple[float, int]:
    """PCME++ by its definition: one pair and one direction at a time."""
    logits = 5 - 5 * literal_distance(*gaussians, distance).numpy()
    loss, pseudo_positives = 0.0, 0
    for scores, labels in ((logits, matched), (logits.T, matched.T)):
        pseudo = labels.copy()
        for i, row in enumerate(labels):
            first = int(np.argmax(row))
            pseudo[i, scores[i] >= scores[i, first]] = row[first]
        pseudo_positives += int((pseudo != labels).sum())
        for targets, weight in ((labels, 1.0), (pseudo, 0.1)):
            log_match, log_other = -np.logaddexp(0, -scores), -np.logaddexp(0, scores)
            loss -= weight * np.mean(targets * log_match + (1 - targets) * log_other)
    for mean, logvar in (gaussians[:2], gaussians[2:]):
        loss += 1e-4 * -0.5 * (1 + logvar - mean**2 - logvar.exp()).mean().item()
    return loss, pseudo_positives


@quick
@given(SEEDS, st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.sampled_from(["csd", "wdist"]))
def test_probabilistic_matching_is_the_literal_formula(seed: int, n: int, m: int, dim: int, distance: str) -> None:
    gaussians = [unit(seed, n, dim), randn(seed + 1, n, dim) - 3, unit(seed + 2, m, dim), randn(seed + 3, m, dim) - 3]
    matched = (randn(seed + 4, n, m) > 0.5).double()
    loss_function = ProbabilisticMatchingLoss(distance=distance)
    output = loss_function(*gaussians, matched=matched)
    expected, pseudo_positives = literal_matching_loss(gaussians, matched.numpy(), distance)
    assert output.loss.item() == pytest.approx(expected, abs=1e-9)
    assert output.num_pseudo_positives == pseudo_positives
    assert output[0] is output.loss
    np.testing.assert_allclose(
        pairwise_distance(*gaussians, distance=distance), literal_distance(*gaussians, distance), atol=1e-12
    )


@pytest.mark.parametrize("distance", ["csd", "wdist"])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_distances_keep_their_precision_in_float32(distance: str, offset: float) -> None:
    mean = unit(0, 64, 512) + offset
    gaussians = [mean, randn(1, 64, 512) - 8, mean + 0.02 * randn(2, 64, 512), randn(3, 64, 512) - 8]
    gaussians = [g.float().requires_grad_() for g in gaussians]
    exact = [g.detach().double().requires_grad_() for g in gaussians]
    actual = pairwise_distance(*gaussians, distance=distance)
    expected = literal_distance(*exact, distance)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=0)
    actual.square().sum().backward()
    expected.square().sum().backward()
    for a, e in zip(gaussians, exact, strict=True):
        torch.testing.assert_close(a.grad.double(), e.grad, rtol=1e-4, atol=1e-5 * e.grad.abs().max().item())


def test_distance_of_a_gaussian_to_itself_is_zero_and_never_below() -> None:
    mean, logvar = 3 * randn(0, 200, 64).float(), randn(1, 200, 64).float()
    distances = pairwise_distance(mean, logvar, mean, logvar, "wdist")
    assert distances.min() >= 0
    assert distances.diagonal().max() < 1e-3 < distances[~torch.eye(200, dtype=torch.bool)].min()


def test_the_match_matrix_defaults_to_the_diagonal() -> None:
    gaussians = [randn(seed, 5, 4) for seed in range(4)]
    loss_function = ProbabilisticMatchingLoss()
    assert loss_function(*gaussians).loss == loss_function(*gaussians, matched=torch.eye(5, dtype=torch.bool)).loss
    with pytest.raises(ValueError, match=r"of shape \(4, 5\).*\(5, 5\)"):
        loss_function(*gaussians, matched=torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"missing.*\(5, 3\)"):
        loss_function(gaussians[0], gaussians[1], gaussians[2][:3], gaussians[3][:3])
    with pytest.raises(ValueError, match="'cosine'"):
        ProbabilisticMatchingLoss(distance="cosine")(*gaussians)


@quick
@given(SEEDS, st.integers(1, 5), st.integers(1, 5))
def test_contrast_adds_infonce_of_the_means_and_leaves_the_variances_alone(seed: int, n: int, m: int) -> None:
    gaussians = [unit(seed, n, 3), randn(seed + 1, n, 3) - 3, unit(seed + 2, m, 3), randn(seed + 3, m, 3) - 3]
    gaussians = [g.requires_grad_() for g in gaussians]
    matched = randn(seed + 4, n, m) > 0.5
    cosines = (gaussians[0] @ gaussians[2].T).detach().numpy()
    expected = 0.0
    for scores, labels in ((10 * cosines, matched), (10 * cosines.T, matched.T)):
        for i, row in enumerate(labels):
            if row.any():
                shares = [log_softmax_at(scores[i], int(j)) for j in row.nonzero().flatten()]
                expected -= np.mean(shares) / len(labels) / 2
    plain = ProbabilisticMatchingLoss()(*gaussians, matched)
    output = ProbabilisticMatchingLoss(contrast=0.3)(*gaussians, matched)
    assert output.contrastive_loss.item() == pytest.approx(expected, abs=1e-9)
    assert output.loss.item() == pytest.approx(plain.loss.item() + 0.3 * expected, abs=1e-9)
    (output.loss - plain.loss).backward()
    for logvar in (gaussians[1], gaussians[3]):
        assert logvar.grad.abs().max() < 1e-12


def test_an_exploded_divergence_is_left_out_for_its_side_alone() -> None:
    mean_a, logvar_a, mean_b, logvar_b = (randn(seed, 3, 4) for seed in range(4))
    exploded = torch.full_like(logvar_a, 12.0)
    output = ProbabilisticMatchingLoss()(mean_a, exploded, mean_b, logvar_b)
    expected = -0.5 * (1 + logvar_b - mean_b.square() - logvar_b.exp()).mean()
    torch.testing.assert_close(output.vib_loss, expected)


def test_match_probability_and_similarity_of_distributions() -> None:
    assert match_probability(torch.tensor(1.0), 5.0, 5.0) == 0.5
    mean, logvar = randn(0, 3, 6), randn(1, 3, 6)
    torch.testing.assert_close(hellinger_similarity(mean, logvar, mean, logvar), torch.ones(3, dtype=torch.float64))
    # one dimension, by numerical integration of sqrt(p q)
    x = torch.linspace(-60, 60, 400_001, dtype=torch.float64)
    densities = [
        torch.exp(-((x - m) ** 2) / (2 * math.exp(v))) / math.sqrt(2 * math.pi * math.exp(v))
        for m, v in ((0.5, 0.3), (-1.0, 1.5))
    ]
    overlap = torch.trapezoid(torch.sqrt(densities[0] * densities[1]), x)
    arguments = [torch.tensor([value], dtype=torch.float64) for value in (0.5, 0.3, -1.0, 1.5)]
    torch.testing.assert_close(hellinger_similarity(*arguments), 1 - torch.sqrt(1 - overlap))


def test_learned_numbers_are_named_and_have_a_dimension() -> None:
    loss_function = ProbabilisticMatchingLoss(init_shift=3.0, init_negative_scale=2.0)
    assert {name: p.tolist() for name, p in loss_function.named_parameters()} == {
        "shift": [3.0],
        "negative_scale": [2.0],
    }
    nn.init.zeros_(loss_function.shift)
    loss_function.reset_parameters()
    assert loss_function.shift.item() == 3.0


# ---------------------------------------------------------------------------------------- all of the losses


class AllLosses(nn.Module):
    """One linear layer a modality, so that each loss has parameters on both sides, and its own learned numbers."""

    names = ("contrastive", "caption", "beat", "beat_chunked", "cmsc", "masked", "matching", "matching_by_text")

    def __init__(self) -> None:
        super().__init__()
        self.ecg = nn.Linear(7, 6, dtype=torch.float64)
        self.text = nn.Linear(7, 6, dtype=torch.float64)
        self.scale = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))
        self.matching = ProbabilisticMatchingLoss(smoothness=0.5, vib_beta=0.01, contrast=0.1).double()
        for seed, parameter in enumerate((self.ecg.weight, self.ecg.bias, self.text.weight, self.text.bias)):
            parameter.data = 0.3 * randn(seed, *parameter.shape)

    def forward(self, name: str, batch: dict[str, Tensor]) -> Tensor:
        beats, sentences, mask = self.ecg(batch["ecg"]), self.text(batch["text"]), batch["mask"]
        ecg, text = beats[:, 0], sentences[:, 0]
        if name == "contrastive":
            return contrastive_loss(nn.functional.normalize(ecg), nn.functional.normalize(text), self.scale)
        if name == "caption":
            return caption_loss(sentences, torch.where(mask, batch["labels"], -100))
        if name.startswith("beat"):
            return beat_alignment_loss(beats, sentences, mask, chunk_size=3 if name == "beat_chunked" else None)
        if name == "cmsc":
            return cmsc_loss(ecg, text, batch["patients"], self.scale)
        if name == "masked":
            return masked_contrastive_loss(beats, batch["targets"], batch["negatives"], batch["steps"])
        texts = [f"report {patient}" for patient in batch["patients"].tolist()]
        matched = matched_by_id(texts) if name == "matching_by_text" else None
        return self.matching(ecg, beats[:, 1], text, sentences[:, 1], matched).loss

    def loss_and_gradients(self, forward: nn.Module, name: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        self.zero_grad()
        loss = forward(name, batch)
        loss.backward()
        gradients = {key: p.grad.clone() for key, p in self.named_parameters() if p.grad is not None}
        return {"loss": loss.detach(), **gradients}


def all_losses_batch() -> dict[str, Tensor]:
    mask = sentence_mask(5, 16, 3)
    mask[:8, 2] = False  # the first process' longest report is shorter
    steps = randn(8, 16, 5) > 0
    steps[:, :2] = True
    return {
        "ecg": randn(6, 16, 5, 7),
        "text": randn(7, 16, 3, 7),
        "mask": mask,
        "labels": torch.arange(48).view(16, 3) % 6,
        "patients": torch.arange(16) % 6,
        "steps": steps,
        "negatives": sample_negative_indices(steps, 4, torch.Generator().manual_seed(0)),
        "targets": randn(9, 16, 5, 6),
    }


@pytest.mark.parametrize("name", AllLosses.names)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    model = AllLosses()
    batch = {key: value[:5] for key, value in all_losses_batch().items()}
    batch["ecg"], batch["text"] = batch["ecg"].requires_grad_(), batch["text"].requires_grad_()
    assert torch.autograd.gradcheck(lambda ecg, text: model(name, batch), (batch["ecg"], batch["text"]))


@pytest.mark.parametrize("name", AllLosses.names)
def test_half_precision_inputs_lose_nothing_inside(name: str) -> None:
    model, batch = AllLosses(), all_losses_batch()
    model.to(torch.bfloat16)
    batch = {key: value.bfloat16() if value.is_floating_point() else value for key, value in batch.items()}

    def embed(layer: nn.Linear, args: tuple[Tensor], output: Tensor) -> Tensor:
        return output.to(dtype)  # the same bfloat16 numbers, given as bfloat16 or as float32

    for layer in (model.ecg, model.text):
        layer.register_forward_hook(embed)
    losses = []
    for dtype in (torch.bfloat16, torch.float32):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            losses.append(model(name, batch))
    assert losses[0].dtype == torch.float32
    if name == "contrastive":  # normalised outside the loss, in the precision given
        torch.testing.assert_close(losses[0], losses[1], rtol=2e-2, atol=0)
    else:
        assert losses[0] == losses[1]


SPLITS = {"equal": (8, 8), "unequal": (11, 5)}


def save_losses_and_gradients(rank: int, folder: str, split: str) -> None:
    sizes = SPLITS[split]
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    batch = {key: value[own] for key, value in all_losses_batch().items()}
    longest = int(batch["mask"].sum(-1).max())
    for key in ("text", "mask", "labels"):
        batch[key] = batch[key][:, :longest]
    model = AllLosses()
    parallel = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    for name in AllLosses.names:
        save_file(model.loss_and_gradients(parallel, name, batch), f"{folder}/{split}_{name}_{rank}.safetensors")


def run_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for split in SPLITS:
        save_losses_and_gradients(rank, folder, split)
    torch.distributed.barrier()  # lets gloo's thread finish: it may need the lock that its destruction holds
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Losses and parameter gradients under DDP, with equal and unequal shares of the batch."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(run_process, (str(folder),), nprocs=2)
    model = AllLosses()
    for name in AllLosses.names:
        expected = model.loss_and_gradients(model, name, all_losses_batch())
        for split in SPLITS:
            for rank in range(2):
                actual = load_file(folder / f"{split}_{name}_{rank}.safetensors")
                used = {key: actual[key] for key in expected}
                torch.testing.assert_close(used, expected, rtol=1e-9, atol=1e-12)
