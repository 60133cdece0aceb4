"""Batches of several data sets in one epoch, each batch of one data set (the sampler of EchoingECG)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

Batches = Callable[[int, int], Iterable[dict[str, Any]]]  # (epoch, first batch) -> batches of this process


def batch_order(counts: Sequence[int], seed: int, epoch: int) -> np.ndarray:
    """Which data set each batch of an epoch is of, (sum of counts,): at random, until all of them are exhausted.

    Args:
        counts: batches of each data set.
    """
    return np.random.default_rng([seed, epoch, len(counts)]).permutation(np.repeat(np.arange(len(counts)), counts))


def mix_batches(sources: Sequence[tuple[int, Batches]], batch_size: int, seed: int) -> tuple[int, Batches]:
    """Batches of several data sets, in the same order for every process, so that all of them compare like with like.

    Args:
        sources: number of records of each data set, over all processes, and its batches; see `loading.map_batches`
            and `loading.stream_batches`.
        batch_size: over all processes.

    Returns:
        number of records of one epoch, without those of incomplete batches, and the batches.
    """
    counts = [records // batch_size for records, _ in sources]

    def batches(epoch: int, start: int) -> Iterator[dict[str, Any]]:
        order = batch_order(counts, seed, epoch)
        done = np.bincount(order[:start], minlength=len(counts))
        iterators = [iter(each(epoch, int(first))) for (_, each), first in zip(sources, done, strict=True)]
        return (next(iterators[index]) for index in order[start:])

    return sum(counts) * batch_size, batches
