"""CPSC 2018: 6,877 12-lead ECGs of 6 to 60 s with nine classes, from eleven hospitals in China.

    python -m ecgformers.datasets_scripts.cpsc2018 build --data-dir challenge-2021/1.0.3 --output cpsc2018

Source: Liu et al., J. Med. Imaging Health Inform. 8:1368 (2018), in the WFDB form of the PhysioNet/CinC Challenge
2021, release 1.0.3 (`training/cpsc_2018`, CC BY 4.0, open).  `--splits`: tables as MERL and MELP use them ("icbeb").
"""

from ecgformers.datasets_scripts.cinc2021 import CincBuilder
from ecgformers.datasets_scripts.command_line import main


class Cpsc2018(CincBuilder):
    card = "cpsc2018"
    physionet = "challenge-2021/1.0.3"
    subfolder = "training/cpsc_2018"
    obtain = "Put https://physionet.org/content/challenge-2021/1.0.3 (training/cpsc_2018) there, or add --download."


if __name__ == "__main__":
    main(Cpsc2018)
