"""The track of a head: its pose and velocity over time, from poses that err, fail or are lacking.

A filter on SE(3), in numpy. Position and rotation are tracked side by side, each with a velocity,
in the world's axes: a pose is turned by the exponential of a rotation vector from the left, and its
centre is moved. Errors are taken as equal along all axes, so that the covariance of position and
velocity is one 2 x 2 matrix in mm and one in degrees.

What a head did between two frames is one of three things: it rested, it moved, it leapt (turned
over). A frame's pose makes each of them more or less likely; a fourth explanation is that the pose
is wrong. Estimates are the mean over the first three, weighted by what they are worth; a pose that
is most likely wrong does not move the track, but is remembered: when the next one agrees with it,
the head has jumped and the track follows at once.

Standard deviations are given, here and everywhere in `scan`, as the radius in degrees or mm within
which 68.27 % of the errors lie: of the angle between two rotations, and of the distance between two
centres.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from .head_state import (
    RADIUS_PER_SD,
    HeadState,
    at_rest,
    gain_of,
    in_move,
    log_density,
    mean_state,
    radius_of,
)
from .tracking_parameters import TrackingParameters


class _Noise(NamedTuple):
    """Variances (2,) of a pose's error along each axis, mm^2 and degrees^2."""

    varying: NDArray[np.float64]  # from frame to frame
    steady: NDArray[np.float64]  # the same as long as the head rests


class _Weighed(NamedTuple):
    """What a pose makes of a state."""

    state: HeadState  # if the pose is right
    right: float  # how likely that is
    moved: float  # and how likely it then is that the head moved
    # (2,): squared distances in mm and degrees from a head at rest over what is expected of them
    surprise: NDArray[np.float64]


class Tracked(NamedTuple):
    """A pose (4, 4) of the track, its 68 % radii, and the time since the last pose it used, s."""

    head_to_world: NDArray[np.float64]
    rotation_sd_deg: float
    translation_sd_mm: float
    age_s: float


@dataclass
class Tracker:
    """The track of one head; frames are given in the order of their times.

    >>> tracker = Tracker()
    >>> for frame in range(8):
    ...     tracker.update(2.5 * frame, np.eye(4), rotation_sd_deg=6.0, translation_sd_mm=4.0)
    'used'
    'used'
    'used'
    'used'
    'used'
    'used'
    'used'
    'used'
    >>> ahead = tracker.predict(18.5)
    >>> ahead.age_s, ahead.rotation_sd_deg < 6.0
    (1.0, True)
    """

    parameters: TrackingParameters = field(default_factory=TrackingParameters)

    def __post_init__(self) -> None:
        self._state: HeadState | None = None
        self._noise = _Noise(np.zeros(2), np.zeros(2))  # of the last pose used
        self._candidate: tuple[HeadState, _Noise] | None = None
        self._refused = 0
        self._seen_s: float | None = None
        self._watched_s, self._moves = 0.0, 0.0
        self._scatter, self._resting = np.zeros(2), 0.0

    @property
    def noise_scale(self) -> NDArray[np.float64]:
        """(2,): how far poses scatter, in mm^2 and degrees^2, over what was thought at first."""
        told = self.parameters.learn_poses
        return (told + self._scatter) / (told + self._resting)

    @property
    def rest_s(self) -> float:
        """Mean time between moves, as far as it is known: it follows from how often the head moved.

        That is the mean of a Gamma distribution of the rate, begun with the parameters.
        """
        p = self.parameters
        return (p.learn_s + self._watched_s) / (p.learn_s / p.rest_s + self._moves)

    @property
    def started(self) -> bool:
        """Whether there has been a pose yet."""
        return self._state is not None

    def update(
        self,
        time_s: float,
        head_to_world: NDArray | None,
        rotation_sd_deg: float,
        translation_sd_mm: float,
        wrong_share: float | None = None,
    ) -> str:
        """Take in a frame; return "used", "refused" (most likely wrong), "restarted" or "lacking".

        Parameters
        ----------
        time_s : later than that of the frame before, else ValueError
        head_to_world : (4, 4) rigid, or None for a frame without a pose
        rotation_sd_deg, translation_sd_mm : 68 % radii of the pose's error; not used without one
        wrong_share : how likely the pose is quite wrong, that of the parameters by default
        """
        if not math.isfinite(time_s) or (self._seen_s is not None and time_s <= self._seen_s):
            raise ValueError(f"the frame at {time_s} s does not follow the one at {self._seen_s} s")
        self._seen_s = time_s
        if head_to_world is None:
            return "lacking"
        pose = np.asarray(head_to_world, dtype=np.float64)
        if pose.shape != (4, 4) or not np.isfinite(pose).all():
            raise ValueError(f"the pose at {time_s} s is no finite 4 x 4 matrix: {pose.tolist()}")
        if not (0 < rotation_sd_deg < math.inf and 0 < translation_sd_mm < math.inf):
            raise ValueError(
                f"the pose at {time_s} s needs errors above 0, got {rotation_sd_deg} degrees and "
                f"{translation_sd_mm} mm"
            )
        scale = self.noise_scale
        noise = self._split(scale, translation_sd_mm, rotation_sd_deg)
        fresh = self._from_pose(time_s, pose, noise)
        if self._state is None:
            self._accept(fresh, noise)
            return "used"
        wrong = self.parameters.wrong_share if wrong_share is None else wrong_share
        followed = self._weigh(self._state, fresh, noise, wrong)
        if followed.right > 0.5:
            self._watched_s += time_s - self._state.time_s
            self._moves += followed.moved
            self._scatter += (1 - followed.moved) * scale * followed.surprise
            self._resting += 1 - followed.moved
            self._accept(followed.state, noise)
            return "used"
        self._refused += 1
        if self._candidate is not None:
            jumped = self._weigh(self._candidate[0], fresh, noise, wrong)
            if jumped.right > 0.5:
                self._accept(jumped.state, noise)
                return "restarted"
        if self._refused >= self.parameters.patience:
            self._accept(fresh, noise)
            return "restarted"
        self._candidate = fresh, noise
        return "refused"

    def predict(self, time_s: float) -> Tracked:
        """The pose at any time from the last pose used on.

        RuntimeError before there is one; ValueError for an earlier time.
        """
        state = self._state
        if state is None:
            raise RuntimeError("no pose has been seen yet")
        if time_s < state.time_s - 1e-9:
            raise ValueError(f"asked for {time_s} s, the track is at {state.time_s} s already")
        futures = self._futures(state, max(time_s - state.time_s, 0.0))
        mean = mean_state(futures, state)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = mean.rotation.as_matrix(), mean.position_mm
        steady = self._noise.steady
        breathing = self.parameters.breathing_mm**2
        weights = [weight for weight, _ in futures]
        mm = [s.cov_mm[0, 0] + breathing + steady[0] for _, s in futures]
        deg = [s.cov_deg[0, 0] + steady[1] for _, s in futures]
        return Tracked(
            pose,
            min(radius_of(weights, deg), 180.0),
            radius_of(weights, mm),
            max(time_s - state.time_s, 0.0),
        )

    def _split(
        self, scale: NDArray[np.float64], translation_sd_mm: float, rotation_sd_deg: float
    ) -> _Noise:
        """The noise of a pose whose 68 % radii are told.

        What is told is the whole error. Of a part of it poses of a head at rest show how large it
        is: that by which they scatter. What does not scatter is steady.
        """
        told = (np.array([translation_sd_mm, rotation_sd_deg]) / RADIUS_PER_SD) ** 2
        varying = scale * (1 - self.parameters.steady_share) * told
        return _Noise(varying, np.maximum(told - varying, self.parameters.steady_share * told))

    def _accept(self, state: HeadState, noise: _Noise) -> None:
        self._state, self._noise, self._candidate, self._refused = state, noise, None, 0

    def _from_pose(self, time_s: float, pose: NDArray[np.float64], noise: _Noise) -> HeadState:
        """What one pose alone says."""
        p = self.parameters
        chance = p.move_s / (p.move_s + self.rest_s)
        return HeadState(
            time_s,
            pose[:3, 3].copy(),
            Rotation.from_matrix(pose[:3, :3]),
            np.zeros(3),
            np.zeros(3),
            np.diag([noise.varying[0] + p.breathing_mm**2, chance * p.move_mm_s**2]),
            np.diag([noise.varying[1], chance * p.move_deg_s**2]),
            chance,
        )

    def _futures(self, state: HeadState, after_s: float) -> list[tuple[float, HeadState]]:
        """Where the head may be later: how likely it rests, moves, leaps, and what follows."""
        p, rest_s = self.parameters, self.rest_s
        rested = (1 - state.moving) * math.exp(-after_s / rest_s)
        always = p.move_s / (p.move_s + rest_s)
        settled = math.exp(-after_s * (1 / p.move_s + 1 / rest_s))
        at_end = min((always + (state.moving - always) * settled) / max(1 - rested, 1e-12), 1.0)
        futures = [(rested, at_rest(state, after_s, p.rest_mm, p.rest_deg))]
        for share, mm_s, deg_s in (
            (1 - p.leap_share, p.move_mm_s, p.move_deg_s),
            (p.leap_share, p.leap_mm_s, p.leap_deg_s),
        ):
            moved = in_move(state, after_s, p.move_s, mm_s, deg_s)
            futures.append(((1 - rested) * share, replace(moved, moving=at_end)))
        return futures

    def _weigh(self, before: HeadState, seen: HeadState, noise: _Noise, wrong: float) -> _Weighed:
        p = self.parameters
        spread_mm2 = noise.varying[0] + p.breathing_mm**2
        # a head that has moved has another steady error than before
        other = 2 * noise.steady
        updated: list[HeadState] = []
        logs, surprise = [], np.ones(2)
        for chance, future in self._futures(before, seen.time_s - before.time_s):
            off_mm = seen.position_mm - future.position_mm
            off_deg = np.rad2deg((seen.rotation * future.rotation.inv()).as_rotvec())
            rested = not updated  # the first future
            noise_mm2 = spread_mm2 + (0 if rested else other[0])
            noise_deg2 = noise.varying[1] + (0 if rested else other[1])
            if rested:
                surprise[0] = off_mm @ off_mm / (3 * (future.cov_mm[0, 0] + noise_mm2))
                surprise[1] = off_deg @ off_deg / (3 * (future.cov_deg[0, 0] + noise_deg2))
            gain_mm, cov_mm = gain_of(future.cov_mm, noise_mm2)
            gain_deg, cov_deg = gain_of(future.cov_deg, noise_deg2)
            turned = Rotation.from_rotvec(np.deg2rad(gain_deg[0] * off_deg)) * future.rotation
            updated.append(
                replace(
                    future,
                    position_mm=future.position_mm + gain_mm[0] * off_mm,
                    rotation=turned,
                    velocity_mm_s=future.velocity_mm_s + gain_mm[1] * off_mm,
                    velocity_deg_s=future.velocity_deg_s + gain_deg[1] * off_deg,
                    cov_mm=cov_mm,
                    cov_deg=cov_deg,
                )
            )
            logs.append(
                math.log(max(chance, 1e-300))
                + log_density(off_mm, future.cov_mm[0, 0] + noise_mm2)
                + log_density(off_deg, future.cov_deg[0, 0] + noise_deg2)
            )
        off_mm = seen.position_mm - before.position_mm
        # a wrong pose may have any rotation (the volume of SO(3) is 8 pi^2), about a cm away
        anywhere = log_density(off_mm, 10.0**2) - math.log(8 * math.pi**2 * (180 / math.pi) ** 3)
        top = max(logs)
        likely = np.exp(np.array(logs) - top)
        right = (1 - wrong) * likely.sum()
        share = right / (right + wrong * math.exp(min(anywhere - top, 700.0)))
        weights = likely / likely.sum()
        mean = mean_state(list(zip(weights.tolist(), updated, strict=True)), before)
        return _Weighed(mean, float(share), 1 - float(weights[0]), surprise)


def track(
    frames: Iterable[tuple[float, NDArray | None, float, float, float | None]],
    parameters: TrackingParameters | None = None,
    ahead_s: float = 0.0,
) -> tuple[list[Tracked | None], list[str]]:
    """The track at each frame's own time plus `ahead_s`, and what became of each frame.

    `frames` are the arguments of `Tracker.update`. None as long as there has been no pose.
    """
    tracker = Tracker(parameters or TrackingParameters())
    found: list[Tracked | None] = []
    became = []
    for frame in frames:
        became.append(tracker.update(*frame))
        found.append(tracker.predict(frame[0] + ahead_s) if tracker.started else None)
    return found, became
