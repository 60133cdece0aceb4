"""Configuration of EchoingECG (Gao, Kim and McIntosh, MICCAI 2025, arXiv 2509.25791)."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import BertConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from .sizes_ecg import check_sizes


@strict
class EchoingEcgConfig(PreTrainedConfig):
    r"""A residual network for ECGs, a BERT for texts, and the probabilistic loss that aligns them.

    The defaults are the published sizes; the text tower's are those of BioBERT v1.1.

    Args:
        text_config: the text tower, a `BertConfig`.
        num_leads: leads of the input; their order is the feature extractor's affair.
        stem_size: channels of the first convolution, which halves the time resolution.
        hidden_sizes, depths, strides: channels, residual blocks and stride of each stage; by default every stage but
            the first halves the time resolution again.
        projection_dim: width of means and log-variances.
        pooling_size: width of the position codes and of the GRU that weigh the ranks in generalised pooling.
        initializer_range: standard deviation of new linear layers.
        init_negative_scale, init_shift: initial a (`logit_scale`) and b (`logit_bias`) of the match logit -a d + b.
        distance: the distance d between two Gaussians, see `pairwise_distance`.
        smoothness: weight of the pseudo-positive terms of the loss.
        vib_beta: weight of the loss's KL regulariser.
        contrast: weight of InfoNCE between the means; the published loss has none.
        echo_loss_weight: weight of the loss on echo studies; that on texts has 1.
        freeze_encoder: train only the classifier of `EchoingEcgForSequenceClassification`.
    """

    model_type = "echoing_ecg"
    sub_configs_defaults = {"text_config": SubConfigSpec(BertConfig, init_kwargs={"vocab_size": 28996})}

    text_config: Any = None
    num_leads: int = 12
    stem_size: int = 96
    hidden_sizes: list[int] | tuple[int, ...] = (192, 384, 768, 1536)
    depths: list[int] | tuple[int, ...] = (3, 4, 23, 3)
    strides: list[int] | tuple[int, ...] | None = None
    projection_dim: int = 512
    pooling_size: int = 32
    initializer_range: float = 0.02
    init_negative_scale: float | int = 5.0
    init_shift: float | int = 5.0
    distance: str = "csd"
    smoothness: float | int = 0.1
    vib_beta: float | int = 1e-4
    contrast: float | int = 0.0
    echo_loss_weight: float | int = 1.0
    freeze_encoder: bool = False

    def __post_init__(self, **kwargs):
        if self.strides is None:
            self.strides = [2 if stage else 1 for stage in range(len(self.depths))]
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        check_sizes(self)
        if not len(self.hidden_sizes) == len(self.depths) == len(self.strides):  # type: ignore[arg-type]
            raise ValueError(
                "hidden_sizes, depths and strides describe the same stages and must be equally long; they have "
                f"{len(self.hidden_sizes)}, {len(self.depths)} and {len(self.strides)} entries"  # type: ignore[arg-type]
            )
        if self.pooling_size % 2:
            raise ValueError(
                f"pooling_size ({self.pooling_size}) must be even: position codes come in sine-cosine pairs"
            )

    def save_pretrained(self, save_directory, **kwargs):
        self.auto_map = {
            "AutoConfig": "configuration_echoing_ecg.EchoingEcgConfig",
            "AutoModel": "modeling_echoing_ecg.EchoingEcgModel",
            "AutoModelForSequenceClassification": "modeling_echoing_ecg.EchoingEcgForSequenceClassification",
        }
        self.text_config.__dict__.pop("auto_map", None)  # of a folder of its own
        super().save_pretrained(save_directory, **kwargs)


EchoingEcgConfig.register_for_auto_class()

__all__ = ["EchoingEcgConfig"]
