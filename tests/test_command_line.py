"""The command `ecgformers`, as somebody types it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet
from pydicom.data import get_testdata_file
from synthetic import write_dataset
from transformers import pipeline

from ecgformers import __version__, command_line, read_ecg

MELP = str(Path(__file__).parents[1] / "model_cards" / "melp-tiny-ptb-xl")
DICOM_ECG = str(get_testdata_file("waveform_ecg.dcm", download=False))
LABELS = ["normal ecg", "atrial fibrillation"]
COMMANDS = (
    *("describe", "check", "plot", "classify", "report", "embed"),
    *("train", "evaluate", "data", "convert", "publish", "publish-data"),
)


@pytest.fixture
def run(capsys):
    """Exit code, output and errors of a command line."""

    def of(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            command_line.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return of


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """Twenty recordings, the third and the last broken, and files that are none."""
    folder = tmp_path_factory.mktemp("recordings")
    record = read_ecg(DICOM_ECG)
    for number in range(20):
        signal = np.roll(record.signal, 131 * number, axis=1).astype(np.float32)
        np.savez(folder / f"{number:02}.npz", signal=signal, lead_names=record.lead_names, sampling_rate=1000)
    (folder / "02.npz").write_bytes(b"PK damaged")
    np.savez(folder / "19.npz", signal=np.zeros((12, 5000)), lead_names=record.lead_names, sampling_rate=500)
    (folder / "README.txt").write_text("about these recordings")
    return folder


def test_help_and_describe_load_no_torch():
    code = (
        "import sys\nfrom ecgformers.command_line import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print({'torch', 'transformers', 'datasets', 'matplotlib'} & sys.modules.keys())"
    )
    for arguments in (["--help"], ["describe", DICOM_ECG], ["classify", "--help"]):
        result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert result.stdout.endswith("set()\n") and not result.stderr, result


def test_help_names_every_command_and_has_examples(run):
    code, shown, _ = run("--help")
    assert code == 0 and all(f"\n  {name} " in shown for name in COMMANDS) and "not a medical device" in shown
    for name in COMMANDS:
        assert "Example: ecgformers " + name in run(name, "--help")[1]
    assert run("--version")[1] == f"{__version__}\n"


@pytest.mark.parametrize(
    ("name", "which"),
    [
        *[("train", each) for each in command_line.TRAINING],
        *[("evaluate", each) for each in command_line.EVALUATION],
        *[("data", each) for each in command_line.DATA],
        *[("convert", each) for each in command_line.CONVERTING],
    ],
)
def test_every_recipe_says_what_it_takes(run, name, which):
    which = which.replace("_", "-")
    code, shown, _ = run(name, which, "--help")
    assert code == 0 and f"usage: ecgformers {name} {which}" in shown


def test_python_m_does_the_same():
    command = [sys.executable, "-m", "ecgformers", "describe", DICOM_ECG, "--json"]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (
        said["sampling_rate"] == 1000 and said["leads"][:3] == ["I", "II", "III"] and round(said["heart_rate"]) == 61
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("describe", "nowhere.hea"), 1, "nowhere.hea: there is no such file"),
        (("describe", "https://example.org/a.hea"), 1, "is not a local file"),
        (("classify", DICOM_ECG, "--model", "./nowhere"), 1, "--model: there is no folder ./nowhere"),
        (("classify", DICOM_ECG, "--model", MELP), 1, "no trained head.*--labels"),
        (("classify", DICOM_ECG, "--model", MELP, "--labels", ","), 1, "there is no label"),
        (("report", DICOM_ECG, "--model", MELP.replace("melp", "echoing-ecg")), 1, "cannot do ecg-to-text"),
        (("embed", DICOM_ECG, "--model", MELP, "--output", "x", "--feature", "none"), 1, "no output 'none'"),
        (("evaluate", "zero-shot", "--model", MELP), 2, "--data"),
        (("classify", DICOM_ECG), 2, "--model"),
        (("evaluate", "nothing"), 2, "nothing"),
    ],
)
def test_errors_are_words_and_a_code(run, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    found, out, err = run(*arguments)
    *before, last = err.strip().splitlines()
    assert found == code and not out and "Traceback" not in err
    assert re.search(message, err), err
    if code == 1:
        assert last.startswith("ecgformers: ") and not before
        assert "Traceback" in run("--debug", *arguments)[2]
    assert not list(tmp_path.iterdir())


def test_check(run, recordings):
    code, shown, summary = run("check", recordings / "00.npz", DICOM_ECG)
    assert code == 0 and shown.count("nothing found") == 2 and summary == "2 without a finding, 0 with findings\n"
    code, shown, _ = run("check", recordings, "--json")
    findings = {Path(row["file"]).name: row["findings"] for row in map(json.loads, shown.splitlines())}
    assert code == 3 and len(findings) == 20
    assert {name for name, found in findings.items() if found} == {"02.npz", "19.npz"}


def test_plot(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("plot", DICOM_ECG)[:2] == (0, "waveform_ecg.png\n")
    assert run("plot", DICOM_ECG, "--output", "pictures/ecg.pdf", "--start", 2)[0] == 0
    assert (tmp_path / "waveform_ecg.png").read_bytes()[1:4] == b"PNG"
    assert (tmp_path / "pictures" / "ecg.pdf").read_bytes()[:4] == b"%PDF"


def test_classify_a_folder_with_broken_files(run, recordings):
    labels = ["--labels", ",".join(LABELS)]
    code, shown, _ = run("classify", recordings, "--model", MELP, *labels, "--json", "--batch-size", 3)
    rows = {Path(row["file"]).name: row for row in map(json.loads, shown.splitlines())}
    assert code == 3 and len(rows) == 20
    assert {name for name, row in rows.items() if "error" in row} == {"02.npz", "19.npz"}
    answer = pipeline("zero-shot-ecg-classification", model=MELP)(recordings / "07.npz", candidate_labels=LABELS)
    assert [entry["label"] for entry in rows["07.npz"]["labels"]] == [entry["label"] for entry in answer]
    assert rows["07.npz"]["labels"][0]["score"] == pytest.approx(answer[0]["score"], abs=1e-4)

    code, shown, errors = run("classify", recordings, "--model", MELP, *labels)
    assert code == 3 and len(shown.splitlines()) == 18 and "normal ecg 9" in shown.splitlines()[0]
    assert errors.count("\nerror: ") + errors.startswith("error: ") == 2
    assert errors.endswith("18 classified, 2 could not be used\n")


def test_labels_are_texts_tasks_or_files(run, tmp_path):
    (tmp_path / "mine.yaml").write_text("normal: [normal ecg, normales ekg]\nfibrillation: atrial fibrillation\n")
    for labels, expected in (
        ("ptbxl_super", "normal"),
        (tmp_path / "mine.yaml", "normal "),
        ("normal ecg, atrial fibrillation", "normal ecg "),
    ):
        code, shown, _ = run("classify", DICOM_ECG, "--model", MELP, "--labels", labels, "--top-k", 1)
        assert code == 0 and shown.startswith(f"{DICOM_ECG}  {expected}") and shown.endswith("%\n")


def test_report(run):
    assert "sinus" in run("report", DICOM_ECG, "--model", MELP)[1]
    code, shown, _ = run("report", DICOM_ECG, "--model", MELP, "--max-new-tokens", 1, "--json")
    assert code == 0 and len(json.loads(shown)["report"].split()) == 1


def test_embed(run, recordings, tmp_path):
    output = tmp_path / "embeddings.parquet"
    code, _, errors = run("embed", recordings, "--model", MELP, "--output", output, "--batch-size", 4)
    table = parquet.read_table(output).to_pylist()
    assert code == 3 and len(table) == 18 and "18 embedded, 2 could not be used" in errors
    expected = pipeline("ecg-feature-extraction", model=MELP)(str(recordings / "11.npz"))
    found = next(row["embedding"] for row in table if row["file"].endswith("11.npz"))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    before = output.read_bytes()
    assert run("embed", recordings / "02.npz", "--model", MELP, "--output", output)[0] == 1
    assert output.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == [output.name]


def test_an_evaluation_and_the_command_it_names(run, tmp_path):
    write_dataset(tmp_path / "data", records=64, samples=1000)
    arguments = ["--model", MELP, "--data", tmp_path / "data", "--task", "ptbxl_super"]
    code, shown, _ = run("evaluate", "zero-shot", *arguments, "--output", tmp_path / "results", "--resamples", 0)
    assert code == 0 and "melp-tiny-ptb-xl" in shown
    (result,) = (tmp_path / "results").glob("*.json")
    assert json.loads(result.read_text())["command"].startswith(f"ecgformers evaluate zero-shot --model {MELP}")
