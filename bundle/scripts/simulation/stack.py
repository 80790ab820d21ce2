"""Stacks of 2D slices, as HASTE and balanced SSFP take them: slabs, motion between slices, losses.

Frames are those of volume.py; slices lie along the last axis of the grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

SEQUENCES = ("haste", "bssfp")
IN_PLANE_MM = (1.0, 1.6)
THICKNESS_MM = (2.5, 4.5)
SLAB_MM = (60.0, 160.0)
SLICES = (16, 50)


@dataclass
class StackPlan:
    """voxel_mm (3,): in plane, in plane, distance of slices; size (3,) voxels."""

    voxel_mm: NDArray[np.float64]
    size: NDArray[np.int64]


def draw_plan(random: np.random.RandomState, coarsen: float = 1.0) -> StackPlan:
    """In-plane voxels, thickness, gap, slab and field of view of a stack, all uniform.

    In plane 1.0-1.6 mm, 2.5-4.5 mm thick, in 3 of 10 a gap of up to 1 mm, 16-50 slices of a slab
    of 60-160 mm, 220-380 mm in plane. ``coarsen`` multiplies the in-plane voxel: the networks see
    4 mm, and a stack for training need not be finer than 2.
    """
    plane = random.uniform(*IN_PLANE_MM) * coarsen
    step = random.uniform(*THICKNESS_MM)
    if random.uniform() < 0.3:
        step += random.uniform(0, 1)
    slices = int(np.clip(round(random.uniform(*SLAB_MM) / step), *SLICES))
    extent = random.uniform(220, 380, size=2)
    size = np.array([*np.round(extent / plane), slices]).astype(int)
    return StackPlan(np.array([plane, plane, step]), size)


@dataclass
class SliceMotion:
    """Where the head is in each slice, and how bright the slice comes out.

    turn (k, 3, 3) and shift_mm (k, 3) in world axes, about the head's origin, relative to the mean
    pose; gain (k,): 1, or less where a slice is dark, 0 where it is lost.
    """

    turn: NDArray[np.float64]
    shift_mm: NDArray[np.float64]
    gain: NDArray[np.float64]

    def pose(self, k: int, head_to_world: NDArray[np.float64]) -> NDArray[np.float64]:
        """(4, 4) head_to_world while slice ``k`` is taken."""
        moved = head_to_world.copy()
        moved[:3, :3] = self.turn[k] @ head_to_world[:3, :3]
        moved[:3, 3] += self.shift_mm[k]
        return moved


def draw_motion(random: np.random.RandomState, slices: int, seen: NDArray[np.bool_]) -> SliceMotion:
    """Interleaved slices of a head that moves: a random walk, now and then a turn.

    Over the slices with the head in them, ``seen`` (k,), the walk has a deviation uniform in 0-3
    degrees and 0-2.5 mm; in 15 % of the stacks there is one turn of 5-20 degrees and up to 6 mm.
    The mean over these slices is the identity. Every second slice is taken first in 3 of 4 stacks.
    Slices differ in brightness by a log-normal factor of a deviation uniform in 0-0.12, those
    taken later by another of 0.8-1. Each slice is dark (gain 0.2-0.7) with a probability uniform
    in 0-8 % and lost with a third of that.
    """
    stride = 2 if random.uniform() < 0.75 else 1
    order = np.concatenate([np.arange(start, slices, stride) for start in range(stride)])
    walk = np.cumsum(random.normal(size=(slices, 6)), axis=0)
    moved = walk / max(float(walk.std(axis=0).mean()), 1e-6)
    moved[:, :3] *= random.uniform(0, 3)
    moved[:, 3:] *= random.uniform(0, 2.5)
    if random.uniform() < 0.15:
        direction = random.normal(size=(2, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        jump = np.concatenate(
            [direction[0] * random.uniform(5, 20), direction[1] * random.uniform(0, 6)]
        )
        moved[random.randint(slices) :] += jump
    by_slice = np.empty_like(moved)
    by_slice[order] = moved
    weight = seen if seen.any() else np.ones(slices, bool)
    by_slice[:, 3:] -= by_slice[weight, 3:].mean(axis=0)
    turn = Rotation.from_rotvec(by_slice[:, :3], degrees=True)
    turn = turn * turn[weight].mean().inv()
    gain = np.exp(random.normal(size=slices) * random.uniform(0, 0.12))
    gain[1::stride] *= random.uniform(0.8, 1.0)
    dark = random.uniform(0, 0.08)
    draw = random.uniform(size=slices)
    gain *= np.where(draw < dark, random.uniform(0.2, 0.7, size=slices), 1.0)
    gain[draw < dark / 3] = 0.0
    return SliceMotion(turn.as_matrix(), by_slice[:, 3:], gain)
