"""Pictures for people: the head in its own planes, and distributions of errors."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..reading.printable import printable
from .planes import HALF_WIDTH_MM, ON_IMAGE, PLANES, Head, draw_plane

LARGE_ERROR_DEG = 30.0


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG. Characters that the font lacks are drawn as boxes, without a word."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        FigureCanvasAgg(figure).print_png(os.fspath(path))


def draw_pose(
    path: str | os.PathLike[str],
    image: NDArray,
    affine: NDArray,
    label: NDArray | None,
    label_affine: NDArray | None,
    head_to_world: NDArray | None,
    title: str,
    doubt: str = "",
) -> None:
    """PNG of the three planes through the head, aligned to the head frame, with mask outlines.

    Where the pose is right, the sagittal plane shows the profile with the face to the left, the
    coronal plane two equal hemispheres, the axial plane the brow above. Without a pose the planes
    run through the middle of the volume along the world's axes. The picture cannot show whether the
    file has left and right the right way round; ``doubt`` is a second line that tells.

    Parameters
    ----------
    image, affine : volume (i, j, k) and its voxel-to-world matrix
    label, label_affine : 1 brain, 2 eyes, on any grid
    """
    head = Head(image, affine, label, label_affine, head_to_world)
    low, high = head.range()
    figure = Figure(figsize=(9.6, 3.6), facecolor="black")
    for k, plane in enumerate(PLANES):
        axes = figure.add_axes((k / 3 + 0.005, 0.01, 0.323, 0.86))
        draw_plane(axes, head, plane, low, high)
        name = plane if head_to_world is not None else f"{plane} (world, no pose)"
        axes.text(-78, -76, name, fontsize=8, **ON_IMAGE)
    write_title(figure, title, doubt)
    save(figure, path)


def write_title(figure: Figure, title: str, doubt: str = "") -> None:
    """A line, and a second one in orange, at the top of a black figure."""
    height = figure.get_size_inches()[1]
    letters = int(figure.get_size_inches()[0] * 13)  # what fits in size 10
    # names have $ and underscores that are no formula
    style: dict[str, Any] = {"parse_math": False, "va": "top", "x": 0.01}
    top = 1 - 0.08 / height
    figure.text(y=top, s=shortened(printable(title), letters), color="white", fontsize=10, **style)
    if doubt:
        text = shortened(printable(doubt), int(letters * 1.2))
        figure.text(y=top - 0.19 / height, s=text, color="#ffa62b", fontsize=8, **style)


def shortened(text: str, length: int) -> str:
    """``text`` with its middle left out where it is longer than ``length``.

    >>> shortened("a name that is long", 10)
    'a na… long'
    """
    if len(text) <= length:
        return text
    half = (length - 1) // 2
    return text[:half] + "…" + text[len(text) - (length - 1 - half) :]


def draw_slices(
    path: str | os.PathLike[str],
    head: Head,
    planes: Sequence[str],
    offsets_mm: Sequence[float],
    title: str,
    half_width_mm: float = HALF_WIDTH_MM,
) -> None:
    """PNG of parallel slices: a row for each of ``planes``, a column for each of ``offsets_mm``.

    Offsets are along the head's axis that the plane does not contain: to the fetus's right for
    sagittal, anterior for coronal and superior for axial slices.
    """
    side, top = 3.0, 0.45  # inches
    width, height = side * len(offsets_mm), side * len(planes) + top
    figure = Figure(figsize=(width, height), facecolor="black")
    low, high = head.range()
    for row, plane in enumerate(planes):
        for column, offset_mm in enumerate(offsets_mm):
            left, bottom = column * side / width, (len(planes) - 1 - row) * side / height
            size = (0.99 * side / width, 0.99 * side / height)
            axes = figure.add_axes((left, bottom, *size))
            draw_plane(axes, head, plane, low, high, offset_mm, half_width_mm)
            place, text = 0.96 * half_width_mm, f"{plane}\n{_side(plane, offset_mm)}"
            axes.text(-place, -place, text, fontsize=8, va="bottom", **ON_IMAGE)
    write_title(figure, title)
    save(figure, path)


def _side(plane: str, offset_mm: float) -> str:
    """Where a slice lies, in words.

    >>> _side("sagittal", -10.0), _side("axial", 12.5), _side("coronal", 0.0)
    ('10 mm left', '12.5 mm superior', 'middle')
    """
    sides = {
        "sagittal": ("left", "right"),
        "coronal": ("posterior", "anterior"),
        "axial": ("inferior", "superior"),
    }
    if not offset_mm:
        return "middle"
    return f"{abs(offset_mm):g} mm {sides[plane][offset_mm > 0]}"


def draw_errors(
    path: str | os.PathLike[str], errors_deg: Mapping[str, Sequence[float] | NDArray], title: str
) -> None:
    """PNG of the cumulative distribution of rotation errors in degrees, a curve per name.

    The square root of the angle is drawn, which gives the errors below 30 degrees two fifths of
    the width and leaves 180 degrees, the heads not found, in the picture. A line marks 30 degrees.
    """
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
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
    save(figure, path)
