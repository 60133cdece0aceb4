"""Checkpoints that survive a kill at any moment, a full disk and damage; one run a folder; stopping when told to.

A checkpoint is written beside its place and renamed, so that one with its name is whole; it holds `SHA256SUMS` (in the
form of `sha256sum -c`), so that damage on the disk is seen.
"""

import fcntl
import hashlib
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

RESUME_ME = os.EX_TEMPFAIL  # 75: the exit code of a run that was told to stop and waits to be resumed
SUMS = "SHA256SUMS"
_CHECKPOINTS = "checkpoint-????????"


@contextmanager
def lock(accelerator: Accelerator, output: Path) -> Iterator[None]:
    """Make a run's folder and keep it to this run, until the block or the main process ends, however it does.

    Raises:
        SystemExit: another run has it; the message names it.
    """
    if not accelerator.is_main_process:
        yield
        return
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        file = (output / "run.lock").open("a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise SystemExit(
                f"{output} is the folder of another run, {file.read()}: name another loop.output"
            ) from None
        except OSError as error:  # not every network file system has locks
            print(f"{output} cannot be locked ({error}): see to it that no other run writes there")
        with writing(output):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        yield


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Turn a failed write (a full or read-only disk) into one line, which also says that nothing is lost.

    Raises:
        SystemExit: the block could not write.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have errors of their own
        there = next(folder for folder in (output, *output.parents) if folder.exists())
        free = shutil.disk_usage(there).free / 2**20
        raise SystemExit(
            f"cannot write to {output} ({free:.1f} MiB free): {' '.join(str(error).split())}; what was saved before "
            "is whole: see to the disk, then go on with loop.resume=true"
        ) from error


@contextmanager
def stop_signals() -> Iterator[list[str]]:
    """Within the block SIGTERM and SIGINT end nothing; their names are appended to the list that it gives.

    So do later ones, as launchers pass on a signal that the whole process group has got already.
    """
    names: list[str] = []
    if threading.current_thread() is not threading.main_thread():  # which alone has signal handlers
        yield names
        return
    numbers = signal.SIGTERM, signal.SIGINT
    before = [signal.signal(number, lambda number, _: names.append(signal.Signals(number).name)) for number in numbers]
    try:
        yield names
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def in_any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether `flag` is true in one of the processes; all of them must ask."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device)).item())


def replace_folder(folder: Path, write: Callable[[Path], None]):
    """Write a folder beside `folder` and put it in its place: there is always a whole one (see `tidy`)."""
    unfinished, old = folder.with_name(f"{folder.name}.partial"), folder.with_name(f"{folder.name}.old")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        write(unfinished)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    unfinished.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def tidy(output: Path):
    """Remove what a killed run left half-written, and put back what it was about to replace."""
    for unfinished in output.glob("*.partial"):
        shutil.rmtree(unfinished)
    for old in output.glob("*.old"):
        if old.with_suffix("").exists():
            shutil.rmtree(old)
        else:
            old.rename(old.with_suffix(""))


def save_checkpoint(accelerator: Accelerator, output: Path, step: int, keep: int):
    """Everything that `loop.resume=true` needs; only the newest `keep` checkpoints remain."""
    whole = output / f"checkpoint-{step:08d}"
    unfinished = whole.with_name(f"{whole.name}.partial")
    try:
        accelerator.save_state(unfinished)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            lines = [f"{_sha256(path)}  {path.name}\n" for path in sorted(unfinished.iterdir())]
            (unfinished / SUMS).write_text("".join(lines))
            unfinished.rename(whole)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if accelerator.is_main_process:
        for path in sorted(output.glob(_CHECKPOINTS))[:-keep]:
            shutil.rmtree(path)
    accelerator.wait_for_everyone()


def find_checkpoint(accelerator: Accelerator, output: Path, resume: bool) -> Path | None:
    """The newest sound checkpoint of a run; newer ones that are damaged are named and renamed to `*.damaged`.

    Raises:
        SystemExit: there are checkpoints, but none is sound, or the run is not to be resumed.
    """
    answer: list[Path | str | None] = [None]
    if accelerator.is_main_process:
        with writing(output):
            answer = [_find_checkpoint(output, resume)]
    broadcast_object_list(answer)
    if isinstance(answer[0], str):
        raise SystemExit(answer[0])
    return answer[0]


def _find_checkpoint(output: Path, resume: bool) -> Path | str | None:
    checkpoints = sorted(output.glob(_CHECKPOINTS), reverse=True)
    if not checkpoints:
        return None
    if not resume:
        return f"{output} holds {checkpoints[0].name} of an earlier run: pass loop.resume=true, or another loop.output"
    reasons: list[str] = []
    for checkpoint in checkpoints:
        reason = damage(checkpoint)
        if reason is None:
            for skipped, why in zip(checkpoints, reasons, strict=False):
                print(f"{skipped} is skipped and renamed to {skipped.name}.damaged: {why}")
                skipped.rename(skipped.with_name(f"{skipped.name}.damaged"))
            return checkpoint
        reasons.append(reason)
    return f"no checkpoint in {output} is sound ({checkpoints[0].name}: {reasons[0]}): remove them to start anew"


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, None if its files are those that were saved."""
    try:
        lines = (line.split("  ", 1) for line in (checkpoint / SUMS).read_text().splitlines())
        sums = {name: expected for expected, name in lines}
    except (OSError, ValueError) as error:
        return f"its {SUMS} cannot be read ({error})"
    for name, expected in sums.items():
        try:
            if _sha256(checkpoint / name) != expected:
                return f"{name} does not have its checksum"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None if sums else f"its {SUMS} is empty"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
