"""MERL: ECG and report embeddings by contrast (Liu et al., ICML 2024, arXiv 2403.06659).

    12-lead ECG -> ResNet -> attention pooling, or -> ViT -> mean, projection -> ECG embedding <-+
    report -> BERT -> projection ----------------------------------------------> text embedding <-+  cross-modal
    ECG states -> mean -> two projections with dropout -------------> two views of one ECG <-------  uni-modal

For research use; not a medical device.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention_ecg import MultiHeadAttention
from .classification_ecg import EcgClassifierMixin
from .configuration_merl import MerlConfig
from .loading_ecg import CheckedLoadingMixin
from .losses_ecg import contrastive_loss
from .masking_ecg import length_mask, masked_input, mean_over_time
from .resnet_ecg import ResidualNetworkMixin, ResidualStage


@dataclass
class MerlEcgOutput(ModelOutput):
    """What the ECG tower says of a batch of recordings.

    Args:
        last_hidden_state: (batch, time, hidden_size).
        mean_state: (batch, hidden_size), the mean over time ("vit": after a LayerNorm), of which the uni-modal loss
            takes two views.
        pooler_output: (batch, projection_dim), the feature for linear probes: the embedding before it is normalised.
        ecg_embeds: (batch, projection_dim), unit norm.
        hidden_states: of "resnet" the stem and all stages but the last, (batch, channels, time), of "vit" the patches
            and all blocks but the last, (batch, time, hidden_size); and then `last_hidden_state`.
        attentions: of "resnet" that of the pooling, (batch, heads, 1, 1 + time); of "vit" those of all blocks.
    """

    last_hidden_state: torch.Tensor | None = None
    mean_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    ecg_embeds: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class MerlTextOutput(ModelOutput):
    """What the text tower says of a batch of reports.

    Args:
        last_hidden_state: (batch, length, text hidden_size).
        pooler_output: (batch, text hidden_size), BERT's own: a tanh layer over the first token.
        text_embeds: (batch, projection_dim), unit norm.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class MerlOutput(ModelOutput):
    """Both towers, and the losses when they were asked for.

    Args:
        loss: contrastive_loss + unimodal_loss.
        contrastive_loss: cross-modal alignment: ECGs and their reports.
        unimodal_loss: uni-modal alignment: two views of each ECG.
        logits_per_ecg: (ECGs, texts), scaled cosine similarities; `logits_per_text` is its transpose.
        ecg_embeds, text_embeds: unit norm, as in `MerlEcgOutput` and `MerlTextOutput`.
    """

    loss: torch.Tensor | None = None
    contrastive_loss: torch.Tensor | None = None
    unimodal_loss: torch.Tensor | None = None
    logits_per_ecg: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    ecg_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    ecg_model_output: MerlEcgOutput | None = None
    text_model_output: MerlTextOutput | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class MerlPooler(nn.Module):
    """A class token that attends over a sequence and itself, as CLIP pools a picture (Radford et al. 2021, arXiv
    2103.00020) and MERL an ECG.  As in MERL, the class token gets the first position twice.

    Args:
        config: the model's config; its `_attn_implementation` picks the attention kernel.
        num_positions: time steps at most.
        embed_dim: width of the sequence.
        num_heads: attention heads.
        output_dim: width of the result.
    """

    def __init__(self, config: PreTrainedConfig, num_positions: int, embed_dim: int, num_heads: int, output_dim: int):
        super().__init__()
        self.config = config
        self.class_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.position_embedding = nn.Parameter(torch.empty(1, 1 + num_positions, embed_dim))
        self.attention = MultiHeadAttention(config, embed_dim, num_heads)
        self.projection = nn.Linear(embed_dim, output_dim)

    def forward(
        self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            hidden_states: (batch, time, embed_dim).
            mask: (batch, time), 1 = valid.

        Returns:
            (batch, output_dim), and, where the attention kernel gives them, the weights of the class token's attention
            to itself and to each step (batch, num_heads, 1, 1 + time).

        Raises:
            ValueError: more time steps than positions.
        """
        batch, time, _ = hidden_states.shape
        positions = self.position_embedding[:, : 1 + time]
        if positions.shape[1] <= time:
            raise ValueError(f"{time} time steps are more than the {positions.shape[1] - 1} that have a position")
        first = (self.class_token + positions[:, :1]).expand(batch, -1, -1)
        context = torch.cat([first, hidden_states], dim=1) + positions  # (batch, 1 + time, embed_dim)
        query = context[:, :1]
        mask = None if mask is None else nn.functional.pad(mask, (1, 0), value=1)
        attention_mask = create_bidirectional_mask(self.config, query, mask, encoder_hidden_states=context)
        pooled, weights = self.attention(query, context, attention_mask=attention_mask)
        return self.projection(pooled[:, 0]), weights


class MerlLayer(GradientCheckpointingLayer):
    """Pre-norm transformer block."""

    def __init__(self, config: MerlConfig):
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.attention = MultiHeadAttention(config, width, config.num_attention_heads, dropout=config.hidden_dropout)
        self.feed_forward_norm = nn.LayerNorm(width, eps=eps)
        self.activation = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(width, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, width)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        attention, _ = self.attention(self.attention_norm(hidden_states), attention_mask=attention_mask)
        hidden_states = hidden_states + self.dropout(attention)
        feed_forward = self.fc2(self.dropout(self.activation(self.fc1(self.feed_forward_norm(hidden_states)))))
        return hidden_states + self.dropout(feed_forward)


class MerlPreTrainedModel(CheckedLoadingMixin, PreTrainedModel):
    config: MerlConfig
    base_model_prefix = "merl"
    main_input_name = "input_values"
    input_modalities = ["time", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["ResidualBlock", "MerlLayer", "BertLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    # The losses are means already: Trainer must not divide them by the number of items once more.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.Conv1d):
            init.kaiming_normal_(module.weight)
        elif isinstance(module, MerlPooler):
            for parameter in (module.class_token, module.position_embedding):
                init.normal_(parameter, std=parameter.shape[-1] ** -0.5)


class MerlResNet(ResidualNetworkMixin, MerlPreTrainedModel):
    """ECG tower of `encoder_type` "resnet": the published ResNet-18 gives 313 time steps for 5,000 samples."""

    _can_record_outputs = {
        "hidden_states": ResidualStage,
        "attentions": OutputRecorder(MultiHeadAttention, index=1),
    }

    def __init__(self, config: MerlConfig):
        super().__init__(config)
        self.add_residual_network(
            config.num_leads, config.stem_size, config.hidden_sizes, config.depths, config.strides
        )
        self.feature_projection = nn.Conv1d(config.hidden_sizes[-1], config.hidden_size, 1)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.attention_pool = MerlPooler(
            config, config.num_positions, config.hidden_size, config.num_pooler_heads, config.projection_dim
        )
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_values: torch.Tensor,
        lead_mask: torch.Tensor | None = None,
        sample_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MerlEcgOutput:
        """
        Args:
            input_values: (batch, leads, samples), as `EcgFeatureExtractor` gives them.
            lead_mask: (batch, leads), 0 for a lead to leave out (it becomes zero).
            sample_mask: (batch, samples), 0 for padding on the right.

        Raises:
            ValueError: not (batch, leads, samples) with as many leads as the config says, or too many samples.
        """
        features, mask = self.residual_features(input_values, lead_mask, sample_mask)
        states = self.dropout(self.feature_projection(features).transpose(1, 2))  # (batch, time, hidden)
        pooled, _ = self.attention_pool(states, mask)
        return MerlEcgOutput(
            last_hidden_state=states,
            mean_state=mean_over_time(states, mask),
            pooler_output=pooled,
            ecg_embeds=F.normalize(pooled, dim=-1),
        )


class MerlViT(MerlPreTrainedModel):
    """ECG tower of `encoder_type` "vit": the published ViT-tiny makes 100 patches of 5,000 samples."""

    _can_record_outputs = {
        "hidden_states": MerlLayer,
        "attentions": OutputRecorder(MultiHeadAttention, index=1),
    }

    def __init__(self, config: MerlConfig):
        super().__init__(config)
        width, size = config.hidden_size, config.projection_dim
        self.patch_embedding = nn.Conv1d(config.num_leads, width, config.patch_size, config.patch_size, bias=False)
        self.position_embedding = nn.Parameter(torch.empty(1, config.num_positions, width))
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList([MerlLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.projection = nn.Sequential(
            nn.Linear(width, size), nn.BatchNorm1d(size), nn.ReLU(), nn.Linear(size, size), nn.BatchNorm1d(size)
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self:
            init.normal_(self.position_embedding, std=self.config.initializer_range)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_values: torch.Tensor,
        lead_mask: torch.Tensor | None = None,
        sample_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MerlEcgOutput:
        """
        Args:
            input_values, lead_mask, sample_mask: see `MerlResNet.forward`; samples beyond the last whole patch are not
                seen.

        Raises:
            ValueError: not (batch, leads, samples) with as many leads as the config says, or too many samples, or less
                than a patch.
        """
        config = self.config
        input_values = masked_input(input_values, config.num_leads, lead_mask, sample_mask)
        samples = input_values.shape[-1]
        patches = samples // config.patch_size
        if not 1 <= patches <= config.num_positions:
            raise ValueError(
                f"{samples} samples are {patches} patches of {config.patch_size}, not 1 to {config.num_positions}"
            )
        mask, attention_mask = None, None
        states = self.patch_embedding(input_values).transpose(1, 2)  # (batch, patches, hidden)
        if sample_mask is not None:
            mask = length_mask(sample_mask.sum(-1) // config.patch_size, patches)  # (batch, patches): whole ones
            attention_mask = create_bidirectional_mask(config, states, mask)
        states = self.dropout(states + self.position_embedding[:, :patches])
        for layer in self.layers:
            states = layer(states, attention_mask)
        mean_state = self.norm(mean_over_time(states, mask))
        projected = self.projection(mean_state)
        return MerlEcgOutput(
            last_hidden_state=states,
            mean_state=mean_state,
            pooler_output=projected,
            ecg_embeds=F.normalize(projected, dim=-1),
        )


class MerlModel(MerlPreTrainedModel):
    """Both towers: ECG and report embeddings, and the losses that align them.

    ```python
    >>> from transformers import AutoModel, AutoProcessor

    >>> model = AutoModel.from_pretrained(folder)
    >>> processor = AutoProcessor.from_pretrained(folder)
    >>> inputs = processor(read_ecg("record"), text=["sinus rhythm", "atrial fibrillation"], return_tensors="pt")
    >>> model(**inputs).logits_per_ecg.softmax(-1)
    ```
    """

    def __init__(self, config: MerlConfig):
        super().__init__(config)
        size = config.projection_dim
        self.ecg_model = MerlViT(config) if config.encoder_type == "vit" else MerlResNet(config)
        self.view_projections = nn.ModuleList(nn.Linear(config.hidden_size, size, bias=False) for _ in range(2))
        self.view_dropout = nn.Dropout(config.unimodal_dropout)
        self.text_model = BertModel(config.text_config)
        self.text_projection = nn.Sequential(
            nn.Linear(config.text_config.hidden_size, size), ACT2FN[config.hidden_act], nn.Linear(size, size)
        )
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self:
            init.constant_(self.logit_scale, self.config.logit_scale_init_value)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.set_input_embeddings(value)

    def freeze_text_layers(self):
        """Leave the first `config.num_frozen_text_layers` layers of the text tower out of training."""
        self.text_model.encoder.layer[: self.config.num_frozen_text_layers].requires_grad_(False)

    # What of an ECG `match_logits` compares; the output of the text tower is named alike.
    embedding_names = ("ecg_embeds",)

    @property
    def cosine_scale(self) -> torch.Tensor:
        """The factor on cosine similarities, 1 / temperature."""
        return self.logit_scale.exp().clamp(max=self.config.max_logit_scale)

    def match_logits(self, ecg: Mapping[str, torch.Tensor], text: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Scaled cosine similarities (ECGs, texts) of `ecg_embeds` and `text_embeds`, as `get_ecg_features` and
        `get_text_features` give them."""
        return self.cosine_scale * ecg["ecg_embeds"] @ text["text_embeds"].T

    @can_return_tuple
    def get_ecg_features(
        self,
        input_values: torch.Tensor,
        lead_mask: torch.Tensor | None = None,
        sample_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MerlEcgOutput:
        """The ECG tower alone, see `MerlResNet.forward`; its `ecg_embeds` are what texts are compared with."""
        return self.ecg_model(input_values, lead_mask, sample_mask, **kwargs)

    @can_return_tuple
    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> MerlTextOutput:
        """The text tower alone.

        Args:
            input_ids: (batch, length), `[CLS] tokens [SEP]` padded on the right, as `EcgProcessor` gives them.
            attention_mask: (batch, length), 0 for padding.
        """
        outputs = self.text_model(input_ids, attention_mask=attention_mask, **kwargs)
        return MerlTextOutput(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=outputs.pooler_output,
            text_embeds=F.normalize(self.text_projection(outputs.pooler_output), dim=-1),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        input_ids: torch.Tensor,
        lead_mask: torch.Tensor | None = None,
        sample_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        return_loss: bool = False,
        gather: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MerlOutput:
        """
        Args:
            input_values, lead_mask, sample_mask: see `MerlResNet.forward`.
            input_ids, attention_mask: see `get_text_features`.
            return_loss: ECG i belongs to report i; compute both losses (sections 3.2 and 3.3).
            gather: with `return_loss`, take the batches of all processes, which must then all call this.  With
                `Trainer` the data collator asks for it: it adds `"return_loss": True, "gather": True` to every batch.

        Raises:
            ValueError: `return_loss` with different numbers of ECGs and reports.
        """
        ecg = self.get_ecg_features(input_values, lead_mask, sample_mask, **kwargs)
        text = self.get_text_features(input_ids, attention_mask, **kwargs)
        logits_per_ecg = self.match_logits(ecg, text)  # (ECGs, texts)
        output = MerlOutput(
            logits_per_ecg=logits_per_ecg,
            logits_per_text=logits_per_ecg.T,
            ecg_embeds=ecg.ecg_embeds,
            text_embeds=text.text_embeds,
            ecg_model_output=ecg,
            text_model_output=text,
        )
        if return_loss:
            if len(input_values) != len(input_ids):
                raise ValueError(
                    f"return_loss pairs ECG i with report i, but there are {len(input_values)} ECGs and "
                    f"{len(input_ids)} reports"
                )
            views = (self.view_dropout(projection(ecg.mean_state)) for projection in self.view_projections)
            first_view, second_view = views  # (batch, projection_dim); not normalised, as in the authors' code
            output.contrastive_loss = contrastive_loss(ecg.ecg_embeds, text.text_embeds, self.cosine_scale, gather)
            output.unimodal_loss = contrastive_loss(
                first_view, second_view, 1 / self.config.unimodal_temperature, gather
            )
            output.loss = output.contrastive_loss + output.unimodal_loss
        return output


class MerlForSequenceClassification(EcgClassifierMixin, MerlPreTrainedModel):
    """The ECG tower and a linear head on its probe feature, for `Trainer`; see `EcgClassifierMixin`."""

    _keys_to_ignore_on_load_unexpected = [r"^text_", r"^view_projections\.", r"^logit_scale"]

    def __init__(self, config: MerlConfig):
        super().__init__(config)
        self.ecg_model = MerlViT(config) if config.encoder_type == "vit" else MerlResNet(config)
        self.before_classifier = nn.Identity()
        self.classifier = nn.Linear(config.projection_dim, config.num_labels)  # type: ignore[arg-type]
        self.post_init()
        self._freeze_as_configured()


MerlModel.register_for_auto_class("AutoModel")
MerlForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__all__ = ["MerlForSequenceClassification", "MerlModel", "MerlPreTrainedModel", "MerlResNet", "MerlViT"]
