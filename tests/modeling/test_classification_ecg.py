"""The sequence classifiers of all models: what they train, what they leave alone, which labels they score."""

import numpy as np
import pytest
import tiny_echoing_ecg
import tiny_melp
import tiny_merl
import torch
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from ecgformers.modeling.modeling_echoing_ecg import EchoingEcgForSequenceClassification, EchoingEcgModel
from ecgformers.modeling.modeling_melp import MelpForSequenceClassification, MelpModel
from ecgformers.modeling.modeling_merl import MerlForSequenceClassification, MerlModel

CASES = {
    "echoing_ecg": (EchoingEcgModel, EchoingEcgForSequenceClassification, tiny_echoing_ecg.tiny_config, {}),
    "melp": (MelpModel, MelpForSequenceClassification, tiny_melp.tiny_config, {}),
    "melp_resnet": (
        MelpModel,
        MelpForSequenceClassification,
        tiny_melp.tiny_config,
        {"ecg_config": tiny_melp.tiny_resnet_config()},
    ),
    "merl_resnet": (MerlModel, MerlForSequenceClassification, tiny_merl.tiny_config, {"encoder_type": "resnet"}),
    "merl_vit": (MerlModel, MerlForSequenceClassification, tiny_merl.tiny_config, {"encoder_type": "vit"}),
}
LABELS = {
    "single_label_classification": torch.tensor([0, 2, 1, -100]),
    "multi_label_classification": torch.tensor(
        [[1.0, 0.0, 1.0], [0.0, torch.nan, 1.0], [torch.nan] * 3, [0.0, 0.0, 1.0]]
    ),
    "regression": torch.tensor([[0.5, 1.0, -1.0], [0.1, torch.nan, 2.0], [0.0, 0.0, 0.3], [torch.nan] * 3]),
}
ECG = torch.from_numpy(np.random.RandomState(0).randn(4, 12, 200)).float()

each_model = pytest.mark.parametrize("case", CASES)


def build(case: str, **kwargs) -> torch.nn.Module:
    _, classifier, tiny_config, sizes = CASES[case]
    torch.manual_seed(0)
    return classifier(tiny_config(**sizes, num_labels=3, **kwargs)).eval()


@each_model
@pytest.mark.parametrize("freeze_encoder", [False, True])
def test_every_trainable_parameter_gets_a_gradient(case, freeze_encoder):
    model = build(case, freeze_encoder=freeze_encoder).train()
    assert model.ecg_model.training is not freeze_encoder
    model(ECG, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert not freeze_encoder or parameter.requires_grad == name.startswith("classifier."), name


@each_model
def test_train_and_eval_change_no_requires_grad(case):
    model = build(case, freeze_encoder=True)
    for trainable in (True, False):
        model.ecg_model.requires_grad_(trainable)
        for mode in (True, False, True):
            model.train(mode)
            assert {parameter.requires_grad for parameter in model.ecg_model.parameters()} == {trainable}
        assert model.training and model.ecg_model.training is trainable  # what the user unfroze is trained


@each_model
def test_frozen_when_made_when_loaded_and_when_asked(case, tmp_path):
    made = build(case, freeze_encoder=True)
    made.save_pretrained(tmp_path)
    asked = build(case)
    assert any(parameter.requires_grad for parameter in asked.ecg_model.parameters())
    asked.freeze_encoder()
    for model in (made, type(made).from_pretrained(tmp_path), asked):
        assert [name for name, p in model.named_parameters() if p.requires_grad] == [
            "classifier.weight",
            "classifier.bias",
        ]


@pytest.mark.parametrize("case", [case for case in CASES if case != "melp"])
def test_statistics_of_frozen_batch_norms_stay(case):
    model = build(case).train()
    norms = [module for module in model.ecg_model.modules() if isinstance(module, torch.nn.BatchNorm1d)]
    first, *others = norms
    first.requires_grad_(False)
    model.train()
    before = [norm.running_mean.clone() for norm in norms]
    model(ECG, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    assert torch.equal(first.running_mean, before[0])
    assert all(not torch.equal(norm.running_mean, mean) for norm, mean in zip(others, before[1:], strict=True))


@each_model
@pytest.mark.parametrize("problem_type", LABELS)
def test_unknown_labels_are_not_scored(case, problem_type):
    model, labels = build(case, problem_type=problem_type), LABELS[problem_type]
    outputs = model(ECG, labels=labels)
    known = labels != -100 if labels.ndim == 1 else ~labels.isnan()
    function = {
        "single_label_classification": torch.nn.functional.cross_entropy,
        "multi_label_classification": torch.nn.functional.binary_cross_entropy_with_logits,
        "regression": torch.nn.functional.mse_loss,
    }[problem_type]
    torch.testing.assert_close(outputs.loss, function(outputs.logits[known], labels[known]))
    nothing = torch.full_like(labels, -100 if labels.ndim == 1 else torch.nan)
    assert model(ECG, labels=nothing).loss == 0


@each_model
def test_integers_will_do_as_labels_that_may_be_true_together(case):
    model = build(case, problem_type="multi_label_classification")
    integers = torch.tensor([[1, 0, -100], [0, 0, 1]])
    floats = torch.tensor([[1.0, 0.0, torch.nan], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(model(ECG[:2], labels=integers).loss, model(ECG[:2], labels=floats).loss)


@each_model
def test_regression_of_one_number(case):
    _, classifier, tiny_config, sizes = CASES[case]
    model = classifier(tiny_config(**sizes, num_labels=1)).eval()
    labels = torch.tensor([0.5, torch.nan, 2.0, 1.0])
    outputs = model(ECG, labels=labels)
    torch.testing.assert_close(outputs.loss, (outputs.logits[[0, 2, 3], 0] - labels[[0, 2, 3]]).square().mean())


@each_model
@pytest.mark.parametrize("freeze_encoder", [False, True])
def test_a_pretrained_model_becomes_a_classifier_that_trains(case, freeze_encoder, tmp_path):
    model_class, classifier, tiny_config, sizes = CASES[case]
    pretrained = model_class(tiny_config(**sizes))
    pretrained.save_pretrained(tmp_path / "pretrained")
    model = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "pretrained",
        num_labels=3,
        problem_type="multi_label_classification",
        freeze_encoder=freeze_encoder,
    )
    assert type(model) is classifier
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, tensor in pretrained.ecg_model.state_dict().items():
        assert torch.equal(before[f"ecg_model.{name}"], tensor), name
    labels = LABELS["multi_label_classification"]
    records = [{"input_values": ecg, "labels": label} for ecg, label in zip(ECG, labels, strict=True)]
    arguments = TrainingArguments(
        tmp_path, max_steps=2, learning_rate=0.01, per_device_train_batch_size=2, report_to=[], use_cpu=True
    )
    trainer = Trainer(model, arguments, train_dataset=records, eval_dataset=records)
    assert trainer.model_accepts_loss_kwargs is False
    assert np.isfinite(trainer.train().training_loss)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"classifier.weight", "classifier.bias"} <= changed
    assert any(name.startswith("ecg_model.") for name in changed) is not freeze_encoder
