"""MELP's ECG tower: an encoder, wav2vec 2.0 over 12 leads by default, whose states are pooled into caption tokens and
beat embeddings (arXiv 2506.21803).

For research use; not a medical device.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, Wav2Vec2BaseModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention_ecg import MultiHeadAttention
from .classification_ecg import EcgClassifierMixin
from .configuration_melp_ecg import MelpEcgConfig, MelpResNetConfig, MelpWav2Vec2Config
from .loading_ecg import CheckedLoadingMixin
from .masking_ecg import length_mask, masked_input, mean_over_time
from .resnet_ecg import ResidualNetworkMixin, ResidualStage

Length = TypeVar("Length", int, torch.Tensor)


@dataclass
class MelpEcgOutput(ModelOutput):
    """What the ECG encoder says of a batch of recordings.

    Args:
        last_hidden_state: (batch, time, hidden_size), the encoder's states.
        pooler_output: (batch, projection_dim), the feature for linear probes: mean of the pooled beat queries before
            their projection into the space shared with text.
        caption_tokens: (batch, num_caption_queries, caption_dim), what the text decoder attends to.
        beat_embeds: (batch, num_beat_queries, projection_dim), not normalised.
        ecg_embeds: (batch, projection_dim), unit norm: the mean of the beat embeddings.
        mean_state: (batch, hidden_size), the mean of the states over time.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    caption_tokens: torch.Tensor | None = None
    beat_embeds: torch.Tensor | None = None
    ecg_embeds: torch.Tensor | None = None
    mean_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return states.view_as(states)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * ctx.factor, None


def conv_output_length(length: Length, kernel: int, stride: int) -> Length:
    """Time steps that a convolution without padding makes of so many."""
    return (length - kernel) // stride + 1


class MelpConvBlock(nn.Module):
    """Strided convolution and activation; the first block normalises each channel over time, as in wav2vec 2.0."""

    def __init__(self, config: MelpWav2Vec2Config, index: int):
        super().__init__()
        in_channels = config.conv_dim[index - 1] if index else config.num_leads
        self.conv = nn.Conv1d(
            in_channels, config.conv_dim[index], config.conv_kernel[index], config.conv_stride[index], bias=False
        )
        self.activation = ACT2FN[config.feat_extract_activation]
        self.norm = None if index else nn.GroupNorm(config.conv_dim[0], config.conv_dim[0])

    def forward(self, states: torch.Tensor, lengths: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(batch, channels, time) and the valid length of each row -> the same after the convolution.

        With lengths, padding neither enters the channel norm nor leaves this block.
        """
        states = self.conv(states)
        if lengths is None:
            return self.activation(self.norm(states) if self.norm is not None else states), None
        lengths = conv_output_length(lengths, self.conv.kernel_size[0], self.conv.stride[0])
        mask = length_mask(lengths, states.shape[-1])[:, None]  # (batch, 1, time)
        if self.norm is not None:
            count = lengths.clamp(min=1)[:, None, None]
            mean = (states * mask).sum(-1, keepdim=True) / count
            variance = ((states - mean) * mask).square().sum(-1, keepdim=True) / count
            states = (states - mean) * torch.rsqrt(variance + self.norm.eps)
            states = states * self.norm.weight[:, None] + self.norm.bias[:, None]
        return self.activation(states) * mask, lengths


class MelpConvPositionalEmbedding(nn.Module):
    """Relative positions from a wide grouped convolution (wav2vec 2.0)."""

    def __init__(self, config: MelpWav2Vec2Config):
        super().__init__()
        self.activation = ACT2FN[config.feat_extract_activation]
        kernel = config.num_conv_pos_embeddings
        self.drop_last = kernel % 2 == 0
        conv = nn.Conv1d(
            config.hidden_size,
            config.hidden_size,
            kernel,
            padding=kernel // 2,
            groups=config.num_conv_pos_embedding_groups,
        )
        self.conv = nn.utils.parametrizations.weight_norm(conv, dim=2)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        positions = self.conv(hidden_states.transpose(1, 2))  # (batch, hidden, time + 1)
        if self.drop_last:
            positions = positions[..., :-1]
        return self.activation(positions).transpose(1, 2)  # (batch, time, hidden)


class MelpEcgPooler(nn.Module):
    """Learned queries that attend over a sequence, as in CoCa (Yu et al. 2022, section 3.2).

    Args:
        config: the model's config; its `_attn_implementation` picks the attention kernel.
        num_queries: how many vectors come out.
        embed_dim: their width.
        num_heads: attention heads.
        context_dim: width of the sequence.
    """

    def __init__(self, config: PreTrainedConfig, num_queries: int, embed_dim: int, num_heads: int, context_dim: int):
        super().__init__()
        self.config = config
        self.query = nn.Parameter(torch.empty(num_queries, embed_dim))
        self.query_norm = nn.LayerNorm(embed_dim)
        self.context_norm = nn.LayerNorm(context_dim)
        self.attention = MultiHeadAttention(config, embed_dim, num_heads, key_dim=context_dim)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, time, context_dim) and its mask (batch, time), 1 = valid -> (batch, num_queries, embed_dim)."""
        query = self.query_norm(self.query).expand(len(hidden_states), -1, -1)
        context = self.context_norm(hidden_states)
        attention_mask = create_bidirectional_mask(self.config, query, mask, encoder_hidden_states=context)
        return self.attention(query, context, attention_mask=attention_mask)[0]


class MelpEcgLayer(GradientCheckpointingLayer):
    """Post-norm transformer layer."""

    def __init__(self, config: MelpWav2Vec2Config):
        super().__init__()
        self.self_attn = MultiHeadAttention(
            config, config.hidden_size, config.num_attention_heads, dropout=config.attention_dropout
        )
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attention, _ = self.self_attn(hidden_states, attention_mask=attention_mask, **kwargs)
        hidden_states = self.attention_norm(hidden_states + self.dropout(attention))
        feed_forward = self.fc2(self.activation(self.fc1(hidden_states)))
        return self.final_norm(hidden_states + self.dropout(feed_forward))


class MelpEcgPreTrainedModel(CheckedLoadingMixin, PreTrainedModel):
    config: MelpEcgConfig
    base_model_prefix = "ecg_model"
    main_input_name = "input_values"
    input_modalities = ["time"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["MelpEcgLayer", "ResidualBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        # transformers calls this for modules with parameters of their own: containers are passed over.
        if isinstance(module, nn.Conv1d) and parametrize.is_parametrized(module):
            direction = module.parametrizations.weight.original1
            init.normal_(direction, mean=0.0, std=2 * math.sqrt(1 / (module.kernel_size[0] * module.in_channels)))
            init.copy_(module.parametrizations.weight.original0, direction.norm(dim=(0, 1), keepdim=True))
            init.zeros_(module.bias)
        elif isinstance(module, nn.Conv1d):
            init.kaiming_normal_(module.weight)


class MelpEcgEncoder(MelpEcgPreTrainedModel):
    """wav2vec 2.0 over 12 leads: (batch, leads, samples) -> (batch, time, hidden_size).

    The published encoder takes 5,000 samples (10 s at 500 Hz) scaled to [0, 1] and gives 312 time steps.
    """

    config: MelpWav2Vec2Config  # type: ignore[assignment]
    base_model_prefix = "encoder"
    _can_record_outputs = {
        "hidden_states": MelpEcgLayer,
        "attentions": OutputRecorder(MultiHeadAttention, index=1, layer_name="self_attn"),
    }

    def __init__(self, config: MelpWav2Vec2Config):
        super().__init__(config)
        self.conv_blocks = nn.ModuleList([MelpConvBlock(config, i) for i in range(len(config.conv_dim))])
        self.feature_norm = nn.LayerNorm(config.conv_dim[-1], eps=config.layer_norm_eps)
        self.feature_projection = nn.Linear(config.conv_dim[-1], config.hidden_size)
        self.position_embedding = MelpConvPositionalEmbedding(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList([MelpEcgLayer(config) for _ in range(config.num_hidden_layers)])
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.mask_embedding = nn.Parameter(torch.empty(config.hidden_size))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self:
            init.uniform_(self.mask_embedding)

    def output_length(self, samples: Length) -> Length:
        """Number of time steps that so many samples give."""
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            samples = conv_output_length(samples, kernel, stride)
        return samples

    def time_mask(self, sample_mask: torch.Tensor) -> torch.Tensor:
        """(batch, samples) -> (batch, time): the steps that see real samples only."""
        return length_mask(self.output_length(sample_mask.sum(-1)), self.output_length(sample_mask.shape[-1]))

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_values: torch.Tensor,
        lead_mask: torch.Tensor | None = None,
        sample_mask: torch.Tensor | None = None,
        masked_steps: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Wav2Vec2BaseModelOutput:
        """
        Args:
            input_values: (batch, leads, samples), as `EcgFeatureExtractor` gives them.
            lead_mask: (batch, leads), 0 for a lead to leave out (it becomes zero).
            sample_mask: (batch, samples), 0 for padding on the right.
            masked_steps: (batch, time), True where the mask embedding replaces the features (masked prediction).

        Returns:
            `last_hidden_state` (batch, time, hidden_size) and `extract_features` (batch, time, conv_dim).

        Raises:
            ValueError: not (batch, leads, samples) with as many leads as the config says.
        """
        features = masked_input(input_values, self.config.num_leads, lead_mask, sample_mask)
        lengths = None if sample_mask is None else sample_mask.sum(-1)
        for block in self.conv_blocks:
            features, lengths = block(features, lengths)
        if features.requires_grad:
            features = _ScaleGradient.apply(features, self.config.feature_grad_mult)
        features = self.feature_norm(features.transpose(1, 2))  # (batch, time, conv_dim)

        hidden_states = self.dropout(self.feature_projection(features))  # (batch, time, hidden)
        if masked_steps is not None:
            hidden_states = torch.where(masked_steps[..., None], self.mask_embedding, hidden_states)
        attention_mask = None
        if lengths is not None:
            time_mask = length_mask(lengths, hidden_states.shape[1])
            hidden_states = hidden_states * time_mask[..., None].to(hidden_states.dtype)
            attention_mask = create_bidirectional_mask(self.config, hidden_states, time_mask)
        hidden_states = hidden_states + self.position_embedding(hidden_states)
        hidden_states = self.dropout(self.layer_norm(hidden_states))
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask=attention_mask, **kwargs)
        return Wav2Vec2BaseModelOutput(last_hidden_state=hidden_states, extract_features=features)


class MelpEcgResNet(ResidualNetworkMixin, MelpEcgPreTrainedModel):
    """Residual network in the place of wav2vec 2.0: (batch, leads, samples) -> (batch, time, hidden_size).

    The ResNet-18 that the authors compare with takes 5,000 samples and gives 313 time steps.
    """

    config: MelpResNetConfig  # type: ignore[assignment]
    base_model_prefix = "encoder"
    _can_record_outputs = {"hidden_states": ResidualStage}

    def __init__(self, config: MelpResNetConfig):
        super().__init__(config)
        self.add_residual_network(
            config.num_leads, config.stem_size, config.hidden_sizes, config.depths, config.strides
        )
        self.feature_projection = nn.Conv1d(config.hidden_sizes[-1], config.hidden_size, 1)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.post_init()

    def output_length(self, samples: Length) -> Length:
        """Number of time steps that so many samples give."""
        stride = 2 * math.prod(self.config.strides)
        return (samples + stride - 1) // stride

    def time_mask(self, sample_mask: torch.Tensor) -> torch.Tensor:
        """(batch, samples) -> (batch, time): the steps whose centre is a real sample."""
        return sample_mask[:, :: 2 * math.prod(self.config.strides)].bool()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_values: torch.Tensor,
        lead_mask: torch.Tensor | None = None,
        sample_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """The arguments are those of `MelpEcgEncoder.forward`.  Hidden states are those of the stem and all stages but
        the last, (batch, channels, time), and then the result."""
        features, _ = self.residual_features(input_values, lead_mask, sample_mask)  # (batch, hidden_sizes[-1], time)
        return BaseModelOutput(self.dropout(self.feature_projection(features).transpose(1, 2)))


def make_encoder(config: MelpEcgConfig) -> MelpEcgEncoder | MelpEcgResNet:
    """The encoder that `config.encoder_config` describes."""
    encoder_class = MelpEcgResNet if config.encoder_type == "resnet" else MelpEcgEncoder
    return encoder_class(config.encoder_config)


class MelpEcgModel(MelpEcgPreTrainedModel):
    """MELP's ECG tower: the encoder, its caption tokens, its beat embeddings and their mean, the ECG's embedding."""

    def __init__(self, config: MelpEcgConfig):
        super().__init__(config)
        self.encoder = make_encoder(config)
        self.caption_pooler = MelpEcgPooler(
            config, config.num_caption_queries, config.caption_dim, config.num_pooler_heads, config.hidden_size
        )
        self.caption_norm = nn.LayerNorm(config.caption_dim, eps=config.layer_norm_eps)
        self.beat_pooler = MelpEcgPooler(
            config, config.num_beat_queries, config.projection_dim, config.num_pooler_heads, config.hidden_size
        )
        self.beat_norm = nn.LayerNorm(config.projection_dim, eps=config.layer_norm_eps)
        self.beat_projection = nn.Linear(config.projection_dim, config.projection_dim, bias=False)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, MelpEcgPooler):
            init.normal_(module.query)
        elif module is self.beat_projection:  # near an isometry
            init.normal_(module.weight, std=module.in_features**-0.5)

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        lead_mask: torch.Tensor | None = None,
        sample_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MelpEcgOutput:
        """
        Args:
            input_values: (batch, leads, samples), as `EcgFeatureExtractor` gives them.
            lead_mask: (batch, leads), 0 for a lead to leave out (it becomes zero).
            sample_mask: (batch, samples), 0 for padding on the right.

        Raises:
            ValueError: not (batch, leads, samples) with as many leads as the config says, or a recording too short
                for one time step.
        """
        encoded = self.encoder(input_values, lead_mask, sample_mask, **kwargs)
        states = encoded.last_hidden_state  # (batch, time, hidden)
        mask = None if sample_mask is None else self.encoder.time_mask(sample_mask)
        mean_state = mean_over_time(states, mask)
        caption_tokens = self.caption_norm(self.caption_pooler(states, mask))  # (batch, caption queries, caption_dim)
        beats = self.beat_norm(self.beat_pooler(states, mask))  # (batch, beat queries, projection_dim)
        beat_embeds = self.beat_projection(beats)
        return MelpEcgOutput(
            last_hidden_state=states,
            pooler_output=beats.mean(1),
            caption_tokens=caption_tokens,
            beat_embeds=beat_embeds,
            ecg_embeds=F.normalize(beat_embeds.mean(1), dim=-1),
            mean_state=mean_state,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class MelpEcgForSequenceClassification(EcgClassifierMixin, MelpEcgPreTrainedModel):
    """The ECG tower and a linear head on its probe feature, for `Trainer`; see `EcgClassifierMixin`."""

    _unused_parameters = ("caption_pooler.", "caption_norm.", "beat_projection.", "encoder.mask_embedding")

    def __init__(self, config: MelpEcgConfig):
        super().__init__(config)
        self.ecg_model = MelpEcgModel(self.ecg_config)
        self.before_classifier = nn.Dropout(self.ecg_config.encoder_config.hidden_dropout)
        self.classifier = nn.Linear(self.ecg_config.projection_dim, config.num_labels)  # type: ignore[arg-type]
        self.post_init()
        self._freeze_as_configured()

    @property
    def ecg_config(self) -> MelpEcgConfig:
        return self.config


MelpEcgModel.register_for_auto_class("AutoModel")
MelpEcgForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__all__ = [
    "MelpEcgEncoder",
    "MelpEcgForSequenceClassification",
    "MelpEcgModel",
    "MelpEcgOutput",
    "MelpEcgPreTrainedModel",
    "MelpEcgResNet",
]
