"""EchoingECG: Gaussian embeddings of ECGs, reports and echo studies (Gao et al., MICCAI 2025, arXiv 2509.25791).

    12-lead ECG -> residual network -+-> mean: linear, GPO, unit norm
                                     +-> log-variance: linear, GPO          ECG Gaussian  <-+
                                                                                            |  PCME++: match logit
    report -> BERT -> the same two heads                                    text Gaussian <-+  -a distance + b
    echo frames -> frozen EchoCLIP -> mean and variance over the frames     echo Gaussian <-+

For research use; not a medical device.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import BertModel
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .classification_ecg import EcgClassifierMixin
from .configuration_echoing_ecg import EchoingEcgConfig
from .gaussians_echoing_ecg import pairwise_distance, probabilistic_matching_loss
from .loading_ecg import CheckedLoadingMixin
from .losses_ecg import gather_with_gradient
from .masking_ecg import count_steps, length_mask, mean_over_time
from .pairing_ecg import matched_by_id
from .resnet_ecg import ResidualNetworkMixin, ResidualStage


def uncertainty(logvar: torch.Tensor) -> torch.Tensor:
    """Total variance of Gaussians with log-variances (batch, projection_dim): (batch,), in float32 at least."""
    return logvar.to(torch.promote_types(logvar.dtype, torch.float32)).exp().sum(-1)


@dataclass
class EchoingEcgEncoderOutput(ModelOutput):
    """What the ECG tower says of a batch of recordings.

    Args:
        last_hidden_state: (batch, hidden_sizes[-1], time), the last stage.
        pooler_output: (batch, projection_dim), the feature for linear probes: the same as `ecg_embeds`.
        ecg_embeds: (batch, projection_dim), the mean, unit norm.
        ecg_logvar: (batch, projection_dim), the log-variance.
        mean_state: (batch, channels), the mean of the last stage over time.
        hidden_states: the stem and every stage, (batch, channels, time) each.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    ecg_embeds: torch.Tensor | None = None
    ecg_logvar: torch.Tensor | None = None
    mean_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None

    @property
    def uncertainty(self) -> torch.Tensor:
        """(batch,), the total variance of each ECG: high for recordings that could mean many things."""
        return uncertainty(self.ecg_logvar)  # type: ignore[arg-type]


@dataclass
class EchoingEcgTextOutput(ModelOutput):
    """What the text tower says of a batch of texts.

    Args:
        last_hidden_state: (batch, length, text hidden_size), BERT's states.
        text_embeds: (batch, projection_dim), the mean, unit norm.
        text_logvar: (batch, projection_dim), the log-variance.
    """

    last_hidden_state: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    text_logvar: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None

    @property
    def uncertainty(self) -> torch.Tensor:
        """(batch,), the total variance of each text: prompts with a high one are worth dropping."""
        return uncertainty(self.text_logvar)  # type: ignore[arg-type]


@dataclass
class EchoingEcgOutput(ModelOutput):
    """ECGs and what they are compared with, and the loss when it was asked for.

    Args:
        loss: match_loss + smoothness * pseudo_positive_loss + vib_beta * vib_loss + contrast * contrastive_loss, times
            `echo_loss_weight` for echo studies; the parts are unweighted.
        match_loss, pseudo_positive_loss, vib_loss, contrastive_loss: see `probabilistic_matching_loss`.
        logits_per_ecg: (ECGs, texts) or (ECGs, studies), -a distance + b; its sigmoid is the match probability.
        logits_per_text: (texts, ECGs), the transpose; None when the ECGs were compared with echo studies.
        ecg_embeds, text_embeds, echo_embeds: (batch, projection_dim), means, unit norm.
        ecg_logvar, text_logvar, echo_logvar: (batch, projection_dim), log-variances.
    """

    loss: torch.Tensor | None = None
    match_loss: torch.Tensor | None = None
    pseudo_positive_loss: torch.Tensor | None = None
    vib_loss: torch.Tensor | None = None
    contrastive_loss: torch.Tensor | None = None
    logits_per_ecg: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    ecg_embeds: torch.Tensor | None = None
    ecg_logvar: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    text_logvar: torch.Tensor | None = None
    echo_embeds: torch.Tensor | None = None
    echo_logvar: torch.Tensor | None = None
    ecg_model_output: EchoingEcgEncoderOutput | None = None
    text_model_output: EchoingEcgTextOutput | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class GeneralizedPooling(nn.Module):
    """Generalised pooling operator, GPO (Chen et al., CVPR 2021, arXiv 2011.04305).

    Every channel is sorted over time and summed with one weight a rank.  The weights are learned but depend on the
    number of valid steps alone: a bidirectional GRU reads sinusoidal codes of the ranks and scores them.  So the
    operator can be anything from maximum to mean pooling, and where the padding lies does not matter.

    Args:
        size: width of the rank codes and of the GRU.
        temperature: of the softmax over ranks.
    """

    def __init__(self, size: int = 32, temperature: float = 0.1):
        super().__init__()
        self.size = size
        self.temperature = temperature
        self.gru = nn.GRU(size, size, batch_first=True, bidirectional=True)
        self.score = nn.Linear(size, 1, bias=False)

    def rank_codes(self, length: int) -> torch.Tensor:
        """(length, size), sines at the even and cosines at the odd places."""
        device = self.score.weight.device
        exponents = torch.arange(0, self.size, 2, device=device, dtype=torch.float32)
        frequencies = torch.exp(exponents * (-math.log(10000.0) / self.size))
        angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequencies
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).to(self.score.weight.dtype)

    def rank_weights(self, length: int, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Weights (batch or 1, length) of the ranks, of which the first `lengths` (batch,) count; each row sums to 1.

        In half precision the weights are float32: a softmax this sharp needs it.
        """
        codes = self.rank_codes(length)[None]  # (1, length, size)
        if lengths is None:
            states, _ = self.gru(codes)
        else:  # packed, the backward direction starts at each row's own last rank
            codes = codes.expand(len(lengths), -1, -1)
            packed = pack_padded_sequence(codes, lengths.cpu(), batch_first=True, enforce_sorted=False)
            states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=length)
        forward, backward = states.chunk(2, dim=-1)  # (batch, length, size)
        scores = self.score((forward + backward) / 2).squeeze(-1)  # (batch, length)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) / self.temperature
        if lengths is not None:
            scores = scores.masked_fill(~length_mask(lengths, length), -torch.inf)
        return scores.softmax(dim=-1)

    def forward(self, features: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """`features` (batch, time, channels), `mask` (batch, time), 1 = valid -> (batch, channels).

        Raises:
            ValueError: a row of `mask` has no valid step.
        """
        length = features.shape[1]
        lengths = None
        if mask is not None:
            lengths = count_steps(mask)
            features = features.masked_fill(~mask.bool()[..., None], -torch.inf)  # padding sorts last
        features = features.sort(dim=1, descending=True).values
        if lengths is not None:
            features = features.masked_fill(~length_mask(lengths, length)[..., None], 0)
        weights = self.rank_weights(length, lengths)[..., None]  # (batch or 1, time, 1)
        return (weights * features).sum(dim=1).to(features.dtype)


class GaussianHead(nn.Module):
    """Sequence -> Gaussian: two linear projections of every step, each with its own generalised pooling."""

    def __init__(self, hidden_size: int, projection_dim: int, pooling_size: int):
        super().__init__()
        self.mean_projection = nn.Linear(hidden_size, projection_dim)
        self.mean_pooling = GeneralizedPooling(pooling_size)
        self.logvar_projection = nn.Linear(hidden_size, projection_dim)
        self.logvar_pooling = GeneralizedPooling(pooling_size)

    def forward(
        self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, time, hidden_size), mask (batch, time) -> unit mean and log-variance (batch, projection_dim)."""
        mean = self.mean_pooling(self.mean_projection(hidden_states), mask)
        logvar = self.logvar_pooling(self.logvar_projection(hidden_states), mask)
        return mean / (mean.norm(dim=-1, keepdim=True) + 1e-8), logvar


class EchoingEcgPreTrainedModel(CheckedLoadingMixin, PreTrainedModel):
    config: EchoingEcgConfig
    base_model_prefix = "echoing_ecg"
    main_input_name = "input_values"
    input_modalities = ["time"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["ResidualBlock", "BertLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    # The losses are means already: Trainer must not divide them by the number of items once more.
    accepts_loss_kwargs = False
    # The two numbers of the logit belonged to a loss.
    _other_names = {r"^matching_loss\.negative_scale$": "logit_scale", r"^matching_loss\.shift$": "logit_bias"}

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.Conv1d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.GRU):
            for parameter in module.parameters():
                init.uniform_(parameter, -(module.hidden_size**-0.5), module.hidden_size**-0.5)
        elif any(module is part.logvar_projection for part in self.modules() if isinstance(part, GaussianHead)):
            # the total variance starts near 1, the squared length of the mean
            init.constant_(module.bias, -math.log(module.out_features))


class EchoingEcgEncoder(ResidualNetworkMixin, EchoingEcgPreTrainedModel):
    """The ECG tower: a residual network and the two heads, (batch, leads, samples) -> Gaussian.

    The published one takes 1,000 samples (10 s at 100 Hz), standardised per lead, and gives 63 time steps.
    """

    _can_record_outputs = {"hidden_states": ResidualStage}

    def __init__(self, config: EchoingEcgConfig):
        super().__init__(config)
        self.add_residual_network(
            config.num_leads,
            config.stem_size,
            config.hidden_sizes,
            config.depths,
            config.strides,  # type: ignore[arg-type]
        )
        self.head = GaussianHead(config.hidden_sizes[-1], config.projection_dim, config.pooling_size)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_values: torch.Tensor,
        lead_mask: torch.Tensor | None = None,
        sample_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> EchoingEcgEncoderOutput:
        """
        Args:
            input_values: (batch, leads, samples), as `EcgFeatureExtractor` gives them.
            lead_mask: (batch, leads), 0 for a lead to leave out (it becomes zero).
            sample_mask: (batch, samples), 0 for padding on the right, which then has no influence on the result.  (In
                training mode the batch statistics still count the padded steps, as zeros.)

        Raises:
            ValueError: not (batch, leads, samples) with as many leads as the config says, or a recording without a
                sample.
        """
        hidden_states, mask = self.residual_features(input_values, lead_mask, sample_mask)
        steps = hidden_states.transpose(1, 2)  # (batch, time, channels)
        mean, logvar = self.head(steps, mask)
        return EchoingEcgEncoderOutput(
            last_hidden_state=hidden_states,
            pooler_output=mean,
            ecg_embeds=mean,
            ecg_logvar=logvar,
            mean_state=mean_over_time(steps, mask),
        )


class EchoingEcgTextEncoder(nn.Module):
    """The text tower: BERT and the two heads over its token states."""

    def __init__(self, config: EchoingEcgConfig):
        super().__init__()
        self.bert = BertModel._from_config(config.text_config, add_pooling_layer=False)
        self.head = GaussianHead(self.bert.config.hidden_size, config.projection_dim, config.pooling_size)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> EchoingEcgTextOutput:
        outputs = self.bert(input_ids, attention_mask=attention_mask, **kwargs)
        mean, logvar = self.head(outputs.last_hidden_state, attention_mask)
        return EchoingEcgTextOutput(
            last_hidden_state=outputs.last_hidden_state,
            text_embeds=mean,
            text_logvar=logvar,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class EchoingEcgModel(EchoingEcgPreTrainedModel):
    """Both towers: how well does an ECG match a text, or an echo study, and how sure are we of each.

    ```python
    >>> from transformers import AutoModel, AutoProcessor

    >>> model = AutoModel.from_pretrained(folder)
    >>> processor = AutoProcessor.from_pretrained(folder)
    >>> inputs = processor(read_ecg("record"), text=["sinus rhythm", "atrial fibrillation"], return_tensors="pt")
    >>> outputs = model(**inputs)
    >>> outputs.logits_per_ecg.sigmoid()  # match probabilities
    >>> outputs.ecg_model_output.uncertainty
    ```
    """

    def __init__(self, config: EchoingEcgConfig):
        super().__init__(config)
        self.ecg_model = EchoingEcgEncoder(config)
        self.text_model = EchoingEcgTextEncoder(config)
        self.logit_scale = nn.Parameter(torch.tensor([float(config.init_negative_scale)]))
        self.logit_bias = nn.Parameter(torch.tensor([float(config.init_shift)]))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self:
            init.constant_(self.logit_scale, self.config.init_negative_scale)
            init.constant_(self.logit_bias, self.config.init_shift)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.bert.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.bert.set_input_embeddings(value)

    # What of an ECG `match_logits` compares; the outputs of the text tower are named alike.
    embedding_names = ("ecg_embeds", "ecg_logvar")

    def match_logits(self, ecg: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits of a match, (ECGs, texts or studies): -logit_scale * distance + logit_bias; the sigmoid of one is the
        probability that the two belong together.

        Args:
            ecg: `ecg_embeds` and `ecg_logvar`, as `get_ecg_features` gives them.
            other: `text_embeds` and `text_logvar`, as `get_text_features` gives them, or `echo_embeds` and
                `echo_logvar`, the Gaussians of echo studies.
        """
        kind = "echo" if "echo_embeds" in other else "text"
        others = other[f"{kind}_embeds"], other[f"{kind}_logvar"]
        distances = pairwise_distance(ecg["ecg_embeds"], ecg["ecg_logvar"], *others, self.config.distance)
        return self.logit_bias - self.logit_scale * distances

    @can_return_tuple
    def get_ecg_features(
        self,
        input_values: torch.Tensor,
        lead_mask: torch.Tensor | None = None,
        sample_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> EchoingEcgEncoderOutput:
        """The ECG tower alone, see `EchoingEcgEncoder.forward`: `ecg_embeds`, `ecg_logvar` and `uncertainty`."""
        return self.ecg_model(input_values, lead_mask, sample_mask, **kwargs)

    @can_return_tuple
    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> EchoingEcgTextOutput:
        """The text tower alone: `text_embeds`, `text_logvar` and `uncertainty`.

        Args:
            input_ids: (batch, length), `[CLS] tokens [SEP]` padded on the right, as `EcgProcessor` gives them.
            attention_mask: (batch, length), 0 for padding.
        """
        return self.text_model(input_ids, attention_mask, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        lead_mask: torch.Tensor | None = None,
        sample_mask: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        echo_embeds: torch.Tensor | None = None,
        echo_logvar: torch.Tensor | None = None,
        study_ids: torch.Tensor | None = None,
        matched: torch.Tensor | None = None,
        return_loss: bool = False,
        gather: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> EchoingEcgOutput:
        """
        Args:
            input_values, lead_mask, sample_mask: ECGs, see `EchoingEcgEncoder.forward`.
            input_ids, attention_mask: the texts to compare them with, see `get_text_features`; or
            echo_embeds, echo_logvar: (studies, projection_dim), the Gaussians of echo studies (`encode_study`).
            study_ids: (studies,) integers, equal where several ECGs come with the same study.
            matched: (ECGs, texts or studies), with `gather` those of all processes, 1 where they belong together
                (`matched_by_id`).  By default ECG i belongs with text i and every text equal to it, or with study i
                and those of its id.
            return_loss: compute the loss (PCME++).
            gather: with `return_loss`, take the batches of all processes, which must then all call this.  With
                `Trainer` the data collator asks for it: it adds `"return_loss": True, "gather": True` to every batch.

        Raises:
            ValueError: both texts and studies or neither, or `return_loss` with different numbers of ECGs and the
                others, and no `matched`.
        """
        if (input_ids is None) == (echo_embeds is None):
            raise ValueError(
                "give either texts (input_ids) or echo studies (echo_embeds); for ECGs alone: get_ecg_features"
            )
        ecg = self.get_ecg_features(input_values, lead_mask, sample_mask, **kwargs)
        output = EchoingEcgOutput(ecg_embeds=ecg.ecg_embeds, ecg_logvar=ecg.ecg_logvar, ecg_model_output=ecg)
        if input_ids is not None:
            text = self.get_text_features(input_ids, attention_mask, **kwargs)
            other = output.text_embeds, output.text_logvar = text.text_embeds, text.text_logvar
            output.text_model_output = text
            output.logits_per_ecg = self.match_logits(ecg, text)  # (ECGs, texts)
            output.logits_per_text = output.logits_per_ecg.T
        else:
            other = output.echo_embeds, output.echo_logvar = echo_embeds, echo_logvar
            output.logits_per_ecg = self.match_logits(ecg, output)  # (ECGs, studies)
        if not return_loss:
            return output

        ecgs, others = output.logits_per_ecg.shape
        if matched is None and ecgs != others:
            raise ValueError(
                f"return_loss pairs row i with row i, but there are {ecgs} ECGs and {others} "
                f"{'studies' if input_ids is None else 'texts'}: give matched"
            )
        if matched is None and input_ids is not None:
            matched = _matched_by_text(input_ids, attention_mask, gather)
        elif matched is None and study_ids is not None:
            matched = matched_by_id(study_ids, gather=gather)
        config = self.config
        loss = probabilistic_matching_loss(
            ecg.ecg_embeds,
            ecg.ecg_logvar,
            *other,
            self.logit_scale,
            self.logit_bias,
            matched,
            vib_beta=config.vib_beta,
            smoothness=config.smoothness,
            contrast=config.contrast,
            distance=config.distance,
            gather=gather,
        )
        weight = config.echo_loss_weight if input_ids is None else 1.0
        output.loss = weight * loss["loss"]
        for part in ("match_loss", "pseudo_positive_loss", "vib_loss", "contrastive_loss"):
            setattr(output, part, loss.get(part))
        return output


def _matched_by_text(input_ids: torch.Tensor, attention_mask: torch.Tensor | None, gather: bool) -> torch.Tensor:
    """(texts, texts), True where the tokens are equal: a report seen twice is no false negative."""
    tokens = input_ids if attention_mask is None else input_ids.masked_fill(attention_mask == 0, 0)
    tokens = gather_with_gradient(tokens) if gather else tokens
    return matched_by_id(tokens.unique(dim=0, return_inverse=True)[1], gather=False)


class EchoingEcgForSequenceClassification(EcgClassifierMixin, EchoingEcgPreTrainedModel):
    """The ECG tower and a linear head on its mean embedding, for `Trainer`; see `EcgClassifierMixin`."""

    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^logit_(scale|bias)$"]
    _unused_parameters = ("head.logvar_projection.", "head.logvar_pooling.")

    def __init__(self, config: EchoingEcgConfig):
        super().__init__(config)
        self.ecg_model = EchoingEcgEncoder(config)
        # the mean embedding has norm 1, on which a head would learn sqrt(projection_dim) times as slowly
        self.before_classifier = nn.LayerNorm(config.projection_dim, elementwise_affine=False)
        self.classifier = nn.Linear(config.projection_dim, config.num_labels)  # type: ignore[arg-type]
        self.post_init()
        self._freeze_as_configured()


EchoingEcgModel.register_for_auto_class("AutoModel")
EchoingEcgForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__all__ = [
    "EchoingEcgEncoder",
    "EchoingEcgForSequenceClassification",
    "EchoingEcgModel",
    "EchoingEcgPreTrainedModel",
    "uncertainty",
]
