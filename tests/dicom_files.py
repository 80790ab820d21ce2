"""DICOM series written for the tests, by pydicom, from volumes in RAS mm."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
PATIENT = "Doe^Jane"


def _base(series: int, position: str) -> Any:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID = MRImageStorage
    data.PatientName, data.PatientID, data.PatientBirthDate = PATIENT, "MRN4711", "19900307"
    data.StudyDate = data.SeriesDate = data.AcquisitionDate = "20260102"
    data.StudyInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    data.SeriesInstanceUID = f"1.2.826.0.1.3680043.8.498.1.{series}"
    data.SeriesNumber, data.SeriesDescription = series, f"T2 {PATIENT}"
    data.Modality, data.PatientPosition = "MR", position
    data.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.RescaleSlope, data.RescaleIntercept = 1, 0
    return data


def _finish(data: Any, number: str, path: Path) -> Path:
    series = data.get("SeriesInstanceUID", "1.2.3")
    data.SOPInstanceUID = f"{series}.{number}"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def geometry(affine: np.ndarray) -> dict[str, Any]:
    """Orientation (6,), spacing (between rows, between columns), slice step and corner, LPS."""
    lps = RAS_TO_LPS @ affine
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    return {
        "orientation": [*(lps[:3, 0] / sizes[0]), *(lps[:3, 1] / sizes[1])],
        "spacing": [sizes[1], sizes[0]],
        "step": lps[:3, 2],
        "thickness": sizes[2],
        "corner": lps[:3, 3],
    }


def _numbers(values: Sequence[float]) -> list[str]:
    return [f"{v:.10g}"[:16] for v in values]


def _pixels(data: Any, picture: np.ndarray) -> None:
    """A picture (column, row), as slices of volumes are, or several (frame, column, row)."""
    stored = np.ascontiguousarray(np.swapaxes(picture, -1, -2).astype("<u2"))
    data.Rows, data.Columns = stored.shape[-2:]
    data.PixelData = stored.tobytes()


def write_classic(
    folder: Path,
    volume: np.ndarray,
    affine: np.ndarray,
    series: int = 1,
    position: str = "HFS",
    slices: Sequence[int] | None = None,
    frame: int = 0,
    seconds: float | None = None,
    name: str = "IM{:04d}",
    change: Any = None,
) -> list[Path]:
    """One file per slice, in an order that is not that of the places."""
    where = geometry(affine)
    paths = []
    chosen = range(volume.shape[2]) if slices is None else slices
    for number, k in enumerate(sorted(chosen, key=lambda k: (k % 3, k))):
        data = _base(series, position)
        data.ImageOrientationPatient = _numbers(where["orientation"])
        data.ImagePositionPatient = _numbers(where["corner"] + k * where["step"])
        data.PixelSpacing = _numbers(where["spacing"])
        data.SliceThickness = f"{where['thickness']:.6g}"
        data.InstanceNumber = 1000 * frame + number + 1
        data.RepetitionTime = 2500
        if seconds is not None:
            clock = 3600 * 23 + 3590 + seconds
            day, clock = divmod(clock, 86400)
            data.AcquisitionDate = f"2026010{2 + int(day)}"
            hours, rest = divmod(clock, 3600)
            data.AcquisitionTime = f"{int(hours):02d}{int(rest // 60):02d}{rest % 60:09.6f}"
        _pixels(data, volume[:, :, k])
        if change is not None:
            change(data, k)
        number_text = f"{frame + 1}.{k + 1}"
        paths.append(_finish(data, number_text, folder / name.format(1000 * frame + number)))
    return paths


def write_enhanced(
    folder: Path, frames: Sequence[np.ndarray], affine: np.ndarray, series: int = 1
) -> Path:
    """All frames of all times in one Enhanced MR Image."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence as Items
    from pydicom.uid import EnhancedMRImageStorage

    where, data = geometry(affine), _base(series, "HFS")
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    del data.RescaleSlope, data.RescaleIntercept
    measures, orientation, scale = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = _numbers(where["spacing"])
    measures.SliceThickness = f"{where['thickness']:.6g}"
    orientation.ImageOrientationPatient = _numbers(where["orientation"])
    scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = "2", "0", "US"
    shared = Dataset()
    shared.PixelMeasuresSequence = Items([measures])
    shared.PlaneOrientationSequence = Items([orientation])
    shared.PixelValueTransformationSequence = Items([scale])
    data.SharedFunctionalGroupsSequence = Items([shared])
    groups, pictures = [], []
    for k in reversed(range(frames[0].shape[2])):
        for time, volume in enumerate(frames):
            place, content, group = Dataset(), Dataset(), Dataset()
            place.ImagePositionPatient = _numbers(where["corner"] + k * where["step"])
            content.TemporalPositionIndex = time + 1
            content.StackID, content.InStackPositionNumber = "1", k + 1
            content.DimensionIndexValues = [1, k + 1, time + 1]
            content.FrameAcquisitionDateTime = f"202601020900{2 * time:02d}.000000"
            group.PlanePositionSequence = Items([place])
            group.FrameContentSequence = Items([content])
            groups.append(group)
            pictures.append(volume[:, :, k] / 2)
    data.PerFrameFunctionalGroupsSequence = Items(groups)
    data.DimensionIndexSequence = Items([])
    for pointer in (0x00209056, 0x00209057, 0x00209128):  # stack, place in it, time
        dimension = Dataset()
        dimension.DimensionIndexPointer, dimension.FunctionalGroupPointer = pointer, 0x00209111
        data.DimensionIndexSequence.append(dimension)
    data.NumberOfFrames = len(groups)
    _pixels(data, np.stack(pictures))
    return _finish(data, "1", folder / "enhanced.dcm")


def csa_header(tags: dict[str, list[str]]) -> bytes:
    """A Siemens CSA header of the second kind ("SV10") with these tags."""
    out = b"SV10\4\3\2\1" + struct.pack("<2I", len(tags), 77)
    for name, items in tags.items():
        out += struct.pack(
            "<64si4s3i", name.encode(), len(items), b"FD\0\0", 4, max(len(items), 6), 77
        )
        for item in [*items, *[""] * (6 - len(items))]:
            text = item.encode() + b"\0" if item else b""
            out += struct.pack("<4i", len(text), len(text), 77, len(text))
            out += text + b"\0" * (-len(text) % 4)
    return out


def write_mosaic(
    folder: Path, frames: Sequence[np.ndarray], affine: np.ndarray, series: int = 1
) -> list[Path]:
    """One Siemens mosaic per time: the slices as tiles of one picture."""
    where, paths = geometry(affine), []
    columns, rows, count = frames[0].shape
    tiles = int(np.ceil(np.sqrt(count)))
    row, column = np.array(where["orientation"][:3]), np.array(where["orientation"][3:])
    # the position that Siemens writes: of a picture of the mosaic's size, about the same centre
    corner = where["corner"] - (
        row * where["spacing"][1] * columns * (tiles - 1) / 2
        + column * where["spacing"][0] * rows * (tiles - 1) / 2
    )
    normal = where["step"] / where["thickness"]
    for time, volume in enumerate(frames):
        data = _base(series, "HFS")
        data.Manufacturer = "SIEMENS"
        data.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
        data.ImageOrientationPatient = _numbers(where["orientation"])
        data.ImagePositionPatient = _numbers(corner)
        data.PixelSpacing = _numbers(where["spacing"])
        data.SliceThickness = data.SpacingBetweenSlices = f"{where['thickness']:.6g}"
        data.InstanceNumber = data.AcquisitionNumber = time + 1
        data.AcquisitionTime = f"0900{3 * time:02d}.500000"
        block = data.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
        tags = {
            "NumberOfImagesInMosaic": [str(count)],
            "SliceNormalVector": [f"{v:.8f}" for v in normal],
        }
        block.add_new(0x10, "OB", csa_header(tags))
        picture = np.zeros((tiles * columns, tiles * rows))
        for k in range(count):
            down, right = divmod(k, tiles)
            picture[right * columns : (right + 1) * columns, down * rows : (down + 1) * rows] = (
                volume[:, :, k]
            )
        _pixels(data, picture)
        paths.append(_finish(data, str(time + 1), folder / f"mosaic{time}"))
    return paths
