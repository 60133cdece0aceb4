"""Does a data set on the Hub, or in a folder, hold exactly what wfdb reads of the original records?

    python benchmarks/dataset_exactness.py --data-dir ptb-xl/1.0.3 --dataset FOLDER_OR_HUB_NAME

The data folder has the WFDB records under the names that the rows have in `source`.  Compares every sample as the
integer it is stored as, and every gain, baseline, unit, lead name and rate; prints the number of records that agree.
"""

import argparse
from pathlib import Path

import numpy as np
import wfdb
from datasets import load_dataset
from tqdm import tqdm

from ecgformers.modeling.leads_ecg import canonical_lead_name


def difference(row: dict, record: wfdb.Record) -> str:
    """What a row says otherwise than its record; empty when nothing."""
    signal = np.asarray(row["signal"])
    if signal.shape != record.d_signal.shape or not np.array_equal(signal, record.d_signal):
        return "samples"
    for name, ours, theirs in (
        ("gain", list(row["gain"]), record.adc_gain),
        ("baseline", list(row["baseline"]), record.baseline),
        ("units", list(row["units"]), record.units),
        ("leads", list(row["lead_names"]), [canonical_lead_name(lead) for lead in record.sig_name]),
        ("rate", row["sampling_rate"], record.fs),
    ):
        if ours != theirs:
            return f"{name}: {ours} instead of {theirs}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--dataset", required=True)
    args = parser.parse_args()
    records, differing = 0, []
    for split, rows in load_dataset(args.dataset).items():
        for row in tqdm(rows, desc=split):
            record = wfdb.rdrecord(str(args.data_dir / row["source"]), physical=False)
            found = difference(row, record)
            records += 1
            if found:
                differing.append(f"{row['record_id']}: {found}")
    print(f"{records - len(differing)} of {records} records are what wfdb reads, sample for sample")
    for line in differing:
        print(line)
    raise SystemExit(bool(differing))


if __name__ == "__main__":
    main()
