"""Fine-tuning: learns, saves a folder that loads, with adapters, balanced loss and layer-wise rates."""

import numpy as np
import pytest
import torch
from small_evaluation import evaluation_rows, label_of, write_echoing_ecg, write_melp, write_melp_encoder, write_rows
from transformers import AutoModelForSequenceClassification, pipeline

from ecgformers.datasets_scripts.rows import row_to_record
from ecgformers.evaluation.finetune import BalancedLoss, main, parameter_groups
from ecgformers.evaluation.records import load_task


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_rows(tmp_path_factory.mktemp("data"), evaluation_rows(160))


def arguments(model, data, output, *more):
    task = ["--task", "ptbxl_super", "--batch-size", "16", "--resamples", "10", "--device", "cpu"]
    return ["--model", model, "--data", data, "--output", str(output), *task, *more]


@pytest.mark.parametrize(
    ("write", "more"),
    [
        (write_melp, ["--skip-random", "--epochs", "2", "--balance"]),
        (write_melp_encoder, ["--epochs", "1", "--share", "50"]),
        (write_echoing_ecg, ["--skip-random", "--epochs", "1"]),
        (write_melp_encoder, ["--skip-random", "--epochs", "1", "--lora", "2"]),
    ],
)
def test_the_saved_model_gives_the_scores_of_the_table(write, more, data, tmp_path):
    if "--lora" in more:
        pytest.importorskip("peft")
    table = main(arguments(write(tmp_path / "model"), data, tmp_path / "out", *more))
    methods = ["model", "prior"] if "--skip-random" in more else ["model", "random weights", "prior"]
    assert [row["method"] for row in table.rows] == methods
    folder = tmp_path / "out" / "finetune_ptbxl_super_model"
    assert not list(folder.glob("*.bin")) and not (folder / "checkpoints").exists()
    classifier = pipeline("ecg-classification", model=str(folder), device="cpu")
    test = load_task(data, "ptbxl_super").part("test")
    with np.load(tmp_path / "out" / "finetune_ptbxl_super_model.npz") as arrays:
        expected = next(arrays[name] for name in arrays.files if name.startswith("model, "))
        assert list(arrays["record_ids"]) == list(test.record_ids)
    for row, scores in list(zip(test.rows, expected, strict=True))[:3]:
        found = {entry["label"]: entry["score"] for entry in classifier(row_to_record(test.ecgs[int(row)]))}
        assert found == pytest.approx(dict(zip(test.task.classes, scores.tolist(), strict=True)), abs=1e-4)


def test_a_seed_gives_the_same_figures_again(data, tmp_path):
    model = write_melp_encoder(tmp_path / "model")
    scores = []
    for run, seed in enumerate(("0", "0", "1")):
        main(arguments(model, data, tmp_path / str(run), "--epochs", "1", "--seed", seed))
        with np.load(tmp_path / str(run) / "finetune_ptbxl_super_model.npz") as arrays:
            scores.append({name: arrays[name] for name in arrays.files if "fine-tuned" in name})
    first, again, other = scores
    assert len(first) == 2  # the model and the one from random weights
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])


def test_it_learns(data, tmp_path):
    more = ["--epochs", "12", "--learning-rate", "5e-3", "--layer-decay", "1", "--lead-drop", "0", "--skip-random"]
    table = main(arguments(write_melp_encoder(tmp_path / "model"), data, tmp_path / "out", *more))
    assert table.rows[0]["auroc_macro"]["value"] > 0.75


@pytest.mark.parametrize("write", [write_melp_encoder, write_echoing_ecg])
def test_layers_near_the_input_learn_more_slowly(write, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(write(tmp_path), num_labels=2)
    groups = parameter_groups(model, 1.0, 20.0, 0.5, 0.1)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    by_name = {name: rates[id(parameter)] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(rates) == len(by_name)
    layers = [
        max(rate for name, rate in by_name.items() if f".{kind}.{index}." in name)
        for kind in ("layers", "stages")
        for index in range(4)
        if any(f".{kind}.{index}." in name for name in by_name)
    ]
    heads = {name for name, rate in by_name.items() if rate == 20.0}
    assert heads == {"classifier.weight", "classifier.bias"}
    np.testing.assert_allclose(layers, [0.5 ** (len(layers) - index) for index in range(len(layers))])
    first = next(iter(by_name.values()))
    assert first == min(rates.values()) == layers[0] / 2
    assert all(group["weight_decay"] == 0 for group in groups if any(p.ndim < 2 for p in group["params"]))


def test_balanced_loss_weights_rare_positives_up():
    targets = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 1], [0, 1, 1]], np.float32)
    loss = BalancedLoss(targets)
    torch.testing.assert_close(loss.weight, torch.tensor([3.0, 3.0, 1.0]))
    outputs = type("Outputs", (), {"logits": torch.zeros(4, 3)})
    expected = np.log(2) * (3 + 3 + 3 + 3 + 4) / 12  # a positive weighs 3 in the first two classes
    assert loss(outputs, torch.from_numpy(targets)).item() == pytest.approx(expected)


def test_classes_without_both_labels_in_validation_end_the_training_with_a_message(tmp_path):
    rows = [row for index, row in enumerate(evaluation_rows(160)) if row["fold"] != 9 or label_of(index) == 0]
    data = write_rows(tmp_path / "data", rows)
    with pytest.raises(ValueError, match="among the validation records: nothing to choose by"):
        main(arguments(write_melp_encoder(tmp_path / "model"), data, tmp_path / "out", "--epochs", "1"))
