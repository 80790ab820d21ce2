"""Implicit shapes, smooth random fields and the grids that they are painted on.

A shape is a function of three coordinate arrays that returns its signed distance in mm, negative
inside. Distances are first order: exact on the surface and close to it, which is all that a
partial-volume occupancy needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float32]
Box = tuple[slice, slice, slice]
Point = Sequence[float] | NDArray[np.float64]


def ellipsoid(x: Floats, y: Floats, z: Floats, centre: Point, radii: Point) -> Floats:
    """Signed distance in mm to an ellipsoid whose axes are the coordinate axes.

    The distance is f / |grad f| for f = |p / radii| - 1.

    Parameters
    ----------
    x, y, z : float32 arrays that broadcast together, mm.
    centre, radii : three numbers each, mm.
    """
    size, slope = np.zeros((1, 1, 1), np.float32), np.zeros((1, 1, 1), np.float32)
    for q, c, r in zip((x, y, z), centre, radii, strict=True):
        squared = q * np.float32(1.0 / r)
        squared -= np.float32(c / r)
        squared *= squared
        size = size + squared
        squared *= np.float32(1.0 / r**2)
        slope = slope + squared
    slope += np.float32(1e-12)
    # (s - 1) s / |grad| with s the root of `size`.
    np.divide(size, slope, out=slope)
    np.sqrt(slope, out=slope)
    np.sqrt(size, out=size)
    size -= np.float32(1.0)
    size *= slope
    return size


def capsule(
    x: Floats,
    y: Floats,
    z: Floats,
    start: Point,
    end: Point,
    radii: tuple[float, float],
) -> Floats:
    """Signed distance in mm to a rod from `start` to `end` whose radius goes from one to the other.

    Parameters
    ----------
    x, y, z : float32 arrays of one shape, mm.
    start, end : three numbers each, mm.
    radii : radius in mm at `start` and at `end`.
    """
    ax, ay, az = (float(e) - float(s) for s, e in zip(start, end, strict=True))
    px, py, pz = x - float(start[0]), y - float(start[1]), z - float(start[2])
    scale = 1.0 / (ax * ax + ay * ay + az * az + 1e-9)
    along = px * np.float32(ax * scale)
    along += py * np.float32(ay * scale)
    along += pz * np.float32(az * scale)
    np.clip(along, 0.0, 1.0, out=along)
    for q, a in ((px, ax), (py, ay), (pz, az)):
        q -= along * np.float32(a)
        q *= q
    px += py
    px += pz
    np.sqrt(px, out=px)
    along *= np.float32(radii[1] - radii[0])
    along += np.float32(radii[0])
    px -= along
    return px


def smooth_union(a: Floats, b: Floats, blend_mm: float) -> Floats:
    """Union of two distances, the crease rounded over `blend_mm` (quadratic blend)."""
    h = a - b
    np.abs(h, out=h)
    np.subtract(np.float32(blend_mm), h, out=h)
    np.maximum(h, 0, out=h)
    h *= h
    h *= np.float32(0.25 / blend_mm)
    return np.subtract(np.minimum(a, b), h, out=h)


def cover(distance: Floats, width_mm: float) -> Floats:
    """Share in [0, 1] of a voxel of this width that lies inside a surface at this distance."""
    share = distance * np.float32(-1.0 / width_mm)
    share += np.float32(0.5)
    return np.clip(share, 0.0, 1.0, out=share)


@dataclass(frozen=True)
class Grid:
    """Voxel centres in mm: `affine` (4, 4) voxel to frame, `shape` (i, j, k).

    `slice_shift_mm`, (k, 3) or None, displaces each slice: motion between slices.
    """

    affine: NDArray[np.float64]
    shape: tuple[int, int, int]
    slice_shift_mm: NDArray[np.float64] | None = None

    @property
    def voxel_mm(self) -> NDArray[np.float64]:
        """(3,) voxel sizes in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def width_mm(self) -> float:
        """Geometric mean of the voxel sizes in mm: the width of a partial-volume edge."""
        return float(np.prod(self.voxel_mm) ** (1 / 3))

    def ticks(
        self, frame_from_grid: ArrayLike, box: Box | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Per axis the (n, 3) contributions whose sum is a voxel's position in another frame."""
        to_frame = np.asarray(frame_from_grid, dtype=np.float64)
        affine = to_frame @ self.affine
        spans = box or (slice(0, self.shape[0]), slice(0, self.shape[1]), slice(0, self.shape[2]))
        i, j, k = (np.arange(s.start, s.stop)[:, None] * affine[:3, n] for n, s in enumerate(spans))
        k = k + affine[:3, 3]
        if self.slice_shift_mm is not None:
            k = k + self.slice_shift_mm[spans[2]] @ to_frame[:3, :3].T
        return i, j, k

    def coordinates(
        self, frame_from_grid: ArrayLike, box: Box | None = None
    ) -> tuple[Floats, Floats, Floats]:
        """Voxel positions in mm in another frame, three float32 arrays of the box's shape."""
        i, j, k = (t.astype(np.float32) for t in self.ticks(frame_from_grid, box))
        x, y, z = (i[:, None, None, n] + (j[:, None, n] + k[None, :, n])[None] for n in range(3))
        return x, y, z

    def box(self, centre: ArrayLike, spread_mm: ArrayLike) -> Box | None:
        """Index box around an ellipsoid given in the grid's frame; None where they do not meet.

        The columns of `spread_mm` (3, 3) are its semi-axes; a number stands for a ball's radius.
        """
        inverse = np.linalg.inv(self.affine)
        middle = inverse[:3, :3] @ np.asarray(centre, dtype=np.float64) + inverse[:3, 3]
        spread = np.asarray(spread_mm, dtype=np.float64)
        spread = spread * np.eye(3) if spread.ndim == 0 else spread
        reach = np.linalg.norm(inverse[:3, :3] @ spread, axis=1) + 1.0
        if self.slice_shift_mm is not None:
            slide = float(np.abs(self.slice_shift_mm).max())
            reach += slide * np.linalg.norm(inverse[:3, :3], axis=1)
        low = np.maximum(np.floor(middle - reach), 0).astype(int)
        high = np.minimum(np.ceil(middle + reach) + 1, self.shape).astype(int)
        if (high <= low).any():
            return None
        return slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2])

    def refined(self, box: Box, factors: Sequence[int]) -> Grid:
        """The voxels of a box, each split into `factors` (3 integers) equal parts per axis."""
        split = np.diag([1.0 / f for f in factors] + [1.0])
        split[:3, 3] = [s.start - 0.5 + 0.5 / f for s, f in zip(box, factors, strict=True)]
        ni, nj, nk = ((s.stop - s.start) * f for s, f in zip(box, factors, strict=True))
        shift = self.slice_shift_mm
        if shift is not None:
            shift = np.repeat(shift[box[2]], factors[2], axis=0)
        return Grid(self.affine @ split, (ni, nj, nk), shift)


@dataclass(frozen=True)
class WaveField:
    """Smooth random field: a sum of plane waves, so it has a value anywhere, on any grid.

    waves (m, 3) in rad / mm, phases (m,) in rad, amplitudes (m, channels).
    """

    waves: NDArray[np.float64]
    phases: NDArray[np.float64]
    amplitudes: NDArray[np.float64]

    @classmethod
    def draw(
        cls,
        random: np.random.RandomState,
        count: int,
        wavelength_mm: tuple[float, float],
        deviation: Sequence[float],
        mirror: Sequence[int] | None = None,
    ) -> WaveField:
        """Random field with one channel per entry of `deviation`, its standard deviation.

        `count` waves, direction uniform on the sphere, wavelength log-uniform in `wavelength_mm`,
        phase uniform. `mirror` gives each channel's parity, +1 or -1, under x -> -x.
        """
        directions = random.normal(size=(count, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        shortest, longest = wavelength_mm
        lengths = np.exp(random.uniform(np.log(shortest), np.log(longest), size=(count, 1)))
        waves = directions * (2 * np.pi / lengths)
        phases = random.uniform(0, 2 * np.pi, size=count)
        amplitudes = random.normal(size=(count, len(deviation))) * np.asarray(deviation)
        amplitudes *= np.sqrt(2 / count)
        if mirror is not None:
            # A wave plus (or minus) its mirror image is even (or odd) in x.
            waves = np.concatenate([waves, waves * [-1, 1, 1]])
            phases = np.concatenate([phases, phases])
            amplitudes = np.concatenate([amplitudes, amplitudes * np.asarray(mirror)]) * 0.7071
        return cls(waves, phases, amplitudes)

    def on_grid(self, grid: Grid, frame_from_grid: ArrayLike, box: Box | None = None) -> Floats:
        """Values on a grid's box, float32 (channels, i, j, k).

        A plane wave is a product of one factor per grid axis, so this is a matrix product.
        """
        i, j, k = (t @ self.waves.T for t in grid.ticks(frame_from_grid, box))
        plane = (np.exp(1j * i)[:, None] * np.exp(1j * j)[None]).reshape(-1, len(self.waves))
        plane32 = np.concatenate([plane.real, -plane.imag], axis=1).astype(np.float32)
        line = np.exp(1j * (k + self.phases))
        stacked = np.concatenate([line.real, line.imag], axis=1)
        values = [
            plane32 @ (stacked * np.tile(a, 2)).astype(np.float32).T for a in self.amplitudes.T
        ]
        return np.stack(values).reshape(-1, len(i), len(j), len(k))


@dataclass
class Canvas:
    """A grid and the intensities (float32, the grid's shape) that are painted on it in layers."""

    grid: Grid
    value: Floats
    texture: Floats | None = None

    def in_box(self, grid_from_frame: ArrayLike, box: Box | None = None) -> Block:
        """An index box of the canvas, or all of it, with coordinates in a rigid frame."""
        x, y, z = self.grid.coordinates(np.linalg.inv(np.asarray(grid_from_frame)), box)
        texture = self.texture if self.texture is None or box is None else self.texture[box]
        value = self.value if box is None else self.value[box]
        return Block(x, y, z, value, self.grid.width_mm, texture)

    def block(
        self, grid_from_frame: ArrayLike, centre: ArrayLike, radii_mm: ArrayLike
    ) -> Block | None:
        """The part of the canvas around an ellipsoid along a rigid frame's axes; None if outside.

        `radii_mm`: three semi-axes, or one radius.
        """
        pose = np.asarray(grid_from_frame, dtype=np.float64)
        middle = pose[:3, :3] @ np.asarray(centre, dtype=np.float64) + pose[:3, 3]
        box = self.grid.box(middle, pose[:3, :3] * np.asarray(radii_mm, dtype=np.float64))
        return None if box is None else self.in_box(pose, box)


@dataclass
class Block:
    """A box of a canvas with its coordinates in mm in the frame in which shapes are described."""

    x: Floats
    y: Floats
    z: Floats
    value: Floats
    width_mm: float
    texture: Floats | None = None

    def paint(self, distance: Floats, intensity: float | Floats, texture: float = 0.0) -> None:
        """Lay an intensity over what is inside a surface, by the share of each voxel it covers.

        `texture` is the relative deviation that the canvas texture (unit variance) adds.
        """
        self.blend(cover(distance, self.width_mm), intensity, texture)

    def blend(self, share: Floats, intensity: float | Floats, texture: float = 0.0) -> None:
        """Lay an intensity over the given share (0..1) of each voxel."""
        if texture and self.texture is not None:
            uneven = self.texture * np.float32(texture)
            uneven += np.float32(1)
            np.maximum(uneven, 0.05, out=uneven)
            uneven *= intensity
            intensity = uneven
        change = intensity - self.value
        change *= share
        self.value += change

    def near(self, centre: Point, radii_mm: ArrayLike) -> Block | None:
        """The part around an ellipsoid (mm, the block's frame), sharing memory; None if outside."""
        box = self.box(centre, radii_mm)
        return None if box is None else self.crop(box)

    def box(self, centre: Point, radii_mm: ArrayLike) -> Box | None:
        """Index box, within the block, around an ellipsoid (mm, the block's frame)."""
        # 2 mm more: slices may be shifted, and the frame bent.
        spread = np.broadcast_to(np.asarray(radii_mm, dtype=np.float64), 3) + 2.0
        corners = np.array([[q[0, 0, 0] for q in (self.x, self.y, self.z)]] * 4, dtype=np.float64)
        steps = np.maximum(np.array(self.value.shape) - 1, 1)
        for axis in range(3):
            at = [0, 0, 0]
            at[axis] = -1
            corners[axis] = [q[tuple(at)] for q in (self.x, self.y, self.z)]
        affine = np.eye(4)
        affine[:3, :3] = (corners[:3] - corners[3]).T / steps
        affine[:3, 3] = corners[3]
        if abs(np.linalg.det(affine)) < 1e-6:
            return slice(0, steps[0] + 1), slice(0, steps[1] + 1), slice(0, steps[2] + 1)
        return Grid(affine, self.value.shape).box(centre, np.diag(spread))

    def crop(self, box: Box) -> Block:
        """The part of the block in an index box, sharing memory."""
        texture = None if self.texture is None else self.texture[box]
        x, y, z = (q[box] for q in (self.x, self.y, self.z))
        return Block(x, y, z, self.value[box], self.width_mm, texture)
