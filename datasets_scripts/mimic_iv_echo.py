"""MIMIC-IV-ECHO 1.0 with MIMIC-IV-ECG 1.0: ECGs, each with the echocardiogram of the same patient nearest in time.

    python -m ecgformers.datasets_scripts.mimic_iv_echo build --data-dir mimic-iv-echo/1.0 \\
        --ecg-dir mimic-iv-ecg/1.0 --output mimic_iv_echo [--window-hours 24]

Source: Gow et al. (2026), https://doi.org/10.13026/nrjh-5r77, credentialed: whoever has signed its agreement may build
it and must not publish it.  Files of release 1.0: `echo-study-list.csv` (DICOM studies and the `measurement_id` that
belongs to each), `echo-record-list.csv` (`dicom_filepath` of every cine) and `structured-measurement.csv.gz` (one
line a measurement).  An exam is a DICOM study, a set of measurements, or both.  An ECG without an exam within the
window is left out.  Splits by patient: 80 % train, 10 % validation, 10 % test.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from datasets import List, Value, logging
from tqdm.auto import tqdm

from ecgformers.datasets_scripts.command_line import main
from ecgformers.datasets_scripts.digital_ecg import DigitalEcg, read_wfdb
from ecgformers.datasets_scripts.ecg_builder import EcgBuilder, LeftOut, option
from ecgformers.datasets_scripts.mimic_iv_ecg import (
    OBTAIN,
    RECORD_COLUMNS,
    MimicConfig,
    Patient,
    age_and_sex,
    read_patients,
)
from ecgformers.datasets_scripts.rows import patient_split
from ecgformers.datasets_scripts.tables import inside, number, read_table

MEASUREMENTS = (
    "lvef",
    "biplane_lvef",
    "lvef_3d",
    "lvedd",
    "septal_thickness",
    "inf_lat_thickness",
    "la_dimen",
    "tapse",
    "tr_velocity",
    "av_pk_vel",
    "av_mean_grad",
    "av_area_continuity",
)

logger = logging.get_logger(__name__)


@dataclass
class MimicIvEchoConfig(MimicConfig):
    ecg_dir: str | None = option("folder of MIMIC-IV-ECG 1.0")
    window_hours: float = option("how far apart an ECG and its exam may be", 24.0, float)


class Exam(NamedTuple):
    """One echocardiogram."""

    time: datetime | None
    study_id: str | None
    cine_paths: list[str]
    measurements: dict[str, float]


class MimicIvEcho(EcgBuilder):
    BUILDER_CONFIG_CLASS = MimicIvEchoConfig
    card = "mimic_iv_echo"
    measurements = MEASUREMENTS
    credentialed = True
    extra = {
        "echo_study_id": Value("string"),  # of the DICOM study; null where only measurements are published
        "echo_hours": Value("float32"),  # from the ECG to the exam, negative where the exam came first
        "cine_paths": List(Value("string")),  # DICOM files, relative to the folder of the source
    }
    obtain = (
        "Sign the agreement of https://physionet.org/content/mimic-iv-echo/1.0 and put echo-study-list.csv, "
        "echo-record-list.csv and structured-measurement.csv.gz there (the DICOM files stay where they are)."
    )

    @property
    def ecg_folder(self) -> Path:
        if self.config.ecg_dir is None:
            raise ValueError(f"ecg_dir is not given: the folder of MIMIC-IV-ECG.  {OBTAIN}")
        return Path(self.config.ecg_dir)

    def _exams(self) -> dict[str, list[Exam]]:
        """The echocardiograms of every patient."""
        exams: dict[str, list[Exam]] = defaultdict(list)
        cine_paths: dict[str, list[str]] = defaultdict(list)
        for line in self.table("echo-record-list.csv", ("study_id", "dicom_filepath")):
            cine_paths[line["study_id"]].append(line["dicom_filepath"])
        measurements: dict[str, dict[str, float]] = {}  # by measurement_id
        for line in self.table("echo-study-list.csv", ("subject_id", "study_id", "study_datetime", "measurement_id")):
            time, study = _time(line["study_datetime"]), line["study_id"]
            values = measurements.setdefault(line["measurement_id"], {}) if line["measurement_id"] else {}
            exams[line["subject_id"]].append(Exam(time, study, cine_paths[study], values))
        columns = ("subject_id", "measurement_id", "measurement_datetime", "measurement", "result")
        name = "structured-measurement.csv"  # as shipped; its documentation spells it with an underscore
        lines = self.table(name if any(self.folder.glob(f"{name}*")) else "structured_measurement.csv", columns)
        for line in tqdm(lines, desc="Reading the measurements", unit=" lines", delay=1):
            if line["measurement_id"] not in measurements:
                values = measurements[line["measurement_id"]] = {}
                exams[line["subject_id"]].append(Exam(_time(line["measurement_datetime"]), None, [], values))
            value = _value(line["result"]) if line["measurement"] in MEASUREMENTS else None
            if value is not None:
                measurements[line["measurement_id"]][line["measurement"]] = value
        if not any(measurements.values()):
            raise ValueError(f"structured-measurement.csv has none of the measurements {', '.join(MEASUREMENTS)}")
        undated = sum(exam.time is None for of_patient in exams.values() for exam in of_patient)
        if undated:
            logger.warning("%d echocardiograms have no date and time: they belong to no ECG", undated)
        return exams

    def entries(self) -> Iterator[tuple[dict[str, str], list[Exam], Patient | None]]:
        """The ECGs, and of the patient of each all echocardiograms, sex and year of birth."""
        try:
            records = read_table(self.ecg_folder / "record_list.csv", RECORD_COLUMNS)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}  {OBTAIN}") from None
        exams, patients = self._exams(), read_patients(self.config.patients)
        return ((line, exams.get(line["subject_id"], []), patients.get(line["subject_id"])) for line in records)

    def row(self, entry: tuple[dict[str, str], list[Exam], Patient | None]) -> dict[str, Any]:
        line, exams, patient = entry
        time, window = datetime.fromisoformat(line["ecg_time"]), timedelta(hours=self.config.window_hours)
        near = [(exam.time - time, exam) for exam in exams if exam.time and abs(exam.time - time) <= window]
        if not near:
            raise LeftOut(f"no echocardiogram within {self.config.window_hours:g} hours")
        distance, exam = min(near, key=lambda pair: (abs(pair[0]), not pair[1].cine_paths))
        return {
            "record_id": line["study_id"],
            "patient_id": line["subject_id"],
            **age_and_sex(patient, line["ecg_time"]),
            "measurements": {name: exam.measurements.get(name) for name in MEASUREMENTS},
            "echo_study_id": exam.study_id,
            "echo_hours": distance / timedelta(hours=1),
            "cine_paths": exam.cine_paths,
            "split": patient_split(line["subject_id"], validation=0.1, test=0.1),
            "source": line["path"],
            "path": line["path"],
        }

    def read(self, row: Mapping[str, Any]) -> DigitalEcg:
        return read_wfdb(inside(self.ecg_folder, row["path"]))


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _value(result: str) -> float | None:
    """The number a result is; None for words, ranges and bounds such as ">75"."""
    try:
        return number(result)
    except ValueError:
        return None


if __name__ == "__main__":
    main(MimicIvEcho)
