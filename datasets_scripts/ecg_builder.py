"""`EcgBuilder`, what every data set of this folder is: a `datasets` builder with three methods to fill in.

A script says where its tables are (`entries`), how a row is made of one of their lines (`row`) and, where it is not
WFDB, how a recording is read (`read`).  `building.build` turns it into a folder for the Hub; as with any builder,
`PtbXl(data_dir=...).download_and_prepare()` and `.as_dataset()` fill the cache of `datasets` instead.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from tqdm.auto import tqdm

from ecgformers.datasets_scripts.digital_ecg import DigitalEcg, read_wfdb
from ecgformers.datasets_scripts.plan import Chunk, Plan, Reject
from ecgformers.datasets_scripts.rows import row_features, signal_columns
from ecgformers.datasets_scripts.tables import inside, read_table

BYTES_A_ROW_GROUP = 32 << 20
logger = datasets.logging.get_logger(__name__)


class LeftOut(Exception):
    """A row that the rules of the data set leave out, and the reason.  Nothing is broken."""


def option(
    text: str, default: Any = None, kind: Callable[[str], Any] = str, choices: Iterable[Any] | None = None
) -> Any:
    """A field of a config class that is an option of the command line too."""
    return field(default=default, metadata={"help": text, "type": kind, "choices": choices})


@dataclass
class EcgConfig(datasets.BuilderConfig):
    """`data_dir` is the folder as its publisher ships it; the fields of subclasses are options of the command line."""

    limit: int | None = option("stop after this many rows", kind=int)


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
        return read_wfdb(inside(self.folder, row["path"]))

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

    def plan(self, folder: Path) -> Plan:
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
            logger.warning("left out: %s", reject)

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
