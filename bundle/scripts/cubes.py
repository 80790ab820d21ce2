"""From a brain mask to the padded cube around the brain; pure torch, on the device of the volume.

All positions are mm in the grid frame (see geometry.py): axes along the array axes, origin at the
volume's centre.
"""

# no "from __future__ import annotations": TorchScript reads annotations of classes as types

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

TYPICAL_BRAIN_MM = 80.0  # diameter of the sphere of a brain's volume at about 30 weeks


class Box(NamedTuple):
    """A cube around the brain of every volume of a batch."""

    center_mm: Tensor  # (batch, 3), grid frame
    side_mm: Tensor  # (batch,)


def brain_box(
    brain: Tensor, spacing_mm: float, fill: float, dtype: torch.dtype = torch.float32
) -> tuple[Box, Tensor]:
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
    return Box(torch.stack(center, dim=1), side), volume_mm3 / 1000


def reference_cube(
    brain: Tensor, origin: Tensor, spacing_mm: float, fill: float
) -> tuple[Tensor, Tensor]:
    """Middle (3) and side () of the cube around a label's ``brain`` (1, x, y, z) bool.

    ``brain_box`` measures it, as it does the network's own mask. Without a brain the cube stands at
    ``origin`` (3), the head's in the grid frame, and has the size for a typical brain.
    """
    if not brain.any():
        return origin, torch.tensor(TYPICAL_BRAIN_MM / fill)
    box, _ = brain_box(brain[None], spacing_mm, fill)
    return box.center_mm[0], box.side_mm[0]


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


def crop_cube(
    volume: Tensor, box: Box, size: int, spacing_mm: float, turn: Tensor | None = None
) -> Tensor:
    """Sample ``volume`` (batch, channels, x, y, z) on ``size``^3 cells of the cube, trilinearly.

    Outside the volume is zero, so the cube stays a cube and stays centred at the border. With
    ``turn`` (3, 3) the cube is turned about its centre: its axes are the columns.
    """
    dtype = volume.dtype
    points = cube_cells(size, dtype, volume.device)
    if turn is not None:
        points = points @ turn.to(points).mT
    side, center = box.side_mm.to(dtype), box.center_mm.to(dtype)
    points = side.view(-1, 1, 1, 1, 1) * points + center.view(-1, 1, 1, 1, 3)
    return sample(volume, points, spacing_mm)


def crop_turned_cubes(
    volume: Tensor,
    center_mm: Tensor,
    side_mm: Tensor,
    rotation: Tensor,
    size: int,
    spacing_mm: float,
) -> Tensor:
    """Several cubes of every volume, each turned its own way.

    Centres (batch, n, 3), sides (batch, n) and rotations (batch, n, 3, 3), whose columns are the
    axes of the cubes -> (batch * n, channels, size, size, size), those of one volume side by side.
    """
    cells = cube_cells(size, volume.dtype, volume.device).flatten(0, 2)
    points = side_mm[:, :, None, None] * (cells @ rotation.mT) + center_mm.unsqueeze(2)
    n = side_mm.shape[1]
    points = points.reshape(volume.shape[0], n * size, size, size, 3)
    cubes = sample(volume, points, spacing_mm)
    return cubes.unflatten(2, (n, size)).movedim(2, 1).flatten(0, 1)
