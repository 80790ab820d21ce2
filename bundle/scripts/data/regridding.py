"""Volumes on other grids: as a navigator, turned and left-handed, without the head, or cut in it.

Content stays at its place in the world.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.processing import resample_from_to
from numpy.typing import NDArray
from scipy import ndimage

from ..labels import BRAIN
from ..simulation.fetus import random_rotation
from .augmentation import saturation

MIRROR = np.diag([-1.0, 1.0, 1.0])


class Volume(NamedTuple):
    """image (i, j, k) float32, affine (4, 4) voxel to world mm, label (i, j, k) uint8 or None."""

    image: NDArray[np.float32]
    affine: NDArray[np.float64]
    label: NDArray[np.uint8] | None = None


def centered_affine(linear: NDArray, center_mm: NDArray, shape: Sequence[int]) -> NDArray:
    """Affine (4, 4) of a grid of ``shape`` whose middle lies at ``center_mm`` in the world.

    The columns of ``linear`` (3, 3) are the steps from voxel to voxel along i, j, k in world mm.
    """
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = center_mm - linear @ (np.array(shape) - 1) / 2
    return affine


def volume_center_mm(volume: Volume) -> NDArray[np.float64]:
    """World position (3,) of the middle of the field of view."""
    return apply_affine(volume.affine, (np.array(volume.image.shape) - 1) / 2)


def resampled(source: Volume, affine: NDArray, shape: Sequence[int]) -> Volume:
    """The volume on another grid: image trilinear, label nearest, zero outside the source."""

    def sample(values: NDArray, order: int) -> NDArray:
        image, grid = nib.Nifti1Image(values, source.affine), (tuple(shape), affine)
        sampled: Any = resample_from_to(image, grid, order=order, mode="grid-constant")
        return np.asarray(sampled.dataobj)

    label = None if source.label is None else sample(source.label, 0)
    return Volume(sample(source.image, 1), affine, label)


def slice_axis(affine: NDArray) -> int:
    """Along which slices follow each other: the axis of the largest voxels, of equals the last."""
    return 2 - int(np.argmax(voxel_sizes(affine).round(3)[::-1]))


def averaged(source: Volume, voxel_mm: float) -> Volume:
    """Smoothed by what voxels of ``voxel_mm`` average over beyond the source's own voxels.

    Voxels count as Gaussians with their size as full width at half maximum; variances add. Along
    an axis with coarser voxels nothing is done.
    """
    size_mm = voxel_sizes(source.affine)
    width_mm = np.sqrt(np.clip(voxel_mm**2 - size_mm**2, 0, None))
    sigma = width_mm / math.sqrt(8 * math.log(2)) / size_mm
    return source._replace(image=ndimage.gaussian_filter(source.image, sigma, mode="nearest"))


def random_navigator(
    source: Volume,
    center_mm: NDArray,
    random: np.random.RandomState,
    voxel_mm: float = 6.0,
    shape: Sequence[int] = (64, 64, 48),
    shift_mm: float = 40.0,
    slab_offset_mm: float = 20.0,
    sigma_mm: tuple[float, float] = (2.3, 4.6),
    delay_s: tuple[float, float] = (0.2, 2.5),
    t1_s: tuple[float, float] = (3.0, 5.0),
    noise: tuple[float, float] = (0.02, 0.06),
) -> Volume:
    """As a navigator sees the head: coarse, turned, with a dark slab and noise.

    All ranges are of uniform distributions. The grid's rotation is uniform on SO(3), the slab's
    normal on the sphere.

    Parameters
    ----------
    center_mm : (3,) brain's centre in the world
    voxel_mm, shape : isotropic voxels of the new grid
    shift_mm : largest shift of the grid's middle from the brain's along each of the grid's axes
    slab_offset_mm : largest distance of the slab's middle from the brain's centre
    sigma_mm : range of the slab's width
    delay_s, t1_s : ranges of the time since excitation and of T1; the slab's depth is
        exp(-delay / t1)
    noise : range of the standard deviation of Gaussian noise, as a share of the range between the
        0.5 and 99.5 percentiles
    """
    rotation = random_rotation(random)
    shift = random.uniform(-shift_mm, shift_mm, 3)
    normal = random.normal(size=3)
    normal /= np.linalg.norm(normal)
    # in the grid frame, whose origin is the grid's middle, the brain lies at -shift
    point = normal * random.uniform(-slab_offset_mm, slab_offset_mm) - shift
    sigma = random.uniform(*sigma_mm)
    alpha = math.exp(-random.uniform(*delay_s) / random.uniform(*t1_s))
    level = random.uniform(*noise)
    added = random.normal(size=shape)

    affine = centered_affine(rotation * voxel_mm, center_mm + rotation @ shift, shape)
    grid = resampled(averaged(source, voxel_mm), affine, shape)
    directions = torch.from_numpy(normal), torch.from_numpy(point)
    image = grid.image * saturation(shape, voxel_mm, *directions, sigma, alpha).numpy()
    low, high = np.percentile(image, [0.5, 99.5])
    return grid._replace(image=(image + level * (high - low) * added).astype(np.float32))


def random_regridded(
    source: Volume, center_mm: NDArray, random: np.random.RandomState, voxel_mm: float = 3.5
) -> Volume:
    """The same content on a left-handed grid, turned by a rotation uniform on SO(3).

    ``center_mm`` does not matter: the grid holds the whole source volume.
    """
    return regridded(source, random_rotation(random), voxel_mm)


def regridded(source: Volume, rotation: NDArray, voxel_mm: float) -> Volume:
    """The whole volume on a left-handed grid of isotropic voxels.

    The columns of ``rotation`` (3, 3) are the directions of the new axes in the world, the first
    one reversed.
    """
    linear = rotation @ MIRROR * voxel_mm
    edges = source.affine[:3, :3] * source.image.shape  # columns, world mm
    shape = np.ceil(np.abs(np.linalg.inv(linear) @ edges).sum(1)).astype(int)
    return resampled(source, centered_affine(linear, volume_center_mm(source), shape), shape)


def random_headless(
    source: Volume,
    center_mm: NDArray,
    random: np.random.RandomState,
    voxel_mm: float = 6.0,
    distance_mm: float = 85.0,
) -> Volume:
    """A navigator of the mother and the rest of the fetus: the field of view ends beside the head.

    It is cut by a plane ``distance_mm`` from the brain's centre, which leaves out the face too. Of
    64 uniform directions that one is taken on whose side most of the volume is left.
    """
    normals = random.normal(size=(64, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    index = np.indices(source.image.shape, dtype=np.float32).reshape(3, -1)
    points = source.affine[:3, :3] @ index + (source.affine[:3, 3] - center_mm)[:, None]
    shown = source.image.ravel() > 0
    # one by one: all at once would take a gigabyte for a stack
    sizes = [np.count_nonzero(shown & (normal @ points > distance_mm)) for normal in normals]
    if not max(sizes):
        raise ValueError(f"nothing of the volume is {distance_mm:g} mm from the brain or further")
    kept = normals[int(np.argmax(sizes))] @ points > distance_mm
    place = center_mm + points[:, kept & shown].mean(1)
    kept = kept.reshape(source.image.shape)
    label = None if source.label is None else source.label * kept
    rest = source._replace(image=source.image * kept, label=label)
    return random_navigator(rest, place, random, voxel_mm)


def random_cut(
    source: Volume,
    center_mm: NDArray,
    random: np.random.RandomState,
    lost: float = 0.15,
) -> Volume:
    """The volume without the slices at one end, either one, that show so much of the brain.

    The share ``lost`` of the brain is met as nearly as whole slices do; ``center_mm`` does
    not matter. ValueError for a volume whose label shows no brain.
    """
    if source.label is None or not (source.label == BRAIN).any():
        raise ValueError("no label shows the brain, so that nothing tells where to cut")
    axis = slice_axis(source.affine)
    brain = (source.label == BRAIN).sum(axis=tuple({0, 1, 2} - {axis}))
    at_start = random.uniform() < 0.5
    gone = np.cumsum(brain if at_start else brain[::-1]) / brain.sum()
    number = 1 + int(np.argmin(np.abs(gone - lost)))
    kept = [slice(None)] * 3
    kept[axis] = slice(number, None) if at_start else slice(None, -number)
    image: Any = nib.Nifti1Image(source.image, source.affine).slicer[tuple(kept)]
    return Volume(np.asarray(image.dataobj), image.affine, source.label[tuple(kept)])
