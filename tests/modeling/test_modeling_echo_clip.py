"""EchoClipModel on tiny weights: towers, save and load, the study's Gaussian, zero-shot rules.

The numbers themselves are checked at full size in test_parity_echo_clip.py."""

import weakref

import numpy as np
import pytest
import tiny_echo_clip
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, CLIPProcessor

from ecgformers import EchoClipConfig, EchoClipModel
from ecgformers.evaluation.zero_shot_echo import zero_shot_score, zero_shot_value
from ecgformers.modeling.losses_echoing_ecg import study_gaussian
from ecgformers.modeling.modeling_echo_clip import FrameStatistics

close = torch.testing.assert_close


def test_the_defaults_are_the_published_sizes():
    config = EchoClipConfig()
    assert config.vision_config.depths == (3, 3, 27, 3)
    assert config.vision_config.hidden_sizes == (128, 256, 512, 1024)
    assert config.vision_config.layer_norm_eps == 1e-6 and config.vision_config.layer_scale_init_value > 0
    assert config.text_config.hidden_act == "gelu" and config.text_config.layer_norm_eps == 1e-5
    with torch.device("meta"):
        assert EchoClipModel(config).num_parameters() == 151518849


def test_similarities():
    model = tiny_echo_clip.tiny_model()
    frames, texts = tiny_echo_clip.frame_batch(), tiny_echo_clip.text_batch()
    with torch.no_grad():
        output = model(frames, texts)
        image, text = model.get_image_features(frames), model.get_text_features(texts)
    close(output.image_embeds.norm(dim=-1), torch.ones(5))
    close(output.text_embeds.norm(dim=-1), torch.ones(2))
    assert torch.equal(output.image_embeds, image.image_embeds)
    assert torch.equal(output.text_embeds, text.text_embeds)
    cosines = torch.nn.functional.cosine_similarity(image.image_embeds[:, None], text.text_embeds, dim=-1)
    close(output.logits_per_image, np.exp(2.6592).astype("float32").item() * cosines)
    assert torch.equal(output.logits_per_text, output.logits_per_image.T)
    assert cosines.std() > 0.1  # neither frames nor texts are alike


def test_padding_and_what_stands_there_do_not_matter():
    model = tiny_echo_clip.tiny_model()
    texts = tiny_echo_clip.text_batch()
    end = texts.max()
    with torch.no_grad():
        expected = model.get_text_features(texts[1:, :3]).text_embeds
        for padding in (0, 5, end):
            padded = torch.cat([texts[1:, :3], torch.full((1, 4), padding)], 1)
            close(model.get_text_features(padded).text_embeds, expected)
            mask = (torch.arange(7) < 3).long()[None]
            close(model.get_text_features(padded, mask).text_embeds, expected)


def test_save_and_load(tmp_path):
    model = tiny_echo_clip.save_tiny(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is EchoClipModel
    weights = loaded.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    frames, texts = tiny_echo_clip.frame_batch(), tiny_echo_clip.text_batch()
    with torch.no_grad():
        assert torch.equal(loaded(frames, texts).logits_per_image, model(frames, texts).logits_per_image)

    config = tiny_echo_clip.tiny_config(text_config={"hidden_act": "quick_gelu"}, vision_config={"num_channels": 1})
    config.save_pretrained(tmp_path / "config")
    again = AutoConfig.from_pretrained(tmp_path / "config")
    assert again.text_config.hidden_act == "quick_gelu" and again.vision_config.num_channels == 1


def test_processors_of_a_saved_folder(tmp_path):
    tiny_echo_clip.save_tiny(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(processor) is CLIPProcessor
    image = np.random.RandomState(0).randint(0, 256, (90, 70, 3), "uint8")
    inputs = processor(text=["Severe stenosis", "normal " * 30], images=image, padding=True, truncation=True)
    ids = torch.tensor(inputs["input_ids"])
    assert ids.shape == (2, 16) and (ids == ids.max()).any(1).all()  # cut texts end with the end token too
    settings = AutoImageProcessor.from_pretrained(tmp_path, backend="pil").to_dict()
    assert list(settings["image_mean"]) == [0.48145466, 0.4578275, 0.40821073] and settings["resample"] == 3


def test_a_study_is_the_same_however_its_frames_come():
    model = tiny_echo_clip.tiny_model()
    frames = tiny_echo_clip.frame_batch(13)
    with torch.no_grad():
        mean, logvar = study_gaussian(model.get_image_features(frames).image_embeds.double())
    for sizes in ([13], [1] * 13, [5, 0, 8], [2, 3, 4, 4]):
        echo_embeds, echo_logvar = model.encode_study(iter(frames.split(sizes)))
        close(echo_embeds, mean.float(), atol=1e-6, rtol=0)
        close(echo_logvar, logvar.float(), atol=1e-4, rtol=0)
        assert not echo_embeds.requires_grad


def test_frames_are_not_kept():
    alive: weakref.WeakSet = weakref.WeakSet()

    def batches():
        for seed in range(30):
            batch = tiny_echo_clip.frame_batch(2, 32, seed)
            alive.add(batch)
            assert len(alive) <= 3  # this one, the one before it, and one in the generator
            yield batch

    tiny_echo_clip.tiny_model().encode_study(batches())


def test_a_study_of_one_frame_and_none():
    model = tiny_echo_clip.tiny_model()
    echo_embeds, echo_logvar = model.encode_study([tiny_echo_clip.frame_batch(1)])
    close(echo_logvar, torch.full((8,), float(np.log(1e-8))))
    close(echo_embeds.norm(), torch.tensor(1.0))
    with pytest.raises(ValueError, match="at least one frame"):
        model.encode_study([])
    with pytest.raises(ValueError, match="not finite"):
        model.encode_study([torch.full((1, 3, 64, 64), torch.nan)])


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    offset=st.sampled_from([0.0, 1.0, 1e3]),
    spread=st.sampled_from([1e-4, 1.0]),
    seed=st.integers(0, 99),
)
def test_running_statistics_are_those_of_all_frames(sizes, offset, spread, seed):
    embeds = offset + spread * torch.from_numpy(np.random.RandomState(seed).randn(sum(sizes), 6))
    first, *others = (FrameStatistics.of(part) for part in embeds.split(sizes))
    total = sum(others, start=first)
    assert total.num_frames == len(embeds)
    close(total.mean, embeds.mean(0), rtol=1e-12, atol=1e-12)
    variance = total.deviations / total.num_frames
    # Squares of float64's rounding of the offset are the floor; sums of squares would lose 1e6 * 1e-16 beside 1e-8.
    close(variance, embeds.var(0, correction=0), rtol=1e-7, atol=1e-20)
    close(total.gaussian()[0], study_gaussian(embeds)[0].float())


def test_zero_shot_value_by_hand():
    similarities = torch.tensor([[[5.0, 4, 3, 2, 1, 0, 0, 0, 0, 0], [4.0, 5, 3, 2, 1, 0, 0, 0, 0, 0]]])
    values = [10, 30, 50, 70, 90, 0, 0, 0, 0, 0]
    assert zero_shot_value(similarities, values).tolist() == [20]  # ranks average 20 and 20
    # Of an even number of ranks the lower middle one: 10 and 60.
    assert zero_shot_value(similarities[:, :1], [60, *values[:1], *values[2:]]).tolist() == [10]
    assert zero_shot_score(similarities).tolist() == [1.5]


def test_zero_shot_value_refuses():
    with pytest.raises(ValueError, match="4 candidates are too few"):
        zero_shot_value(torch.zeros(1, 3, 4), [1, 2, 3, 4])
    with pytest.raises(ValueError, match="similarities are of 6 candidates"):
        zero_shot_value(torch.zeros(1, 3, 6), [1, 2, 3, 4])
