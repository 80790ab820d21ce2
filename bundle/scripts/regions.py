"""Parts of volumes: components, the densest place, balls and windows; pure torch, any batch."""

# no "from __future__ import annotations": TorchScript reads annotations of classes as types

import torch
from torch import Tensor
from torch.nn import functional


def largest_component(mask: Tensor, rounds: int = 12) -> Tensor:
    """Largest 26-connected component of each mask of a batch, ``(batch, 1, x, y, z)`` bool.

    FastSV (Zhang, Azad and Hu 2020): every voxel points to one of its component with a higher
    number, in the end to the highest. A round lets a voxel, and what it points to, point to the
    highest that its neighbours know, and halves the chains. The number of rounds is fixed so that
    the function can be exported; twelve are enough for the longest winding path in 29^3 voxels.
    Of two components of one size the later in memory is kept; an empty mask stays empty.
    """
    shape, numel = mask.shape, mask[0].numel()
    dtype = torch.float32 if numel < 2**24 else torch.float64  # numbers must stay exact
    inside = mask.flatten(1).to(dtype)
    # the place 0 is the background, which points to itself
    inside = functional.pad(inside, (1, 0))
    parent = inside * torch.arange(numel + 1, device=mask.device, dtype=dtype)
    for _ in range(rounds):
        above = parent.gather(1, parent.long())
        around = functional.max_pool3d(above[:, 1:].reshape(shape), 3, stride=1, padding=1)
        around = functional.pad(around.flatten(1), (1, 0)) * inside
        hooked = parent.scatter_reduce(1, parent.long(), around, "amax")
        parent = torch.maximum(torch.maximum(hooked, around), above) * inside
    parent = parent.gather(1, parent.long()).long()
    sizes = torch.zeros_like(parent).scatter_add(1, parent, torch.ones_like(parent))[:, 1:]
    largest = numel - sizes.flip(1).argmax(1)
    return mask & (parent[:, 1:] == largest.unsqueeze(1)).view(shape)


def densest_place(
    probability: Tensor, spacing_mm: float, window_mm: float = 44.0
) -> tuple[Tensor, Tensor]:
    """Voxel (batch, 3) around which a cube of ``window_mm`` holds the most probability.

    ``probability`` is (batch, 1, x, y, z); the cube is the smallest brain, that of 20 weeks, in
    the next larger odd number of voxels: 52 mm where they measure 4 mm, 56 where they measure 8.
    The second result is the mean probability in that cube (batch,).
    """
    reach = int(window_mm / spacing_mm / 2 + 0.5)
    taps = 2 * reach + 1
    dense = probability[:, 0]
    for axis in range(1, 4):
        # sums of a moving window are differences of the running sum
        n = dense.shape[axis]
        padding = [0, 0, 0, 0, 0, 0]  # the last axis first
        padding[6 - 2 * axis], padding[7 - 2 * axis] = reach + 1, reach
        total = functional.pad(dense, padding).cumsum(axis)
        dense = (total.narrow(axis, taps, n) - total.narrow(axis, 0, n)) / taps
    _, _, ny, nz = dense.shape
    density, place = dense.flatten(1).max(1)
    row = place // nz  # no remainders: not every export format takes them of sizes
    plane = row // ny
    return torch.stack([plane, row - plane * ny, place - row * nz], dim=1), density


def likely_places(
    probability: Tensor, number: int, spacing_mm: float, radius_mm: float, apart_mm: float
) -> tuple[Tensor, Tensor]:
    """The ``number`` places of each volume that look most like a brain, the likeliest first.

    ``probability`` is (batch, 1, x, y, z). Each place, a voxel, is the middle of what lies within
    ``radius_mm`` of the densest voxel; within ``apart_mm`` of it there is no other one.
    -> (batch, number, 3), and how dense they are (batch, number).
    """
    # twice as coarse is exact enough for where to look; one voxel more, so that none is lost
    probability = functional.avg_pool3d(functional.pad(probability, [0, 1, 0, 1, 0, 1]), 2)
    shape = [probability.shape[2], probability.shape[3], probability.shape[4]]
    coarse_mm = 2 * spacing_mm
    places, densities = [], []
    for _ in range(number):
        place, density = densest_place(probability, coarse_mm)
        near = ball(place, shape, coarse_mm, radius_mm)
        # the middle of what is there, so that its rim does not count as another place
        middle = center_of_mass(probability * near)
        near = ball(middle.round().long(), shape, coarse_mm, apart_mm)
        probability = probability.masked_fill(near, 0.0)
        places.append((2 * middle + 0.5).round().long())
        densities.append(density)
    return torch.stack(places, dim=1), torch.stack(densities, dim=1)


def center_of_mass(weights: Tensor) -> Tensor:
    """Voxel coordinates (batch, 3) of the centre of ``weights`` (batch, 1, x, y, z) >= 0.

    Zero for weights that are zero everywhere.
    """
    total = weights.sum([1, 2, 3, 4]).clamp(min=1e-12)
    center = []
    for profile in (weights.sum([1, 3, 4]), weights.sum([1, 2, 4]), weights.sum([1, 2, 3])):
        position = torch.arange(profile.shape[1], device=weights.device, dtype=weights.dtype)
        center.append(profile @ position / total)
    return torch.stack(center, dim=1)


def ball(center: Tensor, shape: list[int], spacing_mm: float, radius_mm: float = 56.0) -> Tensor:
    """Ball around the voxel ``center`` (batch, 3) of each volume -> (batch, 1, x, y, z) bool.

    The radius is half of the longest brain at term: a mask that leaks into the mother's tissue is
    cut where no brain can be.
    """
    point = center.unsqueeze(1).to(torch.float32)
    return balls(point, torch.full_like(point[:, 0, 0], radius_mm / spacing_mm), shape)


def balls(center: Tensor, radius: Tensor, shape: list[int]) -> Tensor:
    """Union of the balls around the points ``center`` (batch, n, 3) -> (batch, 1, x, y, z) bool.

    Centre and ``radius`` (batch,) count in voxels, whose middles are whole numbers; a ball whose
    centre is NaN has no voxels.
    """
    squared = []
    for axis in range(3):
        lattice = torch.arange(shape[axis], device=center.device, dtype=center.dtype)
        squared.append((lattice - center[:, :, axis, None]).square())
    x, y, z = squared
    total = x[:, :, :, None, None] + y[:, :, None, :, None] + z[:, :, None, None, :]
    inside = total <= radius.square()[:, None, None, None, None]
    return inside.any(1, keepdim=True)


def window(volume: Tensor, start: Tensor, shape: list[int]) -> Tensor:
    """Part (batch, channels, *shape) of ``volume`` from voxel ``start`` (batch, 3) on.

    Zero where the volume ends. ``window(part, -start, volume.shape[2:])`` puts it back.
    """
    inside, index = [], []
    for axis in range(3):
        n = volume.shape[2 + axis]
        place = start[:, axis, None] + torch.arange(shape[axis], device=volume.device)
        inside.append((place >= 0) & (place < n))
        index.append(place.clamp(0, n - 1))
    (x, y, z), (in_x, in_y, in_z) = index, inside
    item = torch.arange(volume.shape[0], device=volume.device)[:, None, None, None]
    part = volume.movedim(1, -1)[item, x[:, :, None, None], y[:, None, :, None], z[:, None, None]]
    known = in_x[:, :, None, None] & in_y[:, None, :, None] & in_z[:, None, None]
    return part.movedim(-1, 1) * known.unsqueeze(1)
