"""Whether ecgformers works where nothing but its wheel is installed: run it with that environment's Python.

    VENV/bin/python .ci/wheel.py

Every command answers `--help`, whatever module it lies in; a data set is built, a model evaluated on it, a checkpoint
converted, the demo run.  Ends with the commands that failed, and what they said.
"""

import csv
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

import ecgformers

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(ecgformers.__file__).parent
assert not PACKAGE.is_relative_to(ROOT), f"{PACKAGE} is the checkout, not an installed wheel"
sys.path.append(str(ROOT / "tests" / "modeling"))

import tiny_echo_clip  # noqa: E402

STATEMENTS = ("NORM", "IMI", "NST_", "CLBBB", "LVH")
WRITTEN = ("data/data/*.parquet", "results/*.json", "echo/model.safetensors", "demo/ecg.png")


def commands() -> list[str]:
    """The modules that are commands."""
    files = [path for path in PACKAGE.rglob("*.py") if 'if __name__ == "__main__":' in path.read_text("utf-8")]
    return [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in files]


def failure(module: str, *arguments: object) -> str | None:
    """What a command that fails says."""
    line = [sys.executable, "-m", module, *map(str, arguments)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(line, env=environment, capture_output=True, text=True)
    return f"{' '.join(line[1:])}\n{result.stdout}{result.stderr}" if result.returncode else None


def write_recordings(folder: Path) -> None:
    """Twelve leads of noise, ten recordings a fold, and a table that says what is known of each."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "patient", "fold", "report", "statement"])
        for number in range(30):
            np.save(folder / f"{number}.npy", rng.normal(0, 0.1, (12, 1000)))
            fold, statement = 8 + number % 3, STATEMENTS[number % len(STATEMENTS)]
            table.writerow([f"{number}.npy", number, fold, "sinus rhythm.", statement])


def main() -> None:
    modules = commands()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        work = Path(folder)
        os.chdir(work)
        helps = [pool.submit(failure, module, "--help") for module in modules]
        write_recordings(work / "ecgs")
        save_file(tiny_echo_clip.open_clip_layout(tiny_echo_clip.tiny_model()), work / "echo.safetensors")
        read = ["--lead-names", "I,II,III,aVR,aVL,aVF,V1,V2,V3,V4,V5,V6", "--sampling-rate", 100, "--units", "mV"]
        columns = [f"--{name}-column={name}" for name in ("path", "patient", "fold", "report", "statement")]
        splits = ["--validation-folds", 9, "--test-folds", 10]
        model, task = ROOT / "model_cards" / "melp-tiny-ptb-xl", ["--task", "ptbxl_super", "--folds", "8/9/10"]
        runs = [
            ["datasets_scripts.ecg_folder", "build", "--data-dir", "ecgs", "--table", "table.csv", "--output", "data"],
            ["evaluation.zero_shot", "--model", model, "--data", "data", "--output", "results", *task],
            ["modeling.converting.echo_clip", "--checkpoint", "echo.safetensors", "--output", "echo"],
            ["spaces.demo", "--models", ROOT / "model_cards", "--output", "demo"],
        ]
        runs[0] += [*read, *columns, *splits]
        failures = [failure(f"ecgformers.{name}", *arguments) for name, *arguments in runs]
        failures += [each.result() for each in helps]
        missing = [f"{pattern} is not written" for pattern in WRITTEN if not any(work.glob(pattern))]
    failed = [each for each in failures if each]
    if failed or missing:
        sys.exit("\n".join(["these commands fail where the wheel alone is installed:", *failed, *missing]))
    print(f"{len(modules)} commands say what they do, {len(runs)} did it")


if __name__ == "__main__":
    main()
