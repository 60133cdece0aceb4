"""MELP's first stage: a language model of cardiology text (masked words, BERT).

    accelerate launch -m ecgformers.training.pretrain_text --config training/configs/melp.yaml data=[folder]

`data` are data sets built by `datasets_scripts` (their reports), text files (a text a line), or Hub text data sets.
Whole words are masked with 15 % probability; MELP's authors published no hyper-parameters for this stage.
With `start` (a Hub name or folder) it goes on from that model and its tokenizer; without, it trains a WordPiece
vocabulary and starts from random weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset, load_dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
)

from ecgformers.datasets_scripts.preparing import stable_hash
from ecgformers.modeling.processing_ecg import clean_text
from ecgformers.modeling.tokenization_melp import SPECIAL_TOKENS, as_report_tokenizer
from ecgformers.training.loading import map_batches
from ecgformers.training.loop import LoopSettings, make_accelerator, save_with, train
from ecgformers.training.settings import parse_settings


@dataclass
class TextSettings:
    """data: sources; column: of data sets; remove: patterns taken out of every text; start: a model to go on from;
    model: fields of BertConfig."""

    data: Sequence[str]
    loop: LoopSettings
    column: str = "report"
    remove: Sequence[str] = ()
    start: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    vocab_size: int = 30522
    max_length: int = 127
    mask_probability: float = 0.15


def load_texts(sources: Sequence[str], column: str, split: str, remove: Sequence[str] = ()) -> list[str]:
    """All texts of a split, cleaned; text files have no validation split: every 20th line is theirs."""
    texts: list[str] = []
    for source in sources:
        if Path(source).is_file():
            lines = Path(source).read_text(encoding="utf-8").splitlines()
            texts += [line for i, line in enumerate(lines) if (i % 20 == 0) == (split != "train")]
        else:
            texts += [text for text in load_dataset(source, split=split)[column] if text]
    cleaned = (clean_text(text, lowercase=True, full_stop=True, remove_patterns=remove) for text in texts)
    return [text for text in cleaned if text]


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer with BERT's special tokens and [BOS]; the same texts give the same one.

    The trainer numbers the characters within words ("##a") anew in every run, and breaks ties by these numbers
    (huggingface/tokenizers, issue 1794).  So they are numbered for it, as if they were special tokens, and another
    tokenizer takes the vocabulary, to which they are none.
    """
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = {word for text in set(texts) for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    within = sorted({f"##{character}" for word in words for character in word[1:]})
    fixed = [*SPECIAL_TOKENS.values(), *within]
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer, trained.pre_tokenizer = normalizer, splitter
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=fixed, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    tokenizer = Tokenizer(models.WordPiece(trained.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, splitter, decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS)


@dataclass
class MaskedTextCollator:
    """Rows -> token ids with masked words, drawn by text and epoch."""

    tokenizer: PreTrainedTokenizerFast
    probability: float
    seed: int
    epoch: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        encoded = self.tokenizer(
            [row["text"] for row in rows],
            padding=True,
            truncation=True,
            return_token_type_ids=False,
            return_special_tokens_mask=True,
            return_offsets_mapping=True,  # tells where words begin
        )
        examples = [dict(zip(encoded.keys(), values, strict=True)) for values in zip(*encoded.values(), strict=True)]
        seed = int(np.random.default_rng([self.seed, self.epoch, stable_hash(rows[0]["text"])]).integers(2**31))
        collator = DataCollatorForLanguageModeling(
            self.tokenizer, whole_word_mask=True, mlm_probability=self.probability, seed=seed
        )
        return {**collator(examples), "record_ids": [row["text"][:40] for row in rows]}


@torch.no_grad()
def masked_accuracy(model: BertForMaskedLM, dataset: Dataset, make_collator, batch_size: int) -> dict[str, float]:
    """Accuracy and loss of predicting masked words of the validation texts, always the same ones."""
    model.eval()
    collator, right, count, loss = make_collator(0), 0, 0, 0.0
    for start in range(0, len(dataset), batch_size):
        batch = collator(list(dataset.select(range(start, min(start + batch_size, len(dataset))))))
        batch.pop("record_ids")
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        output, masked = model(**batch), batch["labels"] != -100
        right += (output.logits.argmax(-1) == batch["labels"])[masked].sum().item()
        loss += output.loss.item() * masked.sum().item()
        count += masked.sum().item()
    return {"validation_accuracy": right / count, "validation_loss": loss / count}


def main(arguments: Sequence[str] | None = None):
    settings = parse_settings(TextSettings, "text", __doc__, arguments, BertConfig)
    accelerator: Accelerator = make_accelerator(settings.loop)
    texts = load_texts(settings.data, settings.column, "train", settings.remove)
    if settings.start:
        tokenizer = AutoTokenizer.from_pretrained(settings.start)
    else:
        tokenizer = train_tokenizer(texts, settings.vocab_size)
    tokenizer = as_report_tokenizer(tokenizer, settings.max_length)
    if settings.start:
        model = BertForMaskedLM.from_pretrained(settings.start)
        model.resize_token_embeddings(len(tokenizer))
    else:
        ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id")}
        model = BertForMaskedLM(BertConfig(**{"vocab_size": len(tokenizer), **ids, **settings.model}))
    accelerator.print(f"{len(texts)} texts, {len(tokenizer)} tokens, {model.num_parameters():,} parameters")

    def make_collator(epoch: int) -> MaskedTextCollator:
        return MaskedTextCollator(tokenizer, settings.mask_probability, settings.loop.seed, epoch)

    loop = settings.loop
    validation = Dataset.from_dict({"text": load_texts(settings.data, settings.column, "validation", settings.remove)})
    batches = map_batches(
        Dataset.from_dict({"text": texts}),
        make_collator,
        loop.batch_size,
        loop.seed,
        loop.workers,
        accelerator.process_index,
        accelerator.num_processes,
    )
    best = train(
        accelerator,
        model,
        len(texts),
        batches,
        loop,
        partial(save_with, tokenizer),
        lambda trained: masked_accuracy(trained, validation, make_collator, loop.batch_size),
        score="validation_accuracy",
    )
    accelerator.print(f"best model: {best}")


if __name__ == "__main__":
    main()
