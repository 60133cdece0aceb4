"""Configuration of EchoCLIP (Christensen et al., Nature Medicine 2024), the echo teacher of EchoingECG."""

from huggingface_hub.dataclasses import strict
from transformers import CLIPTextConfig, ConvNextConfig
from transformers.configuration_utils import PreTrainedConfig

from .sizes_ecg import check_sizes

_VISION = {"depths": (3, 3, 27, 3), "hidden_sizes": (128, 256, 512, 1024), "layer_norm_eps": 1e-6}
_TEXT = {"hidden_act": "gelu", "layer_norm_eps": 1e-5}


@strict
class EchoClipConfig(PreTrainedConfig):
    r"""A ConvNeXt for frames of echocardiograms and a CLIP text tower for the texts they are compared with.

    The defaults are the published sizes: ConvNeXt-base, and a text tower of 12 layers.

    Args:
        vision_config: the image tower, a `ConvNextConfig`; what it leaves out is as published.
        text_config: the text tower, a `CLIPTextConfig`; what it leaves out is as published (the exact GELU, which is
            not that class's own default).
        projection_dim: width of the embeddings.
        initializer_range: standard deviation of new linear layers.
        init_logit_scale: initial logarithm of the factor on cosine similarities.
    """

    model_type = "echo_clip"
    sub_configs_defaults = {"vision_config": ConvNextConfig, "text_config": CLIPTextConfig}  # type: ignore[dict-item]

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 512
    initializer_range: float = 0.02
    init_logit_scale: float = 2.6592

    def __post_init__(self, **kwargs):
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = ConvNextConfig(**(_VISION | (self.vision_config or {})))
        if not isinstance(self.text_config, PreTrainedConfig):
            self.text_config = CLIPTextConfig(**(_TEXT | (self.text_config or {})))
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        check_sizes(self)

    def save_pretrained(self, save_directory, **kwargs):
        self.auto_map = {
            "AutoConfig": "configuration_echo_clip.EchoClipConfig",
            "AutoModel": "modeling_echo_clip.EchoClipModel",
        }
        super().save_pretrained(save_directory, **kwargs)


EchoClipConfig.register_for_auto_class()

__all__ = ["EchoClipConfig"]
