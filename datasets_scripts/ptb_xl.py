"""PTB-XL 1.0.3: 21,799 ten-second 12-lead ECGs of 18,869 patients with reports and SCP-ECG statements.

    python -m ecgformers.datasets_scripts.ptb_xl build --data-dir ptb-xl/1.0.3 --output ptb_xl [--rate 100]

Source: Wagner et al., Scientific Data 7:154 (2020), https://doi.org/10.13026/kfzx-aw45 (CC BY 4.0, open): columns and
files as in its release 1.0.3.  Splits: folds 1-8 train, 9 validation, 10 test, as its authors recommend.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ecgformers.datasets_scripts.command_line import main
from ecgformers.datasets_scripts.ecg_builder import EcgBuilder, EcgConfig, option
from ecgformers.datasets_scripts.rows import statements
from ecgformers.datasets_scripts.tables import likelihoods, number, sex_name

FILES = {100: "filename_lr", 500: "filename_hr"}
COLUMNS = ("ecg_id", "patient_id", "age", "sex", "report", "scp_codes", "strat_fold")


@dataclass
class PtbXlConfig(EcgConfig):
    rate: int = option("Hz", 500, int, choices=FILES)


class PtbXl(EcgBuilder):
    BUILDER_CONFIG_CLASS = PtbXlConfig
    card = "ptb_xl"
    physionet = "ptb-xl/1.0.3"
    obtain = "Unpack https://physionet.org/content/ptb-xl/1.0.3 into the data folder, or add --download."

    @classmethod
    def wanted(cls, name: str, config: PtbXlConfig) -> bool:
        return name.startswith(f"records{config.rate}/") or name == "ptbxl_database.csv"

    def entries(self) -> Iterator[dict[str, str]]:
        return self.table("ptbxl_database.csv", (*COLUMNS, FILES[self.config.rate]))

    def row(self, entry: dict[str, str]) -> dict[str, Any]:
        path, fold, age = entry[FILES[self.config.rate]], int(entry["strat_fold"]), number(entry["age"])
        return {
            "record_id": entry["ecg_id"],
            "patient_id": str(int(float(entry["patient_id"]))),
            "report": entry["report"],
            "statements": statements(likelihoods(entry["scp_codes"])),
            "age": 90.0 if age == 300 else age,  # the table's code for "over 89"
            "sex": sex_name(entry["sex"], male="0", female="1"),
            "fold": fold,
            "split": {9: "validation", 10: "test"}.get(fold, "train"),
            "source": path,
            "path": path,
        }


if __name__ == "__main__":
    main(PtbXl)
