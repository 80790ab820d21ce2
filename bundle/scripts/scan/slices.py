"""What a stack of slices consists of: its planes, the order of acquisition, one slice. Numpy alone.

Frames are those of docs/conventions.md: world is RAS mm, head +x right, +y anterior, +z superior.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .patient import world_to_patient

Matrix = NDArray[np.float64]

# Row direction, column direction and normal = row x column in the head frame, as columns. Pictures
# are radiological (the fetus's right on the left, the face to the left or up), as DICOM's own
# axial, coronal and sagittal ones are; so the normal of a coronal slice points to the back of the
# head. The last entry is the head's axis along which slices are numbered.
PLANES: dict[str, tuple[tuple[tuple[int, int, int], ...], int]] = {
    "axial": (((-1, 0, 0), (0, -1, 0), (0, 0, 1)), 2),
    "coronal": (((-1, 0, 0), (0, 0, -1), (0, -1, 0)), 1),
    "sagittal": (((0, -1, 0), (0, 0, -1), (1, 0, 0)), 0),
}


@dataclass(frozen=True)
class Slice:
    """One slice of a stack."""

    number: int  # 0 is the lowest along the head's axis: the most inferior, posterior or left
    order: int  # place in the order of acquisition, from 0
    offset_mm: float  # of its middle from the brain's centre, along the (tilted) axis of the head
    slice_to_world: Matrix  # (4, 4): row direction, column direction, normal, centre; RAS mm

    def patient(self, matrix: int, in_plane_mm: float) -> dict[str, list[float]]:
        """The slice in DICOM's patient coordinates (LPS, mm), an image of ``matrix``^2 pixels.

        ImageOrientationPatient has the direction of a row, along which the column index grows, and
        that of a column; ImagePositionPatient is the middle of the first pixel (PS3.3 C.7.6.2.1.1).
        """
        row, column, normal, centre = world_to_patient(self.slice_to_world)[:3].T
        first = centre - (row + column) * (matrix - 1) / 2 * in_plane_mm
        return {
            "image_orientation_patient": [*row.tolist(), *column.tolist()],
            "image_position_patient": first.tolist(),
            "normal_lps": normal.tolist(),
            "centre_lps": centre.tolist(),
        }


def tilt_rotation(tilt_deg: Sequence[float]) -> Matrix:
    """Rotation (3, 3) by three angles in degrees about the head's own x, then y, then z axis.

    Right-handed: a positive first angle lifts the front of an axial slice.
    """
    rotation = np.eye(3)
    for axis, angle_deg in enumerate(tilt_deg):
        c, s = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
        turn = np.eye(3)
        j, k = (axis + 1) % 3, (axis + 2) % 3
        turn[j, j], turn[j, k], turn[k, j], turn[k, k] = c, -s, s, c
        rotation = turn @ rotation
    return rotation


def interleaved(count: int, interleave: int) -> list[int]:
    """Place in the order of acquisition of each of ``count`` slices: every nth, then the next ones.

    >>> interleaved(8, 4)  # acquired: 0 4 1 5 2 6 3 7
    [0, 2, 4, 6, 1, 3, 5, 7]
    """
    acquired = [k for first in range(interleave) for k in range(first, count, interleave)]
    return [acquired.index(k) for k in range(count)]
