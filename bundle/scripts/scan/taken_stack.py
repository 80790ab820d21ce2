"""A stack of slices as it is acquired: how, what was taken, and what is written down of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ..simulation.motion import Motion
from ..simulation.scanner import Acquired, Scanner
from ..simulation.scene import Scene
from .slices import Slice
from .stack_quality import Coverage, coverage, slice_errors


@dataclass(frozen=True)
class Protocol:
    """How a stack is acquired.

    repetition_s : from navigator to navigator
    delay_s : from a navigator to its slice
    plane, thickness_mm, in_plane_mm, matrix, interleave : of the slices (`prescribe`)
    start_tries : navigators at the beginning in which a first certain pose is looked for
    """

    repetition_s: float = 2.5
    delay_s: float = 1.0
    plane: str = "axial"
    thickness_mm: float = 3.0
    in_plane_mm: float = 1.0
    matrix: int = 256
    interleave: int = 4
    start_tries: int = 10


@dataclass(kw_only=True)
class Stack:
    """The slices of a stack so far, and what has come of them."""

    name: str
    taken: list[tuple[NDArray[np.float64], NDArray[np.float64], float]] = field(
        default_factory=list
    )  # slice_to_world, head_to_world and time of each slice
    rows: list[dict[str, Any]] = field(default_factory=list)
    images: dict[int, Acquired] = field(default_factory=dict)
    coverage: Coverage | None = None

    @property
    def slices_to_head(self) -> list[NDArray[np.float64]]:
        """Where each slice (4, 4) lay in the head at its own time, in the order of acquisition."""
        return [np.linalg.inv(head) @ one for one, head, _ in self.taken]

    def take(
        self,
        scanner: Scanner,
        motion: Motion,
        acquired: Slice,
        time_s: float,
        protocol: Protocol,
        with_image: bool,
    ) -> NDArray[np.float64]:
        """Acquire a slice; returns where the head (4, 4) was at that time."""
        there = motion.at(time_s, scanner.scene.head_to_world)
        self.taken.append((acquired.slice_to_world, there, time_s))
        if with_image:
            self.images[acquired.number] = scanner.slice(
                acquired.slice_to_world,
                there,
                protocol.thickness_mm,
                protocol.in_plane_mm,
                protocol.matrix,
            )
        return there

    def finish(self, scene: Scene, protocol: Protocol) -> None:
        """After the last slice: what the stack covers of the brain."""
        self.coverage = coverage(
            scene.brain_mm,
            self.slices_to_head,
            protocol.thickness_mm,
            protocol.in_plane_mm * protocol.matrix,
        )


class Seen(NamedTuple):
    """What a navigator shows, truth (4, 4), and what was found in it; nothing where none was."""

    truth: NDArray[np.float64]
    status: str = ""
    confidence: float = np.nan
    head_to_world: NDArray[np.float64] | None = None


def slice_row(
    name: str,
    acquired: Slice,
    plane: str,
    times_s: tuple[float, float],
    seen: Seen,
    used: tuple[NDArray[np.float64], float, float],
    there: NDArray[np.float64],
) -> dict[str, Any]:
    """What slices.csv says of one slice of the run `name`.

    times_s : of the navigator and of the slice
    used : the pose (4, 4) that the slice was planned for, and its 68 % radii in degrees and mm
    there : the true pose (4, 4) at the slice's time
    """
    errors = slice_errors(acquired, plane, there)
    (pose, sd_deg, sd_mm), given = used, seen.head_to_world
    return {
        "run": name,
        "order": acquired.order,
        "slice": acquired.number,
        "navigator_s": times_s[0],
        "slice_s": times_s[1],
        "status": seen.status,
        "confidence": seen.confidence,
        "pose_error_deg": np.nan if given is None else angle_deg(given, seen.truth),
        "pose_error_mm": np.nan if given is None else distance_mm(given, seen.truth),
        "used_error_deg": angle_deg(pose, there),
        "used_error_mm": distance_mm(pose, there),
        "sd_deg": sd_deg,
        "sd_mm": sd_mm,
        "obliqueness_deg": errors.obliqueness_deg,
        "position_mm": errors.position_mm,
        "in_plane_mm": errors.in_plane_mm,
    }


def angle_deg(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Angle between the rotations of two poses (4, 4)."""
    return float(np.rad2deg(Rotation.from_matrix(a[:3, :3].T @ b[:3, :3]).magnitude()))


def distance_mm(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Distance between the centres of two poses (4, 4)."""
    return float(np.linalg.norm(a[:3, 3] - b[:3, 3]))
