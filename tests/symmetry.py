"""The 48 symmetries of the cube, and how they act on arrays: the yardstick of equivariance."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def cube_symmetries() -> list[Tensor]:
    """All 48 signed permutation matrices (3, 3), float64; 24 have determinant -1."""
    matrices = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            matrix = torch.zeros(3, 3, dtype=torch.float64)
            for row, (column, sign) in enumerate(zip(order, signs, strict=True)):
                matrix[row, column] = sign
            matrices.append(matrix)
    return matrices


SYMMETRIES = cube_symmetries()


def move_voxels(x: Tensor, g: Tensor) -> Tensor:
    """Volume whose value at ``g p`` is that of ``x`` at ``p``; the last three axes are x, y, z.

    Positions count from the centre of the array, so any shape will do.
    """
    first = x.ndim - 3
    order = g.abs().argmax(1).tolist()
    flips = [first + row for row in range(3) if g[row].sum() < 0]
    return x.permute(*range(first), *(first + axis for axis in order)).flip(flips)


def move_field(field: Tensor, g: Tensor) -> Tensor:
    """Axis field (batch, 3, 3, s, s, s) under ``g``: pseudovector, vector, vector."""
    g = g.to(field)
    turned = torch.einsum("ij,bkjxyz->bkixyz", g, move_voxels(field, g))
    signs = torch.stack([torch.linalg.det(g), g.new_ones(()), g.new_ones(())])
    return turned * signs.view(3, 1, 1, 1, 1)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest deviation over the largest expected value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()
