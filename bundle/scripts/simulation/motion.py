"""How a fetal head moves: presets of bouts between rests, and a user's own table.

A motion is a path of displacements, so it can be laid on any head: at time t the head is turned by
`turn(t)` about its own centre and that centre is moved by `shift_mm(t)`, both along the world's
axes (RAS), against where it was at time 0. The mother's breathing is part of it.
"""

from __future__ import annotations

import csv
import math
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

STEP_S = 0.05
COLUMNS = ("time_s", "x_mm", "y_mm", "z_mm", "rx_deg", "ry_deg", "rz_deg")


@dataclass(frozen=True)
class MotionPreset:
    """Distributions that a motion is drawn from.

    Between moves the head rests, for times that are exponential of mean `rest_s`, while it drifts
    as a random walk of `drift_deg` and `drift_mm` per root of a second along each axis. A move
    lasts uniformly `move_s`, begins and ends softly, and turns by an angle about a random axis and
    shifts by a distance along a random direction that are log-normal with these medians and
    `spread` (of the logarithm), at most `most_deg` and `most_mm`; one after the other in half of
    the cases without a rest. A share `turn_share` of the moves turns by uniformly 60..180 degrees.
    Shifts lean back to the middle, to which the uterus holds the head. Breathing is a sine of
    amplitude `breathing_mm` along S and a third of it along A, of a period of 3..5 s.
    """

    rest_s: float
    move_s: tuple[float, float]
    move_deg: float
    move_mm: float
    spread: float
    most_deg: float
    most_mm: float
    turn_share: float
    drift_deg: float
    drift_mm: float
    breathing_mm: float


PRESETS = {
    "still": MotionPreset(math.inf, (0.5, 2), 0, 0, 0, 0, 0, 0.0, 0.1, 0.08, 0.5),
    "typical": MotionPreset(12.0, (0.5, 2.5), 6.0, 3.0, 0.8, 30, 12, 0.02, 0.25, 0.15, 0.8),
    "restless": MotionPreset(3.0, (0.5, 2.5), 9.0, 4.0, 0.8, 40, 18, 0.05, 0.35, 0.2, 1.2),
}


@dataclass(frozen=True)
class Motion:
    """times_s (n,) rising from 0; shift_mm (n, 3) and turn, n rotations, along the world's axes."""

    times_s: NDArray[np.float64]
    shift_mm: NDArray[np.float64]
    turn: Rotation
    name: str

    @property
    def duration_s(self) -> float:
        return float(self.times_s[-1])

    def at(self, time_s: float, head_to_world: NDArray) -> NDArray[np.float64]:
        """The pose (4, 4) at a time of a head that is at `head_to_world` (4, 4) at time 0.

        ValueError for a time that the motion does not know.
        """
        if not 0 <= time_s <= self.duration_s + 1e-9:
            raise ValueError(
                f"{self.name}: the motion ends at {self.duration_s:g} s, asked for {time_s:g} s"
            )
        time_s = min(time_s, self.duration_s)
        pose = np.array(head_to_world, dtype=np.float64)
        first = min(int(np.searchsorted(self.times_s, time_s, "right")), len(self.times_s) - 1) - 1
        part = slice(first, first + 2)
        pose[:3, :3] = Slerp(self.times_s[part], self.turn[part])(time_s).as_matrix() @ pose[:3, :3]
        for axis in range(3):
            pose[axis, 3] += np.interp(time_s, self.times_s, self.shift_mm[:, axis])
        return pose

    def steps(self, step_s: float = 2.5) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """How far the head turns (degrees) and its centre moves (mm) from one frame to the next."""
        times = np.arange(0, self.duration_s + 1e-9, step_s)
        turn = Slerp(self.times_s, self.turn)(times)
        shift = np.stack([np.interp(times, self.times_s, s) for s in self.shift_mm.T], axis=1)
        angle_deg = np.rad2deg((turn[1:] * turn[:-1].inv()).magnitude())
        return angle_deg, np.linalg.norm(np.diff(shift, axis=0), axis=1)


def draw_motion(name: str, duration_s: float, random: np.random.RandomState) -> Motion:
    """A motion of the preset "still", "typical" or "restless" (ValueError for another name)."""
    if name not in PRESETS:
        raise ValueError(f"motion must be one of {sorted(PRESETS)} or a CSV file, got {name!r}")
    preset = PRESETS[name]
    times = STEP_S * np.arange(math.ceil(duration_s / STEP_S) + 1, dtype=np.float64)
    drift_deg = random.normal(scale=preset.drift_deg * math.sqrt(STEP_S), size=(len(times), 3))
    drift_mm = random.normal(scale=preset.drift_mm * math.sqrt(STEP_S), size=(len(times), 3))
    steps_deg, steps_mm = drift_deg, drift_mm
    here = np.zeros(3)
    for start_s, length_s, vector_deg, vector_mm in _moves(preset, times[-1], random):
        progress = np.clip((times - start_s) / length_s, 0, 1)
        # minimum jerk: speed and acceleration are zero at both ends
        done = progress**3 * (10 - 15 * progress + 6 * progress**2)
        share = np.diff(done, prepend=0)[:, None]
        steps_deg = steps_deg + share * vector_deg
        back_mm = vector_mm - 0.3 * here
        steps_mm = steps_mm + share * back_mm
        here = here + back_mm
    path = Rotation.from_rotvec(np.deg2rad(steps_deg)).as_matrix()
    path[0] = np.eye(3)
    for k in range(1, len(path)):
        path[k] = path[k] @ path[k - 1]
    shift = np.cumsum(steps_mm, axis=0)
    period_s, phase = random.uniform(3, 5), random.uniform(0, 2 * np.pi)
    breath = preset.breathing_mm * np.sin(2 * np.pi * times / period_s + phase)
    shift = shift + breath[:, None] * [0, 1 / 3, 1]
    return Motion(times, shift - shift[0], Rotation.from_matrix(path), name)


def _moves(
    preset: MotionPreset, duration_s: float, random: np.random.RandomState
) -> list[tuple[float, float, NDArray[np.float64], NDArray[np.float64]]]:
    """Begin and length in s, rotation vector in degrees and shift in mm of every move."""
    moves: list[tuple[float, float, NDArray[np.float64], NDArray[np.float64]]] = []
    time_s = 0.0
    while math.isfinite(preset.rest_s):
        time_s += random.exponential(preset.rest_s)
        while True:
            length_s = random.uniform(*preset.move_s)
            angle_deg = min(
                preset.move_deg * np.exp(preset.spread * random.normal()), preset.most_deg
            )
            if random.uniform() < preset.turn_share:
                angle_deg, length_s = random.uniform(60, 180), random.uniform(1.5, 4)
            far_mm = min(preset.move_mm * np.exp(preset.spread * random.normal()), preset.most_mm)
            axes = random.normal(size=(2, 3))
            axes /= np.linalg.norm(axes, axis=1, keepdims=True)
            if time_s >= duration_s:
                return moves
            moves.append((time_s, length_s, axes[0] * angle_deg, axes[1] * far_mm))
            time_s += length_s
            if random.uniform() < 0.5:
                break
    return moves


def read_motion(path: str | os.PathLike[str]) -> Motion:
    """A motion from a CSV table with the columns time_s, x_mm, y_mm, z_mm, rx_deg, ry_deg, rz_deg.

    Positions are those of the head's centre and rotations are rotation vectors, both along the
    world's axes (RAS) and against any common reference: the first row becomes time 0 and no motion.
    Between rows positions are linear and rotations of constant speed. Further columns are ignored.

    ValueError, with the file and the line, for what cannot be meant; OSError if it is not there.
    """
    rows: list[list[float]] = []
    with open(path, newline="", encoding="utf-8-sig") as file:
        text = file.read()
    delimiter = "\t" if "\t" in text.split("\n", 1)[0] else ","
    reader = csv.DictReader(text.splitlines(), delimiter=delimiter, skipinitialspace=True)
    lacking = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if lacking:
        raise ValueError(f"{path}: no column {', '.join(lacking)}; found {reader.fieldnames}")
    for row in reader:
        try:
            values = [float(row[name]) for name in COLUMNS]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
        if not np.isfinite(values).all():
            raise ValueError(f"{path}, line {reader.line_num}: not finite: {values}")
        if rows and values[0] <= rows[-1][0]:
            raise ValueError(
                f"{path}, line {reader.line_num}: time_s has to rise, got {values[0]:g} after "
                f"{rows[-1][0]:g}"
            )
        rows.append(values)
    if len(rows) < 2:
        raise ValueError(f"{path}: expected two rows or more, got {len(rows)}")
    table = np.array(rows)
    turn = Rotation.from_rotvec(np.deg2rad(table[:, 4:7]))
    return Motion(
        table[:, 0] - table[0, 0], table[:, 1:4] - table[0, 1:4], turn * turn[0].inv(), str(path)
    )


def motion_of(name: str, duration_s: float, random: np.random.RandomState) -> Motion:
    """A motion of a preset and of that duration, or that of a file whose name ends in .csv or .tsv.

    ValueError for another name, and for what `read_motion` refuses.
    """
    if name.lower().endswith((".csv", ".tsv")):
        return read_motion(name)
    return draw_motion(name, duration_s, random)
