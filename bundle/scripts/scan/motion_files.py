"""The motion of a head over a series of volumes: a table and the poses, with their track."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from .pose_noise import expected_noise
from .tracking import Tracked, Tracker, TrackingParameters

VECTOR = ("x_mm", "y_mm", "z_mm", "rx_deg", "ry_deg", "rz_deg")
NOT_KNOWN = "n/a"  # as BIDS writes it in tables


@dataclass(frozen=True)
class Frame:
    """One volume of a series: its pose (4, 4) as it was found, and the track at its time.

    track : what the tracker made of the pose: "used", "refused" (most likely wrong), "restarted"
        (the head has jumped) or "lacking"
    tracked : the tracked pose with its 68 % radii, None before the first pose
    """

    frame: int
    time_s: float
    status: str
    confidence: float
    head_to_world: NDArray[np.float64] | None
    track: str
    tracked: Tracked | None


@dataclass(frozen=True)
class SeriesMotion:
    """The frames of a series in order; `times_known`: whether the files tell when each was taken.

    Otherwise the times are the frames' numbers times `repetition_s`.
    """

    case: str
    frames: list[Frame]
    times_known: bool
    repetition_s: float

    @property
    def first_pose(self) -> NDArray[np.float64] | None:
        """The first pose (4, 4) that the tracker took, against which rotations are given."""
        return next((f.head_to_world for f in self.frames if f.track == "used"), None)


def series_motion(
    case: str,
    records: Sequence[Mapping[str, Any]],
    repetition_s: float = 2.5,
    parameters: TrackingParameters | None = None,
) -> SeriesMotion:
    """The motion in the records of a series (`record.conclude`), one for each frame, in order.

    Times that are lacking, or do not rise, are replaced by multiples of `repetition_s`.
    """
    given_s = [record.get("time_s") for record in records]
    times = np.array([np.nan if t is None else t for t in given_s], dtype=np.float64)
    known = bool(np.isfinite(times).all() and (np.diff(times) > 0).all())
    if not known:
        times = repetition_s * np.arange(len(records), dtype=np.float64)
    tracker = Tracker(parameters or TrackingParameters())
    frames = []
    for number, (record, time_s) in enumerate(zip(records, times.tolist(), strict=True)):
        given = record["head_to_world"]
        pose = None if given is None else np.array(given, dtype=np.float64)
        status, confidence = str(record["status"]), float(record["confidence"])
        noise = expected_noise(confidence, status)
        track = tracker.update(
            time_s,
            pose,
            record.get("rotation_sd_deg", noise.rotation_sd_deg),
            record.get("translation_sd_mm", noise.translation_sd_mm),
            noise.wrong_share,
        )
        tracked = tracker.predict(time_s) if tracker.started else None
        frames.append(Frame(number, time_s, status, confidence, pose, track, tracked))
    return SeriesMotion(case, frames, known, repetition_s)


def pose_vector(
    head_to_world: NDArray[np.float64], first: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(6,): the head's centre in the world, mm, and its rotation vector against the first pose.

    The vector lies in the world's axes: its length is the angle in degrees by which the head was
    turned, right-handed, about its direction.
    """
    turn = Rotation.from_matrix(head_to_world[:3, :3] @ first[:3, :3].T)
    return np.concatenate([head_to_world[:3, 3], np.rad2deg(turn.as_rotvec())])


def motion_table(motion: SeriesMotion) -> str:
    """Text of ``<case>_motion.tsv``; "n/a" where there is no value."""
    columns = [
        "frame", "time_s", "status", "confidence", *VECTOR,
        *(f"{name}_tracked" for name in VECTOR), "sd_mm", "sd_deg", "track",
    ]  # fmt: skip
    lines = ["\t".join(columns)]
    first = motion.first_pose
    for f in motion.frames:
        found = _numbers(f.head_to_world, first)
        tracked = _numbers(None if f.tracked is None else f.tracked.head_to_world, first)
        spread = [NOT_KNOWN] * 2
        if f.tracked is not None:
            spread = [f"{f.tracked.translation_sd_mm:.3f}", f"{f.tracked.rotation_sd_deg:.3f}"]
        values = [str(f.frame), f"{f.time_s:.4f}", f.status, f"{f.confidence:.4f}"]
        lines.append("\t".join([*values, *found, *tracked, *spread, f.track]))
    return "\n".join(lines) + "\n"


def motion_json(motion: SeriesMotion, parameters: TrackingParameters | None = None) -> str:
    """Text of ``<case>_motion.json``: every pose as 4 x 4, head to world in RAS mm."""
    content = {
        "case": motion.case,
        "times_known": motion.times_known,
        "repetition_s": None if motion.times_known else motion.repetition_s,
        "sd": "radius in mm or degrees within which 68 % of the tracked poses' errors are expected",
        "tracker": asdict(parameters or TrackingParameters()),
        "frames": [
            {
                "frame": f.frame,
                "time_s": f.time_s,
                "status": f.status,
                "confidence": f.confidence,
                "head_to_world": _listed(f.head_to_world),
                "track": f.track,
                "head_to_world_tracked": None if f.tracked is None else _listed(f.tracked[0]),
                "sd_mm": None if f.tracked is None else round(f.tracked.translation_sd_mm, 4),
                "sd_deg": None if f.tracked is None else round(f.tracked.rotation_sd_deg, 4),
            }
            for f in motion.frames
        ],
    }
    return json.dumps(content, indent=1) + "\n"


def _listed(pose: NDArray[np.float64] | None) -> list[list[float]] | None:
    return None if pose is None else pose.tolist()


def _numbers(pose: NDArray[np.float64] | None, first: NDArray[np.float64] | None) -> list[str]:
    if pose is None or first is None:
        return [NOT_KNOWN] * len(VECTOR)
    return [f"{value:.4f}" for value in pose_vector(pose, first)]
