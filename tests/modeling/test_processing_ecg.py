"""EcgProcessor: one call, every input of a model; saved with its code, it loads where ecgformers is not installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from ecgformers.modeling.leads_ecg import STANDARD_LEADS
from ecgformers.modeling.processing_ecg import EcgProcessor, clean_text

SPECIAL = ["[PAD]", "[UNK]", "[BOS]", "[SEP]"]
WORDS = [
    *SPECIAL,
    "Normal",
    "normal",
    "ECG",
    "ecg",
    "sinus",
    "rhythm",
    "a",
    "long",
    "report",
    "with",
    ".",
    "Report",
    ":",
]
PROMPT = "Report : {text}\n\n."


def make_tokenizer(**settings) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [("[BOS]", WORDS.index("[BOS]")), ("[SEP]", WORDS.index("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="[BOS] $A [SEP]", special_tokens=special)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[BOS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **settings)


@pytest.fixture
def processor() -> EcgProcessor:
    return EcgProcessor(EcgFeatureExtractor(normalization="min_max"), make_tokenizer())


@pytest.fixture
def ecg() -> np.ndarray:
    two = np.random.default_rng(0).normal(size=(8, 5000))
    limb = [two[0], two[1], two[1] - two[0], -(two[0] + two[1]) / 2, two[0] - two[1] / 2, two[1] - two[0] / 2]
    return np.stack([*limb, *two[2:]])


def words(ids) -> str:
    return " ".join(WORDS[i] for i in ids)


def test_one_call_gives_every_input_of_a_model(processor, ecg):
    inputs = processor(ecg, ["Normal ECG", "sinus rhythm ."], sampling_rate=500, lead_names=STANDARD_LEADS)
    assert list(inputs) == processor.model_input_names
    assert inputs["input_values"].shape == (1, 12, 5000) and inputs["input_values"].dtype == torch.float32
    assert inputs["lead_mask"].shape == (1, 12) and inputs["sample_mask"].shape == (1, 5000)
    alone = processor.feature_extractor(ecg, 500, STANDARD_LEADS, return_tensors="pt")
    assert torch.equal(inputs["input_values"], alone["input_values"])
    assert words(inputs["input_ids"][0]) == "[BOS] Normal ECG [SEP] [PAD]"
    assert words(inputs["input_ids"][1]) == "[BOS] sinus rhythm . [SEP]"
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_either_may_be_given_alone_but_not_neither(processor, ecg):
    text = processor(text="Normal ECG")
    assert list(text) == ["input_ids", "attention_mask"] and text["input_ids"].shape == (1, 4)
    signals = processor(ecg, sampling_rate=500, lead_names=STANDARD_LEADS, return_tensors="np")
    assert list(signals) == ["input_values", "lead_mask", "sample_mask"]
    assert isinstance(signals["input_values"], np.ndarray)
    with pytest.raises(ValueError, match="ecg, text, or both"):
        processor()


def test_units_and_errors_pass_through(processor, ecg):
    both = [processor(x, None, 500, STANDARD_LEADS, u)["input_values"] for x, u in ((ecg, "mV"), (ecg * 1000, "uV"))]
    torch.testing.assert_close(*both)
    with pytest.raises(ValueError, match="sampling rate is not known"):
        processor(ecg, lead_names=STANDARD_LEADS)


def test_padding_is_on_the_right_whatever_the_tokenizer_says():
    processor = EcgProcessor(EcgFeatureExtractor(), make_tokenizer(padding_side="left"), max_text_length=8)
    inputs = processor(text=["Normal ECG", "ecg"], padding="max_length")
    assert words(inputs["input_ids"][1]) == "[BOS] ecg [SEP] [PAD] [PAD] [PAD] [PAD] [PAD]"
    assert inputs["attention_mask"][1].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


def test_lower_case_is_for_the_text_and_not_for_the_template():
    processor = EcgProcessor(EcgFeatureExtractor(), make_tokenizer(), prompt_template=PROMPT, lowercase=True)
    assert words(processor(text="Normal ECG")["input_ids"][0]) == "[BOS] Report : normal ecg . [SEP]"
    braces = EcgProcessor(EcgFeatureExtractor(), make_tokenizer())(text="{text} {0}")
    assert words(braces["input_ids"][0]).count("[UNK]") > 0
    with pytest.raises(ValueError, match="the place of the text"):
        EcgProcessor(EcgFeatureExtractor(), make_tokenizer(), prompt_template="Report")


CLEANED = [
    ("  Sinusrhythmus \n  Normales EKG", "sinusrhythmus normales ekg."),
    ("a. b.", "a. b."),
    ("Normales EKG 4.46   UNBESTÄTIGTER Bericht", "normales ekg."),
    ("edit: x", ""),
    ("", ""),
]
CLEANING = {
    "lowercase": True,
    "full_stop": True,
    "remove_patterns": [r"4\.46", "unbestätigter bericht", "edit:.*"],
}


@pytest.mark.parametrize(("text", "cleaned"), CLEANED)
def test_texts_are_cleaned_as_the_settings_say(text, cleaned):
    processor = EcgProcessor(EcgFeatureExtractor(), make_tokenizer(), **CLEANING)
    assert processor.clean_text(text) == clean_text(text, **CLEANING) == cleaned
    assert processor.clean_text(cleaned) == cleaned
    plain = EcgProcessor(EcgFeatureExtractor(), make_tokenizer())
    assert processor(text=text)["input_ids"].tolist() == plain(text=cleaned)["input_ids"].tolist()


def test_a_folder_saved_without_these_settings_cleans_as_before(tmp_path):
    processor = EcgProcessor(EcgFeatureExtractor(), make_tokenizer(), lowercase=True)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    del saved["full_stop"], saved["remove_patterns"]
    (tmp_path / "processor_config.json").write_text(json.dumps(saved))
    loaded = EcgProcessor.from_pretrained(tmp_path)
    assert loaded.clean_text("Normal ECG 4.46") == "normal ecg 4.46"


def test_long_texts_are_cut_with_a_warning():
    processor = EcgProcessor(EcgFeatureExtractor(), make_tokenizer(), max_text_length=6)
    with pytest.warns(UserWarning, match=r"texts \[1\] are cut to max_text_length=6 tokens"):
        inputs = processor(text=["normal ecg", "a long report with sinus rhythm ."])
    assert words(inputs["input_ids"][1]) == "[BOS] a long report with [SEP]"


def test_decoding_is_the_tokenizers(processor):
    ids = processor(text=["Normal ECG", "sinus rhythm"])["input_ids"]
    assert processor.batch_decode(ids, skip_special_tokens=True) == ["Normal ECG", "sinus rhythm"]
    assert processor.decode(ids[0], skip_special_tokens=True) == "Normal ECG"


LOAD = """
import sys
sys.modules["ecgformers"] = None  # from here on it cannot be imported
import numpy as np
from transformers import AutoFeatureExtractor, AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
extractor = AutoFeatureExtractor.from_pretrained(sys.argv[2], trust_remote_code=True)
assert extractor.to_dict() == processor.feature_extractor.to_dict()
ecg = np.load(sys.argv[3])
inputs = processor(ecg, "Normal ECG", sampling_rate=500, lead_names=extractor.lead_names, return_tensors="np")
np.savez(sys.argv[4], **inputs)
processor.save_pretrained("again")

del sys.modules["ecgformers"]
from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from ecgformers.modeling.processing_ecg import EcgProcessor
assert type(AutoProcessor.from_pretrained(sys.argv[1])) is EcgProcessor  # no flag needed
assert type(AutoFeatureExtractor.from_pretrained(sys.argv[2])) is EcgFeatureExtractor
"""


def test_a_saved_folder_loads_with_and_without_ecgformers(tmp_path, ecg):
    extractor = EcgFeatureExtractor(normalization="min_max", flat_leads="error")
    processor = EcgProcessor(extractor, make_tokenizer(), prompt_template=PROMPT, max_text_length=9, **CLEANING)
    saved, lone = tmp_path / "processor", tmp_path / "extractor"
    processor.save_pretrained(saved)
    extractor.save_pretrained(lone)
    code = {path.name for path in lone.glob("*.py")}
    assert {f"{name}_ecg.py" for name in ("feature_extraction", "filtering", "leads", "quality", "units")} <= code
    assert {path.name for path in saved.glob("*.py")} == code | {"processing_ecg.py"}
    assert "AutoProcessor" not in (lone / "preprocessor_config.json").read_text()  # its file is not there

    loaded = EcgProcessor.from_pretrained(saved, trust_remote_code=True)
    for setting in ("prompt_template", "max_text_length", *CLEANING):
        assert getattr(loaded, setting) == getattr(processor, setting)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    np.save(tmp_path / "ecg.npy", ecg)
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(elsewhere / "modules"),
    }
    arguments = map(str, (saved, lone, tmp_path / "ecg.npy", tmp_path / "inputs.npz"))
    command = [sys.executable, "-c", LOAD, *arguments]
    result = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    expected = processor(ecg, "Normal ECG", sampling_rate=500, lead_names=STANDARD_LEADS, return_tensors="np")
    with np.load(tmp_path / "inputs.npz") as inputs:
        assert sorted(inputs) == sorted(expected)
        for name in inputs:
            np.testing.assert_array_equal(inputs[name], expected[name])
    for name in ("processor_config.json", "processing_ecg.py", "feature_extraction_ecg.py"):
        assert (elsewhere / "again" / name).read_bytes() == (saved / name).read_bytes()
