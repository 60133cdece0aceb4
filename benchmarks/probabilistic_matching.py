"""Time and memory of the PCME++ loss, forward and backward, against its literal (batch, batch, dim) formula.

    python benchmarks/probabilistic_matching.py

The literal formula needs 10 GiB of free memory at the largest size (1024, 512).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from measuring import Measurement, available_gibibytes, measure, print_table
from torch import Tensor

from ecgformers.modeling.losses_echoing_ecg import ProbabilisticMatchingLoss

LITERAL_SIZES = ((64, 512), (256, 512), (1024, 512))  # (batch, dim)
DIMS = (128, 256, 512, 1024)
BATCHES = (256, 512, 1024, 2048)


def gaussians(batch: int, dim: int) -> list[Tensor]:
    """Unit means, as both towers give them, the second near the first, and log-variances about -7."""
    torch.manual_seed(0)
    mean = F.normalize(torch.randn(batch, dim), dim=-1)
    near = F.normalize(mean + torch.randn(batch, dim) / dim**0.5, dim=-1)
    logvars = (torch.randn(2, batch, dim) * 0.3 - 7).unbind()
    return [tensor.requires_grad_() for tensor in (mean, logvars[0], near, logvars[1])]


def ours(batch: int, dim: int) -> Callable[[], float]:
    inputs = gaussians(batch, dim)
    loss_function = ProbabilisticMatchingLoss()

    def step() -> float:
        loss = loss_function(*inputs).loss
        loss.backward()
        return loss.item()

    return step


def literal(batch: int, dim: int) -> Callable[[], float]:
    mean_a, logvar_a, mean_b, logvar_b = inputs = gaussians(batch, dim)
    loss_function = ProbabilisticMatchingLoss()
    matched = torch.eye(batch)

    def pseudo_positives(logits: Tensor) -> Tensor:
        return torch.where(logits >= logits.diagonal()[:, None], 1.0, matched)

    def divergence(mean: Tensor, logvar: Tensor) -> Tensor:
        return -0.5 * (1 + logvar - mean.square() - logvar.exp()).mean()

    def step() -> float:
        squares = (mean_a[:, None] - mean_b[None]).square().sum(-1)
        variances = (logvar_a.exp()[:, None] + logvar_b.exp()[None]).sum(-1)
        logits = loss_function.shift - loss_function.negative_scale * (squares + variances)
        cross_entropy = F.binary_cross_entropy_with_logits
        loss = cross_entropy(logits, matched) + cross_entropy(logits.T, matched.T)
        smooth = cross_entropy(logits, pseudo_positives(logits)) + cross_entropy(logits.T, pseudo_positives(logits.T))
        loss = loss + 0.1 * smooth + 1e-4 * (divergence(*inputs[:2]) + divergence(*inputs[2:]))
        loss.backward()
        return loss.item()

    return step


def growth(sizes: list[tuple[int, int]], measured: dict[tuple[int, int], Measurement]) -> list[list[str]]:
    first = measured[sizes[0]]
    return [
        [
            str(batch),
            str(dim),
            f"{measured[batch, dim].seconds * 1e3:.1f}",
            f"{measured[batch, dim].mebibytes:.1f}",
            f"{measured[batch, dim].seconds / first.seconds:.1f}",
            f"{measured[batch, dim].mebibytes / first.mebibytes:.1f}",
        ]
        for batch, dim in sizes
    ]


def main() -> None:
    print(
        f"PCME++ loss, forward and backward, float32, {torch.get_num_threads()} CPU threads, torch {torch.__version__}"
    )
    by_dim, by_batch = [(1024, dim) for dim in DIMS], [(batch, 512) for batch in BATCHES]
    measured = {size: measure(ours, *size) for size in {*LITERAL_SIZES, *by_dim, *by_batch}}

    rows = []
    for batch, dim in LITERAL_SIZES:
        needed = 4.5 * batch * batch * dim * 4 / 2**30
        if available_gibibytes() < needed + 1:
            print(f"literal formula left out at {batch}, {dim}: it needs {needed:.0f} GiB of free memory")
            continue
        plain, own = measure(literal, batch, dim, more_runs=0 if batch > 256 else 3), measured[batch, dim]
        rows.append(
            [
                str(batch),
                str(dim),
                f"{plain.seconds * 1e3:.1f}",
                f"{own.seconds * 1e3:.1f}",
                f"{plain.seconds / own.seconds:.0f}",
                f"{plain.mebibytes:.1f}",
                f"{own.mebibytes:.1f}",
                f"{plain.mebibytes / own.mebibytes:.0f}",
                f"{abs(plain.value / own.value - 1):.0e}",
            ]
        )
    header = [
        "batch",
        "dim",
        "literal ms",
        "ours ms",
        "x faster",
        "literal MiB",
        "ours MiB",
        "x smaller",
        "rel. diff.",
    ]
    print_table("Against the literal (batch, batch, dim) formula", header, rows)
    header = ["batch", "dim", "ms", "MiB", "x time", "x memory"]
    print_table("Growth with the embedding size", header, growth(by_dim, measured))
    print_table("Growth with the batch", header, growth(by_batch, measured))


if __name__ == "__main__":
    main()
