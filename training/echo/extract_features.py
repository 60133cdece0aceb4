"""Echo studies -> the Gaussians that EchoingECG learns from, with a frozen EchoCLIP.

    python -m ecgformers.training.echo.extract_features --model DIR --studies CSV_OR_DIR --output FILE.parquet
        [--data-dir DIR] [--study-column study_id] [--path-column path] [--preprocessing clip] [--num-proc N]

`--studies` is a CSV with a line a file (for MIMIC-IV-ECHO: echo-record-list.csv and `--path-column dicom_filepath`),
or a folder in which every folder with cines is a study.  Files are DICOM cines, AVI or MP4 (these need
`pip install "ecgformers[echo]"`).  FILE gets a row a study:

| column | |
|---|---|
| `study_id` | as in the CSV, or the folder relative to `--studies` |
| `echo_embeds` | direction of the mean embedding of all frames, unit norm |
| `echo_logvar` | log of the variance of each dimension over all frames, plus 1e-8 |
| `num_frames`, `files` | how many frames, of which files |
| `uncropped_files` | those of them whose whole picture was taken, for want of a usable ultrasound region |

A file that cannot be used never ends the run: it goes to FILE.rejects.jsonl with the reason, and so does a study
without a usable file.  A run that was stopped goes on where it was (FILE.partial), and the result is the same,
whatever the number of processes.  FILE appears only when it is complete.

Preprocessing: frames are cropped to the ultrasound region, then `clip` (the default) does what EchoCLIP's open_clip
transform does: RGB, shortest side to 224, centre crop.  EchoCLIP's example scripts do something else, which
`echo_clip_example` follows within that region: centre crop to a square, 10 % cut off each of the four sides, and the
channels in reverse (OpenCV's BGR taken for RGB).  They resize with OpenCV's bicubic, without antialiasing; here it is
Pillow's in both cases.

For research use; not a medical device.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModel

from ecgformers.datasets_scripts.tables import inside, read_table
from ecgformers.modeling.modeling_echo_clip import EchoClipModel, FrameStatistics
from ecgformers.options import Options, at_least_one, option, parse, run_command
from ecgformers.training.echo.cines import CineError, is_cine, read_cine
from ecgformers.training.echo.isolated_map import isolated_map

PREPROCESSING = ("clip", "echo_clip_example")
ROWS_A_GROUP = 1000


class EchoStudy(NamedTuple):
    """Files of one echocardiogram, relative to the folder of the data."""

    study_id: str
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Extraction:
    """How frames become embeddings.

    Args:
        model: folder (or Hub repo) of an `EchoClipModel` and its image processor.
        data_dir: the folder that the studies' paths are relative to.
        preprocessing: one of `PREPROCESSING`.
        batch_size: frames at a time.
        device: of torch; None: a GPU where there is one.
        threads: of torch on the CPU; None: its own choice.
    """

    model: str
    data_dir: Path
    preprocessing: str = "clip"
    batch_size: int = 32
    device: str | None = None
    threads: int | None = None


def read_studies(source: Path, study_column: str = "study_id", path_column: str = "path") -> list[EchoStudy]:
    """The studies of a CSV, or of a folder; paths are as in the CSV, or relative to the folder.

    Args:
        source: a CSV file with a line a file, or a folder in which every folder with cines is a study.
        study_column, path_column: names of the CSV's columns.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a column is missing, a line lacks a study or a path, or there is no cine at all.
    """
    studies: dict[str, list[str]] = {}
    if source.is_dir():
        for path in sorted(path for path in source.rglob("*") if path.is_file()):
            if is_cine(path):
                path = path.relative_to(source)
                study_id = path.parent.as_posix() if path.parent.parts else source.resolve().name
                studies.setdefault(study_id, []).append(path.as_posix())
    else:
        for number, line in enumerate(read_table(source, (study_column, path_column)), 2):
            study_id, file = line[study_column], line[path_column]
            if not study_id or not file:
                raise ValueError(f"{source}, line {number}: {study_column} or {path_column} is empty")
            studies.setdefault(study_id, []).append(file)
    if not studies:
        raise ValueError(f"{source} has no echo cines (DICOM, AVI or MP4)")
    return [EchoStudy(study_id, tuple(dict.fromkeys(paths))) for study_id, paths in studies.items()]


def prepare_frame(frame: np.ndarray, preprocessing: str = "clip") -> np.ndarray:
    """What is done to a frame (height, width, 3) between the region crop and the image processor."""
    if preprocessing == "clip":
        return frame
    side = min(frame.shape[:2])
    top, left = ((length - side) // 2 for length in frame.shape[:2])
    margin = side // 10
    square = frame[top + margin : top + side - margin, left + margin : left + side - margin]
    return np.ascontiguousarray(square[..., ::-1])


@cache
def _load(extraction: Extraction) -> tuple[EchoClipModel, Any]:
    if extraction.threads:
        torch.set_num_threads(extraction.threads)
    device = extraction.device or "cpu"
    if extraction.device is None and torch.cuda.is_available():
        device = f"cuda:{os.getpid() % torch.cuda.device_count()}"  # processes start one after the other
    model = AutoModel.from_pretrained(extraction.model, dtype=torch.float32)
    if not isinstance(model, EchoClipModel):
        raise ValueError(f"{extraction.model} holds a model of class {type(model).__name__}, not EchoClipModel")
    model.to(device)  # type: ignore[arg-type]
    return model.eval(), AutoImageProcessor.from_pretrained(extraction.model, backend="pil")


def _batches(frames: Iterable[np.ndarray], processor: Any, extraction: Extraction) -> Iterator[torch.Tensor]:
    """Pixel values (frames, 3, height, width)."""
    batch: list[np.ndarray] = []

    def processed() -> torch.Tensor:
        return processor(batch, input_data_format="channels_last", return_tensors="pt").pixel_values

    for frame in frames:
        batch.append(prepare_frame(frame, extraction.preprocessing))
        if len(batch) == extraction.batch_size:
            yield processed()
            batch.clear()
    if batch:
        yield processed()


def extract_study(extraction: Extraction, study: EchoStudy) -> dict[str, Any]:
    """The row of one study, with the files that could not be used as `rejects`; no `echo_embeds` if none could."""
    model, processor = _load(extraction)
    row = _empty_row(study)
    total: FrameStatistics | None = None
    for path in study.paths:
        try:
            cine = read_cine(inside(extraction.data_dir, path))
            statistics = model.frame_statistics(_batches(cine.frames, processor, extraction))
        except (CineError, OSError, ValueError, MemoryError) as error:
            row["rejects"].append({"study_id": study.study_id, "file": path, "reason": str(error) or repr(error)})
            continue
        total = statistics if total is None else total + statistics
        row["files"].append(path)
        if cine.region is None:
            row["uncropped_files"].append(path)
    if total is None:
        row["rejects"].append({"study_id": study.study_id, "file": None, "reason": "no usable file"})
        return row
    mean, logvar = total.gaussian()
    return row | {"echo_embeds": mean.tolist(), "echo_logvar": logvar.tolist(), "num_frames": total.num_frames}


def _empty_row(study: EchoStudy) -> dict[str, Any]:
    return {"study_id": study.study_id, "files": [], "uncropped_files": [], "rejects": []}


def _dead_row(study: EchoStudy) -> dict[str, Any]:
    reason = "the process that read it died (a crash on a damaged file, or no memory)"
    return _empty_row(study) | {"rejects": [{"study_id": study.study_id, "file": None, "reason": reason}]}


def _run_description(studies: list[EchoStudy], extraction: Extraction) -> dict[str, str]:
    """What a run must have in common with the one it goes on with; the output keeps it as metadata."""
    model, processor = _load(extraction)
    weights = hashlib.sha256(processor.to_json_string().encode())
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(("vision_model.", "visual_projection.")):
            weights.update(tensor.cpu().contiguous().numpy().tobytes())
    return {
        "model": weights.hexdigest(),
        "preprocessing": extraction.preprocessing,
        "studies": hashlib.sha256(json.dumps(studies).encode()).hexdigest(),
    }


def _open_journal(path: Path, run: dict[str, str]) -> dict[str, int]:
    """Where in the journal of an interrupted run each study is, and its unfinished last line off; or a new journal.

    Raises:
        ValueError: it is that of a run with another model, preprocessing or list of studies.
    """
    offsets: dict[str, int] = {}
    with path.open("ab+") as file:
        file.seek(0)
        header = file.readline()
        if not header.endswith(b"\n"):
            file.truncate(0)
            file.write(json.dumps(run).encode() + b"\n")
            return offsets
        different = [name for name, value in json.loads(header).items() if run[name] != value]
        if different:
            raise ValueError(f"{path} is of a run with different {', '.join(different)}: finish that one or delete it")
        position = len(header)
        for line in file:
            if not line.endswith(b"\n"):
                break
            offsets[json.loads(line)["study_id"]] = position
            position += len(line)
        file.truncate(position)
    return offsets


def extract(studies: list[EchoStudy], extraction: Extraction, output: Path, num_proc: int = 1) -> tuple[int, int]:
    """Write the Gaussians of studies to `output`, a Parquet file, and what could not be used beside it.

    Args:
        studies: with distinct ids.
        output: FILE; FILE.partial is the journal while it runs, FILE.rejects.jsonl the list of rejects.
        num_proc: processes, each with a model of its own; 1: this one.

    Returns:
        how many studies have a row, and how many rejects there are.

    Raises:
        FileExistsError: `output` is there already.
        ValueError: it was begun with another model, preprocessing or list of studies.
    """
    journal = output.with_name(f"{output.name}.partial")
    if output.exists() and not journal.exists():
        raise FileExistsError(f"{output} is there already: delete it or name another file")
    output.parent.mkdir(parents=True, exist_ok=True)
    run = _run_description(studies, extraction)
    offsets = _open_journal(journal, run)
    missing = [study for study in studies if study.study_id not in offsets]
    work = partial(extract_study, extraction)
    rows = map(work, missing) if num_proc == 1 else isolated_map(work, missing, num_proc, _dead_row)
    with (
        journal.open("ab") as file,
        tqdm(total=len(studies), initial=len(offsets), desc="Echo studies", unit="study") as progress,
    ):
        rejected = 0
        for row in rows:
            offsets[row["study_id"]] = file.tell()
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()
            rejected += len(row["rejects"])
            progress.set_postfix(rejects=rejected, refresh=False)
            progress.update()
    dim = _load(extraction)[0].config.projection_dim
    counts = _write_output(journal, [offsets[study.study_id] for study in studies], output, dim, run)
    journal.unlink()
    return counts


def _write_output(journal: Path, offsets: list[int], output: Path, dim: int, run: dict[str, str]) -> tuple[int, int]:
    """The journal's rows at these offsets -> `output` and its rejects, each whole or absent."""
    embedding = pa.list_(pa.float32(), dim)
    files = pa.list_(pa.string())
    schema = pa.schema(
        {
            "study_id": pa.string(),
            "echo_embeds": embedding,
            "echo_logvar": embedding,
            "num_frames": pa.int64(),
            "files": files,
            "uncropped_files": files,
        },
        metadata=run,
    )
    rejects = output.with_name(f"{output.name}.rejects.jsonl")
    unfinished = [path.with_name(f"{path.name}.tmp") for path in (rejects, output)]
    num_rows = num_rejects = 0
    rows: list[dict[str, Any]] = []
    with (
        journal.open("rb") as lines,
        unfinished[0].open("w", encoding="utf-8") as reject_lines,
        pq.ParquetWriter(unfinished[1], schema) as writer,
    ):
        for index, offset in enumerate(offsets, 1):
            lines.seek(offset)
            row = json.loads(lines.readline())
            for reject in row.pop("rejects"):
                reject_lines.write(json.dumps(reject, ensure_ascii=False) + "\n")
                num_rejects += 1
            if "echo_embeds" in row:
                rows.append(row)
                num_rows += 1
            if rows and (len(rows) == ROWS_A_GROUP or index == len(offsets)):
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows.clear()
    for path, finished in zip(unfinished, (rejects, output), strict=True):
        os.replace(path, finished)
    return num_rows, num_rejects


@dataclass(frozen=True, kw_only=True)
class ExtractionOptions(Options):
    model: str = option("folder of an EchoClipModel (modeling.converting.echo_clip)")
    studies: Path = option("CSV with a line a file, or a folder")
    output: Path = option("Parquet file to write")
    data_dir: Path | None = option("what a CSV's paths are relative to; by default its folder", None)
    study_column: str = option("of the CSV", "study_id")
    path_column: str = option("of the CSV", "path")
    preprocessing: str = option("see above", "clip", choices=PREPROCESSING)
    batch_size: int = option("frames at a time", 32, check=at_least_one)
    num_proc: int = option("processes; they share the GPUs", 1, check=at_least_one)
    device: str | None = option("of torch; by default a GPU where there is one", None)


def run(options: ExtractionOptions) -> int:
    """Read the studies and write their Gaussians; the number of studies written.

    Raises:
        ValueError: no study could be used.
    """
    studies = read_studies(options.studies, options.study_column, options.path_column)
    data_dir = options.studies if options.studies.is_dir() else options.data_dir or options.studies.parent
    threads = max(1, (os.cpu_count() or 1) // options.num_proc) if options.num_proc > 1 else None
    extraction = Extraction(
        options.model, data_dir, options.preprocessing, options.batch_size, options.device, threads
    )
    rows, rejects = extract(studies, extraction, options.output, options.num_proc)
    print(f"{rows:,} of {len(studies):,} studies written to {options.output}")
    if rejects:
        print(f"{rejects:,} rejects, with the reasons, in {options.output}.rejects.jsonl")
    print("for research use; not a medical device")
    if not rows:
        raise ValueError(f"not one of {len(studies):,} studies could be used: see {options.output}.rejects.jsonl")
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    return run(parse(ExtractionOptions, __doc__, arguments))


if __name__ == "__main__":
    run_command(main)
