"""What the `...ForSequenceClassification` classes share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple


class EcgClassifierMixin(nn.Module):
    """Classes, labels that may be true together, or numbers, from the `ecg_model` of a class that mixes this in first.

    `before_classifier` (dropout, a norm) and the linear `classifier` of that class follow on the `pooler_output` of
    its `ecg_model`.
    `config.problem_type` is "single_label_classification", "multi_label_classification" or "regression"; with
    `config.freeze_encoder` only the head is trained from the start, see `freeze_encoder`.

    A calibrated classifier's config holds besides what was chosen on records that it was not trained on:
    `logit_temperature`, by which logits are divided before they become probabilities, and `thresholds`, one a label,
    from which on that probability speaks for the label; and `groups`, level -> group -> labels, such as
    `{"superclass": {"conduction disturbance": ["left bundle branch block", ...]}}`.
    """

    config: Any
    ecg_model: nn.Module
    before_classifier: nn.Module
    classifier: nn.Linear
    loss_function: Callable[..., torch.Tensor]
    # The losses are means already: Trainer must not divide them by the number of items once more.
    accepts_loss_kwargs = False
    # Parameters of `ecg_model` on which logits do not depend: how their names begin.
    _unused_parameters: tuple[str, ...] = ()

    _new_head: torch.Tensor | None = None

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any):
        """As in transformers; `head_is_new` of the model says whether the folder had no head for it."""
        load = super().from_pretrained  # type: ignore[misc]  # of the PreTrainedModel beside this mixin
        model, info = load(*args, output_loading_info=True, **kwargs)
        absent = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
        if "classifier.weight" in absent:
            model._new_head = model.classifier.weight.detach().clone()
        model._freeze_as_configured()
        return (model, info) if output_loading_info else model

    @property
    def head_is_new(self) -> bool:
        """Whether the head is still the random one that was made because the folder had none."""
        return self._new_head is not None and torch.equal(
            self._new_head.to(self.classifier.weight), self.classifier.weight
        )

    def freeze_encoder(self):
        """Train only the head, a linear probe; `model.ecg_model.requires_grad_(True)` takes it back."""
        self.ecg_model.requires_grad_(False).eval()

    def _freeze_as_configured(self):
        """When a model is made, and when it is loaded: transformers then makes every parameter trainable."""
        # DDP waits for the gradient of every parameter that requires one.
        for name, parameter in self.ecg_model.named_parameters():
            if name.startswith(self._unused_parameters):
                parameter.requires_grad_(False)
        if self.config.freeze_encoder:
            self.freeze_encoder()

    def train(self, mode: bool = True):
        """A frozen encoder stays in evaluation mode, and so do frozen batch norms: their statistics do not move."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.ecg_model.parameters()):
            self.ecg_model.eval()
        for module in self.ecg_model.modules():
            if isinstance(module, _BatchNorm) and not module.weight.requires_grad:
                module.eval()
        return self

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        lead_mask: torch.Tensor | None = None,
        sample_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        """
        Args:
            input_values, lead_mask, sample_mask: see the forward method of `ecg_model`.
            labels: see `classification_loss`.
        """
        outputs = self.ecg_model(input_values, lead_mask, sample_mask, **kwargs)
        logits = self.classifier(self.before_classifier(outputs.pooler_output))  # (batch, num_labels)
        return SequenceClassifierOutput(
            loss=None if labels is None else self.classification_loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.get("attentions"),
        )

    def classification_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """
        Args:
            logits: (batch, num_labels).
            labels: (batch,) class indices; (batch, num_labels) 0 or 1 each; or numbers, (batch,) or
                (batch, num_labels).  What is not known, -100 among integers and NaN among floats, is not scored.
        """
        known = ~labels.isnan() if labels.is_floating_point() else labels != -100
        if not known.any():
            return 0 * logits.sum()
        if labels.ndim == 1 and logits.shape[-1] > 1:  # class indices
            return self.loss_function(labels[known], logits[known].float(), self.config)
        return self.loss_function(labels[known].float(), logits.view_as(labels)[known].float(), self.config)
