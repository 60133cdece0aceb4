"""Shared fixtures: the folders with real data that some tests take from the environment, and a Hub."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # here and in the processes that tests start: sums in one order, equal to the bit
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="ecgformers-tests-")  # the user's own caches stay as they are
os.environ["HF_HUB_OFFLINE"] = "1"  # as a user may have it: no test needs a network, `hub` below is on this machine

import huggingface_hub.constants
import pytest
import torch
from loopback_hub import LoopbackHub

torch.set_num_threads(1)


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["HF_HOME"])


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
formats_dir = _folder_fixture("ECGFORMERS_FORMATS", "ECG files as carts and Holters write them")
splits_dir = _folder_fixture("ECGFORMERS_SPLITS", "split tables of CPSC 2018 and CSN")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    """A Hub of its own that this process pushes to; other processes find it by `hub.environment`."""
    with LoopbackHub() as hub:
        settings = {
            "ENDPOINT": hub.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path_factory.mktemp("hub_cache")),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
        }
        for name, value in settings.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # a client made before keeps its endpoint
        monkeypatch.setenv("HF_TOKEN", "hf_loopback")
        yield hub
