"""MELP's token sequence, `[BOS] report [SEP]`, for any BERT-like tokenizer."""

from typing import Any

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

# The special tokens of a vocabulary of one's own, as keyword arguments of a fast tokenizer: BERT's, and [BOS].
SPECIAL_TOKENS = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK", "BOS")}


def as_report_tokenizer(tokenizer: PreTrainedTokenizerBase, max_length: int = 127) -> PreTrainedTokenizerFast:
    """A tokenizer that writes `[BOS] report [SEP]`, padded on the right, from a BERT-like one (adds `[BOS]`).

    The `[CLS]` that closes MELP's sequence is the model's affair: its place must not depend on padding.

    Raises:
        ValueError: the tokenizer is not a fast one, so its template cannot be changed.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"{type(tokenizer).__name__} is no fast tokenizer: give a folder with a tokenizer.json")
    if tokenizer.bos_token is None:
        tokenizer.add_special_tokens({"bos_token": "[BOS]"})
    bos, sep = tokenizer.bos_token, tokenizer.sep_token
    backend = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single=f"{bos} $A {sep}", special_tokens=[(bos, tokenizer.bos_token_id), (sep, tokenizer.sep_token_id)]
    )
    # A class of its own, such as BertTokenizer, would put back its own template when it is loaded.
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side="right",
        model_max_length=max_length,
        **{
            f"{name}_token": getattr(tokenizer, f"{name}_token")
            for name in ("pad", "unk", "cls", "sep", "mask", "bos")
        },
    )


def special_token_settings(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The fields of `MelpConfig` that name tokens.

    Raises:
        ValueError: the tokenizer has no token for a full stop, or lacks a special token.
    """
    period = tokenizer.convert_tokens_to_ids(".")
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "unk_token_id": tokenizer.unk_token_id,
        "cls_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "mask_token_id": tokenizer.mask_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "decoder_start_token_id": tokenizer.bos_token_id,
        "period_token_id": None if period == tokenizer.unk_token_id else period,
    }
    missing = [name.removesuffix("_id") for name, value in ids.items() if value is None]
    if missing:
        raise ValueError(f"the tokenizer lacks {', '.join(missing)}, which MELP needs")
    return ids
