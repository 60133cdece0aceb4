"""Small echo cines for tests: DICOM files and videos with known pixels, and the real clip that comes with pydicom."""

from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage, generate_uid

REAL_CLIP = Path(
    get_testdata_file("examples_ybr_color.dcm", download=False)
)  # 30 frames, 240 x 320, JPEG, YBR_FULL_422


def pictures(frames: int = 3, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """(frames, height, width, 3), blocks of random colours."""
    blocks = np.random.RandomState(seed).randint(0, 256, (frames, height // 8, width // 8, 3), "uint8")
    return blocks.repeat(8, axis=1).repeat(8, axis=2)


def region(left: int, top: int, right: int, bottom: int, spatial_format: int = 1) -> Dataset:
    """An ultrasound region; right and bottom included, as DICOM has it."""
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = spatial_format, 1, 0
    item.RegionLocationMinX0, item.RegionLocationMinY0 = left, top
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = right, bottom
    return item


def dicom(pixels: np.ndarray, photometric: str = "RGB", regions: tuple[Dataset, ...] = ()) -> Dataset:
    """An uncompressed cine of `pixels` (frames, height, width[, 3]) as they are to be stored."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Modality = "US"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = pixels.shape[:3]
    dataset.SamplesPerPixel = pixels.shape[3] if pixels.ndim == 4 else 1
    if dataset.SamplesPerPixel == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
    if regions:
        dataset.SequenceOfUltrasoundRegions = list(regions)
    dataset.PixelData = pixels.tobytes()
    return dataset


def write_dicom(path: Path, pixels: np.ndarray, **kwargs) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dicom(pixels, **kwargs).save_as(path, enforce_file_format=True)
    return path


def write_real_clip_with_region(path: Path) -> Path:
    """The real clip was scaled to half after the recording and kept its regions: here they are scaled too."""
    clip = dcmread(REAL_CLIP)
    box = clip.SequenceOfUltrasoundRegions[0]
    for corner in ("MinX0", "MinY0", "MaxX1", "MaxY1"):
        box[f"RegionLocation{corner}"].value //= 2
    clip.save_as(path)
    return path


def write_video(path: Path, frames: np.ndarray, codec: str) -> Path:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.bit_rate = 10_000_000
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path
