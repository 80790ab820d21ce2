"""What a session is asked for: options of the command line, or JSON from the client."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from .patient import PATIENT_POSITIONS
from .prescription import FOV_STEP_MM, prescribe


@dataclass(frozen=True)
class SessionOptions:
    """The stack, the order of events, and how times are told.

    plane, thickness_mm, gap_mm, in_plane_mm, matrix, slices, interleave, tilt_deg, fov_step_mm :
        as ``prescription.prescribe`` has them
    slice_delay_s : from a navigator to its slice: the time that the pose is predicted for
    repetition_s : from navigator to navigator: where the next field of view has to be
    navigator_slices : slices of a navigator that comes slice by slice
    time_stamp_ms : length of a step of acquisition_time_stamp (2.5 on Siemens); None takes the time
        of arrival
    patient_position : as DICOM says it; noted, and None if not known
    deadline_ms : every navigator is answered by then
    max_age_s : a track without a pose for longer is not predicted from
    """

    plane: str = "axial"
    thickness_mm: float = 3.0
    gap_mm: float = 0.0
    in_plane_mm: float = 1.0
    matrix: int = 256
    slices: int | None = None
    interleave: int = 4
    tilt_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    fov_step_mm: float = FOV_STEP_MM
    slice_delay_s: float = 1.0
    repetition_s: float = 2.5
    navigator_slices: int | None = None
    time_stamp_ms: float | None = None
    patient_position: str | None = None
    deadline_ms: float = 1000.0
    max_age_s: float = 30.0

    def __post_init__(self) -> None:
        """ValueError, with name and value, for what makes no session."""
        self.prescribe(np.eye(4), np.array([[-1.0, 1.0]] * 3))
        for name in ("slice_delay_s", "repetition_s", "deadline_ms", "max_age_s"):
            _number(name, getattr(self, name))
        if self.time_stamp_ms is not None:
            _number("time_stamp_ms", self.time_stamp_ms)
        if self.navigator_slices is not None:
            _number("navigator_slices", self.navigator_slices)
        if self.patient_position is not None and self.patient_position not in PATIENT_POSITIONS:
            raise ValueError(
                f"patient_position {self.patient_position!r} is none of "
                f"{', '.join(PATIENT_POSITIONS)}"
            )

    def changed(self, text: str) -> SessionOptions:
        """These options with those of a JSON object in their place.

        ValueError for what is no object, an unknown name or a value that makes no session.
        """
        try:
            given = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"the configuration is no JSON: {error}") from error
        if not isinstance(given, dict):
            raise ValueError(f"the configuration is no JSON object: {text[:80]}")
        known = {field.name for field in fields(self)}
        if unknown := sorted(set(given) - known):
            raise ValueError(f"unknown options {unknown}; known are {sorted(known)}")
        if isinstance(given.get("tilt_deg"), list):
            given["tilt_deg"] = tuple(given["tilt_deg"])
        try:
            return replace(self, **given)
        except TypeError as error:
            raise ValueError(f"a value of the configuration {text[:200]}: {error}") from error

    def prescribe(self, head_to_world: Any, extent_mm: Any, **more: Any) -> Any:
        """``prescription.prescribe`` with these options; ``more`` goes before them."""
        given = {
            "plane": self.plane,
            "thickness_mm": self.thickness_mm,
            "gap_mm": self.gap_mm,
            "in_plane_mm": self.in_plane_mm,
            "matrix": self.matrix,
            "slices": self.slices,
            "interleave": self.interleave,
            "tilt_deg": self.tilt_deg,
            "fov_step_mm": self.fov_step_mm,
        }
        return prescribe(head_to_world, extent_mm, **{**given, **more})


def _number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise ValueError(f"{name} must be a number above 0, got {value!r}")
