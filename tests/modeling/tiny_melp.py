"""Tiny MELP models for tests: every part is there, no part is large."""

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ecgformers.modeling.configuration_melp import MelpConfig
from ecgformers.modeling.configuration_melp_ecg import MelpEcgConfig
from ecgformers.modeling.losses_melp import attend_to_beats
from ecgformers.modeling.tokenization_melp import as_report_tokenizer, special_token_settings

WORDS = ("sinus", "rhythm", "atrial", "fibrillation", "normal", "ecg", "left", "axis", "deviation", "infarction", "no")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[BOS]"]
    vocabulary = {word: index for index, word in enumerate([*special, ".", *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK", "BOS")}
    return as_report_tokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names), max_length=31)


def tiny_ecg_config(**kwargs) -> MelpEcgConfig:
    sizes = {
        "conv_dim": (8, 8, 12),
        "conv_kernel": (5, 3, 2),
        "conv_stride": (3, 2, 2),
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 4,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_caption_queries": 3,
        "caption_dim": 24,
        "num_beat_queries": 4,
        "num_pooler_heads": 4,
        "projection_dim": 16,
        "num_codevectors_per_group": 6,
        "codevector_dim": 8,
        "num_negatives": 5,
        "mask_time_length": 3,
    }
    return MelpEcgConfig(**(sizes | kwargs))


def tiny_resnet_config(**kwargs) -> MelpEcgConfig:
    sizes = {"encoder_type": "resnet", "stem_size": 6, "hidden_sizes": (6, 8, 10), "depths": (1, 2, 1)}
    return tiny_ecg_config(**(sizes | {"strides": (1, 2, 2)} | kwargs))


def tiny_config(**kwargs) -> MelpConfig:
    tokenizer = tiny_tokenizer()
    sizes = {
        "ecg_config": tiny_ecg_config(),
        "text_config": {
            "vocab_size": len(tokenizer),
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 40,
        },
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 4,
        "decoder_intermediate_size": 32,
        "projection_dim": 16,
        "cls_position": 31,
        "max_text_length": 31,
        "num_frozen_text_layers": 1,
    }
    return MelpConfig(**(sizes | special_token_settings(tokenizer) | kwargs))


def beat_attention(
    beats: torch.Tensor, sentences: torch.Tensor, sentence_mask: torch.Tensor, temperature: float = 4.0
) -> torch.Tensor:
    """Attention (batch, sentences, beats) of each report's sentences over the beats of its own ECG."""
    return attend_to_beats(beats @ sentences.mT, sentence_mask.bool()[:, None], temperature).mT
