"""Time and peak memory of a job, each in a fresh process, so that no job profits from what another left behind.

Linux with glibc only.
"""

import ctypes
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc's mallopt


@dataclass(frozen=True)
class Measurement:
    seconds: float  # best of all runs
    mebibytes: float  # growth of the resident set, from the inputs in place to the peak of the first run
    value: float  # what the job computed


def measure(job: Callable[..., Callable[[], float]], *args: Any, more_runs: int = 20) -> Measurement:
    """Measure `step` of `step = job(*args)`, which makes the inputs; smaller inputs warm the libraries up first.

    In the first run malloc gives every block above 64 KiB back at once, so that the resident set is what the job holds
    and not what malloc keeps; in the others it keeps blocks up to 32 MiB, as it does after a while in any process.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure_here, job, args, more_runs).result()


def _measure_here(job: Callable[..., Callable[[], float]], args: Sequence[Any], more_runs: int) -> Measurement:
    libc = ctypes.CDLL(None)
    small = [min(arg, 4) if isinstance(arg, int) else arg for arg in args]
    job(*small)()
    step = job(*args)

    libc.mallopt(MMAP_THRESHOLD, 2**16)
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present size
    before = _resident_peak()
    first, value = _timed(step)
    mebibytes = _resident_peak() - before

    libc.mallopt(MMAP_THRESHOLD, 2**25)
    seconds = min([first] + [_timed(step)[0] for _ in range(more_runs)])
    return Measurement(seconds, mebibytes, value)


def _timed(step: Callable[[], float]) -> tuple[float, float]:
    start = time.perf_counter()
    value = step()
    return time.perf_counter() - start, value


def _resident_peak() -> float:
    status = Path("/proc/self/status").read_text()
    kibibytes = next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]
    return int(kibibytes) / 1024


def available_gibibytes() -> float:
    meminfo = Path("/proc/meminfo").read_text()
    return int(next(line for line in meminfo.splitlines() if line.startswith("MemAvailable:")).split()[1]) / 2**20


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    print(f"\n{title}")
    for row in (header, *rows):
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
