"""From where to where a brain reaches along its head's axes: what a stack has to cover."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from .slices import tilt_rotation

# How far a brain reaches along its head's axes, in diameters of the sphere of its volume:
# medians over 24 phantoms of this bundle (make_phantom, seeds 1000 to 1023, 3 mm, 20 to 38 weeks);
# each of them lies within 0.09 of these. It reaches furthest down, to the brainstem.
BRAIN_REACH = ((-0.48, 0.48), (-0.54, 0.62), (-0.70, 0.49))


def mask_extent_mm(
    mask: NDArray,
    affine: ArrayLike,
    head_to_world: ArrayLike,
    tilt_deg: Sequence[float] = (0.0, 0.0, 0.0),
) -> NDArray[np.float64]:
    """Extent (3, 2) in mm of a brain mask (i, j, k) along the axes of the head, turned by a tilt.

    ``affine`` (4, 4) is the mask's voxel-to-world matrix, of either handedness. Voxels count with
    their corners. Of several parts the largest is the brain: a stray voxel would add a slice.

    Raises ValueError for a mask without a voxel.
    """
    parts, count = ndimage.label(np.asarray(mask) > 0, np.ones((3, 3, 3)))
    if not count:
        raise ValueError("the mask is empty: there is no brain to cover")
    index = np.argwhere(parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]))
    head_from_voxel = np.linalg.inv(np.asarray(head_to_world, float)) @ np.asarray(affine, float)
    turned = tilt_rotation(tilt_deg).T
    linear, shift = turned @ head_from_voxel[:3, :3], turned @ head_from_voxel[:3, 3]
    points = index @ linear.T + shift
    corner = np.abs(linear).sum(1) / 2
    return np.stack([points.min(0) - corner, points.max(0) + corner], axis=1)


def ellipsoid_extent_mm(
    brain_volume_ml: float, tilt_deg: Sequence[float] = (0.0, 0.0, 0.0)
) -> NDArray[np.float64]:
    """Extent (3, 2) in mm of a brain of which only the volume is known, along the head's axes.

    The brain is taken for an ellipsoid that reaches along the axes as BRAIN_REACH says; about the
    centre of mass it is not symmetrical. A tilt turns the axes along which it is measured.

    Raises ValueError for a volume that is not positive.
    """
    if not np.isfinite(brain_volume_ml) or brain_volume_ml <= 0:
        raise ValueError(f"brain_volume_ml must be more than 0, got {brain_volume_ml}")
    diameter_mm = (6 * brain_volume_ml * 1000 / np.pi) ** (1 / 3)
    low, high = diameter_mm * np.array(BRAIN_REACH).T
    turned = tilt_rotation(tilt_deg)
    middle = (low + high) / 2 @ turned
    # how far an ellipsoid reaches along a direction
    reach = np.linalg.norm((high - low)[:, None] / 2 * turned, axis=0)
    return np.stack([middle - reach, middle + reach], axis=1)
