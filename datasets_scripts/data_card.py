"""The README of a data set on the Hub: what `cards/NAME.md` says of it, its YAML configs, and what was built."""

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from datasets import DatasetInfo, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard

from ecgformers.datasets_scripts import rows

if TYPE_CHECKING:
    from ecgformers.datasets_scripts.ecg_builder import EcgBuilder

CARDS = Path(__file__).with_name("cards")


def write_card(
    folder: Path, builder: "EcgBuilder", rows_of_splits: Mapping[str, int], sizes: Mapping[str, int], summary: str
) -> None:
    """Write `folder`/README.md; the numbers of rows in it let `load_dataset` refuse a data set that is not whole."""
    columns = rows.__doc__.partition("\n\n")[2]
    text = Template((CARDS / f"{builder.card}.md").read_text(encoding="utf-8"))
    card = DatasetCard(text.safe_substitute(summary=summary, columns=columns), ignore_metadata_errors=False)
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in rows_of_splits]
    splits = SplitDict()
    for split, count in rows_of_splits.items():
        splits[split] = SplitInfo(name=split, num_bytes=sizes[split], num_examples=count)
    info = DatasetInfo(
        features=builder.info.features,
        splits=splits,
        dataset_size=sum(sizes.values()),
        download_size=sum(path.stat().st_size for path in (folder / "data").iterdir()),
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(card.data)
    MetadataConfigs({"default": {"data_files": files}}).to_dataset_card_data(card.data)
    card.save(folder / "README.md")
