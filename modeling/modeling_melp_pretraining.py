"""MELP's stage without labels: masked prediction of wav2vec 2.0 and contrast between patients (arXiv 2506.21803, 3.1).

For research use; not a medical device.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .configuration_melp_ecg import MelpEcgConfig, MelpPretrainingConfig
from .losses_melp_pretraining import cmsc_loss, masked_contrastive_loss, sample_negative_indices, sample_span_mask
from .modeling_melp_ecg import MelpEcgPreTrainedModel, MelpEcgResNet, make_encoder


@dataclass
class MelpEcgForPreTrainingOutput(ModelOutput):
    """Output of `MelpEcgForPreTraining`.

    Args:
        loss: masked_loss + cmsc_loss, or the latter alone for "resnet", which has no time steps to mask.
        masked_loss: masked prediction of wav2vec 2.0.  cmsc_loss: contrast between patients.
        code_perplexity: how many codes of the quantiser are in use, summed over groups; 1 a group is a collapse.
        recording_embeds: (batch, 2, projection_dim), of both halves, not normalised.
    """

    loss: torch.Tensor | None = None
    masked_loss: torch.Tensor | None = None
    cmsc_loss: torch.Tensor | None = None
    code_perplexity: torch.Tensor | None = None
    recording_embeds: torch.Tensor | None = None


class MelpProductQuantizer(nn.Module):
    """Picks one code of each group for every time step (wav2vec 2.0, section 2): Gumbel softmax while training."""

    def __init__(self, config: MelpPretrainingConfig, feature_size: int):
        super().__init__()
        self.num_groups = config.num_codevector_groups
        num_codes = self.num_groups * config.num_codevectors_per_group
        self.temperature = config.gumbel_temperature
        self.codevectors = nn.Parameter(torch.empty(1, num_codes, config.codevector_dim // self.num_groups))
        self.code_projection = nn.Linear(feature_size, num_codes)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, time, conv_dim) -> quantised (batch, time, codevector_dim) and the choices, one-hot
        (batch, time, groups, codes of a group)."""
        scores = self.code_projection(features).unflatten(-1, (self.num_groups, -1)).float()
        if self.training:
            chosen = F.gumbel_softmax(scores, tau=self.temperature, hard=True)
        else:
            chosen = F.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores.dtype)
        codevectors = self.codevectors.view(self.num_groups, -1, self.codevectors.shape[-1])
        quantized = torch.einsum("btgc,gcd->btgd", chosen.to(codevectors.dtype), codevectors)
        return quantized.flatten(2), chosen


def perplexity(choices: torch.Tensor) -> torch.Tensor:
    """(steps, groups, codes) one-hot or probabilities -> exp of the entropy of their mean, summed over groups."""
    mean = choices.mean(0)
    return torch.exp(-torch.special.xlogy(mean, mean).sum(-1)).sum()


class MelpEcgForPreTraining(MelpEcgPreTrainedModel):
    """The stage without labels (section 3.1): the encoder predicts the codes of masked steps (wav2vec 2.0), and the
    two halves of a recording, like all recordings of a patient, attract each other (CMSC).

    A residual network cannot leave out time steps: it learns by CMSC alone.
    """

    accepts_loss_kwargs = False  # the loss is a mean already

    def __init__(self, config: MelpEcgConfig):
        super().__init__(config)
        stage = config.pretraining_config = config.pretraining_config or MelpPretrainingConfig()
        encoder: Any = config.encoder_config
        self.encoder = make_encoder(config)
        if config.encoder_type == "wav2vec2":
            self.feature_dropout = nn.Dropout(encoder.hidden_dropout)
            self.quantizer = MelpProductQuantizer(stage, encoder.conv_dim[-1])
            self.target_projection = nn.Linear(stage.codevector_dim, stage.codevector_dim)
            self.context_projection = nn.Linear(encoder.hidden_size, stage.codevector_dim)
        self.recording_projection = nn.Linear(encoder.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(stage.logit_scale_init_value))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, MelpProductQuantizer):
            init.normal_(module.code_projection.weight)
            init.uniform_(module.codevectors)
        elif module is self:
            init.constant_(self.logit_scale, self.config.pretraining_config.logit_scale_init_value)

    @property
    def cosine_scale(self) -> torch.Tensor:
        """The factor on cosine similarities, 1 / temperature."""
        return self.logit_scale.exp().clamp(max=self.config.pretraining_config.max_logit_scale)

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        patient_ids: torch.Tensor,
        lead_mask: torch.Tensor | None = None,
        masked_steps: torch.Tensor | None = None,
        negative_indices: torch.Tensor | None = None,
        gather: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MelpEcgForPreTrainingOutput:
        """
        Args:
            input_values: (batch, 2, leads, samples), the two halves of each recording.
            patient_ids: (batch,) integers.
            lead_mask: (batch, 2, leads), 0 for a lead to leave out.
            masked_steps: (batch, 2, time), True where the encoder must predict; drawn at random when missing.
            negative_indices: (batch, 2, time, num_negatives), steps of the same half; drawn when missing.
            gather: take the batches of all processes, which must then all call this.
        """
        halves = input_values.flatten(0, 1)  # (batch * 2, leads, samples)
        lead_mask = None if lead_mask is None else lead_mask.flatten(0, 1)
        masked_loss = code_perplexity = None
        if isinstance(self.encoder, MelpEcgResNet):
            states = self.encoder(halves, lead_mask, **kwargs).last_hidden_state  # (batch * 2, time, hidden)
        else:
            states, masked_loss, code_perplexity = self._predict_masked(
                halves, lead_mask, masked_steps, negative_indices, gather, **kwargs
            )
        embeds = self.recording_projection(states.mean(1)).unflatten(0, (-1, 2))  # (batch, 2, projection_dim)
        patient_loss = cmsc_loss(embeds[:, 0], embeds[:, 1], patient_ids, self.cosine_scale, gather)
        return MelpEcgForPreTrainingOutput(
            loss=patient_loss if masked_loss is None else masked_loss + patient_loss,
            masked_loss=masked_loss,
            cmsc_loss=patient_loss,
            code_perplexity=code_perplexity,
            recording_embeds=embeds,
        )

    def _predict_masked(
        self,
        halves: torch.Tensor,
        lead_mask: torch.Tensor | None,
        masked_steps: torch.Tensor | None,
        negative_indices: torch.Tensor | None,
        gather: bool,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The states of the masked halves (batch * 2, time, hidden), the loss and the perplexity of the codes."""
        config = self.config.pretraining_config
        if masked_steps is None:
            time = self.encoder.output_length(halves.shape[-1])
            masked_steps = sample_span_mask(
                len(halves), time, config.mask_time_prob, config.mask_time_length, device=halves.device
            ).unflatten(0, (-1, 2))
        masked_steps = masked_steps.flatten(0, 1)
        if negative_indices is None:
            negative_indices = sample_negative_indices(masked_steps, config.num_negatives).unflatten(0, (-1, 2))
        encoded = self.encoder(halves, lead_mask, masked_steps=masked_steps, **kwargs)
        quantized, choices = self.quantizer(self.feature_dropout(encoded.extract_features))
        masked_loss = masked_contrastive_loss(
            self.context_projection(encoded.last_hidden_state),
            self.target_projection(quantized),
            negative_indices.flatten(0, 1),
            masked_steps,
            config.contrastive_temperature,
            gather,
        )
        return encoded.last_hidden_state, masked_loss, perplexity(choices[masked_steps].detach())


MelpEcgForPreTraining.register_for_auto_class("AutoModelForPreTraining")

__all__ = ["MelpEcgForPreTraining", "MelpEcgForPreTrainingOutput"]
