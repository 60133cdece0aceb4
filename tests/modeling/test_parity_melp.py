"""MELP beside the reference system: full-size weights by the fixtures' rule, in the authors' layout, through the
converter and `AutoModel`.  Tolerances: 2e-4 on activations, 5e-6 on unit-norm embeddings, 1e-4 relative on losses and
gradients (the reference's own float32 noise is 1e-5 to 4e-5 on activations)."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForSpeechSeq2Seq, AutoProcessor, BertTokenizer

from ecgformers.modeling.converting.melp import main as convert_melp
from ecgformers.modeling.losses_melp import beat_alignment_loss

ACTIVATION = {"atol": 2e-4, "rtol": 0}
UNIT_NORM = {"atol": 5e-6, "rtol": 0}
RELATIVE = {"atol": 1e-6, "rtol": 1e-4}
close = torch.testing.assert_close


def reference_weights(parity_dir: Path, fixture: str) -> dict[str, torch.Tensor]:
    spec = importlib.util.spec_from_file_location("fill", parity_dir / "tools" / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    keys = json.loads((parity_dir / "out" / fixture / "state_dict_keys.json").read_text())
    return {name: torch.from_numpy(np.array(fill.values(name, shape))) for name, shape, _ in keys}


def measured(parity_dir: Path, fixture: str) -> dict[str, torch.Tensor]:
    return load_file(parity_dir / "out" / fixture / "io.safetensors")


@pytest.mark.parametrize("fixture", ["melp_encoder_q10", "melp_encoder_q13", "melp_encoder_q14"])
def test_ecg_tower(parity_dir, tmp_path, fixture):
    save_file(reference_weights(parity_dir, fixture), tmp_path / "model.safetensors")
    convert_melp(["--checkpoint", str(tmp_path / "model.safetensors"), "--output", str(tmp_path / "converted")])
    model = AutoModel.from_pretrained(tmp_path / "converted")
    io = measured(parity_dir, fixture)
    with torch.no_grad():
        output = model(io["ecg"], output_hidden_states=True)
    close(output.last_hidden_state[0], io["x_sample0"], **ACTIVATION)
    close(output.beat_embeds, io["pooled_beat"], **ACTIVATION)
    close(output.beat_embeds.mean(1), io["pooled"], **ACTIVATION)
    close(output.pooler_output, io["ext_ecg_emb"], **ACTIVATION)
    close(output.caption_tokens[0], io["tokens_sample0"], **ACTIVATION)
    if fixture != "melp_encoder_q14":
        return
    close(output.last_hidden_state[1:, :, :64], io["x_rest_dim0_64"], **ACTIVATION)
    close(output.ecg_embeds, io["proj_ecg_emb_normalized"], **UNIT_NORM)
    close(output.caption_tokens[1:, :16], io["tokens_rest_q0_16"], **ACTIVATION)
    close(output.hidden_states[0][..., :8], io["stage/encoder_layer_norm"], **ACTIVATION)
    for layer in range(8):
        close(output.hidden_states[layer + 1][..., :8], io[f"stage/layer{layer}"], **ACTIVATION)
    convolved = io["ecg"]
    for index, block in enumerate(model.encoder.conv_blocks):
        convolved, _ = block(convolved, None)
        close(convolved[:, :8], io[f"stage/conv{index}"], **ACTIVATION)

    ecg = io["ecg"][:1].requires_grad_()
    output = model(ecg)
    pooled = output.beat_embeds.mean(1)
    scalar = (pooled * io["grad/coef_pooled"]).sum() + (output.caption_tokens * io["grad/coef_tokens"]).sum() / 10
    scalar.backward()
    encoder = model.encoder
    for name, gradient in {
        "ecg_sample0": ecg.grad,
        "ecg_encoder.ecg_encoder.feature_extractor.conv_layers.0.0.weight": encoder.conv_blocks[0].conv.weight.grad,
        "ecg_encoder.ecg_encoder.feature_extractor.conv_layers.0.2.weight": encoder.conv_blocks[0].norm.weight.grad,
        "ecg_encoder.ecg_encoder.layer_norm.weight": encoder.feature_norm.weight.grad,
        "ecg_encoder.ecg_encoder.encoder.layers.0.self_attn.q_proj.bias": encoder.layers[0].self_attn.q_proj.bias.grad,
        "ecg_encoder.ecg_encoder.encoder.layers.7.fc1.bias": encoder.layers[7].fc1.bias.grad,
        "ecg_encoder.attn_pool_contrast.query": model.beat_pooler.query.grad,
        "ecg_encoder.proj_contrast_row0_8": model.beat_projection.weight.grad.T[:8],
    }.items():
        expected = io[f"grad/{name}"]
        close(
            gradient, expected, atol=1e-4 * expected.abs().max().item(), rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_resnet_tower(parity_dir, tmp_path):
    save_file(reference_weights(parity_dir, "melp_custom_resnet18"), tmp_path / "model.safetensors")
    convert_melp(["--checkpoint", str(tmp_path / "model.safetensors"), "--output", str(tmp_path / "converted")])
    model = AutoModel.from_pretrained(tmp_path / "converted")
    io = measured(parity_dir, "melp_custom_resnet18")
    with torch.no_grad():
        output = model(io["ecg"])
    assert output.last_hidden_state.shape == (2, 313, 256)
    close(output.beat_embeds, io["pooled_beat"], **ACTIVATION)
    close(output.beat_embeds.mean(1), io["pooled"], **ACTIVATION)
    close(output.pooler_output, io["ext_ecg_emb"], **ACTIVATION)
    close(output.caption_tokens[:, :16], io["tokens_q0_16"], **ACTIVATION)


@pytest.fixture(scope="module")
def full_model_dir(parity_dir, tmp_path_factory) -> Path:
    """A full Lightning checkpoint and its tokenizer, converted."""
    folder = tmp_path_factory.mktemp("melp")
    words = (parity_dir / "tools" / "vocab_small.txt").read_text().split("\n")[:-1]
    words += [f"[unused{i}]" for i in range(30522 - len(words))]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(folder / "tokenizer")
    checkpoint = folder / "epoch.ckpt"
    torch.save({"state_dict": reference_weights(parity_dir, "melp_full"), "epoch": 3}, checkpoint)
    arguments = ["--checkpoint", checkpoint, "--tokenizer", folder / "tokenizer", "--output", folder / "converted"]
    convert_melp([str(argument) for argument in arguments])
    checkpoint.unlink()
    return folder / "converted"


def test_full_model(parity_dir, full_model_dir):
    model = AutoModel.from_pretrained(full_model_dir)
    io = measured(parity_dir, "melp_full")
    for batch, rows, cls_position in (("a", 3, 24), ("b", 2, 127)):
        # The reference gives the closing [CLS] the padded length as position: ours is told that length.
        model.config.cls_position = cls_position
        model.zero_grad()
        output = model(io["ecg"][:rows], io[f"{batch}/input_ids"], return_loss=True)
        close(output.ecg_embeds, io[f"{batch}/ecg_latent"], **UNIT_NORM)
        close(output.text_embeds, io[f"{batch}/text_latent"], **UNIT_NORM)
        close(output.beat_embeds, io[f"{batch}/ecg_embs_beat"], **ACTIVATION)
        states = output.text_model_output.last_hidden_state
        close(states[..., :64], io[f"{batch}/lm_hidden_last_dim0_64"][:, :-1], **ACTIVATION)
        close(output.caption_logits.logsumexp(-1), io[f"{batch}/logits_logsumexp"], **ACTIVATION)
        step = 256 if batch == "a" else 1024
        close(output.caption_logits[..., ::step], io[f"{batch}/logits_every{step}"], **ACTIVATION)
        # The reference drops the text after the last full stop; ours is one sentence more.
        kept = torch.arange(output.sentence_mask.shape[1]) < io[f"{batch}/sent_counts"][:, None]
        assert (output.sentence_mask | ~kept).all()
        close(output.sentence_embeds[kept], io[f"{batch}/sent_embs_cat"], **ACTIVATION)
        beat_loss = beat_alignment_loss(output.beat_embeds, output.sentence_embeds, kept)
        close(output.contrastive_loss, io[f"{batch}/loss/unweighted_clip"], **RELATIVE)
        close(output.caption_loss, io[f"{batch}/loss/unweighted_caption"], **RELATIVE)
        close(beat_loss, io[f"{batch}/loss/unweighted_beat"], **RELATIVE)
        loss = output.contrastive_loss + 2 * output.caption_loss + 0.2 * beat_loss
        close(loss, io[f"{batch}/loss/loss"], **RELATIVE)
        if batch == "b":
            break
        loss.backward()
        decoder, encoder = model.text_decoder.layers, model.ecg_model.encoder
        cross = decoder[0].cross_block.attention
        for name, gradient in {
            "logit_scale": model.logit_scale.grad,
            "sent_proj.weight[:8]": model.sentence_projection.weight.grad[:8],
            "proj_t.2.bias": model.text_projection[2].bias.grad,
            "text_decoder.ln_final.weight": model.text_decoder.final_norm.weight.grad,
            "text_decoder.cross_attn.0.attn.in_proj_bias": torch.cat(
                [cross.q_proj.bias.grad, cross.k_proj.bias.grad, cross.v_proj.bias.grad]
            ),
            "text_decoder.resblocks.5.mlp.c_proj.bias": decoder[5].self_block.fc2.bias.grad,
            "lm_model.bert.encoder.layer.11.output.LayerNorm.weight": model.text_model.encoder.layer[
                11
            ].output.LayerNorm.weight.grad,
            "ecg_encoder.attn_pool_contrast.query": model.ecg_model.beat_pooler.query.grad,
            "ecg_encoder.attn_pool_caption.ln_q.weight": model.ecg_model.caption_pooler.query_norm.weight.grad,
            "ecg_encoder.ln_contrast.bias": model.ecg_model.beat_norm.bias.grad,
            "ecg_encoder.ecg_encoder.encoder.layers.3.fc1.bias": encoder.layers[3].fc1.bias.grad,
            "ecg_encoder.ecg_encoder.feature_extractor.conv_layers.0.0.weight[:16]": encoder.conv_blocks[
                0
            ].conv.weight.grad[:16],
            "word_embeddings_bos_sep_period": model.get_input_embeddings().weight.grad[[30522, 3, 18]],
        }.items():
            expected = io[f"a/grad/{name}"]
            atol = 1e-4 * expected.abs().max().item()
            close(gradient, expected, atol=atol, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_zero_shot_from_texts(parity_dir, full_model_dir):
    io = measured(parity_dir, "melp_full")
    texts = ["Sinus rhythm. Normal ECG.", "atrial fibrillation with rapid ventricular response. left axis deviation"]
    texts.append("Rate 0.5 mV. qrs")
    inputs = AutoProcessor.from_pretrained(full_model_dir)(text=texts, padding="max_length")
    assert torch.equal(inputs.input_ids, io["strings/input_ids_lowered"])
    model = AutoModel.from_pretrained(full_model_dir)
    with torch.no_grad():
        classes = model.get_text_features(inputs.input_ids, inputs.attention_mask).text_embeds
        ecgs = model.get_ecg_features(io["ecg"]).ecg_embeds
    close(classes.T, io["strings/zeroshot_weights"], **UNIT_NORM)
    close(ecgs @ classes.T, io["strings/zeroshot_logits"], **UNIT_NORM)


def test_report_generation(parity_dir, full_model_dir):
    model = AutoModelForSpeechSeq2Seq.from_pretrained(full_model_dir)
    io = measured(parity_dir, "melp_full")
    greedy = io["generate/greedy_ids"]
    written = model.generate(io["ecg"][:2], max_new_tokens=10, do_sample=False)
    assert torch.equal(written, greedy[:, :-1])  # the reference closes with [SEP] at the length limit
    # Its six beams in three groups without a diversity penalty are three times the same two beams.
    written = model.generate(io["ecg"][:2], max_new_tokens=8, num_beams=2)
    assert torch.equal(written, io["generate/beam_ids"])


def test_pretraining_stage(parity_dir, tmp_path):
    torch.save(reference_weights(parity_dir, "w2v_cmsc_pretrain"), tmp_path / "stage2.pt")
    convert_melp(["--checkpoint", str(tmp_path / "stage2.pt"), "--output", str(tmp_path / "converted")])
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "converted")
    io = measured(parity_dir, "w2v_cmsc_pretrain")
    mask = io["mask_indices"].bool()  # (recordings * 2, time)
    steps = mask.nonzero()[:, 1].unflatten(0, (len(mask), -1))
    negatives = torch.zeros(*mask.shape, 100, dtype=torch.long)
    negatives[mask] = steps.gather(1, io["neg_idx_within_row"].long()).unflatten(1, (-1, 100)).flatten(0, 1)
    output = model(
        io["ecg"],
        io["patient_id"][:, 0],
        masked_steps=mask.unflatten(0, (-1, 2)),
        negative_indices=negatives.unflatten(0, (-1, 2)),
    )
    close(output.masked_loss, io["loss/recon_loss"], **RELATIVE)
    close(output.cmsc_loss, io["loss/cmsc_loss"], **RELATIVE)
    close(output.loss, io["loss/loss"], **RELATIVE)
    close(output.code_perplexity, io["out/code_perplexity"], rtol=1e-4, atol=0)
    close(output.recording_embeds.flatten(0, 1), io["out/features_pooled"], **ACTIVATION)
    output.loss.backward()
    encoder = model.encoder
    for name, gradient in {
        "ecg_encoder.mask_emb": encoder.mask_embedding.grad,
        "ecg_encoder.final_proj.bias": model.context_projection.bias.grad,
        "ecg_encoder.project_q.bias": model.target_projection.bias.grad,
        "head.proj.weight[:8]": model.recording_projection.weight.grad[:8],
        "logit_scale": model.logit_scale.grad,
        "ecg_encoder.layer_norm.bias": encoder.feature_norm.bias.grad,
        "ecg_encoder.feature_extractor.conv_layers.3.0.weight[:8]": encoder.conv_blocks[3].conv.weight.grad[:8],
    }.items():
        expected = io[f"grad/{name}"]
        atol = 1e-4 * expected.abs().max().item()
        close(gradient, expected, atol=atol, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
