"""A picture of the planned slices, as lines over planes of the volume they were planned on."""

from __future__ import annotations

import os
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import map_coordinates

from .prescription import Prescription
from .slices import PLANES, tilt_rotation

Matrix = NDArray[np.float64]

HALF_WIDTH_MM = {"head": 90.0, "mother": 170.0}
LETTERS = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}  # left, right, top, bottom edge
STEP_MM = 1.0


class View(NamedTuple):
    """A plane that is looked at: where its middle lies in the world, and what is right and down."""

    name: str
    plane: str
    middle_mm: Matrix  # (3,)
    right: Matrix  # (3,) unit vectors of the world
    down: Matrix
    half_mm: float

    def on_plane(self, points: Matrix) -> Matrix:
        """(n, 2) picture coordinates in mm, right and down, of points (n, 3) of the world."""
        return (points - self.middle_mm) @ np.stack([self.right, self.down], axis=1)


def views(head_to_world: ArrayLike, tilt_deg: tuple[float, float, float]) -> list[View]:
    """The three planes of the head (tilted as the stack), then those of the mother.

    All go through the brain's centre. Those of the mother are along the axes of the world.
    """
    pose = np.asarray(head_to_world, float)
    found = []
    for owner, axes in (("head", pose[:3, :3] @ tilt_rotation(tilt_deg)), ("mother", np.eye(3))):
        for plane in ("sagittal", "coronal", "axial"):
            right, down = (axes @ np.array(PLANES[plane][0], float).T).T[:2]
            found.append(View(owner, plane, pose[:3, 3], right, down, HALF_WIDTH_MM[owner]))
    return found


def _steps_mm(view: View) -> Matrix:
    return np.arange(-view.half_mm, view.half_mm + STEP_MM / 2, STEP_MM)


def plane_image(volume: NDArray, affine: ArrayLike, view: View) -> NDArray[np.float32]:
    """What a view shows of a volume (i, j, k) with voxel-to-world ``affine``; NaN outside."""
    steps = _steps_mm(view)
    points = view.middle_mm + (steps[:, None, None] * view.down + steps[None, :, None] * view.right)
    world_to_voxel = np.linalg.inv(np.asarray(affine, float))
    voxels = points @ world_to_voxel[:3, :3].T + world_to_voxel[:3, 3]
    return map_coordinates(
        np.asarray(volume, np.float32), voxels.transpose(2, 0, 1), order=1, cval=np.nan
    )


def cut(slice_to_world: Matrix, fov_mm: float, view: View) -> Matrix | None:
    """Both ends (2, 2) of the line in which a slice, a square of ``fov_mm``, cuts a view's plane.

    In picture coordinates, mm; None where they do not meet or are parallel.
    """
    half = fov_mm / 2
    corners = np.array([(-half, -half), (half, -half), (half, half), (-half, half)])
    points = corners @ slice_to_world[:3, :2].T + slice_to_world[:3, 3]
    height = (points - view.middle_mm) @ np.cross(view.right, view.down)
    if np.ptp(height) < 1e-6 * fov_mm:
        return None
    ends = []
    for k in range(4):
        a, b = height[k], height[(k + 1) % 4]
        if (a < 0) != (b < 0):
            ends.append(points[k] + (points[(k + 1) % 4] - points[k]) * a / (a - b))
    return view.on_plane(np.array(ends)) if len(ends) == 2 else None


def draw_prescription(
    path: str | os.PathLike[str],
    prescription: Prescription,
    head_to_world: ArrayLike,
    image: NDArray,
    affine: ArrayLike,
    mask: tuple[NDArray, NDArray] | None,
    title: str,
) -> None:
    """PNG of the slices over the planes of the head, and below over those of the mother.

    A line is the middle of a slice, its colour the place in the order of acquisition, first to
    last from yellow to pink. Planes parallel to the slices show the field of view as a square,
    with an arrow along the phase direction. A cross marks the next navigator's centre.

    Parameters
    ----------
    image, affine : volume (i, j, k) and its voxel-to-world matrix
    mask : brain mask and its voxel-to-world matrix, drawn as an outline
    """
    finite = image[np.isfinite(image)]
    low, high = np.percentile(finite, [0.5, 99.5]) if finite.size else (0.0, 1.0)
    figure = Figure(figsize=(10.8, 7.6), facecolor="black")
    canvas = FigureCanvasAgg(figure)
    for k, view in enumerate(views(head_to_world, prescription.tilt_deg)):
        row, column = divmod(k, 3)
        axes = figure.add_axes((column / 3 + 0.004, 0.475 - row * 0.47, 0.325, 0.462))
        axes.set_axis_off()
        extent = (-view.half_mm, view.half_mm, view.half_mm, -view.half_mm)
        picture = np.nan_to_num(plane_image(image, affine, view), nan=low)
        axes.imshow(picture, cmap="gray", vmin=low, vmax=high, extent=extent)
        if mask is not None:
            outline = np.nan_to_num(plane_image(mask[0], mask[1], view))
            if outline.max() > 0.5:
                steps = _steps_mm(view)
                axes.contour(steps, steps, outline, [0.5], colors="#3bceac", linewidths=1.0)
        _draw_slices(axes, prescription, view)
        axes.plot(*view.on_plane(prescription.navigator_fov_centre_mm), "+", color="white", ms=9)
        axes.set(xlim=extent[:2], ylim=extent[2:])
        _letter(axes, view)
    figure.text(0.01, 0.965, title, color="white", fontsize=10, parse_math=False)
    note = f"{len(prescription.slices)} {prescription.plane} slices of "
    note += f"{prescription.thickness_mm:g} mm, phase along the {prescription.phase}s"
    figure.text(0.99, 0.965, note, color="white", fontsize=10, ha="right")
    canvas.print_png(os.fspath(path))


def _draw_slices(axes: Axes, prescription: Prescription, view: View) -> None:
    colours = matplotlib.colormaps["spring_r"]
    last = max(len(prescription.slices) - 1, 1)
    ends_of = {0, last}
    for one in prescription.slices:
        ends = cut(one.slice_to_world, prescription.fov_mm, view)
        if ends is None:
            continue
        colour = colours(one.order / last)
        axes.plot(ends[:, 0], ends[:, 1], color=colour, linewidth=0.8)
        if one.number in ends_of:
            inside = view.half_mm * 0.93
            reach = np.abs(ends[0] - ends[1]).max() / 2
            toward = (ends[0] - ends[1]) / (2 * reach)
            place = (ends[0] + ends[1]) / 2 + toward * min(reach, inside * 0.9)
            axes.text(
                place[0],
                place[1],
                str(one.number),
                color=colour,
                fontsize=8,
                ha="center",
                va="center",
            )
    middle = prescription.slices[len(prescription.slices) // 2].slice_to_world
    facing = abs(float(middle[:3, 2] @ np.cross(view.right, view.down)))
    if facing > 0.999:
        half = prescription.fov_mm / 2
        corners = half * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)])
        square = view.on_plane(corners @ middle[:3, :2].T + middle[:3, 3])
        axes.plot(square[:, 0], square[:, 1], color="#ffd23f", linewidth=1.0, linestyle="--")
        phase = middle[:3, 0 if prescription.phase == "row" else 1]
        tips = view.on_plane(middle[:3, 3] + np.outer((-0.35, 0.35), phase) * view.half_mm)
        axes.annotate("", tips[1], tips[0], arrowprops={"arrowstyle": "<->", "color": "#ffd23f"})


def _letter(axes: Axes, view: View) -> None:
    edge = 0.95 * view.half_mm
    places = ((-edge, 0), (edge, 0), (0, -edge), (0, edge))
    for letter, (x, y) in zip(LETTERS[view.plane], places, strict=True):
        axes.text(x, y, letter, color="white", ha="center", va="center", fontsize=9)
    axes.text(-edge, edge, f"{view.name}: {view.plane}", color="white", fontsize=8)
