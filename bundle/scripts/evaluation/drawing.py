"""Pictures for people: the head in its own planes, and distributions of errors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
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


LARGE_ERROR_DEG = 30.0


def plane_points(plane: str, step_mm: float = 1.0) -> NDArray[np.float64]:
    """Points (rows, columns, 3) of a plane through the head's origin, in mm of the head frame."""
    (right, right_sign), (up, up_sign), _ = PLANES[plane]
    steps = np.arange(-HALF_WIDTH_MM, HALF_WIDTH_MM + step_mm / 2, step_mm)
    points = np.zeros((len(steps), len(steps), 3))
    points[:, :, right] = right_sign * steps[None, :]
    points[:, :, up] = -up_sign * steps[:, None]
    return points


def sample_plane(
    volume: NDArray, affine: NDArray, head_to_world: NDArray, plane: str, order: int
) -> NDArray[np.float32]:
    """A plane of the head from a volume (i, j, k) with voxel-to-world ``affine``; NaN outside."""
    world_to_voxel = np.linalg.inv(affine) @ head_to_world
    points = plane_points(plane) @ world_to_voxel[:3, :3].T + world_to_voxel[:3, 3]
    return map_coordinates(
        volume.astype(np.float32), points.transpose(2, 0, 1), order=order, cval=np.nan
    )


def draw_pose(
    path: str | os.PathLike[str],
    image: NDArray,
    affine: NDArray,
    label: NDArray,
    label_affine: NDArray,
    head_to_world: NDArray | None,
    title: str,
) -> None:
    """PNG of the three planes through the head, aligned to the head frame, with mask outlines.

    Where the pose is right, the sagittal plane shows the profile with the face to the left, the
    coronal plane two equal hemispheres, the axial plane the brow above. Without a pose the planes
    run through the middle of the volume along the world's axes.

    Parameters
    ----------
    image, affine : volume (i, j, k) and its voxel-to-world matrix
    label, label_affine : 1 brain, 2 eyes, on any grid
    """
    pose = head_to_world
    if pose is None:
        pose = np.eye(4)
        pose[:3, 3] = (affine @ [*(np.array(image.shape) - 1) / 2, 1])[:3]
    low, high = np.percentile(image, [0.5, 99.5])
    figure = Figure(figsize=(9.6, 3.6), facecolor="black")
    canvas = FigureCanvasAgg(figure)
    extent = (-HALF_WIDTH_MM, HALF_WIDTH_MM) * 2
    for k, (plane, (_, _, letters)) in enumerate(PLANES.items()):
        axes = figure.add_axes((k / 3 + 0.005, 0.01, 0.323, 0.86))
        axes.set_axis_off()
        picture = sample_plane(image, affine, pose, plane, order=1)
        axes.imshow(
            np.nan_to_num(picture, nan=low), cmap="gray", vmin=low, vmax=high, extent=extent
        )
        for value, colour in ((1, "#ffd23f"), (2, "#3bceac")):
            mask = sample_plane(label == value, label_affine, pose, plane, order=1)
            mask = np.nan_to_num(mask)
            if mask.max() > 0.5:
                axes.contour(
                    mask, [0.5], colors=colour, linewidths=1.0, extent=extent, origin="upper"
                )
        for letter, (x, y) in zip(letters, ((-75, 0), (75, 0), (0, 75), (0, -75)), strict=True):
            axes.text(x, y, letter, color="white", ha="center", va="center", fontsize=9)
        name = plane if head_to_world is not None else f"{plane} (world, no pose)"
        axes.text(-78, -76, name, color="white", fontsize=8)
    figure.text(0.01, 0.93, title, color="white", fontsize=10)
    canvas.print_png(os.fspath(path))


def draw_errors(
    path: str | os.PathLike[str], errors_deg: Mapping[str, Sequence[float] | NDArray], title: str
) -> None:
    """PNG of the cumulative distribution of rotation errors in degrees, a curve per name.

    The square root of the angle is drawn, which gives the errors below 30 degrees two fifths of
    the width and leaves 180 degrees, the heads not found, in the picture. A line marks 30 degrees.
    """
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    axes.axvline(LARGE_ERROR_DEG, color="black", linestyle="--", linewidth=1)
    for name, errors in errors_deg.items():
        values = np.sort(np.asarray(errors, dtype=float))
        n = len(values)
        label = f"{name} (no head, n = 0)"
        if n:
            below = 100 * np.mean(values <= LARGE_ERROR_DEG)
            label = f"{name}: median {np.median(values):.1f}°, {below:.0f} % within 30°, n = {n}"
        share = np.arange(1, n + 1) / max(n, 1)
        axes.step([0, *values, 180], [0, *share, 1 if n else 0], where="post", label=label)
    axes.set(xlim=(0, 180), ylim=(0, 1.01), title=title)
    axes.set_xticks((0, 1, 2, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180))
    axes.set(xlabel="rotation error (degrees)", ylabel="share of volumes below")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")
    canvas.print_png(os.fspath(path))
