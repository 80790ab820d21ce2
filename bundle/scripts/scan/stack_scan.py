"""One stack of slices of a head that moves, taken in four ways over the same motion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ..labels import Status
from ..simulation.motion import Motion
from ..simulation.scanner import Acquired, Scanner
from .estimator import Estimate
from .extent import mask_extent_mm
from .field_of_view import next_centre_mm
from .followers import Follower, four_ways
from .prescription import FOV_STEP_MM, Prescription, Slice, prescribe
from .stack_quality import Coverage, coverage, slice_errors
from .tracking import TrackingParameters

Estimator = Callable[[list[tuple[NDArray, NDArray[np.float64]]]], list[Estimate]]


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


@dataclass
class Run:
    """One of the four ways through a stack, and what has come of it so far."""

    name: str
    follower: Follower
    fov_centre_mm: NDArray[np.float64]
    taken: list[tuple[NDArray[np.float64], NDArray[np.float64], float]] = field(
        default_factory=list
    )  # slice_to_world, head_to_world and time of each slice
    rows: list[dict[str, Any]] = field(default_factory=list)
    planned: Prescription | None = None
    images: dict[int, Acquired] = field(default_factory=dict)
    coverage: Coverage | None = None

    @property
    def slices_to_head(self) -> list[NDArray[np.float64]]:
        """Where each slice (4, 4) lay in the head at its own time, in the order of acquisition."""
        return [np.linalg.inv(head) @ one for one, head, _ in self.taken]


class NotStarted(RuntimeError):
    """No navigator at the beginning had a certain pose: there is nothing to plan a stack from."""


def scan_stack(
    scanner: Scanner,
    motion: Motion,
    estimator: Estimator,
    protocol: Protocol,
    parameters: TrackingParameters,
    fov_offset_mm: NDArray[np.float64],
    take_images: bool = False,
) -> Iterator[list[Run]]:
    """Take the stack slice by slice; yields the runs, in the order of `four_ways`, after each.

    The number of slices follows from the brain as the network sees it in the first navigator with a
    certain pose, and is the same for all runs: only how the head is followed differs. The first
    field of view lies `fov_offset_mm` (3,) beside the head. After the last slice each run has its
    coverage.

    Raises NotStarted, and ValueError where the motion ends before the stack.
    """
    scene = scanner.scene
    start = _start(scanner, motion, estimator, protocol, fov_offset_mm)
    estimate, brain = start[-1], start[-1].brain
    assert estimate.head_to_world is not None
    assert brain is not None
    assert estimate.affine is not None
    extent = mask_extent_mm(brain, estimate.affine, estimate.head_to_world)
    start_s = protocol.repetition_s * (len(start) - 1)
    truth = motion.at(start_s, scene.head_to_world)
    runs = [Run(name, way, truth[:3, 3]) for name, way in four_ways(parameters).items()]
    for run in runs:
        if run.follower.needs_navigator:
            run.fov_centre_mm = scene.head_to_world[:3, 3] + fov_offset_mm
            for k, before in enumerate(start[:-1]):
                run.follower.observe(k * protocol.repetition_s, before, truth)
        run.follower.observe(start_s, estimate, truth)
    count = len(_plan(runs[0], start_s, extent, protocol, None).slices)

    for n in range(count):
        navigator_s = start_s + n * protocol.repetition_s
        slice_s = navigator_s + protocol.delay_s
        truth = motion.at(navigator_s, scene.head_to_world)
        asked = [run for run in runs if run.follower.needs_navigator]
        seen: dict[str, Estimate] = {run.name: estimate for run in asked}
        if n:
            volumes = []
            for run in asked:
                bands = scanner.bands(run.taken, navigator_s, protocol.thickness_mm)
                navigator = scanner.navigator(truth, run.fov_centre_mm, bands)
                volumes.append((navigator.image, navigator.affine))
            seen = dict(zip(seen, estimator(volumes), strict=True))
        for run in runs:
            found = seen.get(run.name)
            became = run.follower.observe(navigator_s, found, truth) if n else "used"
            plan = _plan(run, slice_s, extent, protocol, count)
            acquired = plan.in_order()[n]
            there = motion.at(slice_s, scene.head_to_world)
            run.taken.append((acquired.slice_to_world, there, slice_s))
            run.rows.append(
                _row(run, acquired, protocol.plane, navigator_s, slice_s, found, truth, there)
                | {"navigator": became}
            )
            if take_images:
                run.images[acquired.number] = scanner.slice(
                    acquired.slice_to_world,
                    there,
                    protocol.thickness_mm,
                    protocol.in_plane_mm,
                    protocol.matrix,
                )
            next_s = navigator_s + protocol.repetition_s
            run.planned = plan
            run.fov_centre_mm = next_centre_mm(
                run.follower.pose_at(next_s)[0][:3, 3], run.fov_centre_mm, FOV_STEP_MM
            )
        if n == count - 1:
            for run in runs:
                run.coverage = coverage(
                    scene.brain_mm,
                    run.slices_to_head,
                    protocol.thickness_mm,
                    protocol.in_plane_mm * protocol.matrix,
                )
        yield runs


def _start(
    scanner: Scanner,
    motion: Motion,
    estimator: Estimator,
    protocol: Protocol,
    fov_offset_mm: NDArray[np.float64],
) -> list[Estimate]:
    """What is found in the navigators up to the first with a certain pose."""
    centre = scanner.scene.head_to_world[:3, 3] + fov_offset_mm
    found: list[Estimate] = []
    while len(found) < protocol.start_tries:
        truth = motion.at(len(found) * protocol.repetition_s, scanner.scene.head_to_world)
        navigator = scanner.navigator(truth, centre)
        found += estimator([(navigator.image, navigator.affine)])
        if found[-1].status == Status.OK:
            return found
    last = found[-1]
    raise NotStarted(
        f"no certain pose in {protocol.start_tries} navigators; the last: {last.status}"
        + (f", {last.message}" if last.message else "")
    )


def _plan(
    run: Run, time_s: float, extent: NDArray[np.float64], protocol: Protocol, slices: int | None
) -> Prescription:
    pose, _, _ = run.follower.pose_at(time_s)
    return prescribe(
        pose,
        extent,
        protocol.plane,
        protocol.thickness_mm,
        in_plane_mm=protocol.in_plane_mm,
        matrix=protocol.matrix,
        slices=slices,
        interleave=protocol.interleave,
        phase=None if run.planned is None else run.planned.phase,
        fov_centre_mm=run.fov_centre_mm,
    )


def _row(
    run: Run,
    acquired: Slice,
    plane: str,
    navigator_s: float,
    slice_s: float,
    found: Estimate | None,
    truth: NDArray[np.float64],
    there: NDArray[np.float64],
) -> dict[str, Any]:
    """What slices.csv says of one slice."""
    errors = slice_errors(acquired, plane, there)
    pose, sd_deg, sd_mm = run.follower.pose_at(slice_s)
    given = None if found is None else found.head_to_world
    return {
        "run": run.name,
        "order": acquired.order,
        "slice": acquired.number,
        "navigator_s": navigator_s,
        "slice_s": slice_s,
        "status": "" if found is None else str(found.status),
        "confidence": np.nan if found is None else found.confidence,
        "pose_error_deg": np.nan if given is None else angle_deg(given, truth),
        "pose_error_mm": np.nan if given is None else distance_mm(given, truth),
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
