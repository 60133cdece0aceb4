"""A training stopped by anything: kills inside every write, signals, damage, a full disk, a second run."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_loop import Pairs, collate, run, save

from ecgformers.training.checkpoints import RESUME_ME, damage, replace_folder, tidy


def weights(folder: Path, checkpoint: str) -> bytes:
    return (folder / "run" / checkpoint / "model.safetensors").read_bytes()


LAST = "checkpoint-00000008"
END = "checkpoint-00000004"
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


# ---- killed inside a write


def kill_at(point: int) -> None:
    """Let this process kill itself (SIGKILL) at its `point`-th write, rename or removal in a run's folder; half of the
    file is written then."""
    import accelerate.utils.other

    reached = 0

    def here() -> bool:
        nonlocal reached
        reached += 1
        return reached == point

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def half_written(write):
        def wrapped(content, path, *args, **options):
            if here():
                whole = path.with_name("whole")
                write(content, whole, *args, **options)
                path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
                whole.unlink()
                die()
            return write(content, path, *args, **options)

        return wrapped

    def before(action):
        def wrapped(*args, **options):
            if here():
                die()
            return action(*args, **options)

        return wrapped

    def half_removed(path, ignore_errors=False):
        if path.exists():
            if here():
                next(path.iterdir()).unlink()
                die()
            rmtree(path, ignore_errors)

    write_text, rmtree = Path.write_text, shutil.rmtree
    torch.save = half_written(torch.save)
    accelerate.utils.other.safe_save_file = half_written(accelerate.utils.other.safe_save_file)
    Path.write_text = lambda path, text: half_written(lambda content, p: write_text(p, content))(text, path)
    Path.rename = before(Path.rename)
    shutil.rmtree = half_removed


@torch.no_grad()
def fit(model: torch.nn.Module) -> float:
    """A score of the weights that grows as they learn."""
    batch = collate(Pairs().rows)
    return -model.eval()(batch["input_values"], batch["texts"]).loss.item()


def in_a_process(folder: Path, point: int | None, resume: bool) -> int:
    """How a training ended in a process of its own: its exit code, or minus the signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if point is not None:
                kill_at(point)
            run(folder, score=fit, epochs=1, save_steps=2, keep=1, evaluations_per_epoch=2, resume=resume)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def stop_everywhere(folder: Path):
    """Run to the end; then be killed at every point there is, and resume; print how it all ended."""
    ends = [in_a_process(folder / "whole", None, False)]
    results = []
    for point in range(1, 200):
        code = in_a_process(folder / str(point), point, False)
        if code == 0:
            break
        output = folder / str(point) / "run"
        saved = sorted(path.name for path in output.glob("checkpoint-????????"))
        sound = [name for name in saved if damage(output / name) is None]
        ends.append(in_a_process(folder / str(point), None, True))
        results.append({"code": code, "sound": sound})
    print(json.dumps({"ends": ends, "results": results}))


def test_killed_inside_the_writing_of_every_file(tmp_path):
    command = [sys.executable, __file__, "kill", str(tmp_path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["ends"] == [0] * (len(report["results"]) + 1)
    assert {result["code"] for result in report["results"]} == {-signal.SIGKILL}
    first = next(i for i, result in enumerate(report["results"]) if result["sound"])
    assert all(result["sound"] for result in report["results"][first:]), "a checkpoint was lost"
    files = {path.name for path in (tmp_path / "whole" / "run" / END).iterdir()}
    assert len(report["results"]) > 2 * len(files) + 4, "not every file of both checkpoints and bests was tried"
    for name in (f"{END}/model.safetensors", "best/model.pt"):
        expected = (tmp_path / "whole" / "run" / name).read_bytes()
        for point in range(1, len(report["results"]) + 1):
            output = tmp_path / str(point) / "run"
            assert (output / name).read_bytes() == expected, (point, name)
            assert not [*output.glob("*.partial"), *output.glob("*.old")]


# ---- told to stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_step_finish_and_says_resume_me(tmp_path, number, capsys):
    class Stopping(Pairs):
        def __getitem__(self, index: int):
            self.served = getattr(self, "served", 0) + 1
            if self.served == 2 * 16 + 5:  # in the middle of the third batch
                os.kill(os.getpid(), number)
            return super().__getitem__(index)

    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, data=Stopping())
    assert stopped.value.code == RESUME_ME == 75
    assert f"stopped by {number.name} after step 3: go on with loop.resume=true" in capsys.readouterr().out
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-00000003" and damage(checkpoint) is None
    run(tmp_path, resume=True)
    run(tmp_path / "left alone")
    assert weights(tmp_path, "checkpoint-00000016") == weights(tmp_path / "left alone", "checkpoint-00000016")


def test_two_processes_whose_launcher_is_terminated(tmp_path):
    environment = ENVIRONMENT | {"ACCELERATE_USE_CPU": "1"}  # --multi_gpu means several processes, also without a GPU
    accelerate = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"]
    accelerate += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    accelerate += ["--main_process_port", "0", __file__, "two"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    process = subprocess.Popen([*accelerate, str(tmp_path / "stopped")], **pipes)
    while not list((tmp_path / "stopped").rglob("checkpoint-????????")) and process.poll() is None:
        time.sleep(0.02)
    process.terminate()
    printed, _ = process.communicate()
    assert "stopped by" in printed and "go on with loop.resume=true" in printed, printed
    checkpoints = list((tmp_path / "stopped" / "run").glob("checkpoint-*"))
    assert len(list(checkpoints[0].glob("random_states_*"))) == 2, "one process only"
    assert all(damage(checkpoint) is None for checkpoint in checkpoints)
    assert not (tmp_path / "stopped" / "run" / "checkpoint-00000020").exists(), "the signal came too late"
    for name in ("stopped", "left alone"):
        done = subprocess.run([*accelerate, str(tmp_path / name)], **pipes)
        assert done.returncode == 0, done.stdout
    expected = weights(tmp_path / "left alone", "checkpoint-00000020")
    assert weights(tmp_path / "stopped", "checkpoint-00000020") == expected


class SlowPairs(Pairs):
    def __getitem__(self, index: int):
        time.sleep(0.01)
        return super().__getitem__(index)


def two_processes(folder: Path):
    """What each of the two processes does: train, slowly where it is to be stopped."""
    run(folder, SlowPairs() if folder.name == "stopped" else Pairs(), epochs=10, save_steps=5, resume=True)


# ---- damaged checkpoints


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b""),
            "model.safetensors does not have its checksum",
        ),
        (lambda folder: (folder / "optimizer.bin").unlink(), r"optimizer.bin cannot be read \(No such file"),
        (lambda folder: flip(folder / "random_states_0.pkl"), "random_states_0.pkl does not have its checksum"),
        (lambda folder: (folder / "SHA256SUMS").unlink(), "its SHA256SUMS cannot be read"),
        (lambda folder: (folder / "SHA256SUMS").write_text("?"), "its SHA256SUMS cannot be read"),
        (lambda folder: (folder / "SHA256SUMS").write_text(""), "its SHA256SUMS is empty"),
    ],
)
def test_the_newest_sound_checkpoint_is_taken_and_the_others_are_named(tmp_path, harm, reason, capsys):
    run(tmp_path, epochs=2, save_steps=3)
    expected = weights(tmp_path, LAST)
    harm(tmp_path / "run" / LAST)
    run(tmp_path, epochs=2, save_steps=3, resume=True)
    printed = capsys.readouterr().out
    assert re.search(rf"{LAST} is skipped and renamed to {LAST}\.damaged: {reason}", printed)
    assert "checkpoint-00000006: epoch 1, step 6" in printed
    assert weights(tmp_path, LAST) == expected
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == [
        "checkpoint-00000006",
        LAST,
        f"{LAST}.damaged",
    ]


def flip(path: Path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_checkpoints_that_are_all_damaged_or_of_another_run_stop_it(tmp_path):
    run(tmp_path, epochs=1)
    with pytest.raises(SystemExit, match=r"holds checkpoint-00000004 of an earlier run: pass loop.resume=true, or"):
        run(tmp_path, epochs=1)
    flip(tmp_path / "run" / "checkpoint-00000004" / "model.safetensors")
    with pytest.raises(SystemExit, match=r"no checkpoint in .*run is sound .*model.safetensors does not have"):
        run(tmp_path, epochs=1, resume=True)


def test_sums_are_those_of_sha256sum(tmp_path):
    run(tmp_path, epochs=1)
    checkpoint = tmp_path / "run" / "checkpoint-00000004"
    if shutil.which("sha256sum") is None:
        pytest.skip("there is no sha256sum")
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=checkpoint, check=True, capture_output=True)
    listed = {line.split("  ")[1] for line in (checkpoint / "SHA256SUMS").read_text().splitlines()}
    assert listed == {path.name for path in checkpoint.iterdir()} - {"SHA256SUMS"}


# ---- two runs in one folder


def test_a_second_run_in_a_folder_is_named(tmp_path):
    with pytest.raises(SystemExit, match=rf"run is the folder of another run, process {os.getpid()} on .+: name"):
        run(tmp_path, score=lambda model: run(tmp_path))
    run(tmp_path, resume=True)  # the lock ends with its run


# ---- full disks


def test_tidy_puts_back_what_was_being_replaced(tmp_path):
    replace_folder(tmp_path / "best", lambda folder: save(torch.nn.Linear(1, 1), folder))
    (tmp_path / "best").rename(tmp_path / "best.old")  # a kill between the two renames
    (tmp_path / "best.partial").mkdir()
    tidy(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best"] and (tmp_path / "best" / "model.pt").exists()


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "run"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("file systems can't be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_when_there_is_room(tmp_path, small_disk):
    run(tmp_path, epochs=1)
    (small_disk / "filling").write_bytes(bytes((shutil.disk_usage(small_disk).free & ~4095) - 4096))
    with pytest.raises(SystemExit) as error:
        run(tmp_path, epochs=2, resume=True)
    assert re.fullmatch(r"cannot write to .*run \(0\.0 MiB free\): [^\n]*; what was saved .*", error.value.code)
    (checkpoint,) = small_disk.glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-00000004" and damage(checkpoint) is None
    (small_disk / "filling").unlink()
    run(tmp_path, epochs=2, resume=True)
    assert damage(small_disk / LAST) is None and not list(small_disk.glob("*.partial"))


def test_files_that_may_not_grow(tmp_path, capsys):
    """The same where nothing can be mounted: a limit on the size of files, which stops a write half-way."""
    run(tmp_path, epochs=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(SystemExit, match=r"cannot write to .*run .*what was saved before is whole"):
            run(tmp_path, epochs=2, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [damage(path) for path in (tmp_path / "run").glob("checkpoint-*")] == [None]
    run(tmp_path, epochs=2, resume=True)


if __name__ == "__main__":
    {"two": two_processes, "kill": stop_everywhere}[sys.argv[1]](Path(sys.argv[2]))
