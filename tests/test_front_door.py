"""`import ecgformers`: every name is there, known to transformers in any order, nothing loaded before its time."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import tiny_echoing_ecg
import tiny_melp
from pydicom.data import get_testdata_file

import ecgformers
from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from ecgformers.modeling.modeling_echoing_ecg import EchoingEcgModel
from ecgformers.modeling.modeling_melp import MelpModel
from ecgformers.modeling.processing_ecg import EcgProcessor

HEAVY = {"torch", "transformers", "datasets", "matplotlib", "scipy.signal", "h5py", "pandas", "sklearn", "wfdb"}


def run(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def loaded_by(code: str, *arguments: object) -> set[str]:
    """The heavy modules that a program loads."""
    return HEAVY & set(run(f"{code}\nimport sys\nprint(*sys.modules, sep='\\n')", *arguments).split())


def test_every_name_is_there():
    assert set(ecgformers.__all__) < set(dir(ecgformers))
    for name in ecgformers.__all__:
        value = getattr(ecgformers, name)
        assert value.__name__ == name and value.__module__.startswith("ecgformers.modeling.")
    with pytest.raises(AttributeError, match="no attribute 'Melp'"):
        ecgformers.Melp  # noqa: B018


def test_every_class_that_transformers_knows_is_there():
    auto = import_module("ecgformers.auto")
    names = {name for tables in auto.TABLES.values() for table in tables.values() for name in table.values()}
    assert names < set(ecgformers.__all__)


def test_importing_loads_nothing():
    assert loaded_by("import ecgformers") == set()


def test_reading_and_drawing_load_no_torch(tmp_path):
    code = "import sys; from ecgformers import plot_ecg, read_ecg; record = read_ecg(sys.argv[1])"
    assert loaded_by(code, get_testdata_file("waveform_ecg.dcm")) == set()
    draw = f"{code}; from ecgformers import heart_rate; heart_rate(record); plot_ecg(record).savefig(sys.argv[2])"
    figure = tmp_path / "ecg.png"
    assert loaded_by(draw, get_testdata_file("waveform_ecg.dcm"), figure) == {"matplotlib", "scipy.signal"}
    assert figure.stat().st_size


def test_checking_loads_no_torch():
    code = "import sys; from ecgformers import EcgFeatureExtractor; EcgFeatureExtractor().check_ecg(sys.argv[1])"
    assert loaded_by(code, get_testdata_file("waveform_ecg.dcm")) <= {"transformers", "scipy.signal"}


BUILD = """
import sys, numpy as np
from pathlib import Path
from ecgformers.datasets_scripts.building import build
from ecgformers.datasets_scripts.ecg_folder import EcgFolder
folder = Path(sys.argv[1])
np.save(folder / "a.npy", np.random.default_rng(0).normal(size=(2, 500)))
(folder / "table.csv").write_text("path\\na.npy\\n")
builder = EcgFolder(
    data_dir=str(folder), table="table.csv", path_column="path", lead_names="I,II", sampling_rate=100, units="mV"
)
build(builder, folder / "built")
"""


def test_building_a_data_set_loads_no_torch(tmp_path):
    assert loaded_by(BUILD, tmp_path) == {"datasets", "pandas"}
    assert list(tmp_path.glob("built/data/*.parquet"))


def test_help_for_a_data_set_loads_no_torch():
    code = "import atexit, sys; from ecgformers.datasets_scripts import command_line, ptb_xl\n"
    code += "atexit.register(lambda: print(*sys.modules, sep='\\n'))\n"
    code += "command_line.main(ptb_xl.PtbXl, ['build', '--help'])"
    assert HEAVY & set(run(code).split()) == {"datasets", "pandas"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for model in (MelpModel(tiny_melp.tiny_config()), EchoingEcgModel(tiny_echoing_ecg.tiny_config())):
        folder = root / model.config.model_type
        model.save_pretrained(folder)
        EcgProcessor(EcgFeatureExtractor(normalization="min_max"), tiny_melp.tiny_tokenizer()).save_pretrained(folder)
    return root


CHECK = """
import sys
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor, pipeline
for name, other in (("melp", "MelpConfig"), ("echoing_ecg", "EchoingEcgConfig")):
    folder = f"{sys.argv[1]}/{name}"
    for auto_class in (AutoConfig, AutoModel, AutoProcessor, AutoFeatureExtractor):
        found = auto_class.from_pretrained(folder)
        assert type(found).__module__.startswith("ecgformers.modeling."), found
    import ecgformers
    AutoModel.from_config(AutoConfig.from_pretrained(folder))
    assert type(AutoConfig.for_model(name)) is getattr(ecgformers, other)
    task = pipeline("zero-shot-ecg-classification", folder)
    assert type(task).__module__ == "ecgformers.modeling.pipelines_ecg", task
"""
ORDERS = {
    "ecgformers first": "import ecgformers",
    "transformers first": "from transformers import AutoModel, AutoProcessor, pipeline; import ecgformers",
    "AutoConfig, then ecgformers": "from transformers import AutoConfig; import ecgformers",
    "a model's file": "from ecgformers.modeling.modeling_melp import MelpModel",
    "the pipelines' file": "from ecgformers.modeling.pipelines_ecg import prompt_scores",
}


@pytest.mark.parametrize("order", ORDERS)
def test_transformers_knows_us_in_every_order(folders, order):
    run(ORDERS[order] + CHECK, folders)


def test_only_the_model_that_is_used_is_loaded(folders):
    code = "import ecgformers, sys; from transformers import AutoModel; AutoModel.from_pretrained(sys.argv[1])"
    found = run(f"{code}\nprint(*sys.modules, sep='\\n')", folders / "melp").split()
    assert "ecgformers.modeling.modeling_melp" in found and "ecgformers.modeling.modeling_echoing_ecg" not in found
