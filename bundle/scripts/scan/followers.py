"""What a scan may know of the head when it plans the next slice: four ways to follow it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from ..labels import Status
from .estimator import Estimate
from .tracking import Tracker, TrackingParameters

Pose = NDArray[np.float64]


class Follower(ABC):
    """Says where the head is thought to be.

    `needs_navigator`: whether it is told what the network finds in a navigator of its own.
    """

    needs_navigator = False

    @abstractmethod
    def observe(self, time_s: float, estimate: Estimate | None, truth: Pose) -> str:
        """Take in the navigator at a time; what became of it, for the table."""

    @abstractmethod
    def pose_at(self, time_s: float) -> tuple[Pose, float, float]:
        """The pose (4, 4) assumed for a time, and its 68 % radii in degrees and mm, NaN unknown."""


class Blind(Follower):
    """The stack as it was planned at the start, by the true pose then: as well as can be."""

    def __init__(self) -> None:
        self._pose: Pose | None = None

    def observe(self, time_s: float, estimate: Estimate | None, truth: Pose) -> str:
        if self._pose is None:
            self._pose = truth
        return "not looked at"

    def pose_at(self, time_s: float) -> tuple[Pose, float, float]:
        assert self._pose is not None
        return self._pose, np.nan, np.nan


class LatestPose(Follower):
    """The pose of the last navigator that had one with the status "ok"."""

    needs_navigator = True

    def __init__(self) -> None:
        self._estimate: Estimate | None = None

    def observe(self, time_s: float, estimate: Estimate | None, truth: Pose) -> str:
        assert estimate is not None
        if estimate.status != Status.OK:
            return "held"
        self._estimate = estimate
        return "used"

    def pose_at(self, time_s: float) -> tuple[Pose, float, float]:
        assert self._estimate is not None
        assert self._estimate.head_to_world is not None
        noise = self._estimate.noise
        return self._estimate.head_to_world, noise.rotation_sd_deg, noise.translation_sd_mm


class TrackedPose(Follower):
    """The tracker's prediction; it is also told uncertain poses, with their larger noise."""

    needs_navigator = True

    def __init__(self, parameters: TrackingParameters) -> None:
        self._tracker = Tracker(parameters)

    def observe(self, time_s: float, estimate: Estimate | None, truth: Pose) -> str:
        assert estimate is not None
        return self._tracker.update(time_s, estimate.head_to_world, *estimate.noise)

    def pose_at(self, time_s: float) -> tuple[Pose, float, float]:
        tracked = self._tracker.predict(time_s)
        return tracked.head_to_world, tracked.rotation_sd_deg, tracked.translation_sd_mm


class TruePose(Follower):
    """The true pose at the navigator: what is left is the latency."""

    def __init__(self) -> None:
        self._pose: Pose | None = None

    def observe(self, time_s: float, estimate: Estimate | None, truth: Pose) -> str:
        self._pose = truth
        return "used"

    def pose_at(self, time_s: float) -> tuple[Pose, float, float]:
        assert self._pose is not None
        return self._pose, 0.0, 0.0


def four_ways(parameters: TrackingParameters) -> dict[str, Follower]:
    """One of each, by the name that stands in the tables."""
    return {
        "blind": Blind(),
        "pose": LatestPose(),
        "tracker": TrackedPose(parameters),
        "true": TruePose(),
    }
