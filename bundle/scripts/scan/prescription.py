"""A stack of slices through the head, as its pose says: numpy alone, a millisecond for a stack.

Frames are those of docs/conventions.md: world is RAS mm, head +x right, +y anterior, +z superior.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .field_of_view import Phase, next_centre_mm, phase_direction
from .patient import world_to_patient
from .slices import PLANES, Slice, interleaved, tilt_rotation

Matrix = NDArray[np.float64]

MARGIN_SLICES = 2  # more than the brain needs, on either side
FOV_STEP_MM = 20.0  # largest step of a navigator's field of view


@dataclass(frozen=True)
class Prescription:
    """Slices, in the order of their numbers, and where the next navigator should look."""

    plane: str
    tilt_deg: tuple[float, float, float]
    thickness_mm: float
    gap_mm: float
    in_plane_mm: float
    matrix: int
    interleave: int
    extent_mm: Matrix  # (3, 2), as given
    margin_mm: float  # beyond the extent, on either side
    slices: tuple[Slice, ...]
    phase: Phase  # which direction of the image to phase-encode
    body_mm: float  # how wide the mother is along it
    navigator_fov_centre_mm: Matrix  # (3,), world
    warnings: tuple[str, ...]

    @property
    def fov_mm(self) -> float:
        """Side of the image."""
        return self.matrix * self.in_plane_mm

    @property
    def phase_oversampling(self) -> float:
        """Field of view along the phase direction that nothing folds into, in sides; 1 at least."""
        return max(1.0, self.body_mm / self.fov_mm)

    def in_order(self) -> list[Slice]:
        """The slices as they are to be acquired."""
        return sorted(self.slices, key=lambda one: one.order)

    def record(self) -> dict[str, Any]:
        """Everything as plain values, for JSON; the keys are those of docs/prescription.md."""
        fov_centre = self.navigator_fov_centre_mm
        return {
            "plane": self.plane,
            "tilt_deg": list(self.tilt_deg),
            "thickness_mm": self.thickness_mm,
            "gap_mm": self.gap_mm,
            "in_plane_mm": self.in_plane_mm,
            "matrix": self.matrix,
            "fov_mm": self.fov_mm,
            "interleave": self.interleave,
            "extent_mm": self.extent_mm.tolist(),
            "margin_mm": self.margin_mm,
            "phase_direction": self.phase,
            "body_along_phase_mm": round(self.body_mm, 1),
            "phase_oversampling": round(self.phase_oversampling, 3),
            "navigator_fov_centre_mm": fov_centre.tolist(),
            "navigator_fov_centre_lps": world_to_patient(fov_centre).tolist(),
            "warnings": list(self.warnings),
            "slices": [
                {
                    "number": one.number,
                    "order": one.order,
                    "offset_mm": one.offset_mm,
                    "slice_to_world": one.slice_to_world.tolist(),
                    **one.patient(self.matrix, self.in_plane_mm),
                }
                for one in self.slices
            ],
        }


def prescribe(
    head_to_world: ArrayLike,
    extent_mm: ArrayLike,
    plane: str = "axial",
    thickness_mm: float = 3.0,
    *,
    gap_mm: float = 0.0,
    in_plane_mm: float = 1.0,
    matrix: int = 256,
    slices: int | None = None,
    interleave: int = 4,
    tilt_deg: Sequence[float] = (0.0, 0.0, 0.0),
    translation_sd_mm: float = 0.0,
    rotation_sd_deg: float = 0.0,
    phase: Phase | None = None,
    fov_centre_mm: ArrayLike | None = None,
    fov_step_mm: float = FOV_STEP_MM,
) -> Prescription:
    """The stack that covers a brain, at the pose ``head_to_world`` (4, 4), rigid, RAS mm.

    Slices are stacked about the middle of the extent along the plane's axis, which in general lies
    some mm from the brain's centre of mass; in their plane they are centred at the brain's centre.
    There are as many as cover the extent and, on either side, a margin: two slices, or two standard
    deviations of where the brain's edge lies if that is more.

    Parameters
    ----------
    extent_mm : (3, 2) from where to where the brain reaches along the head's x, y and z axes
        (turned by ``tilt_deg``), mm from its centre: see ``extent.mask_extent_mm``
    plane : "axial", "coronal" or "sagittal"
    thickness_mm, gap_mm : of the slices, and between them
    in_plane_mm, matrix : pixel size, and pixels along either side
    slices : their number, in place of that which covers the brain; a stack keeps its number while
        the head moves
    interleave : every nth slice first; 1 for one after the other
    tilt_deg : of the planes, about the head's x, y and z axis (``tilt_rotation``)
    translation_sd_mm, rotation_sd_deg : standard deviations of the pose
    phase : phase direction of the slice before (``field_of_view.phase_direction``)
    fov_centre_mm : (3,) where the last navigator's field of view lay in the world
    fov_step_mm : how far it may go at once

    Raises ValueError, with the name and the value, for what makes no stack.
    """
    pose, extent = rigid_pose(head_to_world), _extent(extent_mm)
    if plane not in PLANES:
        raise ValueError(f"plane {plane!r} is none of {', '.join(PLANES)}")
    _check_numbers(thickness_mm, gap_mm, in_plane_mm, matrix, slices, interleave, fov_step_mm)
    if len(tilt_deg) != 3 or not np.isfinite(tilt_deg).all():
        raise ValueError(f"tilt_deg must be three angles in degrees, got {tilt_deg}")

    directions, axis = PLANES[plane]
    turned = pose[:3, :3] @ tilt_rotation(tilt_deg)
    rotation = turned @ np.array(directions, dtype=np.float64).T
    pitch_mm = thickness_mm + gap_mm
    radius_mm = np.abs(extent).max()
    edge_sd_mm = math.hypot(translation_sd_mm, radius_mm * math.radians(rotation_sd_deg))
    margin_mm = max(MARGIN_SLICES * pitch_mm, 2 * edge_sd_mm)
    low, high = extent[axis]
    count = slices
    if count is None:
        count = math.ceil((high - low + 2 * margin_mm + gap_mm) / pitch_mm - 1e-9)
    middle = (low + high) / 2
    offsets = middle + pitch_mm * (np.arange(count) - (count - 1) / 2)

    order = interleaved(count, interleave)
    stack = []
    for number, offset_mm in enumerate(offsets.tolist()):
        slice_to_world = np.eye(4)
        slice_to_world[:3, :3] = rotation
        slice_to_world[:3, 3] = pose[:3, 3] + offset_mm * turned[:, axis]
        stack.append(Slice(number, order[number], offset_mm, slice_to_world))

    chosen_phase, body_mm = phase_direction(rotation[:, 0], rotation[:, 1], phase)
    return Prescription(
        plane,
        (float(tilt_deg[0]), float(tilt_deg[1]), float(tilt_deg[2])),
        thickness_mm,
        gap_mm,
        in_plane_mm,
        matrix,
        interleave,
        extent,
        margin_mm,
        tuple(stack),
        chosen_phase,
        body_mm,
        next_centre_mm(pose[:3, 3], fov_centre_mm, fov_step_mm),
        _warnings(extent, axis, count * pitch_mm - gap_mm, matrix * in_plane_mm),
    )


def _warnings(extent: Matrix, axis: int, stack_mm: float, fov_mm: float) -> tuple[str, ...]:
    """What a radiographer should know of a stack that is given all the same."""
    found = []
    along = extent[axis, 1] - extent[axis, 0]
    if stack_mm < along:
        found.append(f"the slices cover {stack_mm:g} mm, the brain is {along:.1f} mm long there")
    across = 2 * np.abs(np.delete(extent, axis, axis=0)).max()
    if fov_mm < across:
        found.append(f"a field of view of {fov_mm:g} mm cuts a brain that takes {across:.1f} mm")
    return tuple(found)


def rigid_pose(head_to_world: ArrayLike) -> Matrix:
    """``head_to_world`` as an array (4, 4); ValueError, with its value, where it is not rigid."""
    try:
        pose = np.array(head_to_world, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"head_to_world must be 4 x 4 numbers, got {head_to_world!r}") from error
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise ValueError(f"head_to_world must be 4 x 4 and finite, got {pose.tolist()}")
    rigid = np.allclose(pose[:3, :3].T @ pose[:3, :3], np.eye(3), atol=1e-3)
    if not rigid or np.linalg.det(pose[:3, :3]) < 0 or not np.allclose(pose[3], (0, 0, 0, 1)):
        raise ValueError(f"head_to_world is no rigid transform: {pose.tolist()}")
    return pose


def _extent(extent_mm: ArrayLike) -> Matrix:
    extent = np.array(extent_mm, dtype=np.float64)
    if extent.shape != (3, 2) or not np.isfinite(extent).all():
        raise ValueError(f"extent_mm must be (3, 2) and finite, got {extent.tolist()}")
    if (extent[:, 0] >= extent[:, 1]).any():
        raise ValueError(f"extent_mm must go from low to high, got {extent.tolist()}")
    return extent


def _check_numbers(
    thickness_mm: float,
    gap_mm: float,
    in_plane_mm: float,
    matrix: int,
    slices: int | None,
    interleave: int,
    fov_step_mm: float,
) -> None:
    for name, value, least in (
        ("thickness_mm", thickness_mm, 0.1),
        ("gap_mm", gap_mm, 0.0),
        ("in_plane_mm", in_plane_mm, 0.01),
        ("matrix", matrix, 1),
        ("slices", 1 if slices is None else slices, 1),
        ("interleave", interleave, 1),
        ("fov_step_mm", fov_step_mm, 0.0),
    ):
        if not math.isfinite(value) or value < least:
            raise ValueError(f"{name} must be at least {least:g}, got {value:g}")
