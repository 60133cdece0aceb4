"""MIMIC-IV-ECG 1.0: 800,035 ten-second 12-lead ECGs of 161,352 patients with the machine's reports.

    python -m ecgformers.datasets_scripts.mimic_iv_ecg build --data-dir mimic-iv-ecg/1.0 --output mimic_iv_ecg

Source: Gow et al. (2023), https://doi.org/10.13026/4nqg-sb35 (ODbL 1.0, open): `record_list.csv` and
`machine_measurements.csv` of release 1.0.  Reports as MELP makes them (see `join_report`); ECGs whose report has
fewer than four words are left out.  Leads are in MIMIC's order, aVF before aVL.  Splits by patient: 2 % validation.
Age and sex are in the credentialed MIMIC-IV: `--patients mimiciv/3.1/hosp/patients.csv.gz`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from ecgformers.datasets_scripts.command_line import main
from ecgformers.datasets_scripts.ecg_builder import EcgBuilder, EcgConfig, LeftOut, option
from ecgformers.datasets_scripts.rows import patient_split
from ecgformers.datasets_scripts.tables import read_table

REPORT_COLUMNS = tuple(f"report_{number}" for number in range(18))
RECORD_COLUMNS = ("subject_id", "study_id", "ecg_time", "path")
OBTAIN = "Unpack https://physionet.org/content/mimic-iv-ecg/1.0 there, or add --download."


@dataclass
class MimicConfig(EcgConfig):
    patients: str | None = option("patients.csv(.gz) of MIMIC-IV, for age and sex")


@dataclass
class MimicIvEcgConfig(MimicConfig):
    min_words: int = option("leave out ECGs with shorter reports; 0 keeps all", 4, int)


class Patient(NamedTuple):
    sex: str | None
    birth_year: int  # in the patient's own shifted time


def read_patients(path: str | None) -> dict[str, Patient]:
    """Sex and year of birth by subject_id, of MIMIC-IV's table of patients."""
    if path is None:
        return {}
    columns = ("subject_id", "gender", "anchor_age", "anchor_year")
    return {
        line["subject_id"]: Patient(
            {"M": "male", "F": "female"}.get(line["gender"]), int(line["anchor_year"]) - int(line["anchor_age"])
        )
        for line in read_table(Path(path.removesuffix(".gz")), columns)
    }


def age_and_sex(patient: Patient | None, time: str) -> dict[str, Any]:
    """The columns `age` and `sex` of a recording made at `time`; none where the patient is not known."""
    if patient is None:
        return {}
    return {"sex": patient.sex, "age": float(min(datetime.fromisoformat(time).year - patient.birth_year, 90))}


def join_report(parts: Iterable[str | None]) -> str:
    """One report of the machine's lines: joined with ". ", in lower case, "EKG" -> "ECG", without stars and "=".

    Differs from MELP's rule in one thing: a full stop at the end of a line is not doubled.
    """
    lines = (" ".join((part or "").replace("*", " ").replace("=", " ").split()).rstrip(". ") for part in parts)
    text = ". ".join(line for line in lines if line).lower().replace("ekg", "ecg")
    return f"{text}." if text else ""


class MimicIvEcg(EcgBuilder):
    BUILDER_CONFIG_CLASS = MimicIvEcgConfig
    card = "mimic_iv_ecg"
    physionet = "mimic-iv-ecg/1.0"
    obtain = OBTAIN

    def entries(self) -> Iterator[tuple[dict[str, str], Patient | None]]:
        patients = read_patients(self.config.patients)
        measurements = self.table("machine_measurements.csv", ("study_id", *REPORT_COLUMNS))
        waiting: dict[str, dict[str, str]] = {}  # stays small: both tables are in the same order
        for record in self.table("record_list.csv", RECORD_COLUMNS):
            while record["study_id"] not in waiting:
                measurement = next(measurements, None)
                if measurement is None:
                    break
                waiting[measurement["study_id"]] = measurement
            yield waiting.pop(record["study_id"], {}) | record, patients.get(record["subject_id"])

    def row(self, entry: tuple[dict[str, str], Patient | None]) -> dict[str, Any]:
        line, patient = entry
        report = join_report(line.get(column) for column in REPORT_COLUMNS)
        if len(report.split()) < self.config.min_words:
            raise LeftOut(f"its report has fewer than {self.config.min_words} words")
        return {
            "record_id": line["study_id"],
            "patient_id": line["subject_id"],
            "report": report,
            **age_and_sex(patient, line["ecg_time"]),
            "split": patient_split(line["subject_id"], validation=0.02),
            "source": line["path"],
            "path": line["path"],
        }


if __name__ == "__main__":
    main(MimicIvEcg)
