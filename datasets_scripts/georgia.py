"""Georgia 12-lead ECG Challenge Database: 10,344 ECGs of 5 or 10 s from the south-east of the USA.

    python -m ecgformers.datasets_scripts.georgia build --data-dir challenge-2021/1.0.3 --output georgia

Source: Alday et al., Physiological Measurement 41:124003 (2020), release 1.0.3 of the PhysioNet/CinC Challenge 2021
(`training/georgia`, CC BY 4.0, open).  Its recordings differ in gain (1000/mV and 4880/mV).
"""

from ecgformers.datasets_scripts.cinc2021 import CincBuilder
from ecgformers.datasets_scripts.command_line import main


class Georgia(CincBuilder):
    card = "georgia"
    physionet = "challenge-2021/1.0.3"
    subfolder = "training/georgia"
    obtain = "Put https://physionet.org/content/challenge-2021/1.0.3 (training/georgia) there, or add --download."


if __name__ == "__main__":
    main(Georgia)
