"""One stack of slices of a head that moves, taken in four ways over the same motion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..labels import Status
from ..simulation.motion import Motion
from ..simulation.scanner import Scanner
from .estimator import Estimate
from .extent import mask_extent_mm
from .field_of_view import next_centre_mm
from .followers import Follower, four_ways
from .prescription import FOV_STEP_MM, Prescription, prescribe
from .taken_stack import Protocol, Seen, Stack, slice_row
from .tracking import Tracker, TrackingParameters

Estimator = Callable[[list[tuple[NDArray, NDArray[np.float64]]]], list[Estimate]]


@dataclass(kw_only=True)
class Run(Stack):
    """One of the four ways through a stack."""

    follower: Follower
    fov_centre_mm: NDArray[np.float64]
    planned: Prescription | None = None


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
    field of view lies `fov_offset_mm` (3,) beside the head, and follows uncertain poses until then.
    After the last slice each run has its coverage.

    Raises NotStarted, and ValueError where the motion ends before the stack.
    """
    scene = scanner.scene
    start, centre = _start(scanner, motion, estimator, protocol, parameters, fov_offset_mm)
    estimate, brain = start[-1], start[-1].brain
    assert estimate.head_to_world is not None
    assert brain is not None
    assert estimate.affine is not None
    extent = mask_extent_mm(brain, estimate.affine, estimate.head_to_world)
    start_s = protocol.repetition_s * (len(start) - 1)
    truth = motion.at(start_s, scene.head_to_world)
    runs = [
        Run(name=name, follower=way, fov_centre_mm=truth[:3, 3])
        for name, way in four_ways(parameters).items()
    ]
    for run in runs:
        if run.follower.needs_navigator:
            run.fov_centre_mm = centre
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
            there = run.take(scanner, motion, acquired, slice_s, protocol, take_images)
            used = run.follower.pose_at(slice_s)
            saw = Seen(truth)
            if found is not None:
                saw = Seen(truth, str(found.status), found.confidence, found.head_to_world)
            times_s = navigator_s, slice_s
            row = slice_row(run.name, acquired, protocol.plane, times_s, saw, used, there)
            run.rows.append(row | {"navigator": became})
            next_s = navigator_s + protocol.repetition_s
            run.planned = plan
            run.fov_centre_mm = next_centre_mm(
                run.follower.pose_at(next_s)[0][:3, 3], run.fov_centre_mm, FOV_STEP_MM
            )
        if n == count - 1:
            for run in runs:
                run.finish(scene, protocol)
        yield runs


def _start(
    scanner: Scanner,
    motion: Motion,
    estimator: Estimator,
    protocol: Protocol,
    parameters: TrackingParameters,
    fov_offset_mm: NDArray[np.float64],
) -> tuple[list[Estimate], NDArray[np.float64]]:
    """What is found in the navigators up to the first with a certain pose, and its middle (3,)."""
    centre = scanner.scene.head_to_world[:3, 3] + fov_offset_mm
    found: list[Estimate] = []
    tracker = Tracker(parameters)
    while len(found) < protocol.start_tries:
        time_s = len(found) * protocol.repetition_s
        truth = motion.at(time_s, scanner.scene.head_to_world)
        navigator = scanner.navigator(truth, centre)
        found += estimator([(navigator.image, navigator.affine)])
        if found[-1].status == Status.OK:
            return found, centre
        # the field of view goes where the service would ask for it
        tracker.update(time_s, found[-1].head_to_world, *found[-1].noise)
        if tracker.started:
            ahead = tracker.predict(time_s + protocol.repetition_s)
            centre = next_centre_mm(ahead.head_to_world[:3, 3], centre, FOV_STEP_MM)
    raise not_started(len(found), found[-1].status, found[-1].message)


def not_started(navigators: int, status: str, message: str) -> NotStarted:
    """That so many navigators had no certain pose, and what was said of the last one."""
    text = f"no certain pose in {navigators} navigators; the last: {status}"
    return NotStarted(text + (f", {message}" if message else ""))


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
