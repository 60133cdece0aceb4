"""A folder of recordings in many formats becomes one data set."""

import json

import datasets
import numpy as np
import pytest
from ecg_files import COUNTS, standard_channels, standard_group, write_dicom, write_wfdb

from ecgformers.datasets_scripts.command_line import main
from ecgformers.datasets_scripts.ecg_folder import EcgFolder
from ecgformers.modeling.leads_ecg import STANDARD_LEADS
from ecgformers.modeling.record_ecg import row_to_record

pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword")


def build(folder, files: list[str], *options: str) -> datasets.Dataset:
    (folder / "table.csv").write_text("file,patient\n" + "".join(f"{name},p{i}\n" for i, name in enumerate(files)))
    columns = ["--table", "table.csv", "--path-column", "file", "--patient-column", "patient"]
    main(EcgFolder, ["build", "--data-dir", str(folder), "--output", str(folder / "out"), *columns, *options])
    return datasets.load_dataset(str(folder / "out"), split="train", cache_dir=str(folder / "cache"))


def test_a_folder_of_mixed_formats(tmp_path):
    write_wfdb(tmp_path, [*standard_channels(), ("ABP", "10/mmHg", COUNTS[0])])
    write_dicom(tmp_path / "ecg.dcm", standard_group())
    np.savez(tmp_path / "array.npz", signal=COUNTS / 1000, lead_names=STANDARD_LEADS, sampling_rate=500)
    rows = [",".join(STANDARD_LEADS), *(",".join(f"{value / 1000:.3f}" for value in row) for row in COUNTS.T)]
    (tmp_path / "table_of_samples.csv").write_text("\n".join(rows))
    (tmp_path / "table_of_samples.json").write_text('{"sampling_rate": 500}')
    built = build(tmp_path, ["rec", "ecg.dcm", "array.npz", "table_of_samples.csv"], "--dtype", "float32")
    signals = {row["source"]: row_to_record(row).signal for row in built}
    assert len(signals) == 4
    for name, signal in signals.items():
        np.testing.assert_allclose(signal, COUNTS * (2.5e-3 if name == "ecg.dcm" else 1e-3), atol=1e-6)


def test_what_records_lack_is_said_on_the_command_line(tmp_path):
    write_wfdb(tmp_path, standard_channels("0"), checksums=False)
    with pytest.raises(SystemExit, match="verify_checksum=False"):
        build(tmp_path, ["rec"])
    with pytest.raises(SystemExit, match="pass units="):
        build(tmp_path, ["rec"], "--verify-checksum", "no")
    options = ["--verify-checksum", "no", "--units", "uV", "--leads", "II,V1", "--sampling-rate", "250"]
    (row,) = build(tmp_path, ["rec"], *options)
    record = row_to_record(row)
    assert record.lead_names == ("II", "V1") and record.sampling_rate == 250
    np.testing.assert_allclose(record.signal, COUNTS[[1, 6]] / 1000)
    assert json.loads((tmp_path / "out" / "build_summary.json").read_text())["broken"] == 0
