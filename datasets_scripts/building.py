"""Building a data set: tables and recordings in the publisher's layout -> a folder of Parquet for the Hub.

Rows are planned first, without signals and streamed to disk, so that memory does not grow with the number of records;
workers then read the recordings and write one Parquet shard at a time, the same ones whatever their number.

    summary = build(PtbXl(data_dir="ptb-xl/1.0.3", rate=100), "ptb_xl", num_proc=4)
    datasets.load_dataset("ptb_xl")

A recording that cannot be used never ends a build: it goes to `rejects.jsonl` with the reason, unless `strict`.
"""

import json
import shutil
from collections import Counter
from collections.abc import Generator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
from tqdm.auto import tqdm

from ecgformers.datasets_scripts.data_card import write_card
from ecgformers.datasets_scripts.ecg_builder import EcgBuilder
from ecgformers.datasets_scripts.plan import Chunk, Reject

SUMMARY = "build_summary.json"
REJECTS = "rejects.jsonl"
CHUNKS_A_SHARD = 8


class BrokenRecording(ValueError):
    """A recording, or its line of the table, cannot be used."""


@dataclass
class Summary:
    """What a build did: rows a split, broken recordings, rows left out by the rules of the data set, by reason."""

    splits: dict[str, int]
    broken: int
    left_out: dict[str, int]
    credentialed: bool

    def __str__(self) -> str:
        rows = ", ".join(f"{count} {split}" for split, count in self.splits.items())
        left_out = "".join(f", {count} left out: {reason}" for reason, count in self.left_out.items())
        broken = f", {self.broken} broken (see {REJECTS})" if self.broken else ", none broken"
        return f"{sum(self.splits.values())} records ({rows}){broken}{left_out}"


def build(builder: EcgBuilder, output: str | Path, num_proc: int = 1, strict: bool = False) -> Summary:
    """Build a data set into the folder `output`, which `load_dataset` opens and `push` sends to the Hub.

    Everything happens in a hidden folder beside `output` that takes its place at the very end; killed before that, a
    build leaves what was there, and can be run again.

    Raises:
        FileExistsError: `output` exists and is no data set built here.
        BrokenRecording: `strict`, and a recording cannot be used.
        ValueError: not one recording can be used, or the tables contradict themselves (see `Plan`).
    """
    output = Path(output).absolute()
    staging, old = output.with_name(f".{output.name}.building"), output.with_name(f".{output.name}.old")
    if old.exists() and not output.exists():  # killed between the two renames below
        old.rename(output)
    if output.exists() and any(output.iterdir()) and not (output / SUMMARY).exists():
        raise FileExistsError(f"{output} exists and holds something else than a data set built here")
    shutil.rmtree(staging, ignore_errors=True)
    (staging / "data").mkdir(parents=True)
    try:
        summary = _build(builder, staging, num_proc, strict)
        if output.exists():
            shutil.rmtree(old, ignore_errors=True)
            output.rename(old)
        staging.rename(output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return summary


def _build(builder: EcgBuilder, staging: Path, num_proc: int, strict: bool) -> Summary:
    plan = builder.plan(staging)
    shards = [shard for split, chunks in plan.chunks.items() for shard in _shards(staging, split, chunks)]
    rejects = list(plan.rejects)
    rows: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    with (
        ProcessPoolExecutor(num_proc) if num_proc > 1 else nullcontext() as executor,
        closing(_written(builder, shards, executor)) as written,
        tqdm(total=sum(shard.rows for shard in shards), desc="Reading the recordings", unit=" records") as bar,
    ):
        for shard, result in zip(shards, written, strict=True):
            rejects += result.rejects
            rows[shard.split] += result.rows
            sizes[shard.split] += result.size
            bar.update(shard.rows)
            if strict and rejects:
                raise BrokenRecording(f"record {rejects[0].record_id} ({rejects[0].source}): {rejects[0].reason}")
    if not rows.total():
        raise ValueError(f"not one of {len(rejects)} recordings can be used, the first: {rejects[0]}")

    splits = {split: rows[split] for split in plan.chunks if rows[split]}
    summary = Summary(splits, len(rejects), dict(plan.left_out), builder.credentialed)
    (staging / SUMMARY).write_text(json.dumps(vars(summary), indent=2) + "\n")
    lines = (json.dumps(reject._asdict(), ensure_ascii=False) + "\n" for reject in rejects)
    (staging / REJECTS).write_text("".join(lines), encoding="utf-8")
    write_card(staging, builder, summary.splits, sizes, str(summary))
    for plan_file in staging.glob("*.plan"):
        plan_file.unlink()
    for shard in shards:  # the card with the number of rows is there: load_dataset refuses a part of them from now on
        if shard.split in summary.splits:
            shard.path.rename(shard.path.with_suffix(".parquet"))
        else:
            shard.path.unlink()
    return summary


class Shard(NamedTuple):
    """One Parquet file in the making: what it will hold."""

    split: str
    path: Path
    chunks: list[Chunk]

    @property
    def rows(self) -> int:
        return sum(chunk.rows for chunk in self.chunks)


class Written(NamedTuple):
    """What became of a shard: its rows, their size in memory, and what could not be read."""

    rows: int
    size: int
    rejects: list[Reject]


def _shards(staging: Path, split: str, chunks: list[Chunk]) -> list[Shard]:
    parts = [chunks[start : start + CHUNKS_A_SHARD] for start in range(0, len(chunks), CHUNKS_A_SHARD)]
    names = [f"{split}-{index:05d}-of-{len(parts):05d}.part" for index in range(len(parts))]
    return [Shard(split, staging / "data" / name, part) for name, part in zip(names, parts, strict=True)]


def _written(builder: EcgBuilder, shards: list[Shard], executor: Executor | None) -> Generator[Written, None, None]:
    write = partial(_write_shard, builder)
    yield from map(write, shards) if executor is None else executor.map(write, shards)


def _write_shard(builder: EcgBuilder, shard: Shard) -> Written:
    schema = builder.info.features.arrow_schema
    encoding = "BYTE_STREAM_SPLIT" if builder.dtype.startswith("float") else "DELTA_BINARY_PACKED"
    rows, size = 0, 0
    rejects: list[Reject] = []
    with pq.ParquetWriter(
        shard.path,
        schema,
        compression="zstd",
        use_dictionary=False,
        column_encoding={"signal.list.element.list.element": encoding},
    ) as writer:
        for chunk in shard.chunks:
            for table in builder.read_chunk(chunk, rejects):
                writer.write_table(table)  # a row group of its own
                rows, size = rows + table.num_rows, size + table.nbytes
    return Written(rows, size, rejects)
