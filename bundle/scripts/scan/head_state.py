"""Where a head may be: position, rotation, their velocities and covariances, and how they grow.

Errors are taken as equal along all axes, so one 2 x 2 matrix holds the covariance of position and
velocity in mm and mm/s, another that of rotation and angular velocity in degrees. Rotations err by
a rotation vector along the world's axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

# Radius, in standard deviations along each axis, of the ball that holds 68.27 % of a normal
# distribution in three dimensions (the chi distribution's quantile).
RADIUS_PER_SD = 1.8780


@dataclass(frozen=True)
class HeadState:
    """What is known at one time; `*_cov` (2, 2) of value and velocity along each axis."""

    time_s: float
    position_mm: NDArray[np.float64]
    rotation: Rotation
    velocity_mm_s: NDArray[np.float64]
    velocity_deg_s: NDArray[np.float64]
    cov_mm: NDArray[np.float64]
    cov_deg: NDArray[np.float64]
    moving: float  # how likely the head is in a move at this time


def at_rest(state: HeadState, after_s: float, rest_mm: float, rest_deg: float) -> HeadState:
    """A head that has not moved: without velocity, its position spread by the drift."""
    still = np.array([[1.0, 0], [0, 0]])
    return replace(
        state,
        time_s=state.time_s + after_s,
        velocity_mm_s=np.zeros(3),
        velocity_deg_s=np.zeros(3),
        cov_mm=(state.cov_mm[0, 0] + rest_mm**2 * after_s) * still,
        cov_deg=(state.cov_deg[0, 0] + rest_deg**2 * after_s) * still,
        moving=0.0,
    )


def in_move(
    state: HeadState, after_s: float, move_s: float, sd_mm_s: float, sd_deg_s: float
) -> HeadState:
    """A head that moves: its velocity is an Ornstein-Uhlenbeck process of this deviation."""
    kept = math.exp(-after_s / move_s)
    way_s = move_s * (1 - kept)
    carry = np.array([[1.0, way_s], [0, kept]])
    spread = np.array(
        [
            [move_s * (2 * after_s - move_s * (3 - 4 * kept + kept**2)), move_s * (1 - kept) ** 2],
            [move_s * (1 - kept) ** 2, 1 - kept**2],
        ]
    )
    turned = Rotation.from_rotvec(np.deg2rad(way_s * state.velocity_deg_s))
    return replace(
        state,
        time_s=state.time_s + after_s,
        position_mm=state.position_mm + way_s * state.velocity_mm_s,
        rotation=turned * state.rotation,
        velocity_mm_s=kept * state.velocity_mm_s,
        velocity_deg_s=kept * state.velocity_deg_s,
        cov_mm=carry @ state.cov_mm @ carry.T + sd_mm_s**2 * spread,
        cov_deg=carry @ state.cov_deg @ carry.T + sd_deg_s**2 * spread,
    )


def gain_of(cov: NDArray[np.float64], noise: float) -> tuple[NDArray, NDArray]:
    """Kalman gain (2,) of a measured value, and the covariance (2, 2) after it."""
    gain = cov[:, 0] / (cov[0, 0] + noise)
    return gain, cov - np.outer(gain, cov[0])


def log_density(off: NDArray[np.float64], variance: float) -> float:
    """Logarithm of the normal density of `off` (3,) with one variance along each axis."""
    return -1.5 * math.log(2 * math.pi * variance) - float(off @ off) / (2 * variance)


def mean_state(parts: list[tuple[float, HeadState]], about: HeadState) -> HeadState:
    """One state with the mean and the spread of several with weights; rotations about one."""
    last = parts[0][1]
    vectors = [np.rad2deg((s.rotation * about.rotation.inv()).as_rotvec()) for _, s in parts]
    weights = np.array([weight for weight, _ in parts])
    weights = weights / weights.sum()
    turn = np.average(vectors, axis=0, weights=weights)
    position = np.average([s.position_mm for _, s in parts], axis=0, weights=weights)
    mm_s = np.average([s.velocity_mm_s for _, s in parts], axis=0, weights=weights)
    deg_s = np.average([s.velocity_deg_s for _, s in parts], axis=0, weights=weights)
    cov_mm, cov_deg = np.zeros((2, 2)), np.zeros((2, 2))
    for weight, vector, (_, s) in zip(weights, vectors, parts, strict=True):
        apart_mm = np.stack([s.position_mm - position, s.velocity_mm_s - mm_s])
        apart_deg = np.stack([vector - turn, s.velocity_deg_s - deg_s])
        cov_mm += weight * (s.cov_mm + apart_mm @ apart_mm.T / 3)
        cov_deg += weight * (s.cov_deg + apart_deg @ apart_deg.T / 3)
    moving = float(weights @ [s.moving for _, s in parts])
    rotation = Rotation.from_rotvec(np.deg2rad(turn)) * about.rotation
    return HeadState(last.time_s, position, rotation, mm_s, deg_s, cov_mm, cov_deg, moving)


def radius_of(weights: list[float], variances: list[float]) -> float:
    """Radius that holds 68.27 % of a mixture of normal distributions about one centre."""
    low, high = 0.0, 10 * math.sqrt(max(variances)) + 1e-9
    for _ in range(50):
        middle = (low + high) / 2
        inside = sum(
            w * share_within(middle / math.sqrt(v)) for w, v in zip(weights, variances, strict=True)
        )
        low, high = (middle, high) if inside < 0.6827 * sum(weights) else (low, middle)
    return high


def share_within(radius: float) -> float:
    """Share of a standard normal distribution in three dimensions within a radius."""
    return math.erf(radius / math.sqrt(2)) - math.sqrt(2 / math.pi) * radius * math.exp(
        -(radius**2) / 2
    )
