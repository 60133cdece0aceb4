"""EcgProcessor: one call makes everything a model takes, from recordings and text."""

import re
import warnings
from collections.abc import Sequence
from typing import Any

from transformers import BatchFeature, ProcessorMixin


def clean_text(
    text: str, lowercase: bool = False, full_stop: bool = False, remove_patterns: Sequence[str] = ()
) -> str:
    """A text with single spaces and what the settings of `EcgProcessor` say; cleaned once more, it stays as it is."""
    for pattern in remove_patterns:
        text = re.sub(pattern, " ", text, flags=re.IGNORECASE)
    text = " ".join((text.lower() if lowercase else text).split())
    return f"{text}." if full_stop and text and not text.endswith(".") else text


class EcgProcessor(ProcessorMixin):
    """An `EcgFeatureExtractor` and a tokenizer, with the wording a model's texts were trained in: reports in training,
    prompts in an evaluation or a pipeline, all the same.

    Args:
        feature_extractor: the `EcgFeatureExtractor` of the model.
        tokenizer: the tokenizer of the model; it adds the model's special tokens.
        prompt_template: the sentence a text is put into, in place of `{text}`.
        lowercase: lower-case each text before it is put into the template.
        full_stop: let each text that is not empty end with a full stop.
        remove_patterns: regular expressions, without regard to case, of what is no part of a report (a machine's
            version, notes of editors), taken out of each text.
        max_text_length: tokens, special ones included; longer texts are cut, with a warning.  None: no limit.
    """

    def __init__(
        self,
        feature_extractor: Any,
        tokenizer: Any,
        prompt_template: str = "{text}",
        lowercase: bool = False,
        max_text_length: int | None = None,
        full_stop: bool = False,
        remove_patterns: Sequence[str] = (),
    ):
        if "{text}" not in prompt_template:
            raise ValueError(f"prompt_template must hold {{text}}, the place of the text; got {prompt_template!r}")
        self.prompt_template = prompt_template
        self.lowercase = lowercase
        self.max_text_length = max_text_length
        self.full_stop = full_stop
        self.remove_patterns = list(remove_patterns)
        super().__init__(feature_extractor, tokenizer)

    @property
    def model_input_names(self) -> list[str]:
        return [*self.feature_extractor.model_input_names, "input_ids", "attention_mask"]

    def __call__(
        self,
        ecg: Any = None,
        text: str | Sequence[str] | None = None,
        sampling_rate: float | Sequence[float] | None = None,
        lead_names: Sequence[str] | Sequence[Sequence[str]] | None = None,
        units: str | Sequence[str] | None = None,
        padding: bool | str = True,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Prepares recordings, texts, or both; their numbers may differ, as in zero-shot classification.

        Args:
            ecg, sampling_rate, lead_names, units: as in `EcgFeatureExtractor.__call__`.
            text: one text or a list of texts.
            padding: of the texts, always on the right: True to the longest, `"max_length"` to `max_text_length`.
            return_tensors: `"pt"`, `"np"` or None (arrays and lists).

        Returns:
            `input_values`, `lead_mask`, `sample_mask` of the recordings (see `EcgFeatureExtractor.__call__`), and
            `input_ids`, `attention_mask` (texts, tokens) of the texts.
        """
        if ecg is None and text is None:
            raise ValueError("give ecg, text, or both")
        inputs: dict[str, Any] = {}
        if ecg is not None:
            inputs |= self.feature_extractor(ecg, sampling_rate, lead_names, units, return_tensors=return_tensors)
        if text is not None:
            inputs |= self._tokenize([text] if isinstance(text, str) else text, padding, return_tensors)
        return BatchFeature(inputs)

    def clean_text(self, text: str) -> str:
        """The text as it is put into the template."""
        return clean_text(text, self.lowercase, self.full_stop, self.remove_patterns)

    def _tokenize(self, texts: Sequence[str], padding: bool | str, return_tensors: str | None) -> dict[str, Any]:
        encoded = self.tokenizer(
            [self.prompt_template.replace("{text}", self.clean_text(text)) for text in texts],
            padding=padding,
            padding_side="right",
            truncation=self.max_text_length is not None,
            max_length=self.max_text_length,
            return_token_type_ids=False,
            return_attention_mask=True,
            return_tensors=return_tensors,
        )
        cut = [i for i, encoding in enumerate(encoded.encodings or []) if encoding.overflowing]
        if cut:
            warnings.warn(f"texts {cut} are cut to max_text_length={self.max_text_length} tokens", stacklevel=3)
        return dict(encoded)


EcgProcessor.register_for_auto_class("AutoProcessor")
