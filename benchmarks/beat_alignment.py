"""Time and memory of MELP's beat-alignment loss, forward and backward, against a loop over reports.

python benchmarks/beat_alignment.py
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from measuring import measure, print_table
from torch import Tensor

from ecgformers.modeling.losses_melp import beat_alignment_loss

BATCHES = (16, 32, 64, 128)
BEATS, DIM, SENTENCES = 13, 256, 6
CHUNK_SIZE = 16


def embeddings(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Beats (batch, 13, 256) and one to six sentences a report, as MELP has them."""
    torch.manual_seed(0)
    beats = F.normalize(torch.randn(batch, BEATS, DIM), dim=-1) * 4
    sentences = F.normalize(torch.randn(batch, SENTENCES, DIM), dim=-1) * 4
    mask = torch.arange(SENTENCES) < torch.randint(1, SENTENCES + 1, (batch, 1))
    return beats.requires_grad_(), sentences.requires_grad_(), mask


def ours(batch: int, chunk_size: int | None = None) -> Callable[[], float]:
    beats, sentences, mask = embeddings(batch)

    def step() -> float:
        loss = beat_alignment_loss(beats, sentences, mask, chunk_size=chunk_size)
        loss.backward()
        return loss.item()

    return step


def loop(batch: int) -> Callable[[], float]:
    beats, padded, mask = embeddings(batch)

    def step() -> float:
        columns = []
        for row, own in zip(padded, mask, strict=True):
            sentences = row[own]  # (sentences of the report, dim)
            attention = (4.0 * (beats @ sentences.T).softmax(-1)).softmax(1)  # (batch, beats, sentences)
            mixtures = attention.mT @ beats  # (batch, sentences, dim)
            columns.append((5.0 * torch.cosine_similarity(sentences, mixtures, dim=-1)).logsumexp(-1))
        logits, targets = 10.0 * torch.stack(columns, dim=1), torch.arange(batch)
        loss = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
        loss.backward()
        return loss.item()

    return step


def main() -> None:
    print(
        f"Beat-alignment loss, forward and backward, {BEATS} beats, 1 to {SENTENCES} sentences, {DIM} dimensions, "
        f"float32, {torch.get_num_threads()} CPU threads, torch {torch.__version__}"
    )
    rows = []
    for batch in BATCHES:
        plain, own, chunked = measure(loop, batch), measure(ours, batch), measure(ours, batch, CHUNK_SIZE)
        rows.append(
            [
                str(batch),
                f"{plain.seconds * 1e3:.1f}",
                f"{own.seconds * 1e3:.1f}",
                f"{plain.seconds / own.seconds:.1f}",
                f"{plain.mebibytes:.1f}",
                f"{own.mebibytes:.1f}",
                f"{plain.mebibytes / own.mebibytes:.1f}",
                f"{chunked.seconds * 1e3:.1f}",
                f"{chunked.mebibytes:.1f}",
                f"{abs(plain.value / own.value - 1):.0e}",
            ]
        )
    header = ["batch", "loop ms", "ours ms", "x faster", "loop MiB", "ours MiB", "x smaller"]
    header += [f"chunks of {CHUNK_SIZE} ms", "MiB", "rel. diff."]
    print_table("Against a loop over reports", header, rows)


if __name__ == "__main__":
    main()
