"""The planes of DICOM files, from their headers, before any pixel.

Classic images have one plane (PS3.3, C.8.3), enhanced multi-frame images many (C.7.6.16), and a
Siemens mosaic is one image that shows them all as tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .dicom_multiplane import planes_of_enhanced, tiles_of
from .dicom_planes import NoPlanes, Plane, part_of, seconds_of
from .dicom_private import private_words

NEEDS_PYDICOM = "reading DICOM needs pydicom, the extra `dicom`: pip install pydicom python-gdcm"
DIRECTORY = "1.2.840.10008.1.3.10"  # Media Storage Directory Storage, a DICOMDIR
SECONDARY = "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture and its multi-frame forms


@dataclass(frozen=True)
class File:
    """What a DICOM file says of itself: its series, its planes, and words that are private."""

    series: str
    instance: str
    number: int
    planes: tuple[Plane, ...]
    private: frozenset[str]


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise NoPlanes(NEEDS_PYDICOM) from error
    return pydicom


def read_file(path: Path) -> File:
    """Header of a DICOM file. NoPlanes for one that shows no part of a volume, and says why."""
    pydicom = _pydicom()
    try:
        data = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        kind = str(data.get("SOPClassUID") or data.file_meta.get("MediaStorageSOPClassUID", ""))
    except Exception as error:  # pydicom raises many types for a broken file
        raise NoPlanes(f"cannot be read as DICOM: {type(error).__name__}") from error
    if kind == DIRECTORY:
        raise NoPlanes("a DICOMDIR: the files that it lists are found by themselves")
    if kind.startswith(SECONDARY):
        raise NoPlanes("a secondary capture: a picture without geometry")
    if "Rows" not in data or "Columns" not in data:
        raise NoPlanes("a DICOM object without an image")
    if not data.get("SeriesInstanceUID"):
        raise NoPlanes("a DICOM image without SeriesInstanceUID")
    try:
        planes = _planes(path, data)
        number = int(data.get("SeriesNumber") or 0)
    except NoPlanes:
        raise
    except Exception as error:  # a value of another type or length than the standard has
        raise NoPlanes(f"a DICOM image with a broken header: {type(error).__name__}") from error
    instance = str(data.get("SOPInstanceUID") or path)
    return File(str(data.SeriesInstanceUID), instance, number, planes, private_words(data))


def _planes(path: Path, data: Any) -> tuple[Plane, ...]:
    if "PerFrameFunctionalGroupsSequence" in data:
        return tuple(planes_of_enhanced(path, data))
    if int(data.get("NumberOfFrames") or 1) > 1:
        raise NoPlanes("a multi-frame DICOM image without geometry of its frames")
    if "ImageOrientationPatient" not in data or "ImagePositionPatient" not in data:
        raise NoPlanes("a DICOM image without position or orientation")
    one = _plane(path, data, data, data, 0, _order(data), part_of(data.get("ImageType")))
    if "MOSAIC" in (data.get("ImageType") or ()):
        return tuple(tiles_of(one, data))
    return (one,)


def _plane(
    path: Path,
    data: Any,
    place: Any,
    measures: Any,
    number: int,
    order: tuple[int, int, float, int],
    part: str,
) -> Plane:
    """A plane whose position stands in ``place`` and spacing in ``measures``."""
    orientation = [float(v) for v in place.ImageOrientationPatient]
    x, y, z = (float(v) for v in place.ImagePositionPatient)
    between_rows, between_columns = (float(v) for v in measures.PixelSpacing)
    a, b, c, d, e, f = orientation
    return Plane(
        file=path,
        number=number,
        tiles=0,
        rows=int(data.Rows),
        columns=int(data.Columns),
        position=(x, y, z),
        row=(a, b, c),
        column=(d, e, f),
        spacing_mm=(between_rows, between_columns),
        order=order,
        part=part,
        echo_ms=float(data.get("EchoTime") or -1),
        repetition_s=float(data.get("RepetitionTime") or -1000) / 1000,
        slope=float(data.get("RescaleSlope", 1) or 1),
        intercept=float(data.get("RescaleIntercept", 0) or 0),
    )


def _order(data: Any) -> tuple[int, int, float, int]:
    temporal = data.get("TemporalPositionIdentifier")
    acquisition = data.get("AcquisitionNumber")
    seconds = seconds_of(
        data.get("AcquisitionDateTime"), data.get("AcquisitionDate"), data.get("AcquisitionTime")
    )
    return (
        -1 if temporal is None else int(temporal),
        -1 if acquisition is None else int(acquisition),
        seconds,
        int(data.get("InstanceNumber") or -1),
    )
