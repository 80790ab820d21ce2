"""One slice of a DICOM series, where it lies and when it was taken.

Positions and directions are DICOM's patient coordinates (LPS, mm; PS3.3, C.7.6.2.1.1).
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Vector = tuple[float, float, float]


class NoPlanes(ValueError):
    """A DICOM file that shows no part of a volume; the message says why."""


@dataclass(frozen=True)
class Plane:
    """One slice: where its pixels are, and where it lies.

    number : of the frame in a file of several, or of the tile in a mosaic of tiles x tiles
    position : centre of the first pixel; row, column : directions in which the column number and
    the row number grow; spacing_mm : between rows, between columns
    order : (temporal position, acquisition, seconds, instance), -1 where it is not said
    part : of a complex image, "M", "P", "R" or "I"; echo_ms : echo time, -1 if not said
    """

    file: Path
    number: int
    tiles: int
    rows: int
    columns: int
    position: Vector
    row: Vector
    column: Vector
    spacing_mm: tuple[float, float]
    order: tuple[int, int, float, int]
    part: str = "M"
    echo_ms: float = -1.0
    repetition_s: float = -1.0
    slope: float = 1.0
    intercept: float = 0.0


def part_of(image_type: Any) -> str:
    """Which part of a complex image this is, by the words that vendors write in ImageType."""
    words = [str(word).upper() for word in image_type or ()]
    for letter, names in (
        ("P", ("P", "PHASE", "PHASE MAP", "PHASE_MAP")),
        ("R", ("R", "REAL")),
        ("I", ("I", "IMAGINARY")),
    ):
        if any(word in names for word in words[2:]):
            return letter
    return "M"


def seconds_of(moment: Any, date: Any = None, time: Any = None) -> float:
    """Seconds since an arbitrary day of a DT value, or of a DA and a TM value (PS3.5, 6.2).

    -1 where neither says a time.

    >>> seconds_of(None, "20240102", "000001.5") - seconds_of("20240101235959")
    2.5
    """
    text = str(moment or "")
    if len(text) < 14:
        text = f"{str(date or '').replace('.', '') or '20000101'}{str(time or '').replace(':', '')}"
    found = re.match(r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d(?:\.\d*)?)", text)
    if not found:
        return -1.0
    year, month, day, hour, minute = (int(found[k]) for k in range(1, 6))
    try:
        days = datetime.date(year, month, day).toordinal()
    except ValueError:
        return -1.0
    return 86400.0 * days + 3600 * hour + 60 * minute + float(found[6])


def normal_of(plane: Plane) -> np.ndarray:
    """Direction (3,) in which the third axis grows."""
    return np.cross(plane.row, plane.column)
