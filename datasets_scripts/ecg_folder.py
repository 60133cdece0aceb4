"""Your own recordings: a folder of anything `read_ecg` reads, and a CSV that says what is known of each.

    python -m ecgformers.datasets_scripts.ecg_folder build --data-dir ecgs --table ecgs.csv --output my_ecgs \\
        --path-column file --patient-column patient --report-column text --label-columns AF,LBBB

Every line of the table is a recording, found by `--path-column` (relative to the data folder; WFDB records with or
without their extension) or by `--id-column` (the name of a file at any depth, without its extension).  All other
columns are optional.  WFDB recordings are kept as the integers they are, others (DICOM, CSV, MAT, ...) as float32
millivolts.  The first readable recording decides about leads and type; those that differ are rejected: build them as
a data set of their own, or, to have WFDB and others in one, pass `--dtype float32`.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ecgformers.datasets_scripts.command_line import main
from ecgformers.datasets_scripts.digital_ecg import DigitalEcg, read_wfdb
from ecgformers.datasets_scripts.ecg_builder import EcgBuilder, EcgConfig, option
from ecgformers.datasets_scripts.rows import statements
from ecgformers.datasets_scripts.tables import binary, inside, likelihoods, number, read_table, sex_name
from ecgformers.modeling.reading_ecg import read_ecg
from ecgformers.modeling.wfdb_ecg import header_path

SPLIT_NAMES = {"training": "train", "val": "validation", "valid": "validation", "dev": "validation"}
TRIES = 100  # recordings to look at for one that can be read


def yes_or_no(text: str) -> bool:
    """The answer in an option of the command line."""
    if text not in ("yes", "no"):
        raise ValueError(f"{text!r} is neither yes nor no")
    return text == "yes"


@dataclass
class EcgFolderConfig(EcgConfig):
    table: str | None = option("the CSV; a bare name is looked for in the data folder too")
    delimiter: str = option("between its columns", default=",")
    path_column: str | None = option("files, relative to the data folder")
    id_column: str | None = option("record ids; without --path-column, names of files")
    patient_column: str | None = option("patient ids; no patient may be in two splits")
    split_column: str | None = option("train, validation (val, valid, dev) or test")
    fold_column: str | None = option("numbered folds")
    validation_folds: str = option("folds that are the validation split, e.g. 9", default="")
    test_folds: str = option("folds that are the test split, e.g. 10", default="")
    report_column: str | None = option("texts")
    statement_column: str | None = option("statements: 'AF,LBBB' (or ; or |), or {'AF': 100.0} with likelihoods")
    label_columns: str = option("0/1 columns, with commas; FIRST:LAST is a range", default="")
    age_column: str | None = option("years")
    sex_column: str | None = option("sex")
    male: str = option("how the sex column says male", default="male")
    female: str = option("how the sex column says female", default="female")
    dtype: str | None = option("of the signals: int16, int32 or float32; by default that of the first recording")
    lead_names: str | None = option("for files that do not say: I,II,III,...")
    sampling_rate: float | None = option("for files that do not say: Hz", kind=float)
    units: str | None = option("for files that do not say: mV, uV, V or nV")
    leads: str | None = option("leads to take, with commas; by default all that are an ECG")
    verify_checksum: bool = option("no: take WFDB files with a wrong checksum too", default=True, kind=yes_or_no)


class EcgFolder(EcgBuilder):
    BUILDER_CONFIG_CLASS = EcgFolderConfig
    card = "ecg_folder"
    obtain = "Name your folder of recordings with --data-dir and your CSV with --table."

    def _info(self) -> datasets.DatasetInfo:
        if not (self.config.path_column or self.config.id_column):
            raise ValueError("give --path-column or --id-column: without one no recording can be found")
        self.labels = self._label_columns()
        problem: Exception | None = None
        for entry in itertools.islice(self.entries(), TRIES):
            try:
                first = self.read(self.row(entry))
            except (ValueError, OSError) as error:
                problem = problem or error
            else:
                self.leads, self.dtype = first.signal.shape[1], self.config.dtype or str(first.signal.dtype)
                return super()._info()
        raise ValueError(f"none of the first {TRIES} recordings can be read, the first: {problem}")

    @property
    def table_path(self) -> Path:
        if self.config.table is None:
            raise ValueError(f"table is not given.  {self.obtain}")
        path = Path(self.config.table)
        return path if path.exists() else self.folder / path

    @cached_property
    def files(self) -> dict[str, str]:
        """The files of the data folder by name without extension; of a WFDB record its header."""
        files: dict[str, str] = {}
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and (path.suffix == ".hea" or path.stem not in files):
                files[path.stem] = path.relative_to(self.folder).as_posix()
        return files

    def _label_columns(self) -> tuple[str, ...]:
        names = list(next(self.entries(), {}))
        columns: list[str] = []
        for part in filter(None, self.config.label_columns.split(",")):
            first, _, last = part.partition(":")
            missing = {first, last or first} - set(names)
            if missing:
                raise ValueError(f"{self.table_path} has no column {', '.join(missing)}; it has {', '.join(names)}")
            columns += names[names.index(first) : names.index(last or first) + 1]
        return tuple(columns)

    def entries(self) -> Iterator[dict[str, str]]:
        columns = (value for name, value in vars(self.config).items() if name.endswith("_column") and value)
        return read_table(self.table_path, columns, self.config.delimiter)

    def row(self, entry: dict[str, str]) -> dict[str, Any]:
        config = self.config

        def value(column: str | None) -> str | None:
            return (entry[column] or "").strip() or None if column else None

        path, record_id, sex = value(config.path_column), value(config.id_column), value(config.sex_column)
        if sex is not None and sex.lower() not in {config.male.lower(), config.female.lower(), "unknown"}:
            raise ValueError(f"sex {sex!r} is neither {config.male!r} nor {config.female!r}: say --male and --female")
        if path is None:
            if record_id not in self.files:
                raise FileNotFoundError(f"{self.folder} holds no file {record_id}.*")
            path = self.files[record_id]
        fold = number(value(config.fold_column))
        fold = None if fold is None else int(fold)
        return {
            "record_id": _whole(record_id) or Path(path).with_suffix("").as_posix(),
            "patient_id": _whole(value(config.patient_column)),
            "report": value(config.report_column),
            "statements": _statements(value(config.statement_column)),
            "labels": {name: binary(entry[name]) for name in self.labels},
            "age": number(value(config.age_column)),
            "sex": sex_name(sex, config.male, config.female),
            "fold": fold,
            "split": self._split(value(config.split_column), fold),
            "source": path,
            "path": path,
        }

    def _split(self, split: str | None, fold: int | None) -> str:
        if split is not None:
            return SPLIT_NAMES.get(split.lower(), split.lower())
        if fold in _numbers(self.config.test_folds):
            return "test"
        return "validation" if fold in _numbers(self.config.validation_folds) else "train"

    def read(self, row: Mapping[str, Any]) -> DigitalEcg:
        path, config = inside(self.folder, row["path"]), self.config
        said = {
            "lead_names": config.lead_names.split(",") if config.lead_names else None,
            "sampling_rate": config.sampling_rate,
            "units": config.units,
            "leads": config.leads.split(",") if config.leads else None,
            "verify_checksum": config.verify_checksum,
        }
        if header_path(path).is_file():
            return read_wfdb(path, **said)
        record = read_ecg(path, **said)
        return DigitalEcg(
            signal=record.signal.T.astype(np.float32),  # (samples, leads)
            gain=[1.0] * len(record.lead_names),
            baseline=[0] * len(record.lead_names),
            units=["mV"] * len(record.lead_names),
            lead_names=record.lead_names,
            sampling_rate=record.sampling_rate,
        )


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part.strip()]


def _whole(text: str | None) -> str | None:
    """An id without the ".0" that table programs give to whole numbers."""
    return re.sub(r"^(\d+)\.0$", r"\1", text) if text else None


def _statements(text: str | None) -> list[dict[str, Any]] | None:
    if text is None:
        return None
    if text.startswith("{"):
        return statements(likelihoods(text))
    return statements([code.strip() for code in re.split("[,;|]", text) if code.strip()])


if __name__ == "__main__":
    main(EcgFolder)
