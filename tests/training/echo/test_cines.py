"""Reading echo cines: colours, crops, and files that are damaged or something else."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from echo_files import REAL_CLIP, dicom, pictures, region, write_dicom, write_real_clip_with_region, write_video
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import generate_frames
from pydicom.pixels import convert_color_space
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from ecgformers.training.echo.cines import CineError, is_cine, read_cine


def frames_of(path: Path) -> np.ndarray:
    return np.stack(list(read_cine(path).frames))


def test_the_real_clip_has_its_colours():
    """Beside Pillow's own way from the JPEG fragments to RGB."""
    cine = read_cine(REAL_CLIP)
    frames = np.stack(list(cine.frames))
    fragments = generate_frames(dcmread(REAL_CLIP).PixelData, number_of_frames=30)
    expected = np.stack([np.asarray(Image.open(io.BytesIO(fragment)).convert("RGB")) for fragment in fragments])
    assert frames.shape == (30, 240, 320, 3) and frames.dtype == np.uint8
    assert np.abs(frames.astype(int) - expected).max() <= 2
    red, green, blue = frames[0, 20, 190].astype(int)  # the green dot that marks the probe's side
    assert green > red + 50 and green > blue
    assert cine.region is None  # its region is of a screen of 640 x 480


def test_the_region_is_cut_out(tmp_path):
    cine = read_cine(write_real_clip_with_region(tmp_path / "clip.dcm"))
    assert cine.region == (42, 15, 298, 208)
    assert np.array_equal(np.stack(list(cine.frames)), frames_of(REAL_CLIP)[:, 15:208, 42:298])


def test_the_largest_two_dimensional_region_counts(tmp_path):
    pixels = pictures()
    regions = (region(0, 0, 63, 47, spatial_format=3), region(8, 0, 15, 7), region(16, 8, 55, 39))
    path = write_dicom(tmp_path / "duplex.dcm", pixels, regions=regions)
    assert np.array_equal(frames_of(path), pixels[:, 8:40, 16:56])
    path = write_dicom(tmp_path / "whole.dcm", pixels, regions=(region(0, 0, 63, 47),))
    assert read_cine(path).region == (0, 0, 64, 48)
    for box in ((0, 0, 64, 47), (0, 0, 63, 48), (5, 5, 4, 9)):
        path = write_dicom(tmp_path / "outside.dcm", pixels, regions=(region(*box),))
        assert read_cine(path).region is None and np.array_equal(frames_of(path), pixels)


def test_a_doppler_spectrum_is_refused(tmp_path):
    path = write_dicom(tmp_path / "spectrum.dcm", pictures(1), regions=(region(0, 0, 63, 47, spatial_format=3),))
    with pytest.raises(CineError, match=r"spectrum.dcm: shows no two-dimensional image"):
        read_cine(path)


def test_every_kind_of_pixel_becomes_rgb(tmp_path):
    pixels = pictures()
    planar = dicom(pixels)
    planar.PlanarConfiguration = 1
    planar.PixelData = pixels.transpose(0, 3, 1, 2).tobytes()
    compressed = dicom(pixels)
    compressed.compress(RLELossless)
    stored = {
        "rgb": dicom(pixels),
        "planar": planar,
        "rle": compressed,
        "ybr": dicom(convert_color_space(pixels, "RGB", "YBR_FULL"), "YBR_FULL"),
    }
    for name, dataset in stored.items():
        dataset.save_as(tmp_path / name, enforce_file_format=True)
        assert np.abs(frames_of(tmp_path / name).astype(int) - pixels).max() <= (2 if name == "ybr" else 0), name
    gray = pixels[..., 0]
    for photometric, expected in (("MONOCHROME2", gray), ("MONOCHROME1", 255 - gray)):
        path = write_dicom(tmp_path / "gray.dcm", gray, photometric=photometric)
        assert np.array_equal(frames_of(path), expected[..., None].repeat(3, -1))
    palette = frames_of(Path(get_testdata_file("examples_palette.dcm", download=False)))
    assert palette.shape == (1, 350, 800, 3) and palette.dtype == np.uint8
    assert palette[0, 5, 400].tolist() == pytest.approx([40, 65, 110], abs=25)  # the blue of the title bar


def test_what_is_no_echo_cine_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_cine(tmp_path / "absent.dcm")
    (tmp_path / "text.dcm").write_text("no DICOM at all")
    with pytest.raises(CineError, match=r"text.dcm: is not a readable DICOM image"):
        read_cine(tmp_path / "text.dcm")
    with pytest.raises(CineError, match="16 bits a sample"):
        read_cine(write_dicom(tmp_path / "deep.dcm", pictures().astype("uint16")))
    ecg = Path(get_testdata_file("waveform_ecg.dcm", download=False))
    with pytest.raises(CineError, match=r"waveform_ecg.dcm: is not a readable DICOM image"):
        read_cine(ecg)
    dataset = dicom(pictures(), photometric="CMYK")
    dataset.save_as(tmp_path / "cmyk.dcm", enforce_file_format=True)
    with pytest.raises(CineError, match=r"cmyk.dcm: "):
        frames_of(tmp_path / "cmyk.dcm")
    dataset = dicom(pictures())
    dataset.Rows = dataset.Columns = 65535
    dataset.save_as(tmp_path / "huge.dcm", enforce_file_format=True)
    with pytest.raises(CineError, match="65535 x 65535"):
        read_cine(tmp_path / "huge.dcm")
    dataset = dicom(pictures())
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "deflated.dcm", enforce_file_format=True)
    with pytest.raises(CineError, match="deflate"):
        read_cine(tmp_path / "deflated.dcm")


def test_missing_frames_are_noticed(tmp_path):
    for dataset, declared in ((dcmread(REAL_CLIP), 31), (dicom(pictures()), 4)):
        dataset.NumberOfFrames = declared
        dataset.save_as(tmp_path / "short.dcm", enforce_file_format=True)
        with pytest.raises(CineError, match=r"short.dcm: (ends after 30 of 31 frames|cannot be decoded)"):
            frames_of(tmp_path / "short.dcm")


def test_a_missing_decoder_is_named(tmp_path, monkeypatch):
    from pydicom.pixels import get_decoder

    decoder = get_decoder(JPEGLSLossless)
    monkeypatch.setattr(decoder, "_available", {})
    monkeypatch.setattr(decoder, "_unavailable", {"pylibjpeg": ("pylibjpeg>=2.0",)})
    dataset = dicom(pictures())
    dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
    dataset.PixelData = b"\xfe\xff\x00\xe0\x00\x00\x00\x00\xfe\xff\xdd\xe0\x00\x00\x00\x00"
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(tmp_path / "clip.dcm", enforce_file_format=True)
    with pytest.raises(CineError, match=r"JPEG-LS.+ needs one of these to be installed: .+pylibjpeg"):
        read_cine(tmp_path / "clip.dcm")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_damaged_clips_are_read_or_refused(data, tmp_path_factory):
    content = bytearray(REAL_CLIP.read_bytes())
    head = st.integers(0, 3000)  # most of what is not pixels
    anywhere = st.integers(0, len(content) - 1)
    for place in data.draw(st.lists(st.one_of(head, anywhere), max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "clip.dcm"
    path.write_bytes(content[: data.draw(st.one_of(st.just(len(content)), anywhere))])
    try:
        for frame in read_cine(path).frames:
            assert frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3
    except CineError as error:
        assert str(error).startswith(str(path))


@pytest.mark.parametrize("name, codec", [("clip.avi", "mjpeg"), ("clip.avi", "mpeg4"), ("CLIP.MP4", "mpeg4")])
def test_videos(tmp_path, name, codec):
    pytest.importorskip("av")
    pixels = pictures(10, 96, 128).repeat(2, 1).repeat(2, 2)
    cine = read_cine(write_video(tmp_path / name, pixels, codec))
    frames = np.stack(list(cine.frames))
    assert cine.region is None and frames.shape == pixels.shape
    difference = frames[:, 8::16, 8::16].astype(int) - pixels[:, 8::16, 8::16]  # in the middle of each block
    assert np.abs(difference).mean() < 8  # exchanged channels would differ by 85 on average


def test_damaged_videos(tmp_path, monkeypatch):
    pytest.importorskip("av")
    for name, codec in (("clip.avi", "mjpeg"), ("clip.mp4", "mpeg4")):
        path = write_video(tmp_path / name, pictures(30), codec)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(CineError, match=name):
            frames_of(path)
    secret = write_video(tmp_path / "secret.mp4", pictures(3), "mpeg4")
    playlist = tmp_path / "playlist.mp4"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n")
    with pytest.raises(CineError, match=r"playlist.mp4: cannot be decoded"):
        frames_of(playlist)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(CineError, match="pip install"):
        frames_of(secret)


def test_cines_are_recognised(tmp_path):
    write_dicom(tmp_path / "1.2.840.113", pictures(1))
    for name in ("a.dcm", "b.AVI", "c.mp4", "notes.txt", "empty"):
        (tmp_path / name).touch()
    assert sorted(path.name for path in tmp_path.iterdir() if is_cine(path)) == [
        "1.2.840.113",
        "a.dcm",
        "b.AVI",
        "c.mp4",
    ]
