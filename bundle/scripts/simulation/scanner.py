"""A scanner for one scene: navigators and 2D slices of a head at any pose.

World is RAS mm, the head's frame that of docs/conventions.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .scene import FWHM_PER_SD, Layer, Scene, centred_grid, grid_points
from .shapes import Floats, Grid


@dataclass(frozen=True)
class Band:
    """The dark band that a slice leaves: through `centre_mm`, across `normal`, (3,) each.

    Both are of the frame in which the tissue rests: the world for the mother's, the head's for the
    fetus's. `sd_mm` is its width and `depth` (0..1) the signal lost in its middle.
    """

    normal: NDArray[np.float64]
    centre_mm: NDArray[np.float64]
    sd_mm: float
    depth: float

    def kept(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Share of the signal that is left at points (..., 3): 1 - depth exp(-d^2 / 2 sd^2)."""
        away = (points - self.centre_mm) @ self.normal
        return 1 - self.depth * np.exp(-(away**2) / (2 * self.sd_mm**2))


def band_of(
    slice_to_frame: NDArray[np.float64],
    thickness_mm: float,
    since_s: float,
    t1_s: float,
    voxel_mm: float,
) -> Band:
    """The band of a slice (4, 4; third column its normal, fourth its centre) after some time.

    Its profile is a Gaussian whose full width at half maximum is 1.2 times the thickness; the
    magnetisation comes back with `t1_s`. A voxel averages over its own width, which makes the band
    wider and less deep.
    """
    own = 1.2 * thickness_mm / FWHM_PER_SD
    seen = math.hypot(own, voxel_mm / FWHM_PER_SD)
    depth = math.exp(-since_s / t1_s) * own / seen
    return Band(slice_to_frame[:3, 2], slice_to_frame[:3, 3], seen, depth)


@dataclass(frozen=True)
class Acquired:
    """image (i, j, k) float32, affine (4, 4) voxel to world."""

    image: Floats
    affine: NDArray[np.float64]


class Scanner:
    """Takes images of one scene; all that is random is drawn from `random`.

    Parameters
    ----------
    scene : what there is to see
    random : for noise
    voxel_mm, shape : of navigators, whose axes are the world's
    noise : standard deviation of the navigators' Gaussian noise in either channel, as a share of
        white matter's signal; slices have a quarter of it
    t1_s : of the tissue, for the bands of earlier slices
    """

    def __init__(
        self,
        scene: Scene,
        random: np.random.RandomState,
        voxel_mm: float = 6.0,
        shape: Sequence[int] = (64, 64, 24),
        noise: float = 0.05,
        t1_s: float = 4.0,
    ) -> None:
        self.scene, self.voxel_mm, self.shape = scene, voxel_mm, tuple(shape)
        self.noise, self.t1_s = noise, t1_s
        self._random = random
        mother = None if scene.mother is None else scene.mother[0].blurred(voxel_mm)
        self._coarse = mother, [layer.blurred(voxel_mm) for layer in scene.fetus[0]]
        self._fine = None if scene.mother is None else scene.mother[1], scene.fetus[1]

    def bands(
        self,
        slices: Sequence[tuple[NDArray[np.float64], NDArray[np.float64], float]],
        time_s: float,
        thickness_mm: float,
    ) -> list[tuple[Band, Band]]:
        """What slices leave in a navigator at `time_s`: in the world and in the head's frame.

        Each is given with its geometry (4, 4), the head's pose (4, 4) at its time, and that time.
        Slices after which less than 2 % of the magnetisation is missing are left out.
        """
        found = []
        for slice_to_world, head_to_world, slice_s in slices:
            since_s = time_s - slice_s
            if math.exp(-since_s / self.t1_s) < 0.02:
                continue
            slice_to_head = np.linalg.inv(head_to_world) @ slice_to_world
            world, head = (
                band_of(pose, thickness_mm, since_s, self.t1_s, self.voxel_mm)
                for pose in (slice_to_world, slice_to_head)
            )
            found.append((world, head))
        return found

    def navigator(
        self,
        head_to_world: NDArray[np.float64],
        centre_mm: NDArray[np.float64],
        bands: Sequence[tuple[Band, Band]] = (),
    ) -> Acquired:
        """A whole volume: the head at its pose (4, 4), the field of view about `centre_mm`.

        Each band is given twice, in the world for the mother's tissue and in the head's frame.
        """
        affine, shape = centred_grid(centre_mm, np.eye(3) * self.voxel_mm, self.shape)
        points = grid_points(affine, shape)
        mother, fetus = self._coarse
        around = self._around(mother, points)
        for in_world, _ in bands:
            around *= in_world.kept(points).astype(np.float32)
        in_head = [in_frame for _, in_frame in bands]
        signal = self._over(around, fetus, points, head_to_world, in_head)
        return Acquired(self._received(signal, affine, self.noise), affine)

    def slice(
        self,
        slice_to_world: NDArray[np.float64],
        head_to_world: NDArray[np.float64],
        thickness_mm: float,
        in_plane_mm: float,
        matrix: int,
    ) -> Acquired:
        """A T2-weighted slice (matrix, matrix, 1): the mean over its thickness, at one instant."""
        steps = np.diag([in_plane_mm, in_plane_mm, thickness_mm])
        affine, shape = centred_grid(
            slice_to_world[:3, 3], slice_to_world[:3, :3] @ steps, (matrix, matrix, 1)
        )
        mother, fetus = self._fine
        middle = grid_points(affine, shape)
        around = self._around(mother, middle)  # in voxels of the slice's own thickness
        parts = max(1, round(thickness_mm))
        signal = np.zeros(shape, np.float32)
        for part in range(parts):
            shift = ((part + 0.5) / parts - 0.5) * thickness_mm
            points = middle + shift * slice_to_world[:3, 2]
            signal += self._over(around, fetus, points, head_to_world, ()) / parts
        return Acquired(self._received(signal, affine, 0.25 * self.noise), affine)

    @staticmethod
    def _around(mother: Layer | None, points: NDArray[np.float64]) -> Floats:
        """The mother's signal at points (..., 3) of the world."""
        if mother is None:
            return np.zeros(points.shape[:-1], np.float32)
        return mother.at(points)[0]

    @staticmethod
    def _over(
        around: Floats,
        fetus: list[Layer],
        points: NDArray[np.float64],
        head_to_world: NDArray[np.float64],
        bands: Sequence[Band],
    ) -> Floats:
        """The fetus at its pose over the mother's signal, at points (..., 3) of the world."""
        world_to_head = np.linalg.inv(head_to_world)
        in_head = points @ world_to_head[:3, :3].T + world_to_head[:3, 3]
        left = np.ones_like(around)
        for band in bands:
            left *= band.kept(in_head).astype(np.float32)
        signal = around
        for layer in fetus:
            value, share = layer.at(in_head)
            signal = signal * (1 - share) + value * left
        return signal

    def _received(self, signal: Floats, affine: NDArray[np.float64], noise: float) -> Floats:
        """What the coils make of it, with noise; white matter is about 500."""
        if self.scene.coil is not None:
            i, j, k = signal.shape
            signal = signal * np.exp(self.scene.coil.on_grid(Grid(affine, (i, j, k)), np.eye(4))[0])
        sd = noise * self.scene.white
        real, imaginary = self._random.normal(scale=sd, size=(2, *signal.shape))
        return np.hypot(signal + real, imaginary).astype(np.float32) * (500 / self.scene.white)
