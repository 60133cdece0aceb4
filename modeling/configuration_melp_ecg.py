"""Configurations of MELP's ECG tower and its parts (arXiv 2506.21803)."""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from .sizes_ecg import check_sizes


@strict
class MelpWav2Vec2Config(PreTrainedConfig):
    r"""MELP's own ECG encoder, wav2vec 2.0 over 12 leads.

    Args:
        num_leads: leads of the input; their order is the feature extractor's affair.
        conv_dim, conv_kernel, conv_stride: channels, kernel and stride of each convolution block.
        num_conv_pos_embeddings, num_conv_pos_embedding_groups: kernel and groups of the positional convolution.
        hidden_size: width of the states that the encoder gives to the poolers.
        feat_extract_activation, hidden_act: of the convolutions, and of the transformer.
        hidden_dropout: between the parts of the encoder.
        feature_grad_mult: factor on the gradients that reach the convolution blocks.
    """

    model_type = "melp_wav2vec2"
    base_config_key = "encoder_config"

    num_leads: int = 12
    conv_dim: list[int] | tuple[int, ...] = (256, 256, 256, 256)
    conv_kernel: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    conv_stride: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    hidden_size: int = 768
    num_hidden_layers: int = 8
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    feat_extract_activation: str = "gelu"
    hidden_act: str = "gelu"
    hidden_dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    feature_grad_mult: float | int = 0.1

    def validate_architecture(self):
        check_sizes(self)
        if not len(self.conv_dim) == len(self.conv_kernel) == len(self.conv_stride):
            raise ValueError(
                "conv_dim, conv_kernel and conv_stride describe the same blocks and must be equally long; "
                f"they have {len(self.conv_dim)}, {len(self.conv_kernel)} and {len(self.conv_stride)} entries"
            )
        check_heads(self, "hidden_size", self.num_attention_heads)


@strict
class MelpResNetConfig(PreTrainedConfig):
    r"""The residual network that the authors compare with: a convolution of 1 tap to `hidden_size` follows on it.

    Args:
        num_leads: leads of the input; their order is the feature extractor's affair.
        stem_size: channels of the first convolution, which halves the time resolution.
        hidden_sizes, depths, strides: channels, residual blocks and stride of each stage.
        hidden_size: width of the states that the encoder gives to the poolers.
        hidden_dropout: of those states.
    """

    model_type = "melp_resnet"
    base_config_key = "encoder_config"

    num_leads: int = 12
    stem_size: int = 64
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512)
    depths: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    strides: list[int] | tuple[int, ...] = (1, 2, 2, 2)
    hidden_size: int = 256
    hidden_dropout: float | int = 0.1
    initializer_range: float = 0.02

    def validate_architecture(self):
        check_sizes(self)
        if not len(self.hidden_sizes) == len(self.depths) == len(self.strides):
            raise ValueError(
                "hidden_sizes, depths and strides describe the same stages and must be equally long; "
                f"they have {len(self.hidden_sizes)}, {len(self.depths)} and {len(self.strides)} entries"
            )


@strict
class MelpPretrainingConfig(PreTrainedConfig):
    r"""What only the stage without labels has, `MelpEcgForPreTraining`.

    Args:
        num_codevector_groups, num_codevectors_per_group, codevector_dim: product quantiser.
        gumbel_temperature: how random its choice of codes is while training.
        mask_time_prob, mask_time_length, num_negatives, contrastive_temperature: masked prediction.
        logit_scale_init_value, max_logit_scale: logarithm of the first scale of the CMSC loss, and the largest scale.
    """

    model_type = "melp_pretraining"
    base_config_key = "pretraining_config"

    num_codevector_groups: int = 2
    num_codevectors_per_group: int = 320
    codevector_dim: int = 256
    gumbel_temperature: float | int = 2.0
    mask_time_prob: float = 0.65
    mask_time_length: int = 10
    num_negatives: int = 100
    contrastive_temperature: float = 0.1
    logit_scale_init_value: float = math.log(1 / 0.07)
    max_logit_scale: float | int = 100


ENCODERS = {"wav2vec2": MelpWav2Vec2Config, "resnet": MelpResNetConfig}


def check_heads(config: PreTrainedConfig, name: str, heads: int):
    """Raise `ValueError` where a width is not a multiple of its attention heads."""
    if getattr(config, name) % heads:
        raise ValueError(
            f"{name} ({getattr(config, name)}) must be a multiple of its number of attention heads ({heads})"
        )


@strict
class MelpEcgConfig(PreTrainedConfig):
    r"""MELP's ECG tower: an encoder and two attentional poolers; the defaults are the published sizes.

    Fields of a part may be given without naming the part, as in folders saved before there were parts:
    `MelpEcgConfig(encoder_type="resnet", hidden_dropout=0.2, num_beat_queries=10)`.

    Args:
        encoder_config: a `MelpWav2Vec2Config` or a `MelpResNetConfig`; as a mapping its `model_type` says which.
        pretraining_config: a `MelpPretrainingConfig`; None but in the stage without labels.
        num_caption_queries, caption_dim: number and width of the caption tokens (token level).
        num_beat_queries: number of beat embeddings (beat level); the paper names 10, the published weights have 14.
        num_pooler_heads: attention heads of both poolers.
        projection_dim: width of beat, rhythm and text embeddings.
        freeze_encoder: train only the classifier of `MelpForSequenceClassification`.
    """

    model_type = "melp_ecg"
    base_config_key = "ecg_config"
    sub_configs_defaults = {"encoder_config": MelpWav2Vec2Config}  # type: ignore[dict-item]

    encoder_config: Any = None
    pretraining_config: Any = None
    num_caption_queries: int = 128
    caption_dim: int = 768
    num_beat_queries: int = 14
    num_pooler_heads: int = 8
    projection_dim: int = 256
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    freeze_encoder: bool = False

    def __post_init__(self, **kwargs):
        def own(part: type[PreTrainedConfig]) -> dict[str, Any]:
            """The fields of a part that were given without its name."""
            return {name: kwargs.pop(name) for name in [*kwargs] if name in part.__annotations__}

        encoder = self.encoder_config
        if not isinstance(encoder, PreTrainedConfig):
            encoder = dict(encoder or {})
            kind = encoder.pop("model_type", f"melp_{kwargs.pop('encoder_type', 'wav2vec2')}").removeprefix("melp_")
            if kind not in ENCODERS:
                raise ValueError(f"encoder_type must be one of {', '.join(ENCODERS)}, not {kind!r}")
            shared = {"initializer_range": self.initializer_range, "layer_norm_eps": self.layer_norm_eps}
            shared = {name: value for name, value in shared.items() if name in ENCODERS[kind].__annotations__}
            self.encoder_config = ENCODERS[kind](**{**shared, **encoder, **own(ENCODERS[kind])})
        for part in ENCODERS.values():
            own(part)  # folders saved before hold those of the other encoder, too
        stage = own(MelpPretrainingConfig)
        if isinstance(self.pretraining_config, dict):
            stage, self.pretraining_config = self.pretraining_config | stage, None
        if stage and self.architectures in (None, ["MelpEcgForPreTraining"]):
            self.pretraining_config = MelpPretrainingConfig(**stage)
        super().__post_init__(**kwargs)

    @property
    def encoder_type(self) -> str:
        """ "wav2vec2" or "resnet"."""
        return self.encoder_config.model_type.removeprefix("melp_")

    @property
    def hidden_size(self) -> int:
        return self.encoder_config.hidden_size

    @property
    def num_leads(self) -> int:
        return self.encoder_config.num_leads

    def validate_architecture(self):
        check_sizes(self)
        check_heads(self, "caption_dim", self.num_pooler_heads)
        check_heads(self, "projection_dim", self.num_pooler_heads)

    def to_dict(self) -> dict[str, Any]:
        """Of its parts only what they add to every configuration, and no stage that is not there."""
        output = super().to_dict()
        for name in ("encoder_config", "pretraining_config"):
            part = getattr(self, name)
            if part is None:
                output.pop(name, None)
            else:
                output[name] = {key: value for key, value in part.to_diff_dict().items() if key in output[name]}
        return output

    def save_pretrained(self, save_directory, **kwargs):
        self.auto_map = {
            "AutoConfig": "configuration_melp_ecg.MelpEcgConfig",
            "AutoModel": "modeling_melp_ecg.MelpEcgModel",
            "AutoModelForSequenceClassification": "modeling_melp_ecg.MelpEcgForSequenceClassification",
        }
        if self.architectures == ["MelpEcgForPreTraining"]:  # no other folder has its code
            self.auto_map["AutoModelForPreTraining"] = "modeling_melp_pretraining.MelpEcgForPreTraining"
        super().save_pretrained(save_directory, **kwargs)


MelpEcgConfig.register_for_auto_class()

__all__ = ["MelpEcgConfig", "MelpPretrainingConfig", "MelpResNetConfig", "MelpWav2Vec2Config"]
