"""What building a data set and reading it cost, as ratios to plain wfdb on the same recordings.

    python benchmarks/dataset_build.py [--data-dir ptb-xl/1.0.3] [--records 2000] [--num-proc 2] [--repeats 3]

The data folder is PTB-XL at 100 Hz with ptbxl_database.csv (or any table with its columns ecg_id and filename_lr);
without one, as many synthetic recordings are written.  Builds and loops of `wfdb.rdsamp` take turns, and the best
time of each counts, so that the ratios hold on a machine with other work to do.  Memory is the proportional set size
of the build and its workers, sampled while a build of a quarter, of a half and of all of the records runs.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import psutil
import wfdb

from ecgformers.datasets_scripts.building import build
from ecgformers.datasets_scripts.ecg_folder import EcgFolder
from ecgformers.datasets_scripts.rows import SIGNAL_COLUMNS, row_to_record

LEADS = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")
BATCH, BATCHES = 64, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--table", default="ptbxl_database.csv")
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--num-proc", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # one build, in a process of its own
    options = parser.parse_args()
    if options.measure:
        builder = _builder(options.data_dir, options.table, options.records, options.measure)
        build(builder, options.measure / "built", options.num_proc)
        return
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if options.data_dir is None:
            options.data_dir = scratch / "synthetic"
            _write_synthetic(options.data_dir, options.table, options.records)
        _run(options, scratch)


def _run(options: argparse.Namespace, scratch: Path) -> None:
    datasets.disable_progress_bars()
    table = [options.data_dir / row["path"] for row in _rows(options, scratch)]
    count = len(table)

    def plain() -> None:
        for path in table:
            wfdb.rdsamp(str(path))

    def built(processes: int) -> Callable[[], None]:
        builder = _builder(options.data_dir, options.table, options.records, scratch)
        return lambda: build(builder, scratch / f"built {processes}", processes) and None

    several = f"build, {options.num_proc} processes"
    jobs = {"wfdb.rdsamp loop": plain, "build, 1 process": built(1), several: built(options.num_proc)}
    best = _take_turns(jobs, options.repeats)
    print(f"\n{count} recordings of {options.data_dir}\n")
    _print("", "ms a record", "times as fast")
    for name, seconds in best.items():
        _print(name, f"{seconds / count * 1e3:.3f}", f"{best['wfdb.rdsamp loop'] / seconds:.1f}")

    rows = datasets.load_dataset(str(scratch / "built 1"), split="train", cache_dir=str(scratch / "loaded"))
    signals = rows.select_columns(list(SIGNAL_COLUMNS)).with_format("numpy")
    sources, random = rows["source"], np.random.default_rng(0)
    batches = [random.choice(count, min(BATCH, count), replace=False).tolist() for _ in range(BATCHES)]

    def plain_batches() -> None:
        for batch in batches[:3]:
            for index in batch:
                wfdb.rdsamp(str(options.data_dir / sources[index]))

    def record_batches() -> None:
        for batch in batches:
            for row in signals.__getitems__(batch):
                row_to_record(row)

    best = _take_turns({"wfdb.rdsamp": plain_batches, "rows": record_batches}, options.repeats)
    read = {"wfdb.rdsamp": 3 * len(batches[0]), "rows": BATCHES * len(batches[0])}
    print(f"\nrandom batches of {len(batches[0])}, to millivolts\n")
    _print("", "ms a record", "times as fast")
    for name, seconds in best.items():
        ratio = best["wfdb.rdsamp"] / read["wfdb.rdsamp"] / (seconds / read[name])
        _print(name, f"{seconds / read[name] * 1e3:.3f}", f"{ratio:.1f}")

    print(f"\nmemory of a build with {options.num_proc} processes\n")
    _print("records", "peak MiB", "")
    for part in (count // 4, count // 2, count):
        _print(str(part), f"{_peak_memory(options, part, scratch / 'memory') / 2**20:.0f}", "")


def _take_turns(jobs: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """The least seconds each job took, the jobs taking turns."""
    best = dict.fromkeys(jobs, float("inf"))
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def _peak_memory(options: argparse.Namespace, records: int, scratch: Path) -> int:
    scratch.mkdir(exist_ok=True)
    arguments = ["--data-dir", options.data_dir, "--table", options.table, "--records", records, "--measure", scratch]
    command = [sys.executable, __file__, *map(str, arguments), "--num-proc", str(options.num_proc)]
    process = psutil.Popen(command, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        try:
            family = [process, *process.children(recursive=True)]
            peak = max(peak, sum(member.memory_full_info().pss for member in family))
        except psutil.Error:  # one of them has just ended
            pass
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with {process.returncode}")
    shutil.rmtree(scratch)
    return peak


def _builder(data_dir: Path, table: str, records: int, scratch: Path) -> EcgFolder:
    columns = {"table": table, "path_column": "filename_lr", "id_column": "ecg_id"}
    return EcgFolder(data_dir=str(data_dir), cache_dir=str(scratch / "cache"), limit=records, **columns)


def _rows(options: argparse.Namespace, scratch: Path) -> list[dict]:
    builder = _builder(options.data_dir, options.table, options.records, scratch)
    return [builder.row(entry) for entry, _ in zip(builder.entries(), range(options.records), strict=False)]


def _write_synthetic(folder: Path, table: str, records: int) -> None:
    random = np.random.default_rng(0)
    lines = ["ecg_id,filename_lr"]
    for number in range(1, records + 1):
        name = f"records100/{number // 1000 * 1000:05d}/{number:05d}_lr"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        signal = random.integers(-20, 21, (1000, 12)).cumsum(axis=0).astype(np.int16)
        wfdb.wrsamp(
            path.name, 100, ["mV"] * 12, list(LEADS), d_signal=signal, fmt=["16"] * 12, adc_gain=[1000.0] * 12,
            baseline=[0] * 12, write_dir=str(path.parent),
        )  # fmt: skip
        lines.append(f"{number},{name}")
    (folder / table).write_text("\n".join(lines) + "\n")


def _print(*cells: str) -> None:
    print(f"{cells[0]:<24}" + "".join(f"{cell:>16}" for cell in cells[1:]))


if __name__ == "__main__":
    main()
