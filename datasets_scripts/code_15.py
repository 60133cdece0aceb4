"""CODE-15%: 345,779 ECGs of 233,770 patients from Minas Gerais, 400 Hz, with six abnormalities.

    python -m ecgformers.datasets_scripts.code_15 build --data-dir code-15 --output code_15

Source: Ribeiro et al., Zenodo 4916206 (2021), https://doi.org/10.5281/zenodo.4916206 (CC BY 4.0): `exams.csv` and
unpacked `exams_part*.hdf5` with `exam_id` (N) and `tracings` (N, 4096, 12).  The zeros with which shorter tracings
are filled up on both sides are cut off.  Splits by patient: 90 % train, 5 % validation, 5 % test.

Units: the publisher's text says both "the scale 1e-4V" and "in V ... multiplied by 1000", which is millivolts.  Only
millivolts give QRS complexes of common height, and the PhysioNet/CinC Challenge 2025 converted the set so: they are
the default; `--per-millivolt 10` is the other reading.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from sys import intern  # few different texts in very many lines
from typing import Any, NamedTuple

import h5py
import numpy as np
from tqdm.auto import tqdm

from ecgformers.datasets_scripts.command_line import main
from ecgformers.datasets_scripts.digital_ecg import DigitalEcg
from ecgformers.datasets_scripts.ecg_builder import EcgBuilder, EcgConfig, LeftOut, option
from ecgformers.datasets_scripts.rows import patient_split, statements
from ecgformers.datasets_scripts.tables import binary, inside, number
from ecgformers.modeling.leads_ecg import STANDARD_LEADS

ABNORMALITIES = ("1dAVb", "RBBB", "LBBB", "SB", "ST", "AF")


@dataclass
class CodeConfig(EcgConfig):
    per_millivolt: float = option("what 1 mV is in the units of the tracings", 1.0, float)


class Exam(NamedTuple):
    """A line of exams.csv as it is, or what is left of it where the tracing or the line is missing."""

    exam_id: str
    patient_id: str = ""
    age: str = ""
    is_male: str = ""
    labels: tuple[str, ...] = ()
    file: str = ""
    place: int | None = None


class CodeBuilder(EcgBuilder):
    """Tracings of the CODE study: HDF5 files with `tracings` (N, 4096, 12), leads in the standard order."""

    BUILDER_CONFIG_CLASS = CodeConfig
    dtype = "float32"
    labels = ABNORMALITIES

    def read(self, row: Mapping[str, Any]) -> DigitalEcg:
        tracing = _open(inside(self.folder, row["path"]))["tracings"][row["index"]]  # (4096, 12)
        recorded = np.flatnonzero(tracing.any(axis=1))
        if not len(recorded):
            raise ValueError("every sample is zero")
        return DigitalEcg(
            signal=tracing[recorded[0] : recorded[-1] + 1].astype(np.float32),
            gain=[self.config.per_millivolt] * 12,
            baseline=[0] * 12,
            units=["mV"] * 12,
            lead_names=STANDARD_LEADS,
            sampling_rate=400.0,
        )


@lru_cache(maxsize=32)
def _open(path: Path) -> h5py.File:
    return h5py.File(path, "r")


class Code15(CodeBuilder):
    card = "code_15"
    obtain = "Unpack the files of https://doi.org/10.5281/zenodo.4916206 there: exams.csv and exams_part*.hdf5."

    def entries(self) -> Iterator[Exam]:
        columns = ("exam_id", "patient_id", "age", "is_male", "trace_file", *ABNORMALITIES)
        lines = tqdm(self.table("exams.csv", columns), desc="Reading exams.csv", unit=" lines", delay=1)
        exams = {line["exam_id"]: _exam(line) for line in lines}
        parts = sorted(self.folder.glob("exams_part*.hdf5"))
        if not parts:
            raise FileNotFoundError(f"{self.folder} holds no exams_part*.hdf5.  {self.obtain}")
        for part in parts:  # in the order of the files, so that they are read from front to back
            with h5py.File(part, "r") as file:
                ids = file["exam_id"][:]
            for place, exam_id in enumerate(map(str, ids)):
                if exam_id != "0":  # the last line of a part is empty
                    yield exams.pop(exam_id, Exam(exam_id))._replace(file=part.name, place=place)
        yield from exams.values()

    def row(self, entry: Exam) -> dict[str, Any]:
        if entry.place is None:
            raise LeftOut(f"{entry.file} is missing or lacks the exam")
        if not entry.patient_id:
            raise ValueError(f"exam {entry.exam_id} of {entry.file} is not in exams.csv")
        labels = dict(zip(ABNORMALITIES, map(binary, entry.labels), strict=True))
        return {
            "record_id": entry.exam_id,
            "patient_id": entry.patient_id,
            "statements": statements([name for name, present in labels.items() if present]),
            "labels": labels,
            "age": number(entry.age),
            "sex": {1: "male", 0: "female", None: None}[binary(entry.is_male)],
            "split": patient_split(entry.patient_id, validation=0.05, test=0.05),
            "source": f"{entry.file}/{entry.place}",
            "path": entry.file,
            "index": entry.place,
        }


def _exam(line: dict[str, str]) -> Exam:
    names = ("age", "is_male", "trace_file", *ABNORMALITIES)
    age, is_male, file, *labels = (intern(line[name] or "") for name in names)
    return Exam(line["exam_id"], line["patient_id"], age, is_male, tuple(labels), file)


if __name__ == "__main__":
    main(Code15)
