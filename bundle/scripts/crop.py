"""From a brain mask to the padded cube around the brain; pure torch, on the device of the volume.

All positions are mm in the grid frame (see geometry.py): axes along the array axes, origin at the
volume's centre.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Box(NamedTuple):
    """A cube around the brain of every volume of a batch."""

    center_mm: Tensor  # (batch, 3), grid frame
    side_mm: Tensor  # (batch,)


def largest_component(mask: Tensor) -> Tensor:
    """Largest 26-connected component of each mask of a batch, ``(batch, 1, x, y, z)`` bool.

    Every voxel starts with its own number and takes the largest among its neighbours, then the
    number that this number's voxel holds (pointer jumping), until nothing changes: a handful of
    rounds for a compact mask. Of two components of one size the later in memory is kept; an
    empty mask stays empty.
    """
    numel = mask[0].numel()
    dtype = torch.float32 if numel < 2**24 else torch.float64  # numbers must stay exact
    inside = mask.to(dtype)
    numbers = torch.arange(1, numel + 1, device=mask.device, dtype=dtype).view(mask[:1].shape)
    labels = inside * numbers
    while True:
        spread = functional.max_pool3d(labels, 3, stride=1, padding=1) * inside
        table = functional.pad(spread.flatten(1), (1, 0))
        jumped = table.gather(1, spread.flatten(1).long()).view_as(spread)
        if torch.equal(jumped, labels):
            break
        labels = jumped
    flat = labels.flatten(1).long()
    sizes = torch.zeros(flat.shape[0], numel + 1, dtype=torch.long, device=mask.device)
    sizes.scatter_add_(1, flat, torch.ones_like(flat))
    sizes[:, 0] = 0
    largest = numel - sizes.flip(1).argmax(1)
    return mask & (labels == largest.view(-1, 1, 1, 1, 1))


def densest_place(
    probability: Tensor, spacing_mm: float, window_mm: float = 44.0
) -> tuple[Tensor, Tensor]:
    """Voxel (batch, 3) around which a cube of ``window_mm`` holds the most probability.

    ``probability`` is (batch, 1, x, y, z); the cube is the smallest brain, that of 20 weeks. The
    second result is the mean probability in that cube (batch,).
    """
    taps = 2 * round(window_mm / spacing_mm / 2) + 1
    dense = probability
    for axis in range(3):
        kernel = [taps if k == axis else 1 for k in range(3)]
        # padded by hand: the pooling itself refuses volumes that are smaller than its window
        padding = [taps // 2 if k == axis else 0 for k in (2, 1, 0) for _ in range(2)]
        dense = functional.avg_pool3d(functional.pad(dense, padding), kernel, stride=1)
    _, _, _, ny, nz = probability.shape
    density, place = dense.flatten(1).max(1)
    return torch.stack([place // (ny * nz), place // nz % ny, place % nz], dim=1), density


def ball(
    center: Tensor, shape: Sequence[int], spacing_mm: float, radius_mm: float = 56.0
) -> Tensor:
    """Ball around the voxel ``center`` (batch, 3) of each volume -> (batch, 1, x, y, z) bool.

    The radius is half of the longest brain at term: a mask that leaks into the mother's tissue is
    cut where no brain can be.
    """
    squared = torch.zeros(1, device=center.device)
    for axis, n in enumerate(shape):
        offset = torch.arange(n, device=center.device) - center[:, axis, None]
        profile = [-1, 1, 1, 1, 1]
        profile[2 + axis] = n
        squared = squared + (offset * spacing_mm).square().view(profile)
    return squared <= radius_mm**2


def window(volume: Tensor, start: Tensor, shape: Sequence[int]) -> Tensor:
    """Part (batch, channels, *shape) of ``volume`` from voxel ``start`` (batch, 3) on.

    Zero where the volume ends. ``window(part, -start, volume.shape[2:])`` puts it back.
    """
    inside, index = [], []
    for axis, (n, size) in enumerate(zip(volume.shape[2:], shape, strict=True)):
        place = start[:, axis, None] + torch.arange(size, device=volume.device)
        view = [-1, 1, 1, 1]
        view[1 + axis] = size
        inside.append(((place >= 0) & (place < n)).view(view))
        index.append(place.clamp(0, n - 1).view(view))
    item = torch.arange(len(volume), device=volume.device).view(-1, 1, 1, 1)
    part = volume[item, :, index[0], index[1], index[2]].movedim(-1, 1)
    return part * (inside[0] & inside[1] & inside[2]).unsqueeze(1)


def brain_box(brain: Tensor, spacing_mm: float, fill: float) -> tuple[Box, Tensor]:
    """Cube around a brain mask ``(batch, 1, x, y, z)``, and the mask's volume in ml (batch,).

    The centre is the centre of mass. The side is the diameter of the sphere of the mask's volume,
    divided by ``fill``. (The authors take the mean extent of the bounding box; it is about the
    same length, but changes as the head turns and with every stray voxel.) An empty mask gives a
    volume of 0 and a cube of 1 mm at the origin.
    """
    weights = brain.flatten(1).to(torch.get_default_dtype())
    count = weights.sum(1)
    present = count.clamp(min=1)
    center = []
    for axis in range(3):
        n = brain.shape[2 + axis]
        profile = weights.view(-1, *brain.shape[2:]).sum([1 + a for a in range(3) if a != axis])
        position = torch.arange(n, device=brain.device, dtype=weights.dtype) - (n - 1) / 2
        center.append(profile @ (position * spacing_mm) / present)
    volume_mm3 = count * spacing_mm**3
    diameter = (6 / math.pi * volume_mm3).pow(1 / 3)
    side = torch.where(count > 0, diameter / fill, torch.ones_like(diameter))
    return Box(torch.stack(center, dim=1), side), volume_mm3 / 1000


def crop_cube(
    volume: Tensor, box: Box, size: int, spacing_mm: float, turn: Tensor | None = None
) -> Tensor:
    """Sample ``volume`` (batch, channels, x, y, z) on ``size``^3 cells of the cube, trilinearly.

    Outside the volume is zero, so the cube stays a cube and stays centred at the border. With
    ``turn`` (3, 3) the cube is turned about its centre: its axes are the columns.
    """
    dtype = volume.dtype
    cells = (torch.arange(size, device=volume.device, dtype=dtype) + 0.5) / size - 0.5
    points = torch.stack(torch.meshgrid(cells, cells, cells, indexing="ij"), dim=-1)
    if turn is not None:
        points = points @ turn.to(points).mT
    side, center = box.side_mm.to(dtype), box.center_mm.to(dtype)
    points = side.view(-1, 1, 1, 1, 1) * points + center.view(-1, 1, 1, 1, 3)
    extent_mm = torch.tensor(volume.shape[2:], device=volume.device, dtype=dtype) * spacing_mm
    points = (points * (2 / extent_mm)).flip(-1)  # grid_sample names the last array axis first
    return functional.grid_sample(volume, points, padding_mode="zeros", align_corners=False)
