"""MELP: ECG-language pretraining at three scales (Wang, Xu and Yu, "From Token to Rhythm", ICML 2025).

    12-lead ECG -> convolutions -> transformer -+-> caption tokens -> text decoder -> report      token level
                                                +-> beat embeddings <-> sentence embeddings       beat level
                                                      +-> mean: ECG embedding <-> text embedding  rhythm level

For research use; not a medical device.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertModel, GenerationMixin
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .attention_ecg import MultiHeadAttention
from .configuration_melp import MelpConfig
from .configuration_melp_ecg import MelpEcgConfig
from .loading_ecg import CheckedLoadingMixin
from .losses_ecg import contrastive_loss
from .losses_melp import beat_alignment_loss, caption_loss
from .modeling_melp_ecg import MelpEcgForSequenceClassification, MelpEcgModel, MelpEcgOutput


@dataclass
class MelpTextOutput(ModelOutput):
    """What the text encoder says of a batch of reports.

    Args:
        last_hidden_state: (batch, length, text hidden_size), the states of the given tokens.
        text_embeds: (batch, projection_dim), unit norm.
        sentence_embeds: (batch, sentences, projection_dim), not normalised; zero where a report has fewer.
        sentence_mask: (batch, sentences), True for a sentence.
    """

    last_hidden_state: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    sentence_embeds: torch.Tensor | None = None
    sentence_mask: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class MelpOutput(ModelOutput):
    """Both towers, and the losses when they were asked for.

    Args:
        loss: the weighted sum of the three parts that follow, which are unweighted.
        contrastive_loss, caption_loss, beat_loss: rhythm, token and beat level.
        logits_per_ecg: (ECGs, texts), scaled cosine similarities; `logits_per_text` is its transpose.
        ecg_embeds, text_embeds: unit norm, as in `MelpEcgOutput` and `MelpTextOutput`.
        beat_embeds, sentence_embeds, sentence_mask: as there.
        caption_logits: (batch, length - 1, vocabulary), with `return_loss`: the next token's scores.
    """

    loss: torch.Tensor | None = None
    contrastive_loss: torch.Tensor | None = None
    caption_loss: torch.Tensor | None = None
    beat_loss: torch.Tensor | None = None
    logits_per_ecg: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    ecg_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    beat_embeds: torch.Tensor | None = None
    sentence_embeds: torch.Tensor | None = None
    sentence_mask: torch.Tensor | None = None
    caption_logits: torch.Tensor | None = None
    ecg_model_output: MelpEcgOutput | None = None
    text_model_output: MelpTextOutput | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class MelpPreTrainedModel(CheckedLoadingMixin, PreTrainedModel):
    config: MelpConfig
    base_model_prefix = "melp"
    main_input_name = "input_values"
    input_modalities = ["time", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["MelpEcgLayer", "ResidualBlock", "MelpDecoderLayer", "BertLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True


class MelpDecoderBlock(nn.Module):
    """Pre-norm attention (over itself, or over the caption tokens) and feed-forward."""

    def __init__(self, config: MelpConfig, layer_idx: int, is_cross: bool):
        super().__init__()
        width, eps = config.text_config.hidden_size, config.decoder_layer_norm_eps
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.context_norm = nn.LayerNorm(width, eps=eps) if is_cross else nn.Identity()
        self.attention = MultiHeadAttention(
            config, width, config.decoder_num_attention_heads, is_causal=not is_cross, layer_idx=layer_idx
        )
        self.feed_forward_norm = nn.LayerNorm(width, eps=eps)
        self.activation = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(width, config.decoder_intermediate_size)
        self.fc2 = nn.Linear(config.decoder_intermediate_size, width)

    def forward(
        self, hidden_states: torch.Tensor, context: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        if context is not None:
            context = self.context_norm(context)
        hidden_states = hidden_states + self.attention(self.attention_norm(hidden_states), context, **kwargs)[0]
        return hidden_states + self.fc2(self.activation(self.fc1(self.feed_forward_norm(hidden_states))))


class MelpDecoderLayer(GradientCheckpointingLayer):
    """A causal self-attention block, then a cross-attention block on the caption tokens."""

    def __init__(self, config: MelpConfig, index: int):
        super().__init__()
        # In a generation cache the text encoder's layers come first; the cross-attention has a cache of its own.
        self.self_block = MelpDecoderBlock(config, config.text_config.num_hidden_layers + index, is_cross=False)
        self.cross_block = MelpDecoderBlock(config, index, is_cross=True)

    def forward(
        self,
        hidden_states: torch.Tensor,
        caption_tokens: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> torch.Tensor:
        hidden_states = self.self_block(hidden_states, attention_mask=attention_mask, past_key_values=past_key_values)
        return self.cross_block(hidden_states, caption_tokens, past_key_values=past_key_values)


class MelpTextDecoder(nn.Module):
    """CoCa-style decoder: text states (batch, length, width) and caption tokens -> vocabulary logits."""

    def __init__(self, config: MelpConfig):
        super().__init__()
        width = config.text_config.hidden_size
        self.layers = nn.ModuleList([MelpDecoderLayer(config, i) for i in range(config.decoder_num_hidden_layers)])
        self.final_norm = nn.LayerNorm(width, eps=config.decoder_layer_norm_eps)
        self.vocabulary_projection: nn.Module = nn.Linear(width, config.text_config.vocab_size, bias=False)

    def forward(
        self, hidden_states: torch.Tensor, caption_tokens: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states, caption_tokens, **kwargs)
        return self.vocabulary_projection(self.final_norm(hidden_states))


def mean_by_sentence(
    states: torch.Tensor, input_ids: torch.Tensor, period_token_id: int, special_token_ids: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean state of every sentence: tokens up to and with a full stop, special tokens left out.

    Text after the last full stop is a sentence too; a text without one is a single sentence.  (The reference drops the
    former, and the latter misaligns its batch.)

    Args:
        states: (batch, length, width); `input_ids`: (batch, length).

    Returns:
        (batch, sentences, width), zero where a text has fewer sentences, and its mask (batch, sentences).
    """
    is_word = ~torch.isin(input_ids, torch.tensor(special_token_ids, device=input_ids.device))
    is_period = input_ids == period_token_id
    index = is_period.cumsum(-1) - is_period.long()  # (batch, length): the sentence that each token belongs to
    member = F.one_hot(index, int(index.max()) + 1) * is_word[..., None]  # (batch, length, sentences)
    member = member[..., : max(1, int(member.any(1).sum(-1).max()))].to(states.dtype)
    count = member.sum(1)  # (batch, sentences)
    means = torch.einsum("bls,blw->bsw", member, states) / count.clamp(min=1)[..., None]
    return means, count > 0


class MelpModel(MelpPreTrainedModel):
    """Both towers and the text decoder: ECG and report embeddings at three scales, and the loss that aligns them.

    ```python
    >>> from transformers import AutoModel, AutoProcessor

    >>> model = AutoModel.from_pretrained(folder)
    >>> processor = AutoProcessor.from_pretrained(folder)
    >>> inputs = processor(read_ecg("record"), text=["sinus rhythm.", "atrial fibrillation."], return_tensors="pt")
    >>> model(**inputs).logits_per_ecg.softmax(-1)
    ```
    """

    accepts_loss_kwargs = False  # the loss is a mean already

    def __init__(self, config: MelpConfig):
        super().__init__(config)
        width = config.text_config.hidden_size
        self.ecg_model = MelpEcgModel(config.ecg_config)
        self.text_model = BertModel(config.text_config, add_pooling_layer=False)
        self.text_projection = nn.Sequential(
            nn.Linear(width, config.projection_dim),
            ACT2FN[config.hidden_act],
            nn.Linear(config.projection_dim, config.projection_dim),
        )
        self.sentence_projection = nn.Linear(width, config.projection_dim)
        self.text_decoder = MelpTextDecoder(config)
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
        """Leave the first `config.num_frozen_text_layers` layers of the text encoder out of training (section 4.1)."""
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
    ) -> MelpEcgOutput:
        """The ECG tower alone; its `ecg_embeds` (batch, projection_dim) are what texts are compared with."""
        return self.ecg_model(input_values, lead_mask, sample_mask, **kwargs)

    @can_return_tuple
    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> MelpTextOutput:
        """The text tower alone.

        Args:
            input_ids: (batch, length), `[BOS] tokens [SEP]` padded on the right, as `EcgProcessor` gives them.  A
                `[CLS]` is appended here: it sees the whole text, and its state becomes `text_embeds`.
            attention_mask: (batch, length), 0 for padding; taken from the padding id when missing.
        """
        if attention_mask is None:
            attention_mask = (input_ids != self.config.pad_token_id).long()
        batch, length = input_ids.shape
        positions = torch.arange(length, device=input_ids.device).expand(batch, -1)
        outputs = self.text_model(
            input_ids=F.pad(input_ids, (0, 1), value=self.config.cls_token_id),
            attention_mask=F.pad(attention_mask, (0, 1), value=1),
            position_ids=F.pad(positions, (0, 1), value=self.config.cls_position),
            use_cache=False,
            **kwargs,
        )
        states = outputs.last_hidden_state[:, :-1]  # (batch, length, width)
        means, sentence_mask = mean_by_sentence(
            states, input_ids, self.config.period_token_id, self.config.special_token_ids
        )
        return MelpTextOutput(
            last_hidden_state=states,
            text_embeds=F.normalize(self.text_projection(outputs.last_hidden_state[:, -1]), dim=-1),
            sentence_embeds=self.sentence_projection(means) * sentence_mask[..., None],
            sentence_mask=sentence_mask,
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
    ) -> MelpOutput:
        """
        Args:
            input_values, lead_mask, sample_mask: see `MelpEcgModel.forward`.
            input_ids, attention_mask: see `get_text_features`.
            return_loss: ECG i belongs to report i; compute the three losses (sections 3.2 to 3.4).
            gather: with `return_loss`, take the batches of all processes, which must then all call this.  With
                `Trainer` the data collator asks for it: it adds `"return_loss": True, "gather": True` to every batch.

        Raises:
            ValueError: `return_loss` with different numbers of ECGs and reports.
        """
        ecg = self.get_ecg_features(input_values, lead_mask, sample_mask, **kwargs)
        text = self.get_text_features(input_ids, attention_mask, **kwargs)
        logits_per_ecg = self.match_logits(ecg, text)  # (ECGs, texts)
        output = MelpOutput(
            logits_per_ecg=logits_per_ecg,
            logits_per_text=logits_per_ecg.T,
            ecg_embeds=ecg.ecg_embeds,
            text_embeds=text.text_embeds,
            beat_embeds=ecg.beat_embeds,
            sentence_embeds=text.sentence_embeds,
            sentence_mask=text.sentence_mask,
            ecg_model_output=ecg,
            text_model_output=text,
        )
        if return_loss:
            if len(input_values) != len(input_ids):
                raise ValueError(
                    f"return_loss pairs ECG i with report i, but there are {len(input_values)} ECGs and "
                    f"{len(input_ids)} reports"
                )
            length = input_ids.shape[1] - 1
            states = text.last_hidden_state[:, :length]
            causal_mask = create_causal_mask(self.config, states, attention_mask=None, past_key_values=None)
            output.caption_logits = self.text_decoder(states, ecg.caption_tokens, attention_mask=causal_mask)
            labels = input_ids[:, 1:].masked_fill(input_ids[:, 1:] == self.config.pad_token_id, -100)
            rhythm_loss = contrastive_loss(ecg.ecg_embeds, text.text_embeds, self.cosine_scale, gather)
            token_loss = caption_loss(output.caption_logits, labels, gather)
            beat_loss = beat_alignment_loss(ecg.beat_embeds, text.sentence_embeds, text.sentence_mask, gather=gather)
            output.contrastive_loss, output.caption_loss, output.beat_loss = rhythm_loss, token_loss, beat_loss
            output.loss = (
                self.config.contrastive_loss_weight * rhythm_loss
                + self.config.caption_loss_weight * token_loss
                + self.config.beat_loss_weight * beat_loss
            )
        return output


class MelpCaptionEncoder(nn.Module):
    """What `generate` runs once: (batch, leads, samples) -> caption tokens (batch, num_caption_queries, width)."""

    def __init__(self, ecg_model: MelpEcgModel):
        super().__init__()
        self.ecg_model = ecg_model

    def forward(
        self,
        input_values: torch.Tensor,
        lead_mask: torch.Tensor | None = None,
        sample_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        return BaseModelOutput(self.ecg_model(input_values, lead_mask, sample_mask).caption_tokens)


class MelpForConditionalGeneration(MelpPreTrainedModel, GenerationMixin):
    """Writes the report of an ECG: the text encoder's states of the words so far attend to the ECG's caption tokens.

    It has `MelpModel`'s weights, and loads from its folders.
    """

    def __init__(self, config: MelpConfig):
        super().__init__(config)
        self.melp = MelpModel(config)
        self.post_init()

    @cached_property
    def _caption_encoder(self) -> MelpCaptionEncoder:
        """Made once, and no module of this one: its weights are those of `melp.ecg_model`."""
        return MelpCaptionEncoder(self.melp.ecg_model)

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        return self._caption_encoder

    def get_input_embeddings(self) -> nn.Module:
        return self.melp.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.melp.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.melp.text_decoder.vocabulary_projection

    def set_output_embeddings(self, value: nn.Module):
        self.melp.text_decoder.vocabulary_projection = value

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor | None = None,
        lead_mask: torch.Tensor | None = None,
        sample_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        use_cache: bool | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqLMOutput:
        """
        Args:
            input_values, lead_mask, sample_mask: see `MelpEcgModel.forward`.
            decoder_input_ids: (batch, length), the words so far, `[BOS]` first; taken from `labels` when missing.
            encoder_outputs: the caption tokens, to spare their computation.
            labels: (batch, length), the words to be written, `[SEP]` last; -100 is ignored.
        """
        config = self.config
        if encoder_outputs is None:
            encoder_outputs = self._caption_encoder(input_values, lead_mask, sample_mask)
        caption_tokens = encoder_outputs[0]  # (batch, caption queries, width)
        if decoder_input_ids is None and labels is not None:
            decoder_input_ids = F.pad(labels[:, :-1], (1, 0), value=config.decoder_start_token_id)
            decoder_input_ids = decoder_input_ids.masked_fill(decoder_input_ids == -100, config.pad_token_id)
        if use_cache and past_key_values is None:
            past_key_values = EncoderDecoderCache(DynamicCache(), DynamicCache())

        embeds = self.get_input_embeddings()(decoder_input_ids)  # (batch, length, width)
        # Before the text encoder runs: it lengthens the cache from which this mask takes its size.
        causal_mask = create_causal_mask(
            config, embeds, attention_mask=decoder_attention_mask, past_key_values=past_key_values
        )
        states = self.melp.text_model(
            inputs_embeds=embeds,
            attention_mask=decoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=past_key_values is not None,
        ).last_hidden_state
        logits = self.melp.text_decoder(
            states, caption_tokens, attention_mask=causal_mask, past_key_values=past_key_values
        )
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=None, shift_labels=labels, vocab_size=logits.shape[-1], **kwargs
            )
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=past_key_values,
            encoder_last_hidden_state=caption_tokens,
        )


class MelpForSequenceClassification(MelpEcgForSequenceClassification):
    """`MelpEcgForSequenceClassification` with the whole model's config: loads from the folder of a `MelpModel`, or of
    the `MelpForConditionalGeneration` around one."""

    config: MelpConfig  # type: ignore[assignment]
    _keys_to_ignore_on_load_unexpected = [r"^text_", r"^sentence_projection", r"^logit_scale"]
    _other_names = {r"^melp\.": ""}  # in the folder of a `MelpForConditionalGeneration`

    @property
    def ecg_config(self) -> MelpEcgConfig:
        return self.config.ecg_config


MelpModel.register_for_auto_class("AutoModel")
MelpForConditionalGeneration.register_for_auto_class("AutoModelForSpeechSeq2Seq")
MelpForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__all__ = [
    "MelpForConditionalGeneration",
    "MelpForSequenceClassification",
    "MelpModel",
    "MelpOutput",
    "MelpPreTrainedModel",
    "MelpTextOutput",
]
