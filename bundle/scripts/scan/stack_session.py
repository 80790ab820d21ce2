"""What is known in a session, and what is answered: the track, the stack, the next slice.

No sockets and no clocks here: times are given.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .field_of_view import Phase, next_centre_mm
from .navigators import Navigator
from .patient import world_to_patient
from .pose_job import Found
from .prescription import Prescription
from .session_options import SessionOptions
from .tracking import Tracked, Tracker

OK, UNCERTAIN, PREDICTED, NO_POSE = "ok", "uncertain", "predicted", "no_pose"
LEAST_STEP_S = 1e-3
REMEMBERED = 100  # navigators whose times are known


class StackSession:
    """One stack of slices from its first certain pose on.

    Each navigator is ``started`` when it comes, ``learn`` takes in what was found in it, and
    ``answer`` says what the scanner is told; an answer that has a slice moves on to the next one.
    """

    def __init__(self, options: SessionOptions) -> None:
        self.options = options
        self.tracker = Tracker()
        self.extent_mm: NDArray[np.float64] | None = None
        self.count: int | None = None
        self.given = 0  # slices so far
        self.last: Prescription | None = None
        self._phase: Phase | None = None
        self._times_s: dict[int, float] = {}
        self._last_s = -np.inf
        self._learned_s = -np.inf

    def started(self, navigator: Navigator) -> float:
        """Note when a navigator was taken, s, and return it: later than the one before."""
        time_s = navigator.received_s
        if self.options.time_stamp_ms is not None:
            time_s = navigator.stamp * self.options.time_stamp_ms / 1000
        # a clock that stands still or goes back must not end the session
        time_s = max(time_s, self._last_s + LEAST_STEP_S)
        self._last_s = self._times_s[navigator.number] = time_s
        self._times_s.pop(navigator.number - REMEMBERED, None)
        return time_s

    def learn(self, number: int, found: Found) -> str:
        """Take in what was found in a navigator; what the tracker made of it.

        "late" for one that is older than what was taken in before.
        """
        time_s = self._times_s.get(number, -np.inf)
        if time_s <= self._learned_s:
            return "late"
        self._learned_s = time_s
        became = self.tracker.update(
            time_s,
            found.head_to_world,
            found.rotation_sd_deg,
            found.translation_sd_mm,
            found.wrong_share,
        )
        if self.extent_mm is None and found.status == OK and found.extent_mm is not None:
            self.extent_mm = found.extent_mm
            plan = self.options.prescribe(found.head_to_world, found.extent_mm)
            self.count = len(plan.slices)
        return became

    def answer(
        self, navigator: Navigator, found: Found | None, now_s: float, message: str
    ) -> dict[str, Any]:
        """The message of the contract "Service" for a navigator.

        ``found`` is what was found in it, None where there was no time; ``now_s`` is of the clock
        of ``received_s``.
        """
        time_s = self._times_s[navigator.number]
        latency_s = now_s - navigator.received_s
        pose = None if found is None else found.head_to_world
        status, confidence = NO_POSE, 0.0
        if found is not None:
            message = "; ".join(part for part in (found.message, message) if part)
            if pose is not None:
                status = OK if found.status == OK else UNCERTAIN
                confidence = found.confidence
        ahead = self._ahead(time_s + self.options.slice_delay_s)
        age_s = latency_s
        if ahead is not None and pose is None:
            status, pose = PREDICTED, ahead.head_to_world
            age_s += max(ahead.age_s - self.options.slice_delay_s, 0.0)
        content: dict[str, Any] = {
            "type": "prescription",
            "navigator": navigator.number,
            "status": status,
            "head_to_patient_lps": None if pose is None else world_to_patient(pose).tolist(),
            "confidence": round(confidence, 4),
            "slice": None,
            "navigator_fov_centre_lps": world_to_patient(self._fov(navigator, time_s)).tolist(),
            "age_ms": None if pose is None else round(age_s * 1000, 1),
            "latency_ms": round(latency_s * 1000, 1),
            "message": message,
        }
        if ahead is not None:
            content["rotation_sd_deg"] = round(ahead.rotation_sd_deg, 2)
            content["translation_sd_mm"] = round(ahead.translation_sd_mm, 2)
            content["slice"] = self._slice(ahead)
        return content

    def _ahead(self, time_s: float) -> Tracked | None:
        """The pose at the time of the slice, if the track is young enough."""
        if not self.tracker.started:
            return None
        tracked = self.tracker.predict(max(time_s, self._learned_s))
        return tracked if tracked.age_s <= self.options.max_age_s else None

    def _fov(self, navigator: Navigator, time_s: float) -> NDArray[np.float64]:
        """Middle of the next navigator: where the head will be, or where the last one was."""
        ahead = self._ahead(time_s + self.options.repetition_s)
        if ahead is None:
            return navigator.centre_mm
        return next_centre_mm(
            ahead.head_to_world[:3, 3], navigator.centre_mm, self.options.fov_step_mm
        )

    def _slice(self, ahead: Tracked) -> dict[str, Any] | None:
        """The next slice of the stack; after the last one it begins anew. None before it began."""
        if self.extent_mm is None or self.count is None:
            return None
        plan = self.options.prescribe(
            ahead.head_to_world, self.extent_mm, slices=self.count, phase=self._phase
        )
        one = plan.in_order()[self.given % self.count]
        self._phase, self.last = plan.phase, plan
        content = {
            "number": one.number,
            "order": one.order,
            "offset_mm": one.offset_mm,
            "of": self.count,
            "stack": self.given // self.count,
            "plane": plan.plane,
            "thickness_mm": plan.thickness_mm,
            "fov_mm": plan.fov_mm,
            "phase_direction": plan.phase,
            "slice_to_world": one.slice_to_world.tolist(),
            **one.patient(plan.matrix, plan.in_plane_mm),
        }
        self.given += 1
        return content
