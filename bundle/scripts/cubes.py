"""The cube around a head: one type, one way to find it from a brain mask, one sampler.

Pure torch, on the device of the volume. All positions are mm in the grid frame (see geometry.py):
axes along the array axes, origin at the volume's centre.
"""

# no "from __future__ import annotations": TorchScript reads annotations of classes as types

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .geometry import put_in_line

TYPICAL_BRAIN_MM = 80.0  # diameter of the sphere of a brain's volume at about 30 weeks


class Cube(NamedTuple):
    """Cubes, as many as the leading dimensions say: (batch, n) of them where n lie in a volume."""

    center_mm: Tensor  # (..., 3), grid frame
    side_mm: Tensor  # (...,)
    rotation: Tensor  # (..., 3, 3), from the cube's axes to those of the grid


def along_grid(center_mm: Tensor, side_mm: Tensor) -> Cube:
    """Cubes at ``center_mm`` (..., 3) of ``side_mm`` (...,) whose axes are those of the grid."""
    return Cube(center_mm, side_mm, torch.diag_embed(torch.ones_like(center_mm)))


def in_line(cube: Cube, point: Tensor) -> Cube:
    """Cubes (...,) turned and moved to be in line with their landmarks ``point`` (..., 3, 3).

    The points are the brain's centre and the left and right eye, in sides from the cube's middle.
    """
    rotation, center_mm = put_in_line(cube.rotation, cube.center_mm, cube.side_mm, point)
    return Cube(center_mm, cube.side_mm, rotation)


def resized(cube: Cube, factors: list[float]) -> Cube:
    """Each of the cubes (batch, n) in several sizes, all by the first of the factors first."""
    return Cube(
        torch.cat([cube.center_mm for _ in factors], dim=1),
        torch.cat([cube.side_mm * factor for factor in factors], dim=1),
        torch.cat([cube.rotation for _ in factors], dim=1),
    )


def chosen(cube: Cube, index: Tensor) -> Cube:
    """Of the cubes (batch, n) of every volume those that ``index`` (batch, k) names, (batch, k)."""
    item = torch.arange(index.shape[0], device=index.device).unsqueeze(1)
    return Cube(cube.center_mm[item, index], cube.side_mm[item, index], cube.rotation[item, index])


def brain_cube(
    brain: Tensor, spacing_mm: float, fill: float, dtype: torch.dtype = torch.float32
) -> tuple[Cube, Tensor]:
    """Cube around a brain mask ``(batch, 1, x, y, z)``, and the mask's volume in ml (batch,).

    The centre is the centre of mass. The side is the diameter of the sphere of the mask's volume,
    divided by ``fill``. (The authors take the mean extent of the bounding box; it is about the
    same length, but changes as the head turns and with every stray voxel.) An empty mask gives a
    volume of 0 and a cube of 1 mm at the origin.
    """
    weights = brain[:, 0].to(dtype)
    count = weights.sum([1, 2, 3])
    present = count.clamp(min=1)
    profiles = [weights.sum([2, 3]), weights.sum([1, 3]), weights.sum([1, 2])]
    center = []
    for profile in profiles:
        n = profile.shape[1]
        position = torch.arange(n, device=brain.device, dtype=weights.dtype) - (n - 1) / 2
        center.append(profile @ (position * spacing_mm) / present)
    volume_mm3 = count * spacing_mm**3
    diameter = (6 / math.pi * volume_mm3).pow(1 / 3)
    side = torch.where(count > 0, diameter / fill, torch.ones_like(diameter))
    return along_grid(torch.stack(center, dim=1), side), volume_mm3 / 1000


def reference_cube(brain: Tensor, origin: Tensor, spacing_mm: float, fill: float) -> Cube:
    """Cube () around a label's ``brain`` (1, x, y, z) bool.

    ``brain_cube`` measures it, as it does the network's own mask. Without a brain the cube stands
    at ``origin`` (3), the head's in the grid frame, and has the size for a typical brain.
    """
    if not brain.any():
        return along_grid(origin, torch.tensor(TYPICAL_BRAIN_MM / fill))
    cube, _ = brain_cube(brain[None], spacing_mm, fill)
    return Cube(cube.center_mm[0], cube.side_mm[0], cube.rotation[0])


def cube_cells(
    size: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> Tensor:
    """Middles (size, size, size, 3) of the cells of a cube of side 1 around the origin."""
    cells = (torch.arange(size, device=device, dtype=dtype) + 0.5) / size - 0.5
    return torch.stack(torch.meshgrid(cells, cells, cells, indexing="ij"), dim=-1)


def sample(volume: Tensor, points_mm: Tensor, spacing_mm: float, mode: str = "bilinear") -> Tensor:
    """``volume`` (batch, channels, x, y, z) at ``points_mm`` (batch, a, b, c, 3).

    Points are in the grid frame; outside the volume is zero. Trilinear, or ``mode`` "nearest" for
    labels. -> (batch, channels, a, b, c)
    """
    x, y, z = points_mm.unbind(-1)
    half = 0.5 * spacing_mm
    nx, ny, nz = volume.shape[2], volume.shape[3], volume.shape[4]
    # grid_sample names the last array axis first
    grid = torch.stack([z / (half * nz), y / (half * ny), x / (half * nx)], dim=-1)
    return functional.grid_sample(volume, grid, mode, padding_mode="zeros", align_corners=False)


def sample_cubes(volume: Tensor, cube: Cube, size: int, spacing_mm: float) -> Tensor:
    """What the cubes (batch, n) show of ``volume`` (batch, channels, x, y, z), trilinearly.

    -> (batch, n, channels, size, size, size), on the middles of ``size``^3 cells along the cube's
    own axes. Outside the volume is zero, so a cube stays a cube and stays centred at the border.
    """
    cells = cube_cells(size, volume.dtype, volume.device).flatten(0, 2)
    side, center = cube.side_mm.to(volume.dtype), cube.center_mm.to(volume.dtype)
    points = cells @ cube.rotation.to(volume.dtype).mT
    points = side[:, :, None, None] * points + center.unsqueeze(2)
    n = cube.side_mm.shape[1]
    points = points.reshape(volume.shape[0], n * size, size, size, 3)
    return sample(volume, points, spacing_mm).unflatten(2, (n, size)).movedim(2, 1)
