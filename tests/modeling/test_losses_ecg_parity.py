"""The losses against numbers measured on the reference systems (values to 1e-5, gradients to 1e-4)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_melp import beat_attention
from torch import Tensor

from ecgformers.modeling.losses_ecg import contrastive_loss
from ecgformers.modeling.losses_echoing_ecg import ProbabilisticMatchingLoss, pairwise_distance
from ecgformers.modeling.losses_melp import beat_alignment_loss, beat_similarity, caption_loss
from ecgformers.modeling.losses_melp_pretraining import cmsc_loss, masked_contrastive_logits


def load(parity_dir: Path, fixture: str) -> dict[str, Tensor]:
    return load_file(parity_dir / "out" / fixture / "io.safetensors")


def load_cases(parity_dir: Path, fixture: str) -> list[tuple[dict, dict[str, Tensor]]]:
    tensors = load(parity_dir, fixture)
    cases = json.loads((parity_dir / "out" / fixture / "meta.json").read_text())["cases"]
    by_case = []
    for case in cases:
        prefix = case["name"] + "/"
        by_case.append((case, {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}))
    return by_case


def assert_value(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def assert_grad(leaf: Tensor, expected: Tensor) -> None:
    """1e-4 of the largest entry: what is left of entries that cancel is rounding on either side."""
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def leaves(tensors: dict[str, Tensor], *names: str) -> list[Tensor]:
    return [tensors[name].requires_grad_() for name in names]


def pad_sentences(sentences: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Sentences one below the other -> (reports, longest, dim), and their mask."""
    mask = torch.arange(int(counts.max())) < counts[:, None]
    padded = sentences.new_zeros(*mask.shape, sentences.shape[-1]).masked_scatter(mask[..., None], sentences)
    return padded, mask


def test_contrastive_and_caption(parity_dir: Path) -> None:
    io = load(parity_dir, "melp_clip_caption")
    ecg, text, scale, logits = leaves(io, "in/ecg_features", "in/text_features", "in/logit_scale", "in/logits")
    clip = contrastive_loss(ecg, text, scale)
    caption = 2 * caption_loss(logits, io["in/labels"].masked_fill(io["in/labels"] == 0, -100))
    (clip + caption).backward()
    assert_value(clip, io["out/clip"])
    assert_value(caption, io["out/caption_times2"])
    for leaf, name in ((ecg, "ecg_features"), (text, "text_features"), (scale, "logit_scale")):
        assert_grad(leaf, io[f"grad/{name}"])
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[0], io["grad/logits_sample0"], rtol=1e-4, atol=1e-7)
    nothing = caption_loss(logits, torch.full_like(io["in/labels"], -100))
    assert nothing.isnan() and io["out/caption_all_padding"].isnan()


@pytest.mark.parametrize("code", ["echoing", "pcmepp"])
def test_contrastive_of_the_probabilistic_models(parity_dir: Path, code: str) -> None:
    io = load(parity_dir, "pcmepp_loss")
    a, b = leaves(io, f"infonce_{code}/in/mean1", f"infonce_{code}/in/mean2")
    tau = torch.tensor([4.0], requires_grad=True)
    loss = contrastive_loss(a, b, tau)
    loss.backward()
    assert_value(loss, io[f"infonce_{code}/out/loss"])
    for leaf, name in ((a, "mean1"), (b, "mean2"), (tau, "tau")):
        assert_grad(leaf, io[f"infonce_{code}/grad/{name}"])


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_beat_alignment(parity_dir: Path, chunk_size: int | None) -> None:
    for case, io in load_cases(parity_dir, "melp_beat_alignment"):
        beats, sentences = leaves(io, "in/ecg_embs", "in/sent_embs_cat")
        padded, mask = pad_sentences(sentences, io["in/counts"])
        first, second, third = case["temp1/2/3"]
        loss = beat_alignment_loss(beats, padded, mask, first, second, third, case["agg"], chunk_size)
        loss.backward()
        assert_value(loss, io["out/loss"])
        assert_grad(beats, io["grad/ecg_embs"])
        assert_grad(sentences, io["grad/sent_embs_cat"])
        similarity = third * beat_similarity(beats, padded, mask, first, second, case["agg"])
        torch.testing.assert_close(similarity, io["out/similarities_times_temp3"], rtol=1e-5, atol=1e-5)
        assert_value(beat_attention(beats, padded, mask, first)[mask], io["out/att_maps_cat"])


@pytest.mark.parametrize("part", ["a", "b"])
def test_losses_of_the_whole_melp(parity_dir: Path, part: str) -> None:
    io = {k.removeprefix(part + "/"): v for k, v in load(parity_dir, "melp_full").items() if k.startswith(part + "/")}
    padded, mask = pad_sentences(io["sent_embs_cat"], io["sent_counts"])
    beat = beat_alignment_loss(io["ecg_embs_beat"], padded, mask)
    clip = contrastive_loss(io["ecg_latent"], io["text_latent"], io.get("logit_scale", torch.tensor(1 / 0.07)))
    # two logits with the same log-softmax at the label as the 30,523 that are not stored
    at_label, total = io["logits_at_labels"].double(), io["logits_logsumexp"].double()
    logits = torch.stack([at_label, total + torch.log(-torch.expm1(at_label - total))], dim=-1)
    caption = caption_loss(logits, torch.where(io["labels"] == 0, -100, 0))
    assert_value(beat, io["loss/unweighted_beat"])
    assert_value(clip, io["loss/unweighted_clip"])
    assert_value(caption.float(), io["loss/unweighted_caption"])
    assert_value((clip + 2 * caption + 0.2 * beat).float(), io["loss/loss"])


def test_cmsc(parity_dir: Path) -> None:
    io = load(parity_dir, "cmsc_loss")
    features, log_scale = leaves(io, "features", "logit_scale")
    loss = cmsc_loss(features[:, 0], features[:, 1], io["patient_id"][:, 0], log_scale.exp())
    loss.backward()
    assert_value(loss, io["loss"])
    assert_grad(features, io["grad/features"])
    assert_grad(log_scale, io["grad/logit_scale"])


def test_pretraining(parity_dir: Path) -> None:
    io = load(parity_dir, "w2v_cmsc_pretrain")
    first, second = io["out/features_pooled"].view(3, 2, -1).unbind(1)
    logit_scale = torch.tensor(2.6592600345611572).exp()  # the filled parameter, from meta.json
    assert_value(cmsc_loss(first, second, io["patient_id"][:, 0], logit_scale), io["loss/cmsc_loss"])

    context, targets = io["out/context_proj_rows0_16"], io["out/target_proj_rows0_16"]
    records, steps, _ = context.shape
    negatives = io["neg_idx_within_row"].long().view(records, -1, 100)[:, :steps]
    logits = masked_contrastive_logits(context, targets, negatives.where(negatives < steps, 0))
    expected = io["out/logits_rows0_64"].masked_fill(io["out/neg_equal_rows0_64"].bool(), -torch.inf)
    stored = torch.cat([torch.ones(records, steps, 1), negatives < steps], -1).bool()  # targets are stored of 16 steps
    stored = stored.transpose(0, 1).flatten(0, 1)[:64]
    actual = logits.transpose(0, 1).flatten(0, 1)[:64]
    assert stored[:, 1:].sum() > 500 and (expected[stored] == -torch.inf).any()
    torch.testing.assert_close(actual[stored], expected[stored], rtol=1e-4, atol=1e-5)
    assert_value((io["out/logits_logsumexp"] - io["out/logits_pos"]).mean(), io["loss/recon_loss"])


def test_probabilistic_matching(parity_dir: Path) -> None:
    keywords = {
        "smoothness_alpha": "smoothness",
        "prob_distance": "distance",
        "vib_beta": "vib_beta",
        "init_shift": "init_shift",
        "init_negative_scale": "init_negative_scale",
    }
    for case, io in load_cases(parity_dir, "pcmepp_loss"):
        loss_function = ProbabilisticMatchingLoss(**{keywords[name]: value for name, value in case["kwargs"].items()})
        names = ["mean1", "logvar1", "mean2", "logvar2"]
        inputs = leaves(io, *(f"in/{name}" for name in names))
        output = loss_function(*inputs, matched=io.get("in/matched"))
        output.loss.backward()
        assert_value(output.loss, io["out/loss"])
        assert_value(output.match_loss, 2 * io["out/inner/bce_mean"])
        smooth = io["out/inner/bce_smooth_12"] + io["out/inner/bce_smooth_21"]
        assert_value(output.pseudo_positive_loss, smooth)
        assert_value(output.vib_loss, io["out/inner/kl1"] + io["out/inner/kl2"])
        torch.testing.assert_close(output.logits, io["out/inner/logits"], rtol=1e-5, atol=2e-5)
        for leaf, name in zip(inputs, names, strict=True):
            assert_grad(leaf, io[f"grad/grad_{name}"])
        for name in ("shift", "negative_scale"):
            assert_grad(getattr(loss_function, name), io[f"grad/grad_{name}"])
        if "in/matched" not in io:  # the reference counts the true matches of other rows too
            expected = io["out/inner/n_pseudo_12"] + io["out/inner/n_pseudo_21"]
            assert output.num_pseudo_positives == expected


def test_probabilistic_similarity(parity_dir: Path) -> None:
    io = load(parity_dir, "pcmepp_eval")
    for prefix in ("", "coco/"):
        gaussians = [io[prefix + name] for name in ("mean1", "logvar1", "mean2", "logvar2")]
        assert_value(-pairwise_distance(*gaussians), io[prefix + "neg_csd"])
