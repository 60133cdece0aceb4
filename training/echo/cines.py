"""Frames of echocardiograms, one at a time: DICOM cines and AVI or MP4 files -> RGB pictures of the ultrasound image.

A DICOM cine says where on the screen the ultrasound image is (Sequence of Ultrasound Regions, DICOM PS3.3 C.8.5.5);
frames are cropped to its largest two-dimensional region, which leaves out menus, scales and burned-in text.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VIDEO_FORMATS = {".avi": "avi", ".mp4": "mp4", ".m4v": "mp4", ".mov": "mp4"}
DICOM_SUFFIXES = (".dcm", ".dicom")
MAX_PIXELS = 1 << 24  # of a frame; no echo machine comes near, a damaged header may
_RGB = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # pydicom gives RGB for all of these
_TWO_DIMENSIONAL = 1  # Region Spatial Format; 2 is M-mode, 3 a Doppler spectrum
_DICOM_TAGS = [
    "Rows",
    "Columns",
    "NumberOfFrames",
    "BitsStored",
    "PhotometricInterpretation",
    "SequenceOfUltrasoundRegions",
    *[
        f"{color}PaletteColorLookupTable{part}"
        for color in ("Red", "Green", "Blue")
        for part in ("Data", "Descriptor")
    ],
]


class CineError(ValueError):
    """Which file is no readable echo cine, and why."""


@dataclass(frozen=True)
class Cine:
    """A cine, open for reading.

    Args:
        frames: pictures (height, width, 3), uint8, RGB; reading them raises `CineError` where the file is damaged.
        region: (left, top, right, bottom) of the screen that the pictures show; None: all of it, because the file says
            nothing of regions, or because those do not lie on its frames (it was scaled after the recording).
    """

    frames: Iterator[np.ndarray]
    region: tuple[int, int, int, int] | None


def is_cine(path: Path) -> bool:
    """Whether a file looks like a cine: by its suffix, or because it begins as DICOM does."""
    if path.suffix.lower() in (*VIDEO_FORMATS, *DICOM_SUFFIXES):
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_cine(path: Path) -> Cine:
    """Open a cine.  No more than a frame is held in memory.

    Raises:
        CineError: it cannot be decoded (here, or when a frame is read), or shows no two-dimensional image.
        OSError: there is no such file.
    """
    if path.suffix.lower() in VIDEO_FORMATS:
        return Cine(_video_frames(path), None)
    return _read_dicom(path)


@contextmanager
def _blaming(path: Path, otherwise: str) -> Iterator[None]:
    """Turn what goes wrong into a `CineError` that names the file: decoders raise errors of many classes."""
    try:
        yield
    except CineError as error:
        raise CineError(f"{path}: {error}") from None
    except Exception as error:
        raise CineError(f"{path}: {otherwise}: {error!r}") from error


def _read_dicom(path: Path) -> Cine:
    from pydicom import dcmread
    from pydicom.filereader import read_file_meta_info
    from pydicom.pixels import get_decoder
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    with path.open("rb") as file, _blaming(path, "is not a readable DICOM image"):
        syntax = read_file_meta_info(path).TransferSyntaxUID
        if syntax == DeflatedExplicitVRLittleEndian:
            raise CineError("is compressed as a whole (deflate); convert it with dcmconv first")
        decoder = get_decoder(syntax)
        if not decoder.is_available:
            raise CineError(f"{syntax.name} needs one of these to be installed: {decoder.missing_dependencies}")
        header = dcmread(file, stop_before_pixels=True, specific_tags=_DICOM_TAGS)
        _check_size(header.Columns, header.Rows)
        if header.BitsStored != 8:
            raise CineError(f"has {header.BitsStored} bits a sample; echo cines have 8")
        region = _region(header)
    return Cine(_dicom_frames(path, header, region), region)


def _region(header: Any) -> tuple[int, int, int, int] | None:
    """The largest two-dimensional ultrasound region, (left, top, right, bottom), right and bottom excluded."""
    regions = header.get("SequenceOfUltrasoundRegions")
    if not regions:
        return None
    boxes = [
        (
            region.RegionLocationMinX0,
            region.RegionLocationMinY0,
            region.RegionLocationMaxX1 + 1,
            region.RegionLocationMaxY1 + 1,
        )
        for region in regions
        if region.RegionSpatialFormat == _TWO_DIMENSIONAL
    ]
    if not boxes:
        raise CineError("shows no two-dimensional image (its regions are M-mode, Doppler spectra or curves)")
    left, top, right, bottom = max(boxes, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
    if not (left < right <= header.Columns and top < bottom <= header.Rows):
        return None
    return left, top, right, bottom


def _check_size(width: int, height: int):
    if width * height > MAX_PIXELS:
        raise CineError(f"has frames of {width} x {height}; more than {MAX_PIXELS:,} pixels are not believed")


def _dicom_frames(path: Path, header: Any, region: tuple[int, int, int, int] | None) -> Iterator[np.ndarray]:
    from pydicom.pixels import iter_pixels

    left, top, right, bottom = region or (0, 0, header.Columns, header.Rows)
    with _blaming(path, "cannot be decoded"):
        count = 0
        for frame in iter_pixels(path):
            count += 1
            yield _to_rgb(frame[top:bottom, left:right], header)
        if count < (declared := int(header.get("NumberOfFrames") or 1)):
            raise CineError(f"ends after {count} of {declared} frames")


def _to_rgb(frame: np.ndarray, header: Any) -> np.ndarray:
    """(height, width[, samples]) as pydicom gives it -> (height, width, 3)."""
    from pydicom.pixels import apply_color_lut

    photometric = header.PhotometricInterpretation
    if photometric == "PALETTE COLOR":
        frame = apply_color_lut(frame, header)
        return (frame >> 8).astype(np.uint8) if frame.dtype == np.uint16 else frame
    if photometric in ("MONOCHROME1", "MONOCHROME2"):
        frame = 255 - frame if photometric == "MONOCHROME1" else frame
        return np.repeat(frame[..., None], 3, axis=-1)
    if photometric not in _RGB or frame.ndim != 3:
        raise CineError(f"has pixels of kind {photometric}, which is not known here")
    return frame


def _video_frames(path: Path) -> Iterator[np.ndarray]:
    with path.open("rb") as file, _blaming(path, "cannot be decoded"):
        try:
            import av
        except ImportError:
            raise CineError('AVI and MP4 need PyAV: pip install "ecgformers[echo]"') from None
        # An open file and a named format: a playlist that poses as a video would make FFmpeg open what it lists.
        with av.open(file, format=VIDEO_FORMATS[path.suffix.lower()]) as container:
            stream = container.streams.video[0]
            _check_size(stream.width, stream.height)
            count = 0
            for frame in container.decode(stream):
                count += 1
                if frame.is_corrupt:
                    raise CineError(f"is damaged at frame {count}")
                yield frame.to_ndarray(format="rgb24")
            if count < stream.frames - 2:  # an edit list may hide one or two
                raise CineError(f"ends after {count} of {stream.frames} frames")
