"""How good an acquired stack is: each slice placed where it really lay in the head at its time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .prescription import PLANES, Slice

WIDE_MM = 1.0


class SliceErrors(NamedTuple):
    """How one slice lies in the head.

    obliqueness_deg : angle between its normal and the head's axis that was meant
    position_mm : signed distance, along that axis, of its middle from where it was meant to lie
    in_plane_mm : distance of its middle from that axis
    """

    obliqueness_deg: float
    position_mm: float
    in_plane_mm: float


def slice_errors(acquired: Slice, plane: str, head_to_world: NDArray[np.float64]) -> SliceErrors:
    """Errors of a slice of a plane's stack, given the true pose (4, 4) at its time."""
    axis = PLANES[plane][1]
    in_head = np.linalg.inv(head_to_world) @ acquired.slice_to_world
    cosine = min(abs(float(in_head[axis, 2])), 1.0)
    off = np.delete(in_head[:3, 3], axis)
    return SliceErrors(
        math.degrees(math.acos(cosine)),
        float(in_head[axis, 3]) - acquired.offset_mm,
        float(np.linalg.norm(off)),
    )


def times_covered(
    brain_mm: NDArray[np.float64],
    slices_to_head: Sequence[NDArray[np.float64]],
    thickness_mm: float,
    fov_mm: float,
) -> NDArray[np.int64]:
    """By how many slices each point (n, 3) of the brain, in the head's frame, is covered.

    A slice (4, 4) to the head's frame at its own time is a box: `thickness_mm` along its normal,
    `fov_mm` along its rows and columns.
    """
    count = np.zeros(len(brain_mm), dtype=np.int64)
    half = np.array([fov_mm, fov_mm, thickness_mm]) / 2
    for slice_to_head in slices_to_head:
        local = (brain_mm - slice_to_head[:3, 3]) @ slice_to_head[:3, :3]
        count += (np.abs(local) <= half).all(1)
    return count


class Coverage(NamedTuple):
    """Shares (0..1) of the brain's volume.

    gap : that no slice covers; slices side by side leave some of it with every tenth of a mm that
        one lies beside where it was meant to be
    hole : that is further than `WIDE_MM` from what the slices cover
    overlap : that more than one slice covers
    """

    gap: float
    hole: float
    overlap: float


def coverage(
    brain_mm: NDArray[np.float64],
    slices_to_head: Sequence[NDArray[np.float64]],
    thickness_mm: float,
    fov_mm: float,
) -> Coverage:
    """Of a brain by slices; the arguments are those of `times_covered`."""
    count = times_covered(brain_mm, slices_to_head, thickness_mm, fov_mm)
    near = times_covered(brain_mm, slices_to_head, thickness_mm + 2 * WIDE_MM, fov_mm)
    return Coverage(
        float(np.mean(count == 0)), float(np.mean(near == 0)), float(np.mean(count > 1))
    )
