"""Planes of the head frame through a volume, and how one is drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

# plane: (axis to the right of the picture, axis upwards), signed head axes; letters at the edges.
# Radiological convention: the fetus's right is on the left of coronal and axial planes.
PLANES = {
    "sagittal": ((1, -1), (2, 1), "APSI"),
    "coronal": ((0, -1), (2, 1), "RLSI"),
    "axial": ((0, -1), (1, 1), "RLAP"),
}


HALF_WIDTH_MM = 80.0

# text on black and on bright fluid
ON_IMAGE: dict[str, Any] = {
    "color": "white",
    "path_effects": [withStroke(linewidth=2, foreground="black")],
}


def plane_points(
    plane: str, step_mm: float = 1.0, offset_mm: float = 0.0, half_width_mm: float = HALF_WIDTH_MM
) -> NDArray[np.float64]:
    """Points (rows, columns, 3) of a plane, in mm of the head frame.

    ``offset_mm`` is where it lies along the head's axis that it does not contain; at 0 the plane
    runs through the head's origin.
    """
    (right, right_sign), (up, up_sign), _ = PLANES[plane]
    steps = np.arange(-half_width_mm, half_width_mm + step_mm / 2, step_mm)
    points = np.full((len(steps), len(steps), 3), offset_mm)
    points[:, :, right] = right_sign * steps[None, :]
    points[:, :, up] = -up_sign * steps[:, None]
    return points


def sample_plane(
    volume: NDArray,
    affine: NDArray,
    head_to_world: NDArray,
    plane: str,
    order: int,
    offset_mm: float = 0.0,
    half_width_mm: float = HALF_WIDTH_MM,
) -> NDArray[np.float32]:
    """A plane of the head from a volume (i, j, k) with voxel-to-world ``affine``; NaN outside."""
    world_to_voxel = np.linalg.inv(affine) @ head_to_world
    points = plane_points(plane, 1.0, offset_mm, half_width_mm)
    points = points @ world_to_voxel[:3, :3].T + world_to_voxel[:3, 3]
    return map_coordinates(
        volume.astype(np.float32, copy=False), points.transpose(2, 0, 1), order=order, cval=np.nan
    )


@dataclass(frozen=True)
class Head:
    """A volume, its mask and its pose, as the pictures show them.

    ``image`` (i, j, k) and ``label`` (1 brain, 2 eyes; on any grid; None for no outlines) each with
    their voxel to world. ``pose`` is head_to_world; without one the planes run through the middle
    of the volume, along the world's axes.
    """

    image: NDArray
    affine: NDArray
    label: NDArray | None
    label_affine: NDArray | None
    pose: NDArray | None

    @property
    def planes_to_world(self) -> NDArray:
        """The pose, or what stands for it."""
        if self.pose is not None:
            return self.pose
        world = np.eye(4)
        world[:3, 3] = (self.affine @ [*(np.array(self.image.shape) - 1) / 2, 1])[:3]
        return world

    def range(self) -> tuple[float, float]:
        """Values that are drawn black and white: percentiles 0.5 and 99.5 of a million voxels."""
        step = max(1, math.ceil((self.image.size / 1e6) ** (1 / 3)))
        low, high = np.nanpercentile(self.image[::step, ::step, ::step], [0.5, 99.5])
        return float(low), float(high)


def draw_plane(
    axes: Axes,
    head: Head,
    plane: str,
    low: float,
    high: float,
    offset_mm: float = 0.0,
    half_width_mm: float = HALF_WIDTH_MM,
) -> None:
    """One plane of the head with the mask's outlines and the letters of its sides."""
    axes.set_axis_off()
    extent = (-half_width_mm, half_width_mm) * 2
    where = (head.planes_to_world, plane)
    picture = sample_plane(head.image, head.affine, *where, 1, offset_mm, half_width_mm)
    axes.imshow(np.nan_to_num(picture, nan=low), cmap="gray", vmin=low, vmax=high, extent=extent)
    for value, colour in ((1, "#ffd23f"), (2, "#3bceac")):
        if head.label is None or head.label_affine is None:
            break
        mask = sample_plane(
            head.label == value, head.label_affine, *where, 1, offset_mm, half_width_mm
        )
        mask = np.nan_to_num(mask)
        if mask.max() > 0.5:
            axes.contour(mask, [0.5], colors=colour, linewidths=1.0, extent=extent, origin="upper")
    edge = half_width_mm - 5
    places = ((-edge, 0), (edge, 0), (0, edge), (0, -edge))
    for letter, (x, y) in zip(PLANES[plane][2], places, strict=True):
        axes.text(x, y, letter, ha="center", va="center", fontsize=9, **ON_IMAGE)
