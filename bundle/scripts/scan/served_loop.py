"""The closed loop through the service: a simulated scanner that looks where it is told to.

The scanner's side alone: what finds heads, tracks them and plans slices is the service's.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..labels import Status
from ..simulation.motion import Motion
from ..simulation.scanner import Acquired, Scanner
from .closed_loop_tables import LoopTables, summary_text, write_images
from .loop_cases import LONGEST_S, Cases, draw_stack
from .patient import world_to_patient
from .prescription import FOV_STEP_MM
from .slices import PLANES, Slice
from .stack_scan import NotStarted, not_started
from .taken_stack import Protocol, Seen, Stack, slice_row

logger = logging.getLogger(__name__)

Pose = NDArray[np.float64]
# a navigator, its number, and the simulated time at which it was taken, s, to the answer to it
Ask = Callable[[Acquired, int, float], dict[str, Any]]
# the name of a case and the options of its session, to a context in which that is open
Connect = Callable[[str, dict[str, Any]], AbstractContextManager[Ask]]

NAME = "service"
# Who draws noise before and after the tracker in `scan_stack`: the way "pose" has a navigator, the
# ways "blind" and "pose" and the way "true" a slice.
NAVIGATORS_BEFORE, SLICES_BEFORE, SLICES_AFTER = 1, 2, 1


def session_options(protocol: Protocol) -> dict[str, Any]:
    """What to ask a session for, so that its stack is the closed loop's; see ``SessionOptions``.

    Everything that the stack depends on is named: the service's command line may say otherwise.
    """
    return {
        "plane": protocol.plane,
        "thickness_mm": protocol.thickness_mm,
        "gap_mm": 0.0,
        "in_plane_mm": protocol.in_plane_mm,
        "matrix": protocol.matrix,
        "slices": None,
        "interleave": protocol.interleave,
        "tilt_deg": [0.0, 0.0, 0.0],
        "fov_step_mm": FOV_STEP_MM,
        "slice_delay_s": protocol.delay_s,
        "repetition_s": protocol.repetition_s,
        "max_age_s": LONGEST_S,  # the closed loop follows a track of any age
    }


@dataclass(frozen=True)
class ServedScan:
    """One stack that a service asks for, slice by slice.

    Parameters
    ----------
    scanner, motion, fov_offset_mm, take_images : as those of ``scan_stack``
    noise : what `scanner` draws from. In the closed loop three more ways draw from it; as much is
        drawn here and left, so that navigators and slices are those of its way "tracker"
    ask : sends a navigator to the service, and returns the answer
    protocol : the session was configured with its ``session_options``
    """

    scanner: Scanner
    motion: Motion
    noise: np.random.RandomState
    ask: Ask
    protocol: Protocol
    fov_offset_mm: NDArray[np.float64]
    take_images: bool = False

    def run(self) -> Iterator[Stack]:
        """Take the stack; yields it after each slice, after the last one with its coverage.

        An answer without a slice leaves that slice out; the next answer says which one is due.

        Raises NotStarted where the first ``start_tries`` answers have no slice, and ValueError
        where the motion ends before the stack or the answer is not that of a navigator.
        """
        scanner, protocol, stack = self.scanner, self.protocol, Stack(name=NAME)
        centre = scanner.scene.head_to_world[:3, 3] + self.fov_offset_mm
        for n in itertools.count():
            navigator_s = n * protocol.repetition_s
            truth = self.motion.at(navigator_s, scanner.scene.head_to_world)
            if stack.taken:
                self._leave_noise(scanner.shape, NAVIGATORS_BEFORE)
            bands = scanner.bands(stack.taken, navigator_s, protocol.thickness_mm)
            answer = self.ask(scanner.navigator(truth, centre, bands), n, navigator_s)
            if answer["type"] != "prescription":
                raise ValueError(f"navigator {n}: {answer['type']}: {answer['message']}")
            if answer["navigator_fov_centre_lps"] is not None:
                centre = world_to_patient(answer["navigator_fov_centre_lps"])
            if answer["slice"] is None:
                if not stack.taken and n + 1 >= protocol.start_tries:
                    raise not_started(n + 1, answer["status"], answer["message"])
                continue
            self._take(stack, answer, navigator_s, truth)
            if len(stack.taken) == answer["slice"]["of"]:
                stack.finish(scanner.scene, protocol)
                yield stack
                return
            yield stack

    def _take(self, stack: Stack, answer: Mapping[str, Any], navigator_s: float, at: Pose) -> None:
        """Take the slice of an answer to a navigator in which the head was at `at` (4, 4)."""
        protocol, slice_s = self.protocol, navigator_s + self.protocol.delay_s
        acquired = asked_slice(answer["slice"])
        if self.take_images:
            self._leave_noise((protocol.matrix, protocol.matrix), SLICES_BEFORE)
        there = stack.take(self.scanner, self.motion, acquired, slice_s, protocol, self.take_images)
        if self.take_images:
            self._leave_noise((protocol.matrix, protocol.matrix), SLICES_AFTER)
        pose = planned_pose(acquired, protocol.plane)
        used = pose, float(answer["rotation_sd_deg"]), float(answer["translation_sd_mm"])
        times_s, seen = (navigator_s, slice_s), _seen(answer, at)
        stack.rows.append(
            slice_row(stack.name, acquired, protocol.plane, times_s, seen, used, there)
        )

    def _leave_noise(self, shape: Sequence[int], images: int) -> None:
        for _ in range(images):
            self.noise.normal(size=(2, *shape))


def asked_slice(given: Mapping[str, Any]) -> Slice:
    """The slice that an answer asks for, from its patient coordinates, as a scanner has them."""
    slice_to_patient = np.eye(4)
    orientation = given["image_orientation_patient"]
    columns = (orientation[:3], orientation[3:], given["normal_lps"], given["centre_lps"])
    slice_to_patient[:3] = np.array(columns, dtype=np.float64).T
    return Slice(
        int(given["number"]),
        int(given["order"]),
        float(given["offset_mm"]),
        world_to_patient(slice_to_patient),
    )


def planned_pose(one: Slice, plane: str) -> Pose:
    """head_to_world (4, 4), for which ``prescribe`` gives this slice of a stack without a tilt."""
    directions, axis = PLANES[plane]
    pose = np.eye(4)
    pose[:3, :3] = one.slice_to_world[:3, :3] @ np.array(directions, dtype=np.float64)
    pose[:3, 3] = one.slice_to_world[:3, 3] - one.offset_mm * pose[:3, axis]
    return pose


def _seen(answer: Mapping[str, Any], truth: Pose) -> Seen:
    """What was found in the navigator; the pose of a `predicted` answer is not its own."""
    pose = None
    if answer["status"] in (Status.OK, Status.UNCERTAIN):
        pose = world_to_patient(answer["head_to_patient_lps"])
    return Seen(truth, answer["status"], answer["confidence"], pose)


class ServedLoop:
    """Scans every case once, each in a session of its own, as the service asks for.

    Cases, motions, first fields of view and noise are those that ``ClosedLoop`` draws of the same
    settings. Into `output_dir` go slices.csv, stacks.csv and summary.csv, as the closed loop writes
    them, and the slices of the first `image_cases` cases; nothing is written where it is None.

    Parameters
    ----------
    connect : opens a session
    motion : a preset of `simulation.motion`, or a CSV file
    seed, image_cases, protocol : as those of ``ClosedLoop``, whose plane is the protocol's here
    """

    def __init__(
        self,
        cases: Cases,
        connect: Connect,
        output_dir: Path | None,
        motion: str = "typical",
        seed: int = 0,
        image_cases: int = 1,
        protocol: Protocol | None = None,
    ) -> None:
        self.cases, self.connect, self.output_dir = cases, connect, output_dir
        self.motion, self.seed, self.image_cases = motion, seed, image_cases
        self.protocol = protocol or Protocol()

    def run(self) -> str:
        """Scan, write, and return the summary in words.

        OSError where the service cannot be reached, TimeoutError where it does not answer.
        """
        tables = LoopTables(self.output_dir or Path())
        for number in range(len(self.cases)):
            self._scan(number, tables)
            if self.output_dir is not None:
                tables.write()
        return summary_text(tables.summary()) if tables.slices else "no stack has begun"

    def _scan(self, number: int, tables: LoopTables) -> None:
        plane, name = self.protocol.plane, self.cases.name(number)
        moving, offset_mm, noise = draw_stack(self.seed, number, self.motion, plane)
        scene, key = self.cases.scene(number), {"case": name, "motion": Path(self.motion).name}
        key["plane"], with_images = plane, number < self.image_cases
        scanner, runs = Scanner(scene, noise), []
        with self.connect(name, session_options(self.protocol)) as ask:
            scan = ServedScan(
                scanner, moving, noise, ask, self.protocol, offset_mm, with_images
            ).run()
            try:
                runs = [*scan][-1:]
            except NotStarted as reason:
                logger.warning("%s: %s", name, reason)
        tables.add(key, scene.ga_weeks, runs, self.protocol.thickness_mm)
        for run in runs:
            if self.output_dir is not None:
                write_images(self.output_dir, key, run)
