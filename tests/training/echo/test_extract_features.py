"""Echo studies to Gaussians: the real clip of pydicom, damaged files, stopped runs."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from echo_files import REAL_CLIP, pictures, write_dicom, write_real_clip_with_region
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import generate_frames

from ecgformers.modeling.losses_echoing_ecg import study_gaussian
from ecgformers.training.echo import extract_features
from ecgformers.training.echo.extract_features import EchoStudy, Extraction, extract, main, prepare_frame, read_studies
from tests.modeling.tiny_echo_clip import save_tiny, tiny_processor


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny(folder)
    return folder


@pytest.fixture
def data(tmp_path) -> Path:
    """Five studies of one or two cines, of which one is damaged; a study without any good file; and other files."""
    folder = tmp_path / "data"
    for study in range(5):
        write_dicom(folder / f"p1/s{study}/a.dcm", pictures(2 + study, seed=study))
    write_dicom(folder / "p1/s1/b.dcm", pictures(4, seed=9))
    damaged = write_dicom(folder / "p1/s2/b.dcm", pictures(4, seed=10))
    damaged.write_bytes(damaged.read_bytes()[:-5000])
    (folder / "p2/s5").mkdir(parents=True)
    (folder / "p2/s5/empty.dcm").touch()
    (folder / "p1/notes.txt").write_text("no cine")
    return folder


def rows_of(path: Path) -> dict[str, dict]:
    return {row["study_id"]: row for row in pq.read_table(path).to_pylist()}


def rejects_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.with_name(f"{path.name}.rejects.jsonl").read_text().splitlines()]


def test_the_real_clip_from_dicom_to_gaussian(model_dir, tmp_path):
    """Beside another way to the same numbers: Pillow, the processor, all frames at once, the closed form."""
    (tmp_path / "study").mkdir()
    write_real_clip_with_region(tmp_path / "study" / "clip.dcm")
    output = tmp_path / "out" / "echo.parquet"
    arguments = ["--model", model_dir, "--studies", tmp_path / "study", "--output", output, "--batch-size", "7"]
    main([str(argument) for argument in arguments])

    fragments = generate_frames(dcmread(REAL_CLIP).PixelData, number_of_frames=30)
    images = [Image.open(io.BytesIO(fragment)).convert("RGB") for fragment in fragments]
    processor = tiny_processor().image_processor
    model, _ = extract_features._load(Extraction(str(model_dir), tmp_path))

    @torch.no_grad()
    def gaussian(images: list[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
        pixel_values = processor(images, return_tensors="pt").pixel_values
        return study_gaussian(model.get_image_features(pixel_values).image_embeds)

    whole, _ = gaussian(images)
    mean, logvar = gaussian([image.crop((42, 15, 298, 208)) for image in images])
    row = rows_of(output)["study"]
    assert row["echo_embeds"] == pytest.approx(mean.tolist(), abs=1e-3)  # the two ways to RGB differ by up to 2 / 255
    assert row["echo_logvar"] == pytest.approx(logvar.tolist(), abs=0.05)
    assert row["echo_embeds"] != pytest.approx(whole.tolist(), abs=3e-2)  # what the crop changes
    assert (row["num_frames"], row["files"], row["uncropped_files"]) == (30, ["clip.dcm"], [])
    assert sorted(path.name for path in output.parent.iterdir()) == ["echo.parquet", "echo.parquet.rejects.jsonl"]
    embedding = pa.list_(pa.float32(), 8)
    assert pq.read_schema(output).field("echo_embeds").type == pq.read_schema(output).field("echo_logvar").type
    assert pq.read_schema(output).field("echo_embeds").type == embedding
    assert pq.read_schema(output).metadata[b"preprocessing"] == b"clip"


def test_bad_files_are_left_out_with_the_reason(model_dir, data, tmp_path, capsys):
    output = tmp_path / "echo.parquet"
    main(["--model", str(model_dir), "--studies", str(data), "--output", str(output)])
    rows = rows_of(output)
    assert list(rows) == [f"p1/s{study}" for study in range(5)]
    assert [row["num_frames"] for row in rows.values()] == [2, 7, 4, 5, 6]
    assert rows["p1/s1"]["files"] == rows["p1/s1"]["uncropped_files"] == ["p1/s1/a.dcm", "p1/s1/b.dcm"]
    assert rows["p1/s2"]["files"] == ["p1/s2/a.dcm"]
    rejects = [(reject["study_id"], reject["file"]) for reject in rejects_of(output)]
    assert rejects == [("p1/s2", "p1/s2/b.dcm"), ("p2/s5", "p2/s5/empty.dcm"), ("p2/s5", None)]
    assert all(reject["reason"] for reject in rejects_of(output))
    printed = capsys.readouterr().out
    assert "5 of 6 studies" in printed and "3 rejects" in printed and "not a medical device" in printed

    # A damaged file takes nothing into its study: the same as if it were not there.
    (data / "p1/s2/b.dcm").unlink()
    extract(read_studies(data), Extraction(str(model_dir), data), tmp_path / "without.parquet")
    assert rows_of(tmp_path / "without.parquet") == rows


def test_a_run_without_any_usable_study_fails(model_dir, data, tmp_path):
    with pytest.raises(ValueError, match="not one of 1 studies could be used"):
        main(["--model", str(model_dir), "--studies", str(data / "p2"), "--output", str(tmp_path / "echo.parquet")])
    assert pq.read_table(tmp_path / "echo.parquet").num_rows == 0


class Stopped(Exception):
    """What ends a run in the middle of the tests."""


@pytest.mark.parametrize("finished", [0, 1, 4])
def test_a_stopped_run_goes_on_and_ends_the_same(model_dir, data, tmp_path, monkeypatch, finished):
    studies, extraction = read_studies(data), Extraction(str(model_dir), data)
    extract(studies, extraction, tmp_path / "whole.parquet")
    output, journal = tmp_path / "stopped.parquet", tmp_path / "stopped.parquet.partial"
    done: list[str] = []
    original = extract_features.extract_study

    def stop_after(limit: int):
        def extract_study(extraction, study):
            if len(done) == limit:
                raise Stopped
            done.append(study.study_id)
            return original(extraction, study)

        monkeypatch.setattr(extract_features, "extract_study", extract_study)

    stop_after(finished)
    with pytest.raises(Stopped):
        extract(studies, extraction, output)
    assert not output.exists()
    with journal.open("ab") as file:
        file.write(b'{"study_id": "p1/s4", "ec')  # killed while it wrote a line
    stop_after(len(studies))
    assert extract(studies, extraction, output) == (5, 3)
    assert done == [study.study_id for study in studies]  # each once
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert rejects_of(output) == rejects_of(tmp_path / "whole.parquet")
    assert not journal.exists()


def test_two_processes_give_the_same(model_dir, data, tmp_path):
    studies, extraction = read_studies(data), Extraction(str(model_dir), data, threads=1)
    extract(studies, extraction, tmp_path / "one.parquet")
    extract(studies, extraction, tmp_path / "two.parquet", num_proc=2)
    assert rows_of(tmp_path / "two.parquet") == rows_of(tmp_path / "one.parquet")
    assert rejects_of(tmp_path / "two.parquet") == rejects_of(tmp_path / "one.parquet")


def test_only_the_same_run_goes_on(model_dir, data, tmp_path, monkeypatch):
    studies, extraction = read_studies(data), Extraction(str(model_dir), data)
    output = tmp_path / "echo.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(extract_features, "extract_study", None)  # stops at the first study
        with pytest.raises(TypeError):
            extract(studies, extraction, output)
    with pytest.raises(ValueError, match="different studies"):
        extract(studies[:-1], extraction, output)
    with pytest.raises(ValueError, match="different preprocessing"):
        extract(studies, Extraction(str(model_dir), data, "echo_clip_example"), output)
    extract(studies, extraction, output)
    with pytest.raises(FileExistsError, match="delete it or name another"):
        extract(studies, extraction, output)


def test_studies_of_a_table(model_dir, data, tmp_path):
    table = data / "list.csv"
    lines = ["subject_id,study_id,dicom_filepath", "1,94,p1/s1/a.dcm", "1,95,p1/s0/a.dcm", "1,94,p1/s1/b.dcm"]
    table.write_text("\n".join([*lines, "1,94,p1/s1/b.dcm", "2,96,../secret.dcm", "2,96,p1/s3/absent.dcm", ""]))
    studies = read_studies(table, path_column="dicom_filepath")
    assert studies[:2] == [EchoStudy("94", ("p1/s1/a.dcm", "p1/s1/b.dcm")), EchoStudy("95", ("p1/s0/a.dcm",))]
    moved = tmp_path / "elsewhere.csv"
    table.rename(moved)
    write_dicom(tmp_path / "secret.dcm", pictures())
    arguments = ["--model", model_dir, "--studies", moved, "--path-column", "dicom_filepath", "--data-dir", data]
    main([str(argument) for argument in [*arguments, "--output", tmp_path / "table.parquet"]])
    by_table = rows_of(tmp_path / "table.parquet")
    extract(read_studies(data), Extraction(str(model_dir), data), tmp_path / "folder.parquet")
    by_folder = rows_of(tmp_path / "folder.parquet")
    for study_id, folder in (("94", "p1/s1"), ("95", "p1/s0")):
        assert by_table[study_id] | {"study_id": folder} == by_folder[folder]
    reasons = [reject["reason"] for reject in rejects_of(tmp_path / "table.parquet")]
    assert "does not lie in" in reasons[0] and "No such file" in reasons[1] and reasons[2] == "no usable file"


def test_lists_that_make_no_sense_are_refused(data, tmp_path):
    (tmp_path / "list.csv").write_text("study_id,path\n1,a.dcm\n,b.dcm\n")
    with pytest.raises(ValueError, match=r"list.csv, line 3: study_id or path is empty"):
        read_studies(tmp_path / "list.csv")
    with pytest.raises(ValueError, match="no column file"):
        read_studies(tmp_path / "list.csv", path_column="file")
    with pytest.raises(FileNotFoundError):
        read_studies(tmp_path / "absent.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no echo cines"):
        read_studies(tmp_path / "empty")
    assert read_studies(data / "p1/s1") == [EchoStudy("s1", ("a.dcm", "b.dcm"))]  # a folder that is itself a study


def test_preprocessing_settings():
    frame = pictures(1, 96, 128)[0]
    assert prepare_frame(frame) is frame
    # A centre square of 96, of which 9 are cut off each side, blue first.
    assert np.array_equal(prepare_frame(frame, "echo_clip_example"), frame[9:87, 25:103, ::-1])


def test_another_model_is_refused(data, tmp_path):
    from tests.modeling.tiny_echoing_ecg import tiny_model

    tiny_model().save_pretrained(tmp_path / "student")
    with pytest.raises(ValueError, match="of class EchoingEcgModel, not EchoClipModel"):
        extract(read_studies(data), Extraction(str(tmp_path / "student"), data), tmp_path / "echo.parquet")
