"""CODE-test: 827 ECGs of as many patients at 400 Hz, six abnormalities by the consensus of cardiologists.

    python -m ecgformers.datasets_scripts.code_test build --data-dir code-test/data --output code_test

Source: Ribeiro et al., Nature Communications 11:1760 (2020), https://doi.org/10.5281/zenodo.3765780 (CC BY 4.0):
`ecg_tracings.hdf5` with `tracings` (827, 4096, 12), `attributes.csv` and `annotations/gold_standard.csv`, line by line
about the same tracings.  Units and padding as in `code_15`.  All of it is the split "test".
"""

from collections.abc import Iterator
from typing import Any

import h5py

from ecgformers.datasets_scripts.code_15 import ABNORMALITIES, CodeBuilder
from ecgformers.datasets_scripts.command_line import main
from ecgformers.datasets_scripts.rows import statements
from ecgformers.datasets_scripts.tables import binary, number, sex_name

TRACINGS = "ecg_tracings.hdf5"


class CodeTest(CodeBuilder):
    card = "code_test"
    obtain = "Unpack data.zip of https://doi.org/10.5281/zenodo.3765780 and name its folder data."

    def entries(self) -> Iterator[tuple[int, dict[str, str]]]:
        attributes = list(self.table("attributes.csv", ("age", "sex")))
        gold = list(self.table("annotations/gold_standard.csv", ABNORMALITIES))
        if not (self.folder / TRACINGS).exists():
            raise FileNotFoundError(f"{self.folder / TRACINGS} is missing.  {self.obtain}")
        with h5py.File(self.folder / TRACINGS, "r") as file:
            count = len(file["tracings"])
        if not count == len(attributes) == len(gold):
            raise ValueError(
                f"{self.folder}: {count} tracings, {len(attributes)} lines of attributes, {len(gold)} of gold_standard"
            )
        return ((index, person | labels) for index, (person, labels) in enumerate(zip(attributes, gold, strict=True)))

    def row(self, entry: tuple[int, dict[str, str]]) -> dict[str, Any]:
        index, line = entry
        labels = {name: binary(line[name]) for name in ABNORMALITIES}
        return {
            "record_id": str(index),
            "patient_id": None,
            "statements": statements([name for name, present in labels.items() if present]),
            "labels": labels,
            "age": number(line["age"]),
            "sex": sex_name(line["sex"], male="M", female="F"),
            "split": "test",
            "source": f"{TRACINGS}/{index}",
            "path": TRACINGS,
            "index": index,
        }


if __name__ == "__main__":
    main(CodeTest)
