"""Configuration of MERL (Liu et al., "Zero-Shot ECG Classification with Multimodal Learning and Test-time Clinical
Knowledge Enhancement", ICML 2024, arXiv 2403.06659)."""

import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import BertConfig
from transformers.configuration_utils import PreTrainedConfig

from .sizes_ecg import check_sizes


@strict
class MerlConfig(PreTrainedConfig):
    r"""A residual network or a vision transformer for ECGs, and a BERT for reports.

    The defaults are the published ResNet-18; the published ViT-tiny is
    `MerlConfig(encoder_type="vit", hidden_size=192, num_positions=100)`.

    Args:
        text_config: the text tower, a `BertConfig`.
        encoder_type: "resnet", a residual network under attention pooling, or "vit", a transformer over patches.
        num_leads: leads of the input; their order is the feature extractor's affair.
        num_positions: time steps that a recording may have: 5,000 samples are 313 for the published "resnet", whose
            stem and stages halve the time resolution 4 times, and 100 patches for "vit".
        hidden_size: width of a time step.
        hidden_dropout: after the encoder of "resnet", within the blocks of "vit".
        stem_size, hidden_sizes, depths, strides: for "resnet": channels of the first convolution, which halves the
            time resolution; channels, residual blocks and stride of each stage.
        num_pooler_heads: for "resnet": attention heads of the pooling.
        patch_size: for "vit": samples of a patch.
        num_hidden_layers, num_attention_heads, intermediate_size, layer_norm_eps: for "vit": its blocks.
        hidden_act: of the blocks of "vit", and of the projection of texts.
        projection_dim: width of the embeddings.
        initializer_range: standard deviation of new linear layers.
        logit_scale_init_value, max_logit_scale: logarithm of the first scale of the cross-modal loss, and the largest
            scale.
        unimodal_dropout, unimodal_temperature: of the two views of an ECG, and of the loss that compares them.
        freeze_encoder: train only the classifier of `MerlForSequenceClassification`.
        num_frozen_text_layers: layers of the text tower that training leaves alone (`MerlModel.freeze_text_layers`).
    """

    model_type = "merl"
    sub_configs_defaults = {"text_config": BertConfig}  # type: ignore[dict-item]

    text_config: Any = None
    encoder_type: Literal["resnet", "vit"] = "resnet"
    num_leads: int = 12
    num_positions: int = 313
    hidden_size: int = 256
    hidden_dropout: float | int = 0.0
    stem_size: int = 64
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512)
    depths: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    strides: list[int] | tuple[int, ...] = (1, 2, 2, 2)
    num_pooler_heads: int = 4
    patch_size: int = 50
    num_hidden_layers: int = 12
    num_attention_heads: int = 3
    intermediate_size: int = 768
    layer_norm_eps: float = 1e-5
    hidden_act: str = "gelu"
    projection_dim: int = 256
    initializer_range: float = 0.02
    logit_scale_init_value: float = math.log(1 / 0.07)
    max_logit_scale: float | int = 100
    unimodal_dropout: float | int = 0.1
    unimodal_temperature: float = 0.07
    num_frozen_text_layers: int = 0
    freeze_encoder: bool = False

    def validate_architecture(self):
        check_sizes(self)
        if not len(self.hidden_sizes) == len(self.depths) == len(self.strides):
            raise ValueError(
                "hidden_sizes, depths and strides describe the same stages and must be equally long; "
                f"they have {len(self.hidden_sizes)}, {len(self.depths)} and {len(self.strides)} entries"
            )
        heads = self.num_pooler_heads if self.encoder_type == "resnet" else self.num_attention_heads
        if self.hidden_size % heads:
            raise ValueError(f"hidden_size ({self.hidden_size}) must be a multiple of its attention heads ({heads})")

    def save_pretrained(self, save_directory, **kwargs):
        self.auto_map = {
            "AutoConfig": "configuration_merl.MerlConfig",
            "AutoModel": "modeling_merl.MerlModel",
            "AutoModelForSequenceClassification": "modeling_merl.MerlForSequenceClassification",
        }
        self.text_config.__dict__.pop("auto_map", None)  # of a folder of its own
        super().save_pretrained(save_directory, **kwargs)


MerlConfig.register_for_auto_class()

__all__ = ["MerlConfig"]
