"""How every data set is built: tables and recordings in the publisher's layout -> a folder of Parquet for the Hub.

A script of this folder subclasses `EcgBuilder` and says where its tables are (`entries`), how a row is made of one of
their lines (`row`) and, where it is not WFDB, how a recording is read (`read`).  This file does the rest: rows are
planned first, without signals and streamed to disk, so that memory does not grow with the number of records; workers
then read the recordings and write one Parquet shard at a time, the same ones whatever their number.

    summary = build(PtbXl(data_dir="ptb-xl/1.0.3", rate=100), "ptb_xl", num_proc=4)
    datasets.load_dataset("ptb_xl")
    PtbXl(data_dir="ptb-xl/1.0.3").download_and_prepare()  # or straight into the cache of `datasets`

A recording that cannot be used never ends a build: it goes to `rejects.jsonl` with the reason, unless `strict`.
"""

import csv
import gzip
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from ecgformers.datasets_scripts.data_card import write_card
from ecgformers.datasets_scripts.digital_ecg import DigitalEcg, read_wfdb
from ecgformers.datasets_scripts.rows import SIGNAL_COLUMNS, SPLITS, row_features, signal_columns

SUMMARY = "build_summary.json"
REJECTS = "rejects.jsonl"
ROWS_A_CHUNK = 128
CHUNKS_A_SHARD = 8
BYTES_A_ROW_GROUP = 32 << 20
READING_COLUMNS = {"path": pa.string(), "index": pa.int64()}  # what `read` needs; in the plan, not in the data set


class LeftOut(Exception):
    """A row that the rules of the data set leave out, and the reason.  Nothing is broken."""


class BrokenRecording(ValueError):
    """A recording, or its line of the table, cannot be used."""


class Chunk(NamedTuple):
    """One record batch of a planned split: the rows that a worker reads at a time."""

    plan: Path
    batch: int
    rows: int


class Reject(NamedTuple):
    record_id: str | None
    source: str | None
    reason: str


@dataclass
class EcgConfig(datasets.BuilderConfig):
    """`data_dir` is the folder as its publisher ships it; the fields of subclasses are options of the command line."""

    limit: int | None = field(default=None, metadata={"help": "stop after this many rows"})


class EcgBuilder(datasets.ArrowBasedBuilder):
    """A data set of ECGs.

    Attributes:
        leads, dtype: what every `signal` of it has.
        labels: names of the 0/1 columns of `labels`; measurements: names of the numbers in `measurements`.
        extra: columns that this data set alone has.
        card: the file in `cards` that describes it.
        credentialed: for people who signed the publisher's agreement only; never pushed to a public repo unasked.
        physionet: its folder below physionet.org/files, from which `--download` fetches it; "" where it is not open.
        obtain: what to do where files are missing.
    """

    BUILDER_CONFIG_CLASS = EcgConfig
    leads = 12
    dtype = "int16"
    labels: tuple[str, ...] = ()
    measurements: tuple[str, ...] = ()
    extra: Mapping[str, Any] = {}
    card = ""
    credentialed = False
    physionet = ""
    obtain = ""

    def entries(self) -> Iterable[Any]:
        """The lines of the tables, or the files: one a recording, streamed."""
        raise NotImplementedError

    def row(self, entry: Any) -> dict[str, Any]:
        """The row of an entry without its signal; `path` and `index` tell `read` where that is.

        Raises:
            LeftOut: the rules of the data set leave it out.
            ValueError: it makes no sense.
        """
        raise NotImplementedError

    def read(self, row: Mapping[str, Any]) -> DigitalEcg:
        """The recording of a row; may raise anything."""
        return read_wfdb(self.folder / row["path"])

    @classmethod
    def wanted(cls, name: str, config: Any) -> bool:
        """Whether `--download` needs this file (its path below `physionet`) for these options."""
        return True

    @property
    def folder(self) -> Path:
        if self.config.data_dir is None:
            raise ValueError(f"data_dir is not given.  {self.obtain}")
        return Path(self.config.data_dir)

    def table(self, name: str, columns: Iterable[str], delimiter: str = ",") -> Iterator[dict[str, str]]:
        """The lines of a CSV of the data set, one by one; see `read_table`."""
        try:
            return read_table(self.folder / name, columns, delimiter)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}  {self.obtain}") from None

    def _info(self) -> datasets.DatasetInfo:
        features = row_features(self.leads, self.dtype)
        if self.labels:
            features["labels"] = {name: datasets.Value("int8") for name in self.labels}
        if self.measurements:
            features["measurements"] = {name: datasets.Value("float32") for name in self.measurements}
        features.update(self.extra)
        return datasets.DatasetInfo(features=features)

    def plan(self, folder: Path) -> "Plan":
        """Go through the tables and write the rows to be read, without signals, to `folder`."""
        plan = Plan(folder, self.info.features.arrow_schema)
        entries = itertools.islice(self.entries(), self.config.limit)
        for entry in tqdm(entries, desc="Reading the tables", unit=" rows", delay=1):
            try:
                row = self.row(entry)
            except LeftOut as reason:
                plan.left_out[str(reason)] += 1
            except (ValueError, OSError) as error:
                plan.rejects.append(Reject(None, str(entry)[:300], f"{type(error).__name__}: {error}"))
            else:
                plan.add(row)
        plan.close()
        return plan

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        chunks = self.plan(Path(self._output_dir)).chunks
        return [datasets.SplitGenerator(name=split, gen_kwargs={"chunks": chunks[split]}) for split in chunks]

    def _generate_tables(self, chunks: list[Chunk]) -> Iterator[tuple[int, pa.Table]]:
        rejects: list[Reject] = []
        yield from enumerate(table for chunk in chunks for table in self.read_chunk(chunk, rejects))
        for reject in rejects:
            datasets.logging.get_logger(__name__).warning("left out: %s", reject)

    def read_chunk(self, chunk: Chunk, rejects: list[Reject]) -> Iterator[pa.Table]:
        """The rows of a chunk with their signals, in tables of bounded size; what is broken goes to `rejects`."""
        schema = self.info.features.arrow_schema
        with pa.memory_map(str(chunk.plan)) as source:
            planned = pa.ipc.open_file(source).get_batch(chunk.batch)

        def table(kept: list[int], recordings: list[DigitalEcg]) -> pa.Table:
            columns = dict(zip(planned.schema.names, planned.take(kept).columns, strict=True))
            columns |= signal_columns(recordings, schema)
            return pa.table([columns[name] for name in schema.names], schema=schema)

        kept: list[int] = []
        recordings: list[DigitalEcg] = []
        size = 0
        for index, row in enumerate(planned.to_pylist()):
            try:
                recording = self.read(row)
                recording.check(self.leads)
                recordings.append(recording.astype(self.dtype))
            except MemoryError:
                raise
            except Exception as error:  # whatever a reader stumbles over: the build of thousands goes on
                rejects.append(Reject(row["record_id"], row["source"], f"{type(error).__name__}: {error}"))
                continue
            kept.append(index)
            size += recording.signal.nbytes
            if size > BYTES_A_ROW_GROUP:
                yield table(kept, recordings)
                kept, recordings, size = [], [], 0
        if kept:
            yield table(kept, recordings)


class Plan:
    """The rows to be read, one Arrow file a split, written as they come.

    Raises (from `add` and `close`):
        ValueError: a patient in two splits, a record_id twice, a split of another name, no row at all.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        fields = [column for column in schema if column.name not in SIGNAL_COLUMNS]
        self.schema = pa.schema(fields + [pa.field(*column) for column in READING_COLUMNS.items()])
        self.folder = folder
        self.chunks: dict[str, list[Chunk]] = {split: [] for split in SPLITS}
        self.rejects: list[Reject] = []
        self.left_out: Counter[str] = Counter()
        self._waiting: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        self._writers: dict[str, pa.RecordBatchFileWriter] = {}
        self._split_of_patient: dict[str, str] = {}
        self._seen: set[str] = set()

    def add(self, row: dict[str, Any]) -> None:
        split, patient, record = row.setdefault("split", "train"), row["patient_id"], row["record_id"]
        if split not in SPLITS:
            raise ValueError(f"record {record}: split {split!r} is not one of {', '.join(SPLITS)}")
        if record in self._seen:
            raise ValueError(f"record_id {record} is in the tables twice")
        self._seen.add(record)
        if patient is not None and self._split_of_patient.setdefault(patient, split) != split:
            raise ValueError(
                f"patient {patient} is in {self._split_of_patient[patient]} and, with record {record}, in {split}"
            )
        self._waiting[split].append(row)
        if len(self._waiting[split]) == ROWS_A_CHUNK:
            self._write(split)

    def _write(self, split: str) -> None:
        path = self.folder / f"plan-{split}.arrow"
        if split not in self._writers:
            self._writers[split] = pa.ipc.new_file(str(path), self.schema)
        rows = self._waiting[split]
        self._writers[split].write_batch(pa.RecordBatch.from_pylist(rows, self.schema))
        self.chunks[split].append(Chunk(path, len(self.chunks[split]), len(rows)))
        self._waiting[split] = []

    def close(self) -> None:
        for split in SPLITS:
            if self._waiting[split]:
                self._write(split)
        for writer in self._writers.values():
            writer.close()
        self.chunks = {split: chunks for split, chunks in self.chunks.items() if chunks}
        if not self.chunks:
            raise ValueError(f"no rows: {len(self.rejects)} broken {self.rejects[:1]}, left out {dict(self.left_out)}")


@dataclass
class Summary:
    """What a build did: rows a split, broken recordings, rows left out by the rules of the data set, by reason."""

    splits: dict[str, int]
    broken: int
    left_out: dict[str, int]

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

    summary = Summary({split: rows[split] for split in plan.chunks if rows[split]}, len(rejects), dict(plan.left_out))
    (staging / SUMMARY).write_text(json.dumps(vars(summary), indent=2) + "\n")
    lines = (json.dumps(reject._asdict(), ensure_ascii=False) + "\n" for reject in rejects)
    (staging / REJECTS).write_text("".join(lines), encoding="utf-8")
    write_card(staging, builder, summary.splits, sizes, str(summary))
    for plan_file in staging.glob("plan-*.arrow"):
        plan_file.unlink()
    for shard in shards:  # the card with the number of rows is there: load_dataset refuses a part of them from now on
        if shard.split in summary.splits:
            shard.path.rename(shard.path.with_suffix(""))
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
    names = [f"{split}-{index:05d}-of-{len(parts):05d}.parquet.part" for index in range(len(parts))]
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


def read_table(path: Path, columns: Iterable[str], delimiter: str = ",") -> Iterator[dict[str, str]]:
    """The lines of a CSV file (or of the same name + ".gz"), read one by one.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it lacks one of `columns`.
    """
    path, opener = (path, open) if path.exists() else (path.with_name(f"{path.name}.gz"), gzip.open)
    if not path.exists():
        raise FileNotFoundError(f"{path.with_suffix('')} is missing.")
    stream = opener(path, "rt", newline="", encoding="utf-8-sig", errors="replace")
    reader = csv.DictReader(stream, delimiter=delimiter)
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    missing = [column for column in columns if column not in reader.fieldnames]
    if missing:
        stream.close()
        raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(reader.fieldnames)}")

    def lines() -> Iterator[dict[str, str]]:
        with stream:
            yield from reader

    return lines()
