"""Shared fixtures: the folders with real data that some tests take from the environment."""

import os
from pathlib import Path

import pytest


def _folder_fixture(variable: str, what: str):
    @pytest.fixture(scope="session")
    def folder() -> Path:
        value = os.environ.get(variable)
        if not value:
            pytest.skip(f"{variable} is not set: it names the folder with {what}")
        path = Path(value)
        assert path.is_dir(), f"{variable}={value} is not a folder"
        return path

    return folder


parity_dir = _folder_fixture("ECGFORMERS_PARITY", "numbers measured on the reference systems")
ptb_xl_dir = _folder_fixture("ECGFORMERS_PTB_XL", "the packed PTB-XL excerpt (restore.py, chunks/)")
ptb_xl_500hz_dir = _folder_fixture("ECGFORMERS_PTB_XL_500HZ", "500 Hz PTB-XL records")
cinc2021_dir = _folder_fixture("ECGFORMERS_CINC2021", "CPSC 2018, Georgia and CSN records")
code15_dir = _folder_fixture("ECGFORMERS_CODE15", "CODE-15 records")
splits_dir = _folder_fixture("ECGFORMERS_SPLITS", "split tables of CPSC 2018 and CSN")
