"""MELP's behaviour on tiny models; its numbers are checked in test_parity_melp.py and by the golden file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import ecg_batch, fill
from tiny_melp import tiny_config, tiny_ecg_config, tiny_resnet_config, tiny_tokenizer
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
)

from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from ecgformers.modeling.losses_melp_pretraining import cmsc_loss
from ecgformers.modeling.modeling_melp import (
    MelpForConditionalGeneration,
    MelpForSequenceClassification,
    MelpModel,
    mean_by_sentence,
)
from ecgformers.modeling.modeling_melp_ecg import MelpEcgForSequenceClassification, MelpEcgModel
from ecgformers.modeling.modeling_melp_pretraining import MelpEcgForPreTraining

GOLDEN = Path(__file__).parent / "golden"
REPORTS = ["Sinus rhythm. Normal ECG.", "atrial fibrillation. left axis deviation. no infarction", "normal"]


@pytest.fixture(scope="module")
def model() -> MelpModel:
    return fill(MelpModel(tiny_config()))


@pytest.fixture(scope="module")
def resnet_model() -> MelpModel:
    return fill(MelpModel(tiny_config(ecg_config=tiny_resnet_config())))


@pytest.fixture(params=["model", "resnet_model"])
def either_model(request) -> MelpModel:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def texts():
    return tiny_tokenizer()(REPORTS, padding=True, return_tensors="pt")


def golden_outputs(model: MelpModel, texts) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        output = model(ecg_batch(), texts.input_ids, attention_mask=texts.attention_mask, return_loss=True)
    names = ("ecg_embeds", "text_embeds", "beat_embeds", "sentence_embeds", "contrastive_loss", "caption_loss")
    tensors = {name: output[name] for name in (*names, "beat_loss", "loss")}
    return tensors | {"pooler_output": output.ecg_model_output.pooler_output, "logits": output.caption_logits[..., :5]}


@pytest.mark.parametrize(("name", "file"), [("model", "melp"), ("resnet_model", "melp_resnet")])
def test_numbers_stay_what_they_were_when_they_equalled_the_reference(request, texts, name, file):
    golden = load_file(GOLDEN / f"{file}.safetensors")
    outputs = golden_outputs(request.getfixturevalue(name), texts)
    assert outputs.keys() == golden.keys()
    for name, expected in golden.items():
        torch.testing.assert_close(outputs[name], expected, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("length", [241, 200, 37])
def test_padding_leaves_an_embedding_alone(either_model, length):
    """An ECG by itself, and the same beside a longer one in a padded batch."""
    long, short = ecg_batch(1, samples=300)[0], ecg_batch(1, samples=length, seed=1)[0]
    padded = torch.stack([long, torch.nn.functional.pad(short, (0, 300 - length), value=7.0)])
    sample_mask = torch.stack([torch.ones(300), torch.arange(300) < length]).long()
    with torch.no_grad():
        alone = either_model.get_ecg_features(short[None])
        together = either_model.get_ecg_features(padded, sample_mask=sample_mask)
    for name in ("ecg_embeds", "beat_embeds", "caption_tokens", "pooler_output", "mean_state"):
        torch.testing.assert_close(together[name][1:], alone[name], atol=1e-5, rtol=0)


def test_text_padding_leaves_an_embedding_alone(model, texts):
    with torch.no_grad():
        together = model.get_text_features(**{k: texts[k] for k in ("input_ids", "attention_mask")})
        for row, report in enumerate(REPORTS):
            alone = tiny_tokenizer()([report], return_tensors="pt")
            single = model.get_text_features(alone.input_ids, alone.attention_mask)
            torch.testing.assert_close(together.text_embeds[row : row + 1], single.text_embeds, atol=1e-5, rtol=0)
            sentences = int(single.sentence_mask.sum())
            assert int(together.sentence_mask[row].sum()) == sentences
            torch.testing.assert_close(
                together.sentence_embeds[row, :sentences], single.sentence_embeds[0, :sentences], atol=1e-5, rtol=0
            )


def test_text_without_attention_mask_takes_the_padding_from_the_ids(model, texts):
    with torch.no_grad():
        given = model.get_text_features(texts.input_ids, texts.attention_mask).text_embeds
        derived = model.get_text_features(texts.input_ids).text_embeds
    torch.testing.assert_close(given, derived)


def test_sentences_end_at_full_stops_and_nothing_is_dropped():
    """Ids: 6 is the full stop, 0 to 5 are special.  The last sentence needs no stop; a lone stop is a sentence."""
    ids = torch.tensor([[5, 7, 8, 6, 9, 6, 3, 0], [5, 7, 8, 6, 9, 3, 0, 0], [5, 7, 8, 9, 3, 0, 0, 0]])
    states = ids[..., None].float() * torch.tensor([1.0, -1.0])
    means, mask = mean_by_sentence(states, ids, 6, (0, 1, 2, 3, 4, 5))
    assert mask.tolist() == [[True, True], [True, True], [True, False]]
    assert means[..., 0].tolist() == [[7.0, 7.5], [7.0, 9.0], [8.0, 0.0]]
    assert means[..., 1].tolist() == [[-7.0, -7.5], [-7.0, -9.0], [-8.0, 0.0]]


@torch.no_grad()
def test_lead_mask_is_a_zeroed_lead(either_model):
    ecg = ecg_batch(2)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 4] = 0
    zeroed = ecg * mask[..., None]
    ecg[1, 4] = torch.nan
    expected = either_model.get_ecg_features(zeroed).ecg_embeds
    assert torch.equal(either_model.get_ecg_features(ecg, mask).ecg_embeds, expected)


@torch.no_grad()
def test_a_resnet_may_take_the_place_of_wav2vec(resnet_model, tmp_path):
    ecg = ecg_batch(3)
    outputs = resnet_model.get_ecg_features(ecg, output_hidden_states=True)
    assert [tuple(states.shape[1:]) for states in outputs.hidden_states] == [(6, 120), (6, 120), (8, 60), (30, 16)]
    for samples in (*range(1, 20), 240):
        states = resnet_model.get_ecg_features(ecg[..., :samples]).last_hidden_state
        assert states.shape[1] == resnet_model.ecg_model.encoder.output_length(samples)
    one = resnet_model.get_ecg_features(ecg[1:2])
    torch.testing.assert_close(one.ecg_embeds, outputs.ecg_embeds[1:2], atol=1e-6, rtol=0)
    resnet_model.save_pretrained(tmp_path)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=2).eval()
    assert torch.equal(classifier.ecg_model(ecg).pooler_output, outputs.pooler_output)


def test_a_resnet_is_pretrained_by_the_halves_alone(tmp_path):
    model = fill(MelpEcgForPreTraining(tiny_resnet_config()))
    halves, patients = ecg_batch(6).unflatten(0, (3, 2)), torch.tensor([1, 2, 1])
    output = model(halves, patients)
    first, second = output.recording_embeds.unbind(1)
    assert output.loss == cmsc_loss(first, second, patients, model.logit_scale.exp())
    assert output.masked_loss is None and output.to_tuple()[0] is output.loss
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    again = MelpEcgForPreTraining.from_pretrained(tmp_path).eval()
    assert torch.equal(again(halves, patients).recording_embeds, model.eval()(halves, patients).recording_embeds)


def test_wrong_leads_are_refused_with_both_shapes(either_model):
    with pytest.raises(ValueError, match=r"12 leads.*\(2, 8, 240\)"):
        either_model.get_ecg_features(ecg_batch(2, leads=8))


def test_a_recording_without_a_time_step_is_refused(either_model):
    with pytest.raises(ValueError, match=r"rows \[1\] of the mask"):
        either_model.get_ecg_features(ecg_batch(2), sample_mask=torch.tensor([[1] * 240, [0] * 240]))


def test_unpaired_loss_is_refused(model, texts):
    with pytest.raises(ValueError, match="2 ECGs and 3 reports"):
        model(ecg_batch(2), texts.input_ids, return_loss=True)


def test_weights_start_as_documented():
    """transformers initialises modules with parameters of their own only; a container's branch is never reached."""
    torch.manual_seed(0)
    sizes = {"projection_dim": 64, "hidden_size": 64, "num_conv_pos_embeddings": 16, "num_hidden_layers": 1}
    tower = MelpEcgModel(tiny_ecg_config(**sizes))
    pretraining = MelpEcgForPreTraining(tiny_ecg_config(**sizes))
    positions = tower.encoder.position_embedding.conv
    for weight, expected in (
        (tower.beat_projection.weight, 64**-0.5),
        (positions.parametrizations.weight.original1, 2 * (16 * 64) ** -0.5),
        (tower.encoder.conv_blocks[0].conv.weight, (2 / (12 * 5)) ** 0.5),
        (tower.encoder.layers[0].fc1.weight, 0.02),
        (pretraining.quantizer.code_projection.weight, 1.0),
        (tower.beat_pooler.query, 1.0),
    ):
        assert weight.std().item() == pytest.approx(expected, rel=0.25)
    torch.testing.assert_close(positions.weight, positions.parametrizations.weight.original1)


def test_similarities_need_no_pairs(model, texts):
    with torch.no_grad():
        output = model(ecg_batch(2), texts.input_ids, attention_mask=texts.attention_mask)
    assert output.logits_per_ecg.shape == (2, 3) and output.loss is None
    torch.testing.assert_close(output.ecg_embeds.norm(dim=-1), torch.ones(2))


def test_hidden_states_and_attentions(model):
    output = model.get_ecg_features(ecg_batch(2), output_hidden_states=True)
    assert len(output.hidden_states) == model.config.ecg_config.encoder_config.num_hidden_layers + 1
    assert output.hidden_states[-1].shape == output.last_hidden_state.shape
    eager = MelpModel._from_config(tiny_config(), attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())
    weights = eager.get_ecg_features(ecg_batch(2), output_attentions=True)
    assert weights.attentions[0].shape == (2, 2, *[output.last_hidden_state.shape[1]] * 2)
    torch.testing.assert_close(weights.ecg_embeds, output.ecg_embeds, atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_changes_no_gradient(texts):
    gradients = []
    for checkpointing in (False, True):
        model = fill(MelpModel(tiny_config(ecg_config=tiny_ecg_config(hidden_dropout=0.0, attention_dropout=0.0))))
        if checkpointing:
            model.activation_checkpointing_enable()
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.text_model.config.attention_probs_dropout_prob = 0.0
        model(ecg_batch(), texts.input_ids, attention_mask=texts.attention_mask, return_loss=True).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_bfloat16(model, texts):
    half = MelpModel(model.config).eval().to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    with torch.no_grad():
        output = half(ecg_batch().bfloat16(), texts.input_ids, attention_mask=texts.attention_mask, return_loss=True)
        full = model(ecg_batch(), texts.input_ids, attention_mask=texts.attention_mask, return_loss=True)
    assert output.ecg_embeds.dtype == torch.bfloat16
    assert torch.cosine_similarity(output.ecg_embeds.float(), full.ecg_embeds).min() > 0.99
    torch.testing.assert_close(output.loss.float(), full.loss, rtol=0.05, atol=0)


def test_the_gradient_to_the_convolutions_is_scaled(model):
    gradients = []
    for factor in (1.0, 0.1):
        model.config.ecg_config.encoder_config.feature_grad_mult = factor
        model.zero_grad()
        model.get_ecg_features(ecg_batch()).ecg_embeds[:, 0].sum().backward()
        gradients.append(model.ecg_model.encoder.conv_blocks[1].conv.weight.grad.clone())
    torch.testing.assert_close(gradients[1], gradients[0] * 0.1)


def test_frozen_text_layers_get_no_gradient(texts):
    model = MelpModel(tiny_config())
    model.freeze_text_layers()
    model(ecg_batch(), texts.input_ids, attention_mask=texts.attention_mask, return_loss=True).loss.backward()
    layers = model.text_model.encoder.layer
    assert all(p.grad is None for p in layers[0].parameters())
    assert all(p.grad is not None for p in layers[1].parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"num_beams": 3},
        {"num_beams": 2, "num_return_sequences": 2},
        {"cache_implementation": "static"},
        {"do_sample": True, "top_k": 4},
    ],
    ids=str,
)
def test_generation_with_and_without_cache_agree(model, options):
    generator = MelpForConditionalGeneration(model.config).eval()
    generator.melp = model
    ecg = ecg_batch(2)
    written = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        settings = options if use_cache else {k: v for k, v in options.items() if k != "cache_implementation"}
        written.append(generator.generate(ecg, max_new_tokens=12, use_cache=use_cache, **settings))
    assert torch.equal(*written)
    assert (written[0][:, 0] == model.config.bos_token_id).all()


def test_generation_equals_one_word_after_the_other(model):
    generator = MelpForConditionalGeneration(model.config).eval()
    generator.melp = model
    ecg = ecg_batch(1)
    ids = torch.tensor([[model.config.bos_token_id]])
    with torch.no_grad():
        for _ in range(6):
            ids = torch.cat([ids, generator(ecg, decoder_input_ids=ids).logits[:, -1:].argmax(-1)], -1)
    assert torch.equal(generator.generate(ecg, max_new_tokens=6, min_new_tokens=0, eos_token_id=None), ids)


def test_caption_loss_of_both_heads_is_one(model, texts):
    generator = MelpForConditionalGeneration(model.config).eval()
    generator.melp = model
    labels = texts.input_ids[:, 1:].masked_fill(texts.input_ids[:, 1:] == 0, -100)
    with torch.no_grad():
        written = generator(ecg_batch(), labels=labels).loss
        trained = model(ecg_batch(), texts.input_ids, attention_mask=texts.attention_mask, return_loss=True)
    torch.testing.assert_close(written, trained.caption_loss)


def test_pretraining_learns_to_tell_masked_steps_and_patients():
    torch.manual_seed(0)
    model = MelpEcgForPreTraining(tiny_ecg_config(hidden_dropout=0.0, attention_dropout=0.0)).train()
    ecg = ecg_batch(8, samples=480).unflatten(-1, (2, 240)).transpose(1, 2)  # (batch, 2, leads, samples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(120):
        output = model(ecg, torch.arange(8))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0]
    assert output.recording_embeds.shape == (8, 2, 16)
    assert 2 <= output.code_perplexity <= 12


def test_every_class_loads_from_the_whole_model(model, tmp_path):
    model.save_pretrained(tmp_path)
    ecg = ecg_batch(2)
    with torch.no_grad():
        expected = model.get_ecg_features(ecg)
        assert torch.equal(AutoModel.from_pretrained(tmp_path).get_ecg_features(ecg).ecg_embeds, expected.ecg_embeds)
        assert torch.equal(MelpEcgModel.from_pretrained(tmp_path)(ecg).ecg_embeds, expected.ecg_embeds)
        generator = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path)
        assert isinstance(generator, MelpForConditionalGeneration)
        assert torch.equal(generator.get_encoder()(ecg)[0], expected.caption_tokens)
        classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
        assert isinstance(classifier, MelpForSequenceClassification)
        assert torch.equal(classifier.ecg_model(ecg).ecg_embeds, expected.ecg_embeds)
    assert classifier(ecg).logits.shape == (2, 5)


def test_the_tower_alone_has_a_processor(model, tmp_path):
    model.ecg_model.save_pretrained(tmp_path)
    EcgFeatureExtractor(normalization="min_max").save_pretrained(tmp_path)
    assert isinstance(AutoProcessor.from_pretrained(tmp_path), EcgFeatureExtractor)


def test_the_tower_alone_becomes_a_classifier(model, tmp_path):
    model.ecg_model.save_pretrained(tmp_path)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=2)
    assert isinstance(classifier, MelpEcgForSequenceClassification)
    assert torch.equal(classifier.ecg_model.beat_pooler.query, model.ecg_model.beat_pooler.query)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"projection_dim": 8}, "one space"),
        ({"cls_position": 40}, "max_position_embeddings"),
        ({"ecg_config": {"caption_dim": 16}}, "caption_dim"),
        ({"ecg_config": {"encoder_type": "resnet", "depths": (2, 2)}}, "4, 2 and 4 entries"),
        ({"ecg_config": {"encoder_type": "lstm"}}, "wav2vec2"),
    ],
)
def test_configs_that_do_not_fit_are_refused(change, message):
    with pytest.raises(Exception, match=message):
        tiny_config(**change)
