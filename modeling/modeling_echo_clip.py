"""EchoCLIP: frames of echocardiograms beside the text of their reports (Christensen et al., Nature Medicine 2024).

    frame -> ConvNeXt -> average, norm, linear -> unit norm  <-+
                                                               |  cosine similarity x exp(logit_scale)
    text -> causal transformer -> end token, linear -> unit  <-+

    every frame of a study -> direction of the mean, log of the variance: the Gaussian that EchoingECG learns from

For research use; not a medical device.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextModel, ConvNextModel
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .configuration_echo_clip import EchoClipConfig
from .loading_ecg import CheckedLoadingMixin


@dataclass
class EchoClipImageOutput(ModelOutput):
    """What the image tower says of frames.

    Args:
        last_hidden_state: (frames, hidden_sizes[-1], height / 32, width / 32).
        pooler_output: (frames, hidden_sizes[-1]), averaged over the picture and normalised, before the projection.
        image_embeds: (frames, projection_dim), unit norm.
        hidden_states: the stem and every stage, (frames, channels, height, width) each.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


@dataclass
class EchoClipTextOutput(ModelOutput):
    """What the text tower says of texts.

    Args:
        last_hidden_state: (texts, length, text hidden_size).
        pooler_output: (texts, text hidden_size), the state at the end-of-text token, before the projection.
        text_embeds: (texts, projection_dim), unit norm.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class EchoClipOutput(ModelOutput):
    """Frames and the texts they are compared with.

    Args:
        logits_per_image: (frames, texts), cosine similarity times exp(logit_scale).
        logits_per_text: (texts, frames), the transpose.
        image_embeds: (frames, projection_dim), unit norm.
        text_embeds: (texts, projection_dim), unit norm.
    """

    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None


@dataclass(frozen=True)
class FrameStatistics:
    """Count, mean and squared deviations of frame embeddings, in float64: what a study's Gaussian needs, in constant
    memory.  Sums of two add up as Chan, Golub and LeVeque (1979) have it, without the cancellation of running sums of
    squares: the spread over frames is small beside their mean.

    Args:
        num_frames: frames seen so far.
        mean: (projection_dim,), their mean.
        deviations: (projection_dim,), their sum of squared deviations from it.
    """

    num_frames: int
    mean: torch.Tensor
    deviations: torch.Tensor

    @classmethod
    def of(cls, embeds: torch.Tensor) -> "FrameStatistics":
        """Of embeddings (frames, projection_dim), at least one."""
        embeds = embeds.cpu().double()
        mean = embeds.mean(0)
        return cls(len(embeds), mean, (embeds - mean).square().sum(0))

    def __add__(self, other: "FrameStatistics") -> "FrameStatistics":
        num_frames = self.num_frames + other.num_frames
        difference = other.mean - self.mean
        return FrameStatistics(
            num_frames,
            self.mean + difference * (other.num_frames / num_frames),
            self.deviations
            + other.deviations
            + difference.square() * (self.num_frames * other.num_frames / num_frames),
        )

    def gaussian(self, eps: float = 1e-8) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean, unit norm, and log-variance, (projection_dim,) each, in float32: what EchoingECG's `study_gaussian`
        makes of all the embeddings."""
        norm = self.mean.norm()
        mean = self.mean / torch.where(norm > 0, norm, 1.0)
        return mean.float(), (self.deviations / self.num_frames + eps).log().float()


class EchoClipPreTrainedModel(CheckedLoadingMixin, PreTrainedModel):
    config: EchoClipConfig
    base_model_prefix = "echo_clip"
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]
    _no_split_modules = ["ConvNextLayer", "CLIPEncoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True


class EchoClipModel(EchoClipPreTrainedModel):
    """Both towers; the teacher of EchoingECG, which learns from its frozen image tower.

    ```python
    >>> from transformers import AutoImageProcessor, AutoModel

    >>> model = AutoModel.from_pretrained(folder)
    >>> processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    >>> frames = processor(images, return_tensors="pt").pixel_values  # (frames, 3, 224, 224)
    >>> model.get_image_features(frames).image_embeds
    >>> echo_embeds, echo_logvar = model.encode_study(frames.split(32))
    ```
    """

    def __init__(self, config: EchoClipConfig):
        super().__init__(config)
        vision_config: Any = config.vision_config
        text_config: Any = config.text_config
        self.vision_model = ConvNextModel._from_config(vision_config)
        self.text_model = CLIPTextModel._from_config(text_config)
        self.visual_projection = nn.Linear(vision_config.hidden_sizes[-1], config.projection_dim, bias=False)
        self.text_projection = nn.Linear(text_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(config.init_logit_scale))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self:
            init.constant_(self.logit_scale, self.config.init_logit_scale)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> EchoClipImageOutput:
        """The image tower alone.

        Args:
            pixel_values: (frames, 3, height, width), RGB, as the image processor gives them; the published model was
                trained on 224 x 224.
        """
        outputs = self.vision_model(pixel_values, **kwargs)
        return EchoClipImageOutput(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=outputs.pooler_output,
            image_embeds=F.normalize(self.visual_projection(outputs.pooler_output), dim=-1),
            hidden_states=outputs.hidden_states,
        )

    @can_return_tuple
    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> EchoClipTextOutput:
        """The text tower alone.

        Args:
            input_ids: (texts, length up to 77), `<|startoftext|> tokens <|endoftext|>`, padded on the right with
                anything: no token sees those after it.
            attention_mask: (texts, length), 0 for padding.
        """
        outputs = self.text_model(input_ids, attention_mask=attention_mask, **kwargs)
        return EchoClipTextOutput(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=outputs.pooler_output,
            text_embeds=F.normalize(self.text_projection(outputs.pooler_output), dim=-1),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> EchoClipOutput:
        """
        Args:
            pixel_values: see `get_image_features`.
            input_ids, attention_mask: see `get_text_features`.
        """
        image_embeds = self.get_image_features(pixel_values, **kwargs).image_embeds
        text_embeds = self.get_text_features(input_ids, attention_mask, **kwargs).text_embeds
        logits = self.logit_scale.exp() * image_embeds @ text_embeds.T  # (frames, texts)
        return EchoClipOutput(
            logits_per_image=logits, logits_per_text=logits.T, image_embeds=image_embeds, text_embeds=text_embeds
        )

    @torch.no_grad()
    def frame_statistics(self, batches: Iterable[torch.Tensor]) -> FrameStatistics:
        """Mean and variance of the embeddings of a study's frames, a batch at a time.

        Args:
            batches: of pixel values (frames, 3, height, width), taken one after the other and not kept.

        Raises:
            ValueError: no frame, or embeddings that are not finite.
        """
        statistics: FrameStatistics | None = None
        for pixel_values in batches:
            if len(pixel_values):
                embeds = self.get_image_features(
                    pixel_values.to(self.device, self.dtype), return_dict=True
                ).image_embeds
                if not embeds.isfinite().all():
                    raise ValueError("a frame's embedding is not finite: its pixels or the weights are not either")
                batch = FrameStatistics.of(embeds)
                statistics = batch if statistics is None else statistics + batch
        if statistics is None:
            raise ValueError("a study needs at least one frame")
        return statistics

    def encode_study(self, batches: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The Gaussian of one study from all its frames, see `frame_statistics`: `echo_embeds` (the direction of the
        mean) and `echo_logvar` of EchoingECG, (projection_dim,) each, on the CPU in float32."""
        return self.frame_statistics(batches).gaussian()


EchoClipModel.register_for_auto_class("AutoModel")

__all__ = [
    "EchoClipModel",
    "EchoClipPreTrainedModel",
    "FrameStatistics",
]
