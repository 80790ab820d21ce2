"""A page to look at: the motion, what each way covered of the brain, and slices side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..files import replacing
from ..simulation.motion import Motion
from ..simulation.scene import Scene
from .closed_loop_tables import WAYS
from .stack_quality import times_covered
from .stack_scan import Run
from .taken_stack import Protocol, angle_deg, distance_mm

# number of slices that cover a point: none, one, two or more
COLOURS = ListedColormap(["#d1495b", "#e9ecef", "#66a3d2"])
SHOWN = 8  # slices of a row
HALF_MM = 70.0
# plane across the slices that shows how they lie: (axis to the right, axis upwards), and its name
ACROSS = {
    "axial": ((1, 2), "mid-sagittal: front to the left"),
    "coronal": ((1, 2), "mid-sagittal: front to the left"),
    "sagittal": ((0, 2), "mid-coronal: the fetus's right to the left"),
}


def coverage_map(
    run: Run, scene: Scene, protocol: Protocol, plane: str
) -> tuple[NDArray[np.float64], tuple[float, float, float, float]]:
    """How often each point of a plane across the slices is covered, NaN outside the brain.

    The plane goes through the brain's centre; rows from the bottom to the top, as `extent`, mm.
    """
    (right, up), _ = ACROSS[plane]
    third = 3 - right - up
    points = scene.brain_mm[np.abs(scene.brain_mm[:, third]) < 2.0].copy()
    points[:, third] = 0
    step = 1.0
    cells = np.unique(np.round(points[:, [right, up]] / step).astype(int), axis=0)
    low, high = cells.min(0), cells.max(0)
    place = np.zeros((len(cells), 3))
    place[:, [right, up]] = cells * step
    count = times_covered(
        place, run.slices_to_head, protocol.thickness_mm, protocol.in_plane_mm * protocol.matrix
    )
    image = np.full((high[1] - low[1] + 1, high[0] - low[0] + 1), np.nan)
    image[cells[:, 1] - low[1], cells[:, 0] - low[0]] = np.minimum(count, 2)
    x0, x1, y0, y1 = low[0] - 0.5, high[0] + 0.5, low[1] - 0.5, high[1] + 0.5
    return image, (x0 * step, x1 * step, y0 * step, y1 * step)


def draw_closed_loop(
    path: str | os.PathLike[str],
    runs: Sequence[Run],
    scene: Scene,
    motion: Motion,
    protocol: Protocol,
    plane: str,
    case: str,
) -> None:
    """PNG of one stack taken in four ways; the runs are complete, with images."""
    figure = Figure(figsize=(15, 13.2), facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.06, 0.862, 0.9, 0.085))
    _draw_motion(axes, runs, scene, motion)
    count = len(runs[0].rows)
    figure.text(
        0.06,
        0.968,
        f"{case}, {scene.ga_weeks:.0f} weeks, {motion.name} motion, {count} {plane} slices of "
        f"{protocol.thickness_mm:g} mm",
        fontsize=14,
    )
    for k, run in enumerate(runs):
        axes = figure.add_axes((0.06 + 0.235 * k, 0.56, 0.19, 0.19))
        _draw_coverage(axes, run, scene, protocol, plane)
    figure.text(
        0.06,
        0.813,
        "What of the brain is covered, each slice placed where it lay in the head at its time: "
        "red by no slice, grey by one, blue by two or more",
        fontsize=11,
    )
    numbers = np.unique(np.linspace(0.12 * count, 0.88 * count - 1, SHOWN).round().astype(int))
    shown = [run for run in runs if run.images and run.name != "pose"]
    for row, run in enumerate(shown):
        bottom = 0.36 - 0.176 * row
        figure.text(0.06, bottom + 0.155, f"Slices {WAYS[run.name]}", fontsize=11)
        for column, number in enumerate(numbers):
            axes = figure.add_axes((0.06 + 0.1135 * column, bottom, 0.11, 0.15))
            _draw_slice(axes, run, int(number), protocol)
    with replacing(path) as partial:
        canvas.print_figure(os.fspath(partial), format="png", dpi=80)


def _draw_motion(axes: Axes, runs: Sequence[Run], scene: Scene, motion: Motion) -> None:
    """How far the head has turned and moved since the stack was planned."""
    start = runs[0].rows[0]["navigator_s"]
    end = runs[0].rows[-1]["slice_s"]
    times = np.linspace(start, end, 400)
    first = motion.at(start, scene.head_to_world)
    poses = [motion.at(time, scene.head_to_world) for time in times]
    axes.plot(times, [angle_deg(pose, first) for pose in poses], color="#1d3557")
    axes.set_xlabel("time, s")
    axes.set_ylabel("turned by, degrees", color="#1d3557")
    other = axes.twinx()
    other.plot(times, [distance_mm(pose, first) for pose in poses], color="#e07a5f")
    other.set_ylabel("moved by, mm", color="#e07a5f")
    axes.set_xlim(start, end)
    axes.grid(alpha=0.3)
    axes.set_title("The head since the stack was planned", loc="left", fontsize=11)


def _draw_coverage(axes: Axes, run: Run, scene: Scene, protocol: Protocol, plane: str) -> None:
    image, (x0, x1, y0, y1) = coverage_map(run, scene, protocol, plane)
    name = ACROSS[plane][1]
    # the front, or the fetus's right, to the left of the picture
    axes.imshow(image, cmap=COLOURS, vmin=0, vmax=2, origin="lower", extent=(x0, x1, y0, y1))
    axes.set_xlim(HALF_MM, -HALF_MM)
    axes.set_ylim(-HALF_MM, HALF_MM)
    axes.set_xticks([])
    axes.set_yticks([])
    assert run.coverage is not None
    median = np.median([row["obliqueness_deg"] for row in run.rows])
    axes.set_title(
        f"{WAYS[run.name]}\nmissed {100 * run.coverage.gap:.1f} %, by more than 1 mm "
        f"{100 * run.coverage.hole:.1f} %\noblique by {median:.1f}° (median)",
        fontsize=10,
    )
    axes.set_xlabel(name, fontsize=8)


def _draw_slice(axes: Axes, run: Run, number: int, protocol: Protocol) -> None:
    image = run.images[number].image[:, :, 0].T
    half = protocol.in_plane_mm * protocol.matrix / 2
    axes.imshow(
        image,
        cmap="gray",
        vmin=0,
        vmax=float(np.percentile(image, 99.5)),
        extent=(-half, half, half, -half),
    )
    axes.set_xlim(-HALF_MM, HALF_MM)
    axes.set_ylim(HALF_MM, -HALF_MM)
    axes.set_axis_off()
    row = next(row for row in run.rows if row["slice"] == number)
    axes.set_title(
        f"{number}: {row['obliqueness_deg']:.0f}°, {row['position_mm']:+.1f} mm", fontsize=8
    )
