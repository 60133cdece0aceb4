"""WFDB folders in the form of the PhysioNet/CinC Challenge 2021: everything about a recording is in its header.

`cpsc2018`, `georgia` and `csn` are built of such folders: `NAME.hea` and `NAME.mat` at any depth, and header comments
`#Age: 85`, `#Sex: Male`, `#Dx: 164889003,59118001` with SNOMED CT codes (some mirrors have acronyms instead).  The
recordings carry no patient ids.  Source: Reyna et al., CinC 2021, https://doi.org/10.13026/34va-7q14.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecgformers.datasets_scripts.digital_ecg import wfdb_comments
from ecgformers.datasets_scripts.ecg_builder import EcgBuilder, EcgConfig, LeftOut, option
from ecgformers.datasets_scripts.rows import statements
from ecgformers.datasets_scripts.tables import number, read_split_tables, sex_name

SPLIT_TABLES = {"train": "*train.csv", "validation": "*val.csv", "test": "*test.csv"}


@dataclass
class CincConfig(EcgConfig):
    splits: str | None = option("folder with MERL's *train.csv, *val.csv and *test.csv; without it all is train")


class CincBuilder(EcgBuilder):
    """Records at any depth below `subfolder` (or below the data folder itself, where it is that subfolder already)."""

    BUILDER_CONFIG_CLASS = CincConfig
    subfolder = ""

    @classmethod
    def wanted(cls, name: str, config: CincConfig) -> bool:
        return name.startswith(f"{cls.subfolder}/") and name.endswith((".hea", ".mat"))

    def _split_tables(self) -> dict[str, dict[str, Any]] | None:
        if self.config.splits is None:
            return None
        found = {split: sorted(Path(self.config.splits).glob(name)) for split, name in SPLIT_TABLES.items()}
        if any(len(paths) != 1 for paths in found.values()):
            raise FileNotFoundError(f"{self.config.splits} needs one of each: {', '.join(SPLIT_TABLES.values())}")
        return read_split_tables(**{split: paths[0] for split, paths in found.items()})

    def entries(self) -> Iterator[tuple[Path, str | None]]:
        """The headers, and the split of each; None where the split tables do not have it."""
        folder = self.folder / self.subfolder
        headers = sorted((folder if folder.is_dir() else self.folder).rglob("*.hea"))
        if not headers:
            raise FileNotFoundError(f"{self.folder} holds no .hea files.  {self.obtain}")
        tables = self._split_tables()
        if tables is None:
            return ((header, "train") for header in headers)
        return ((header, tables[header.stem]["split"] if header.stem in tables else None) for header in headers)

    def row(self, entry: tuple[Path, str | None]) -> dict[str, Any]:
        header, split = entry
        if split is None:
            raise LeftOut("not in the split tables")
        comments = wfdb_comments(header)
        if "Dx" not in comments:
            raise ValueError(f"{header}: it has no comment Dx")
        path = header.relative_to(self.folder).with_suffix("").as_posix()
        return {
            "record_id": header.stem,
            "patient_id": None,
            "statements": statements([code.strip() for code in comments["Dx"].split(",") if code.strip()]),
            "age": number(comments.get("Age")),
            "sex": sex_name(comments.get("Sex", "")[:1], male="M", female="F"),
            "split": split,
            "source": path,
            "path": path,
        }
