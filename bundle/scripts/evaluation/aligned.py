"""The volume in the head's own frame: upright in every viewer, the brain in the middle."""

from __future__ import annotations

import os

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from ..files import replacing
from .planes import HALF_WIDTH_MM

ALIGNED_ANATOMY = 2  # NIFTI_XFORM_ALIGNED_ANAT of nifti1.h


def head_grid(voxel_mm: float = 1.0, half_width_mm: float = HALF_WIDTH_MM) -> tuple[int, NDArray]:
    """Voxels along a side, and voxel to head (4, 4) in mm, of the cube around the head's origin.

    The same for every case, so that aligned heads can be compared voxel by voxel. The middle voxel
    is the origin, the axes are R, A and S of the head.

    >>> side, voxel_to_head = head_grid(2.0)
    >>> side, (voxel_to_head @ [40, 40, 40, 1]).tolist()
    (81, [0.0, 0.0, 0.0, 1.0])
    """
    half = round(half_width_mm / voxel_mm)
    voxel_to_head = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
    voxel_to_head[:3, 3] = -half * voxel_mm
    return 2 * half + 1, voxel_to_head


def align(
    image: NDArray, affine: NDArray, head_to_world: NDArray, voxel_mm: float = 1.0
) -> NDArray[np.float32]:
    """``image`` (i, j, k) on ``head_grid`` (n, n, n), interpolated linearly; 0 outside of it.

    Up to half a voxel beyond the middle of an outer voxel it is that voxel's value, as ITK has it.
    """
    side, voxel_to_head = head_grid(voxel_mm)
    matrix = np.linalg.inv(affine) @ head_to_world @ voxel_to_head
    steps = np.arange(side)
    found = np.zeros((side,) * 3, dtype=np.float32)
    y, z = steps[:, None], steps[None, :]
    for x in range(side):  # plane by plane: the coordinates of all would take ten times the image
        points = [row[0] * x + row[1] * y + row[2] * z + row[3] for row in matrix[:3]]
        inside = np.ones((side, side), dtype=bool)
        for values, n in zip(points, image.shape, strict=True):
            inside &= (values >= -0.5) & (values <= n - 0.5)
        if inside.any():
            plane = map_coordinates(image, points, np.float32, order=1, mode="nearest")
            found[x] = np.where(inside, plane, 0)
    return found


def write_aligned(
    path: str | os.PathLike[str], values: NDArray[np.float32], voxel_to_head: NDArray
) -> None:
    """Write what ``align`` gives; the world of the file is the head frame, in mm."""
    image = nib.Nifti1Image(values, voxel_to_head)
    image.set_sform(voxel_to_head, ALIGNED_ANATOMY)
    image.set_qform(voxel_to_head, ALIGNED_ANATOMY)
    image.header.set_xyzt_units("mm")
    with replacing(path) as partial:
        image.to_filename(partial)
