"""Pipelines end to end, from a saved model and a file, against model and processor called by hand."""

import json
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny_echoing_ecg
import tiny_melp
import torch
import transformers
from datasets import load_dataset
from pydicom.data import get_testdata_file
from synthetic import write_dataset
from tiny import fill
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForSpeechSeq2Seq, AutoProcessor

from ecgformers.datasets_scripts.rows import row_to_record
from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from ecgformers.modeling.leads_ecg import STANDARD_LEADS
from ecgformers.modeling.modeling_echoing_ecg import EchoingEcgForSequenceClassification
from ecgformers.modeling.modeling_melp import MelpForConditionalGeneration
from ecgformers.modeling.modeling_melp_ecg import MelpEcgForSequenceClassification
from ecgformers.modeling.processing_ecg import EcgProcessor
from ecgformers.modeling.quality_ecg import EcgQualityWarning
from ecgformers.modeling.reading_ecg import read_ecg
from ecgformers.modeling.record_ecg import EcgRecord
from ecgformers.modeling.units_ecg import EcgReadError

pipeline = partial(transformers.pipeline, device="cpu")
DICOM_ECG = str(get_testdata_file("waveform_ecg.dcm", download=False))
PROMPTS = {
    "rhythm": ["sinus rhythm", "normal sinus rhythm"],
    "fibrillation": "atrial fibrillation",
    "axis": ["left axis"],
}
EXTRACTOR = EcgFeatureExtractor(sampling_rate=100, num_samples=240, normalization="min_max")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """MELP with its report writer, EchoingECG, and a classifier that has a feature extractor alone."""
    root = tmp_path_factory.mktemp("models")
    fill(MelpForConditionalGeneration(tiny_melp.tiny_config())).save_pretrained(root / "melp")
    vocabulary = len(tiny_melp.tiny_tokenizer())
    text_config = tiny_echoing_ecg.tiny_config().text_config.to_dict() | {"vocab_size": vocabulary}
    tiny_echoing_ecg.tiny_model(text_config=text_config).save_pretrained(root / "echoing_ecg")
    for name in ("melp", "echoing_ecg"):
        EcgProcessor(EXTRACTOR, tiny_melp.tiny_tokenizer(), "{text}.").save_pretrained(root / name)
    config = tiny_melp.tiny_ecg_config(id2label={0: "AF", 1: "MI", 2: "NORM"})
    fill(MelpEcgForSequenceClassification(config)).save_pretrained(root / "classifier")
    EXTRACTOR.save_pretrained(root / "classifier")
    return root


@pytest.fixture(scope="module")
def records() -> list[EcgRecord]:
    """Three ECGs that differ in length, rate and order of the leads."""
    record = read_ecg(DICOM_ECG)
    short = EcgRecord(record.signal[::-1, ::2], record.lead_names[::-1], 500.0, source="backwards")
    return [record, short, EcgRecord(-0.5 * record.signal[:, 3000:], record.lead_names, 1000.0, source="inverted")]


def assert_answer(answer: list[dict], scores: dict[str, float]) -> None:
    found = {entry["label"]: entry["score"] for entry in answer}
    assert found == pytest.approx(scores, abs=1e-4)
    assert list(found.values()) == sorted(found.values(), reverse=True)


@torch.no_grad()
def zero_shot_by_hand(folder: Path, record: EcgRecord) -> dict[str, float]:
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    scores = {}
    for label, texts in PROMPTS.items():
        texts = [texts] if isinstance(texts, str) else texts
        each = [model(**processor(record, text=text, return_tensors="pt")).logits_per_ecg.item() for text in texts]
        scores[label] = sum(each) / len(each)
    return scores


def softmax(scores: dict[str, float]) -> dict[str, float]:
    return dict(zip(scores, torch.tensor(list(scores.values())).softmax(-1).tolist(), strict=True))


@pytest.mark.parametrize("name", ["melp", "echoing_ecg"])
def test_zero_shot(folders, records, name):
    classify = pipeline("zero-shot-ecg-classification", model=folders / name)
    expected = [zero_shot_by_hand(folders / name, record) for record in records]
    assert_answer(classify(DICOM_ECG, candidate_labels=PROMPTS, function_to_apply="none"), expected[0])
    sigmoids = {label: 1 / (1 + np.exp(-logit)) for label, logit in expected[0].items()}
    assert_answer(classify(DICOM_ECG, candidate_labels=PROMPTS, function_to_apply="sigmoid"), sigmoids)
    assert_answer(classify(DICOM_ECG, candidate_labels=PROMPTS), softmax(expected[0]))
    for batch_size in (1, 2):
        answers = classify(records, candidate_labels=PROMPTS, batch_size=batch_size)
        for answer, scores in zip(answers, expected, strict=True):
            assert_answer(answer, softmax(scores))
    best = classify(records[0], candidate_labels=PROMPTS, top_k=1)
    assert best == classify(DICOM_ECG, candidate_labels=PROMPTS)[:1]
    texts = [text for text in PROMPTS.values() if isinstance(text, str)]
    assert classify(DICOM_ECG, candidate_labels=texts)[0]["label"] == "atrial fibrillation"


def test_the_hypothesis_template_holds_the_label(folders):
    classify = pipeline("zero-shot-ecg-classification", model=folders / "melp", function_to_apply="none")
    template = "normal ecg. no {}"
    answer = classify(DICOM_ECG, candidate_labels=["infarction", "fibrillation"], hypothesis_template=template)
    texts = {"infarction": "normal ecg. no infarction", "fibrillation": "normal ecg. no fibrillation"}
    assert answer == classify(DICOM_ECG, candidate_labels=texts)
    with pytest.raises(ValueError, match=r"must hold \{\}"):
        classify(DICOM_ECG, candidate_labels=["infarction"], hypothesis_template="no label")


def test_labels_may_be_given_once_for_all_calls(folders, records):
    classify = pipeline("zero-shot-ecg-classification", model=folders / "melp", candidate_labels=PROMPTS, top_k=2)
    assert len(classify(records[0])) == 2
    assert {entry["label"] for entry in classify(records[0], candidate_labels=["normal", "no"])} == {"normal", "no"}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "give candidate_labels"),
        ("atrial fibrillation", "a list of texts, or a mapping, not the text 'atrial fibrillation'"),
        ([], "at least one label"),
        ({"AF": []}, "at least one text for each"),
    ],
)
def test_wrong_labels_are_refused(folders, records, labels, message):
    classify = pipeline("zero-shot-ecg-classification", model=folders / "melp")
    with pytest.raises(ValueError, match=message):
        classify(records[0], candidate_labels=labels)


@pytest.mark.parametrize(
    ("problem_type", "activation"),
    [
        (None, lambda logits: logits.softmax(-1)),
        ("single_label_classification", lambda logits: logits.softmax(-1)),
        ("multi_label_classification", torch.sigmoid),
        ("regression", lambda logits: logits),
    ],
)
def test_classification(folders, records, problem_type, activation):
    model = AutoModelForSequenceClassification.from_pretrained(folders / "classifier", problem_type=problem_type)
    extractor = EcgFeatureExtractor.from_pretrained(folders / "classifier")
    classify = pipeline("ecg-classification", model=model.eval(), feature_extractor=extractor)
    with torch.no_grad():
        logits = model(**extractor(records, return_tensors="pt")).logits
    expected = [dict(zip(("AF", "MI", "NORM"), row.tolist(), strict=True)) for row in activation(logits)]
    assert_answer(classify(DICOM_ECG), expected[0])
    for answer, scores in zip(classify(records, batch_size=2), expected, strict=True):
        assert_answer(answer, scores)
    assert classify(DICOM_ECG, top_k=2) == classify(DICOM_ECG)[:2]
    for name, function in (("softmax", lambda x: x.softmax(-1)), ("sigmoid", torch.sigmoid), ("none", lambda x: x)):
        scores = dict(zip(("AF", "MI", "NORM"), function(logits[0]).tolist(), strict=True))
        assert_answer(classify(DICOM_ECG, function_to_apply=name), scores)
    with pytest.raises(ValueError, match="'softplus' is none of 'softmax', 'sigmoid', 'none'"):
        classify(DICOM_ECG, function_to_apply="softplus")


def test_classification_by_folder_and_of_one_value(folders, records, tmp_path):
    assert pipeline("ecg-classification", model=folders / "classifier")(records[0])[0]["label"] in {"AF", "MI", "NORM"}
    model = fill(EchoingEcgForSequenceClassification(tiny_echoing_ecg.tiny_config(num_labels=1, id2label={0: "LVEF"})))
    model.save_pretrained(tmp_path)
    EcgProcessor(EXTRACTOR, tiny_melp.tiny_tokenizer()).save_pretrained(tmp_path)
    with torch.no_grad():
        value = model(**EXTRACTOR(records[0], return_tensors="pt")).logits.item()
    assert_answer(pipeline("ecg-classification", model=tmp_path)(DICOM_ECG), {"LVEF": value})


def test_report_writing(folders, records):
    write = pipeline("ecg-to-text", model=folders / "melp")
    model = AutoModelForSpeechSeq2Seq.from_pretrained(folders / "melp").eval()
    processor = AutoProcessor.from_pretrained(folders / "melp")
    options = {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 2}
    expected = []
    for record in records:
        texts = processor.batch_decode(
            model.generate(**processor(record, return_tensors="pt"), **options), skip_special_tokens=True
        )
        expected.append([{"generated_text": text} for text in texts])
    assert write(DICOM_ECG, **options) == expected[0] and len(expected[0]) == 2
    assert write(records, **options) == write(records, **options, batch_size=2) == expected


@pytest.fixture(scope="module")
def classify(folders):
    return pipeline("ecg-classification", model=folders / "classifier")


def test_any_source_of_read_ecg(classify, records):
    record = records[0]
    fields = {"lead_names": record.lead_names, "sampling_rate": 1000}
    expected = classify(DICOM_ECG)
    for name in ("signal", "array"):
        assert classify({name: record.signal, **fields}) == expected
    assert classify(Path(DICOM_ECG)) == classify(record) == classify(record.signal, **fields) == expected
    with pytest.raises(EcgReadError, match="lead names"):
        classify(record.signal)
    with pytest.raises(EcgReadError, match="not a local file; download"):
        classify("https://example.org/record.hea")


def test_rows_of_a_data_set(classify, tmp_path):
    write_dataset(tmp_path / "rows", records=12, samples=300)
    rows = load_dataset(str(tmp_path / "rows"), split="train").select(range(3))
    expected = [classify(row_to_record(row)) for row in rows]
    assert classify(rows[0]) == expected[0]
    for answers in (classify(rows), classify(rows.with_format("numpy"), batch_size=2)):
        assert_same(list(answers), expected)


def test_several_ecgs_at_once(classify, records):
    expected = [classify(record) for record in records]
    assert classify(records) == classify(tuple(records)) == expected
    assert classify([]) == classify(()) == []

    def endless():
        yield from records
        raise AssertionError("asked for more than needed")

    answers = classify(endless())
    assert [next(answers) for _ in records[:2]] == expected[:2]
    assert_same(list(classify(iter(records), batch_size=2)), expected)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_broken_ecg_among_others(folders, records, tmp_path, batch_size):
    (tmp_path / "broken.hea").write_text("not a header")
    flat = EcgRecord(np.zeros((12, 5000)), records[0].lead_names, 500.0, source="flat line")
    ecgs = [tmp_path / "broken.hea", records[0], tmp_path / "absent.dcm", flat, records[1]]
    for task, options in (
        ("ecg-classification", {}),
        ("zero-shot-ecg-classification", {"candidate_labels": PROMPTS}),
        ("ecg-to-text", {"max_new_tokens": 5}),
        ("ecg-feature-extraction", {}),
    ):
        run = pipeline(task, model=folders / ("classifier" if task == "ecg-classification" else "melp"), **options)
        answers = run(ecgs, on_error="skip", batch_size=batch_size)
        assert [answer["error"].partition(":")[0].rpartition("/")[2] for answer in (answers[0], *answers[2:4])] == [
            "broken.hea",
            "absent.dcm",
            "flat line",
        ]
        assert_same([answers[1], answers[4]], run([records[0], records[1]]))
        with pytest.raises(EcgReadError, match=r"broken\.hea"):
            run(ecgs, batch_size=batch_size)
    with pytest.raises(ValueError, match="'ignore' is neither 'raise' nor 'skip'"):
        run(ecgs, on_error="ignore")


@pytest.mark.parametrize(("name", "width"), [("melp", 16), ("echoing_ecg", 16), ("classifier", 16)])
def test_features(folders, records, name, width):
    extract = pipeline("ecg-feature-extraction", model=folders / name)
    model, extractor = AutoModel.from_pretrained(folders / name).eval(), EXTRACTOR
    with torch.no_grad():
        inputs = extractor(records, return_tensors="pt")
        outputs = getattr(model, "get_ecg_features", model)(**inputs)
    for output in ("ecg_embeds", "pooler_output", "mean_state"):
        found = torch.tensor(extract(records, output=output, batch_size=2))
        torch.testing.assert_close(found, outputs[output], atol=1e-4, rtol=1e-4)
    assert extract(DICOM_ECG, return_tensors=True).shape == (width,)
    with pytest.raises(ValueError, match=r"no output 'embeds'; it has .*ecg_embeds"):
        extract(DICOM_ECG, output="embeds")


def test_a_task_that_a_model_cannot_do(folders):
    able = "ecg-feature-extraction, zero-shot-ecg-classification"
    for name, task, message in (
        ("melp", "ecg-classification", f"no trained head.*Fine-tune.*It can do {able}, ecg-to-text"),
        ("echoing_ecg", "ecg-classification", f"no trained head.*Fine-tune.*It can do {able}"),
        ("echoing_ecg", "ecg-to-text", rf"writes no text\.  It can do {able}\."),
        ("classifier", "zero-shot-ecg-classification", "no trained text tower.*can do ecg-classification, ecg-feat"),
        ("classifier", "ecg-to-text", "writes no text.*It can do ecg-classification, ecg-feature-extraction"),
    ):
        with pytest.raises(ValueError, match=f"{name}.*cannot do {task}: .*{message}"):
            pipeline(task, model=folders / name)


def test_a_head_that_was_trained_is_no_longer_new(folders, records):
    model, info = AutoModelForSequenceClassification.from_pretrained(folders / "melp", output_loading_info=True)
    assert model.head_is_new and "classifier.weight" in info["missing_keys"]
    tower = AutoModel.from_pretrained(folders / "melp").ecg_model.state_dict()
    assert all(torch.equal(tower[name], tensor) for name, tensor in model.ecg_model.state_dict().items())
    model.train()(**EXTRACTOR(records, return_tensors="pt"), labels=torch.tensor([0, 1, 0])).loss.backward()
    torch.optim.SGD(model.classifier.parameters(), 0.1).step()
    assert not model.head_is_new
    answer = pipeline("ecg-classification", model=model.eval(), feature_extractor=EXTRACTOR)(records[0])
    assert {entry["label"] for entry in answer} == {"LABEL_0", "LABEL_1"}
    assert not AutoModelForSequenceClassification.from_pretrained(folders / "classifier").head_is_new


def test_a_report_may_be_as_long_as_the_longest_text(folders, records, monkeypatch):
    write = pipeline("ecg-to-text", model=folders / "melp")
    lengths = []
    monkeypatch.setattr(
        write.model, "generate", lambda **options: lengths.append(options) or torch.zeros(1, 2, dtype=int)
    )
    write(records[0])
    write(records[0], max_new_tokens=4)
    assert [options["max_new_tokens"] for options in lengths] == [30, 4]  # 31 is the tiny model's longest


LOAD_ALONE = """
import json, sys
sys.modules["ecgformers"] = None  # from here on it cannot be imported
from transformers import pipeline
folder, ecg, tasks = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
pipelines = {task: pipeline(task, model=folder, trust_remote_code=True, device="cpu") for task in tasks}
pipelines["ecg-feature-extraction"].save_pretrained(folder + "-again")
for task in tasks:
    pipelines[task + " again"] = pipeline(task, model=folder + "-again", trust_remote_code=True, device="cpu")
json.dump({name: run(ecg, **tasks[name.split()[0]]) for name, run in pipelines.items()}, sys.stdout)
"""
TASKS = {
    "zero-shot-ecg-classification": {"candidate_labels": PROMPTS},
    "ecg-to-text": {"max_new_tokens": 6},
    "ecg-feature-extraction": {},
}


def test_a_folder_saved_by_one_pipeline_holds_all_tasks_and_needs_no_ecgformers(folders, tmp_path):
    pipelines = {task: pipeline(task, model=folders / "melp") for task in TASKS}
    pipelines["ecg-feature-extraction"].save_pretrained(tmp_path / "saved")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", LOAD_ALONE, str(tmp_path / "saved"), DICOM_ECG, json.dumps(TASKS)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    answers = json.loads(result.stdout)
    for task, options in TASKS.items():
        assert answers[task] == answers[f"{task} again"]
        np.testing.assert_allclose(numbers(answers[task]), numbers(pipelines[task](DICOM_ECG, **options)), atol=1e-6)


def assert_same(answers: list, expected: list) -> None:
    """The batch in which an ECG is changes the last bits of its scores."""
    for answer, of_one in zip(answers, expected, strict=True):
        np.testing.assert_allclose(numbers(answer), numbers(of_one), atol=1e-4)


def numbers(answer: list) -> list[float]:
    """The numbers of an answer; of texts their letters."""
    if isinstance(answer[0], float):
        return answer
    if "score" in answer[0]:
        return [entry["score"] for entry in answer]
    return [ord(letter) for entry in answer for letter in entry["generated_text"]]


# ---- recordings longer than the model's input


@pytest.fixture(scope="module")
def holter(records) -> EcgRecord:
    """15 s of which each third is another ECG."""
    record = records[1]
    signal = np.concatenate([record.signal[:, :2500], -record.signal[:, :2500], 0.3 * record.signal[:, :2500]], axis=1)
    return EcgRecord(signal, record.lead_names, 500.0, source="holter")


@pytest.fixture(scope="module")
def classify_3_s(folders):
    extractor = EcgFeatureExtractor(sampling_rate=100, num_samples=300, normalization="min_max")
    model = AutoModelForSequenceClassification.from_pretrained(folders / "classifier")
    return pipeline("ecg-classification", model=model, feature_extractor=extractor)


def test_what_a_model_does_not_see_is_said(classify_3_s, holter):
    with pytest.warns(EcgQualityWarning, match=r"15.00 s long, of which the model sees the first 3 s"):
        classify_3_s(holter)


@pytest.mark.filterwarnings("error::ecgformers.modeling.quality_ecg.EcgQualityWarning")
@pytest.mark.parametrize(("pooling", "reduce"), [("mean", np.mean), ("max", np.max)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_windows_are_pooled_and_told_with_their_times(classify_3_s, holter, pooling, reduce, batch_size):
    answer = classify_3_s(holter, windows="all", overlap=0.3, pooling=pooling, batch_size=batch_size)
    starts = [0, 2.1, 4.2, 6.3, 8.4, 10.5, 12]
    assert [window["start"] for window in answer["windows"]] == pytest.approx(starts)
    assert [window["end"] for window in answer["windows"]] == pytest.approx([start + 3 for start in starts])
    scores = []
    for window in answer["windows"]:
        first = round(window["start"] * 500)
        by_hand = classify_3_s(replace(holter, signal=holter.signal[:, first : first + 1500]))
        scores.append({entry["label"]: entry["score"] for entry in by_hand})
        assert_answer(window["answer"], scores[-1])
    assert_answer(answer["answer"], {label: reduce([each[label] for each in scores]) for label in scores[0]})


def test_every_task_takes_windows(folders, holter):
    for name, task, options in (
        ("melp", "zero-shot-ecg-classification", {"candidate_labels": PROMPTS}),
        ("melp", "ecg-to-text", {"max_new_tokens": 4}),
        ("echoing_ecg", "ecg-feature-extraction", {"output": "ecg_logvar"}),
    ):
        run = pipeline(task, model=folders / name)
        run.feature_extractor.min_duration = 1.0  # these models look at 2.4 s
        answer = run(holter, windows="all", **options)
        assert type(answer["answer"]) is type(answer["windows"][0]["answer"])
        starts = [*np.arange(0, 12.1, 1.2), 12.6]
        assert [window["start"] for window in answer["windows"]] == pytest.approx(starts)


def test_windows_without_signal_are_left_out_with_their_reason(classify_3_s, holter):
    signal = holter.signal.copy()
    signal[:, 4000:] = 0
    answer = classify_3_s(replace(holter, signal=signal), windows="all")
    errors = [window["start"] for window in answer["windows"] if "no lead of the model" in window.get("error", "")]
    assert errors and min(errors) >= 8.0 and len(errors) < len(answer["windows"])
    silent = replace(holter, signal=np.zeros_like(signal))
    with pytest.raises(ValueError, match="no lead of the model carries a signal"):
        classify_3_s(silent, windows="all")
    skipped, sound = classify_3_s([silent, holter], windows="all", on_error="skip")
    assert "no lead" in skipped["error"] and len(sound["windows"]) == 9


def test_the_cleanest_window_is_chosen(folders, holter):
    extractor = EcgFeatureExtractor(sampling_rate=100, num_samples=600, normalization="min_max")
    model = AutoModelForSequenceClassification.from_pretrained(folders / "classifier")
    classify = pipeline("ecg-classification", model=model, feature_extractor=extractor)
    signal = holter.signal.copy()
    signal[:, :2600] += np.random.default_rng(0).normal(scale=2, size=(12, 2600))
    noisy = replace(holter, signal=signal)
    answer = classify(noisy, windows="best")
    (window,) = answer["windows"]
    assert window["start"] == pytest.approx(6.0) and window["end"] == pytest.approx(12.0)
    assert answer["answer"] == window["answer"] == classify(replace(noisy, signal=signal[:, 3000:6000]))


def test_a_generator_of_long_recordings_is_answered_one_by_one(classify_3_s, holter):
    drawn = []
    answers = classify_3_s((drawn.append(i) or holter for i in range(3)), windows="all")
    assert len(next(answers)["windows"]) == 9 and drawn == [0]


@pytest.mark.parametrize("options", [{"windows": "last"}, {"windows": "all", "pooling": "sum"}])
def test_unknown_windows_are_refused(classify_3_s, holter, options):
    with pytest.raises(ValueError, match="there are 'first', 'all', 'best', and 'mean' and 'max'"):
        classify_3_s(holter, **options)
    with pytest.raises(ValueError, match="overlap must be from 0 to below 1"):
        classify_3_s(holter, windows="all", overlap=1)


def test_memory_stays_flat_over_a_long_recording(classify_3_s):
    """Ten minutes cost what 100 s cost beyond the answers themselves, though their input is six times as large."""
    beats = read_ecg(DICOM_ECG).signal[:, ::10].astype(np.float32)  # 100 Hz
    peaks = []
    for repeats in (10, 60):
        record = EcgRecord(np.tile(beats, repeats), STANDARD_LEADS, 100.0)
        tracemalloc.start()
        windows = classify_3_s(record, windows="all", batch_size=8)["windows"]
        peaks.append(tracemalloc.get_traced_memory()[1] - 1500 * len(windows))  # bytes of an answer
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2**20
