"""Configuration of MELP (Wang, Xu and Yu, "From Token to Rhythm", ICML 2025, arXiv 2506.21803)."""

import copy
import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import BertConfig
from transformers.configuration_utils import PreTrainedConfig

from .configuration_melp_ecg import MelpEcgConfig
from .sizes_ecg import check_sizes


@strict
class MelpConfig(PreTrainedConfig):
    r"""The whole of MELP: ECG encoder, causal BERT text encoder, text decoder, and the three losses.

    Args:
        ecg_config, text_config: the two towers; `text_config` is a causal BERT.
        decoder_num_hidden_layers, decoder_num_attention_heads, decoder_intermediate_size: the text decoder, as wide as
            the text encoder.  Each layer is a self-attention block and a cross-attention block.
        hidden_act: of the text decoder and of the projection of texts.
        projection_dim: width of the shared embedding space.
        cls_position: position id of the `[CLS]` that closes every text.  The reference gives it the padded length (127
            in training), which makes an embedding depend on padding; fixed, it does not.
        period_token_id: the token that ends a sentence.
        special_token_ids: tokens that belong to no sentence.
        contrastive_loss_weight, caption_loss_weight, beat_loss_weight: rhythm, token and beat level.
        num_frozen_text_layers: layers of the text encoder that training leaves alone (`MelpModel.freeze_text_layers`).
        freeze_encoder: train only the classifier of `MelpForSequenceClassification`.
    """

    model_type = "melp"
    sub_configs_defaults = {"ecg_config": MelpEcgConfig, "text_config": BertConfig}  # type: ignore[dict-item]

    ecg_config: Any = None
    text_config: Any = None
    decoder_num_hidden_layers: int = 6
    decoder_num_attention_heads: int = 8
    decoder_intermediate_size: int = 3072
    decoder_layer_norm_eps: float = 1e-5
    hidden_act: str = "gelu"
    projection_dim: int = 256
    initializer_range: float = 0.02
    logit_scale_init_value: float = math.log(1 / 0.07)
    max_logit_scale: float | int = 100
    cls_position: int = 127
    max_text_length: int = 127
    pad_token_id: int = 0
    unk_token_id: int = 1
    cls_token_id: int = 2
    eos_token_id: int = 3
    mask_token_id: int = 4
    bos_token_id: int = 30522
    decoder_start_token_id: int = 30522
    period_token_id: int = 18
    contrastive_loss_weight: float | int = 1.0
    caption_loss_weight: float | int = 2.0
    beat_loss_weight: float | int = 0.2
    num_frozen_text_layers: int = 6
    freeze_encoder: bool = False
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if self.text_config is None:
            self.text_config = {"vocab_size": 30523, "pad_token_id": self.pad_token_id}
        if isinstance(self.text_config, dict):
            self.text_config = {**self.text_config, "is_decoder": True}
        super().__post_init__(**kwargs)
        self.ecg_config.pretraining_config = None

    @property
    def special_token_ids(self) -> tuple[int, ...]:
        """Ids that belong to no sentence: [PAD], [UNK], [CLS], [SEP], [MASK] and [BOS]."""
        return (
            self.pad_token_id,
            self.unk_token_id,
            self.cls_token_id,
            self.eos_token_id,
            self.mask_token_id,
            self.bos_token_id,
        )

    def validate_architecture(self):
        check_sizes(self)
        if self.ecg_config.caption_dim != self.text_config.hidden_size:
            raise ValueError(
                "the decoder attends to the caption tokens: ecg_config.caption_dim "
                f"({self.ecg_config.caption_dim}) must equal text_config.hidden_size ({self.text_config.hidden_size})"
            )
        if self.ecg_config.projection_dim != self.projection_dim:
            raise ValueError(
                f"ECG and text share one space: ecg_config.projection_dim ({self.ecg_config.projection_dim}) "
                f"must equal projection_dim ({self.projection_dim})"
            )
        if self.cls_position >= self.text_config.max_position_embeddings:
            raise ValueError(
                f"cls_position ({self.cls_position}) must be below text_config.max_position_embeddings "
                f"({self.text_config.max_position_embeddings})"
            )

    def get_text_config(self, decoder=None, encoder=None) -> PreTrainedConfig:
        """For `decoder=True`, the text config with as many layers as a generation cache must hold: those of the text
        encoder followed by those of the decoder."""
        if not decoder or encoder:
            return self.text_config
        config = copy.deepcopy(self.text_config)
        config.num_hidden_layers += self.decoder_num_hidden_layers
        return config

    def save_pretrained(self, save_directory, **kwargs):
        self.auto_map = {
            "AutoConfig": "configuration_melp.MelpConfig",
            "AutoModel": "modeling_melp.MelpModel",
            "AutoModelForSpeechSeq2Seq": "modeling_melp.MelpForConditionalGeneration",
            "AutoModelForSequenceClassification": "modeling_melp.MelpForSequenceClassification",
        }
        for part in (self.ecg_config, self.text_config):  # they come from folders of their own, with other classes
            part.architectures = None
            part.__dict__.pop("auto_map", None)
        super().save_pretrained(save_directory, **kwargs)


MelpConfig.register_for_auto_class()

__all__ = ["MelpConfig", "MelpEcgConfig"]
