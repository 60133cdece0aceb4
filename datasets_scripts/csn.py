"""CSN, the Chapman-Shaoxing-Ningbo database: 45,152 ten-second 12-lead ECGs at 500 Hz.

    python -m ecgformers.datasets_scripts.csn build --data-dir ecg-arrhythmia/1.0.0 --output csn [--splits DIR]

Source: Zheng et al., Scientific Data 7:48 (2020) and Scientific Reports 10:2898 (2020),
https://doi.org/10.13026/wgex-er52 (CC BY 4.0, open), release 1.0.0: `WFDBRecords/01/010/JS00001.hea`.  Statements are
the SNOMED CT codes of the headers.  `--splits`: tables as MERL and MELP use them ("chapman").
"""

from ecgformers.datasets_scripts.cinc2021 import CincBuilder
from ecgformers.datasets_scripts.command_line import main


class Csn(CincBuilder):
    card = "csn"
    physionet = "ecg-arrhythmia/1.0.0"
    subfolder = "WFDBRecords"
    obtain = "Unpack https://physionet.org/content/ecg-arrhythmia/1.0.0 there, or add --download."


if __name__ == "__main__":
    main(Csn)
