"""What a field that is not homogeneous does to echo-planar images: shifts, pile-up and drop-out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..simulation.scene import grid_points
from ..simulation.shapes import Grid, WaveField
from .regridding import Volume, slice_axis


def distorted(
    source: Volume, field_hz: NDArray, axis: int, train_s: float, echo_s: float
) -> Volume:
    """The volume as an EPI train with phase encoding along ``axis`` shows it.

    What lies at r is shown at r + field * train voxels (Jezzard and Balaban 1995), its signal
    spread or piled up; where shifts fold the image over itself only one of the parts is shown. A
    gradient of g Hz per voxel across the slices leaves |sinc(g * echo)| of the signal, the mean
    over a voxel of what has come out of phase (Frahm, Merboldt and Hänicke 1988).

    Parameters
    ----------
    field_hz : (i, j, k) deviation from the scanner's centre frequency
    train_s : duration of the train: the time between echoes, times the lines of the image
    echo_s : from excitation to echo
    """
    across = np.gradient(field_hz, axis=slice_axis(source.affine))
    signal = source.image * np.abs(np.sinc(across * echo_s))
    shift = field_hz * train_s
    origin: Any = np.indices(source.image.shape, dtype=np.float64)
    shown = origin[axis].copy()
    for _ in range(10):  # shifts change slowly: a fixed point
        origin[axis] = shown - ndimage.map_coordinates(shift, origin, order=1, mode="nearest")
    spread = np.clip(np.gradient(origin[axis], axis=axis), 0, None)
    image = ndimage.map_coordinates(signal, origin, order=1, mode="grid-constant") * spread
    label = source.label
    if label is not None:
        label = ndimage.map_coordinates(label, origin, order=0, mode="grid-constant")
    return Volume(image.astype(np.float32), source.affine, label)


def random_distorted(
    source: Volume,
    center_mm: NDArray,
    random: np.random.RandomState,
    field_hz: tuple[float, float] = (10.0, 40.0),
    train_s: tuple[float, float] = (0.02, 0.04),
    echo_s: tuple[float, float] = (0.03, 0.06),
) -> Volume:
    """As EPI at 3 T may show it, phase encoding along either axis of the slices.

    The field is a sum of waves of 80 to 240 mm whose deviation is uniform in ``field_hz``, and of
    the fields of air in the bowel: none to some (Poisson, mean 1.5) Gaussian spots of 100 to 300 Hz
    of either sign, 15 to 30 mm wide (one standard deviation), 60 to 140 mm from ``center_mm``. The
    centre frequency is that of the 40 mm around it, so the head stays about where it is. All ranges
    are of uniform distributions; they were chosen, not measured.
    """
    i, j, k = source.image.shape
    grid = Grid(source.affine, (i, j, k))
    waves = WaveField.draw(random, 12, (80.0, 240.0), [random.uniform(*field_hz)])
    field = waves.on_grid(grid, np.eye(4))[0]
    points = grid_points(grid.affine, grid.shape)
    for _ in range(random.poisson(1.5)):
        direction = random.normal(size=3)
        direction /= np.linalg.norm(direction)
        middle = center_mm + random.uniform(60, 140) * direction
        strength = random.choice([-1, 1]) * random.uniform(100, 300)
        squared = np.square(points - middle).sum(-1) / random.uniform(15, 30) ** 2
        field = field + strength * np.exp(-squared / 2)
    near = np.linalg.norm(points - center_mm, axis=-1) < 40
    field = field - (field[near].mean() if near.any() else 0.0)
    axis = [n for n in range(3) if n != slice_axis(source.affine)][random.randint(2)]
    return distorted(source, field, axis, random.uniform(*train_s), random.uniform(*echo_s))
