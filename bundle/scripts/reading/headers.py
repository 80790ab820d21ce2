"""Whether a header can be meant: affine, voxel sizes, field of view, units.

Affines are voxel to world in RAS mm. Warnings are sentences; what cannot be used is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..labels import Status
from .image import Notes, VolumeError

# What a uterus fits into: slabs of 45 mm and fields of view of 80 mm are in use, and the widest
# bores are 700 mm.
SMALLEST_SIDE_MM, SMALLEST_FIELD_MM, LARGEST_FIELD_MM = 30.0, 75.0, 750.0
WARN_SHEAR = 0.01  # cosine of the angle between two axes that should be 90 degrees apart
DOUBT_SHEAR = 0.05
WHOLE_BODY_MM = 150.0  # less than this at 1 mm and the identity is nobody's scan of a uterus


def by(sizes: Sequence[float] | NDArray[Any]) -> str:
    """Numbers as "3 x 3 x 4.5".

    >>> by([3.0, 3.0, 4.5])
    '3 x 3 x 4.5'
    """
    return " x ".join(f"{float(n):.4g}" for n in sizes)


def voxel_sizes_mm(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lengths (3,) of the voxel axes."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def plausible(extent_mm: NDArray[np.float64]) -> bool:
    """Whether a field of view (3,) could hold a uterus, or the part of one that a slab shows.

    >>> plausible(np.array([192.0, 192, 45])), plausible(np.array([0.2, 0.2, 0.2]))
    (True, False)
    """
    return bool(
        extent_mm.min() >= SMALLEST_SIDE_MM
        and SMALLEST_FIELD_MM <= extent_mm.max() <= LARGEST_FIELD_MM
    )


def with_voxel_sizes(
    affine: NDArray[np.float64], voxel_mm: Sequence[float] | NDArray[np.float64]
) -> NDArray[np.float64]:
    """``affine`` with columns of these lengths; directions and the first voxel stay where they are.

    >>> with_voxel_sizes(np.eye(4), (3.125, 3.125, 3)).diagonal().tolist()
    [3.125, 3.125, 3.0, 1.0]
    """
    scaled = np.array(affine, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled[:3, :3] *= np.asarray(voxel_mm, dtype=np.float64) / voxel_sizes_mm(scaled)
    return scaled


def voxel_size_note(voxel_mm: Sequence[float], before: NDArray[np.float64]) -> str:
    """The warning that tells of sizes from the command line."""
    return f"voxel size {by(voxel_mm)} mm by --voxel_mm, where the header has {by(before)}"


def check_voxel_mm(voxel_mm: Any) -> tuple[float, float, float] | None:
    """Three sizes in mm from what the command line gave: numbers, or text such as "3,3,4.5".

    ValueError for anything else, and for sizes that are not positive.

    >>> check_voxel_mm("3.125,3.125,3"), check_voxel_mm(None)
    ((3.125, 3.125, 3.0), None)
    """
    if voxel_mm is None or voxel_mm == "":
        return None
    parts = voxel_mm.split(",") if isinstance(voxel_mm, str) else voxel_mm
    try:
        a, b, c = (float(part) for part in parts)
    except (TypeError, ValueError):
        a = b = c = np.nan
    if not all(np.isfinite(n) and n > 0 for n in (a, b, c)):
        raise ValueError(
            f"voxel_mm must be three sizes in mm such as 3.125,3.125,3, got {voxel_mm!r}"
        )
    return a, b, c


def check_affine(
    affine: NDArray[np.float64], shape: Sequence[int], notes: Notes, shown: str
) -> None:
    """Refuse an affine that is none; note what in it can hardly be meant.

    Noted: axes that are not at right angles, a field of view that no uterus fits into, the identity
    on a matrix that makes no sense with voxels of 1 mm.

    VolumeError : not finite, or singular; the message has the affine, and says what else may help
    """
    if not np.isfinite(affine).all():
        raise VolumeError(
            Status.UNREADABLE,
            f"{shown}: the affine has values that are no numbers: {_text(affine)}",
            notes.warnings,
        )
    sizes = voxel_sizes_mm(affine)
    with np.errstate(all="ignore"):
        axes = affine[:3, :3] / sizes
        flat = not abs(np.linalg.det(axes)) > 1e-3 or not sizes.min() > 1e-9 * sizes.max()
    if flat or not np.isfinite(sizes).all():
        raise VolumeError(
            Status.UNREADABLE,
            f"{shown}: singular affine {_text(affine)}: voxels of {by(sizes)} mm; "
            "if only their size is wrong, give it by --voxel_mm",
            notes.warnings,
        )
    cosines = np.abs(axes.T @ axes)[np.triu_indices(3, 1)]
    if cosines.max() > WARN_SHEAR:
        tilt = np.degrees(np.arcsin(min(1.0, cosines.max())))
        text = f"shear: the voxel axes are up to {tilt:.1f} degrees away from right angles"
        (notes.doubt if cosines.max() > DOUBT_SHEAR else notes.warn)(text)
    extent_mm = sizes * np.asarray(shape[:3])
    if not plausible(extent_mm):
        size = "large" if extent_mm.max() > LARGEST_FIELD_MM else "small"
        notes.warn(
            f"the field of view of {by(extent_mm)} mm is too {size} for a uterus (voxels of "
            f"{by(sizes)} mm): if the header is wrong, give the voxel size by --voxel_mm"
        )
    if np.array_equal(np.abs(affine), np.eye(4)) and extent_mm.min() < WHOLE_BODY_MM:
        notes.warn(
            f"the affine is the identity: voxels of 1 mm give a field of view of {by(extent_mm)} "
            "mm; position and voxel size were probably lost, give the size by --voxel_mm"
        )


def _text(affine: NDArray[np.float64]) -> str:
    return str([[float(f"{x:.6g}") for x in row] for row in affine[:3]])
