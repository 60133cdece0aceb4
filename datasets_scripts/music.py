"""MUSIC: 992 patients with chronic heart failure, resting ECGs and the measurements of their echocardiograms.

    python -m ecgformers.datasets_scripts.music build --data-dir music-sudden-cardiac-death/1.0.0 --output music

Source: Martin-Yebra et al. (2024), https://doi.org/10.13026/cec2-9w70, release 1.0.0: `subject-info.csv` (semicolons
between the columns, decimal commas) and `High-resolution_ECG/P0001_H.hea`, twenty minutes of the orthogonal leads X,
Y and Z; the Holter recordings are not used.  The lead count and rate are those of the headers: records of another
number of leads than three are rejected.  Splits by patient: 70 % train, 10 % validation, 20 % test.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ecgformers.datasets_scripts.command_line import main
from ecgformers.datasets_scripts.digital_ecg import DigitalEcg
from ecgformers.datasets_scripts.ecg_builder import EcgBuilder, EcgConfig, LeftOut, option
from ecgformers.datasets_scripts.rows import patient_split
from ecgformers.datasets_scripts.tables import number, sex_name

MEASUREMENTS = (
    "LVEF (%)",
    "Left atrial size (mm)",
    "Left ventricle end-diastolic diameter (mm)",
    "Left ventricle end-systolic diameter (mm)",
    "Right ventricle end-diastolic diameter (mm)",
    "Septal thickness (mm)",
    "Left ventricular posterior wall thickness (mm)",
)
AVAILABLE = "Hig-resolution ECG available"  # as the table spells it


@dataclass
class MusicConfig(EcgConfig):
    start: float = option("seconds to skip at the beginning of a recording", 0.0, float)
    seconds: float | None = option("keep only so many", kind=float)


class Music(EcgBuilder):
    BUILDER_CONFIG_CLASS = MusicConfig
    card = "music"
    leads = 3
    measurements = MEASUREMENTS
    physionet = "music-sudden-cardiac-death/1.0.0"
    obtain = "Unpack https://physionet.org/content/music-sudden-cardiac-death/1.0.0 there, or add --download."

    @classmethod
    def wanted(cls, name: str, config: MusicConfig) -> bool:
        return name.startswith("High-resolution_ECG/") or name == "subject-info.csv"

    def entries(self) -> Iterator[dict[str, str]]:
        columns = ("Patient ID", "Age", "Gender (male=1)", AVAILABLE, *MEASUREMENTS)
        return self.table("subject-info.csv", columns, delimiter=";")

    def row(self, entry: dict[str, str]) -> dict[str, Any]:
        patient = entry["Patient ID"].strip()
        if number(entry[AVAILABLE]) != 1:
            raise LeftOut("no high-resolution ECG")
        path = f"High-resolution_ECG/{patient}_H"
        return {
            "record_id": f"{patient}_H",
            "patient_id": patient,
            "age": 90.0 if entry["Age"].strip() == ">89" else number(entry["Age"].replace(",", ".")),
            "sex": sex_name(entry["Gender (male=1)"], male="1", female="0"),
            "measurements": {name: number(entry[name].strip("'").replace(",", ".")) for name in MEASUREMENTS},
            "split": patient_split(patient, validation=0.1, test=0.2),
            "source": path,
            "path": path,
        }

    def read(self, row: Mapping[str, Any]) -> DigitalEcg:
        recording = super().read(row)
        start = round(self.config.start * recording.sampling_rate)
        stop = None if self.config.seconds is None else start + round(self.config.seconds * recording.sampling_rate)
        return replace(recording, signal=recording.signal[start:stop])


if __name__ == "__main__":
    main(Music)
