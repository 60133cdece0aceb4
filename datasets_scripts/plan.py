"""What a build is going to read: all rows without their signals, streamed to disk and checked on the way."""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from ecgformers.datasets_scripts.rows import SIGNAL_COLUMNS, SPLITS

ROWS_A_CHUNK = 128
READING_COLUMNS = {"path": pa.string(), "index": pa.int64()}  # what reading needs; in the plan, not in the data set


class Chunk(NamedTuple):
    """One record batch of a planned split: the rows that a worker reads at a time."""

    plan: Path
    batch: int
    rows: int


class Reject(NamedTuple):
    record_id: str | None
    source: str | None
    reason: str


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
        path = self.folder / f"{split}.plan"
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
