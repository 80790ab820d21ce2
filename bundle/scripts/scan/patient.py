"""From the world of NIfTI to DICOM's patient coordinates, and on to those of the scanner.

world   : RAS mm, as nibabel gives it: x grows to the patient's right, y to the anterior, z to the
          head.
patient : LPS mm, DICOM's Reference Coordinate System (PS3.3 C.7.6.2.1.1): x grows to the patient's
          left, y to the posterior, z to the head. The patient of a fetal scan is the mother.
device  : mm about the scanner's isocentre, seen by somebody who stands in front of the scanner,
          where the patient goes in, and looks into the bore: +x to the right, +y down, +z into the
          bore. For a patient who lies head first and supine (HFS) these are the patient's axes.

Makers of scanners define other device axes than these; compare with theirs, on a phantom that shows
its sides, before anything is steered (docs/prescription.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]

# what lies towards gravity: a direction of the patient (LPS)
_DOWN = {
    "S": (0.0, 1.0, 0.0),  # supine: the back
    "P": (0.0, -1.0, 0.0),  # prone: the face
    "DR": (-1.0, 0.0, 0.0),  # decubitus right: the right side
    "DL": (1.0, 0.0, 0.0),  # decubitus left: the left side
}
PATIENT_POSITIONS = tuple(f"{first}{lying}" for first in ("HF", "FF") for lying in _DOWN)


def world_to_patient(matrix: ArrayLike) -> Matrix:
    """A transform into the world (4, 4), as one into patient coordinates.

    Also points (3,) or directions (3,). RAS to LPS changes the sign of x and of y; done twice it
    is undone, so this is the way back too.

    >>> world_to_patient([10.0, 20.0, 30.0]).tolist()
    [-10.0, -20.0, 30.0]
    """
    matrix = np.array(matrix, dtype=np.float64)
    if matrix.shape not in ((3,), (4, 4)):
        raise ValueError(f"a point (3,) or a transform (4, 4) is wanted, got {matrix.shape}")
    matrix[:2] *= -1
    return matrix + 0.0  # no -0.0 in what is written


def patient_to_device(position: str, isocentre_mm: Sequence[float] = (0.0, 0.0, 0.0)) -> Matrix:
    """Transform (4, 4) from patient coordinates (LPS, mm) to those of the scanner, mm.

    The rotation is a signed permutation. DICOM's Patient Position (0018,5100), PS3.3 C.7.3.1.1.2,
    says of a patient seen from the front of the equipment: head first is the head towards the
    front of the equipment, that is, into the bore first; supine is the face up, prone the face
    down; decubitus right is the right side down, decubitus left the left side down. The standard
    gives the term as an annotation: the exact relation is the scanner's, and a patient who does
    not lie straight is a matter of the patient coordinates already.

    Parameters
    ----------
    position : HFS, HFP, HFDR, HFDL, FFS, FFP, FFDR or FFDL
    isocentre_mm : where the isocentre lies in patient coordinates

    Raises ValueError for another position, such as the standard's sitting ones.

    >>> patient_to_device("FFS")[:3, :3].tolist()  # feet first: half a turn about the vertical
    [[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -1.0]]
    """
    if position not in PATIENT_POSITIONS:
        raise ValueError(f"patient position {position!r} is none of {', '.join(PATIENT_POSITIONS)}")
    down = np.array(_DOWN[position[2:]])
    into_bore = np.array([0.0, 0.0, 1.0 if position.startswith("HF") else -1.0])
    transform = np.eye(4)
    # rows are the device's axes in patient coordinates; x is what makes them right-handed
    transform[:3, :3] = np.cross(down, into_bore), down, into_bore
    transform[:3, 3] = -transform[:3, :3] @ np.asarray(isocentre_mm, dtype=np.float64)
    return transform + 0.0
