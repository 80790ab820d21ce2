"""Convolutions with large kernels of many channels, faster than direct ones on a CPU."""

# no "from __future__ import annotations": TorchScript reads annotations of classes as types

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..network.frozen import DirectConv


class MatrixConv(nn.Module):
    """The same as one matrix product over all taps: for a few voxels of very many channels."""

    kernel: Tensor

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        size = self.kernel.shape[-1]
        patches = functional.pad(x, [size // 2] * 6)
        patches = patches.unfold(2, size, 1).unfold(3, size, 1).unfold(4, size, 1)
        patches = patches.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4)
        return (patches @ self.kernel.flatten(1).T).movedim(-1, 1)


class TiledConv(nn.Module):
    """The same by discrete Fourier transforms of tiles (overlap-save), for large kernels.

    Each tile of ``side``^3 voxels of the result needs ``(side + size - 1)``^3 voxels of the
    input. In the frequencies of a tile the convolution is one matrix per frequency, applied to
    all tiles at once: a tenth of the multiplications of a direct 5^3 kernel. The transforms are
    matrix products too, which keep the frequencies in front and yield no more than the valid
    voxels. Takes ``x``, ``y``, ``z`` that are multiples of ``side``.

    Parameters
    ----------
    kernel : (o, c, size, size, size)
    side : voxels along a tile of the result
    tiles : about as many go through at once, which bounds the memory
    """

    spectrum: Tensor
    forth: Tensor
    forth_half: Tensor
    back: Tensor
    back_half: Tensor

    def __init__(self, kernel: Tensor, side: int, tiles: int = 32) -> None:
        super().__init__()
        self.size, self.side, self.tiles = kernel.shape[-1], side, tiles
        whole = side + self.size - 1
        half = whole // 2 + 1  # the other frequencies along the last axis are conjugates
        steps = torch.arange(whole, dtype=torch.float64, device=kernel.device)
        wave = torch.exp(-2j * math.pi * torch.outer(steps, steps) / whole)
        twice = torch.full((half,), 2.0, dtype=torch.float64, device=kernel.device)
        twice[0] = 1
        if whole % 2 == 0:
            twice[-1] = 1
        kind = torch.promote_types(kernel.dtype, torch.complex32)
        constants = {
            "forth": wave,
            "forth_half": wave[:half],
            "back": wave[:side].conj() / whole,
            "back_half": wave[:side, :half].conj() * twice / whole,
        }
        for name, matrix in constants.items():
            self.register_buffer(name, matrix.to(kind).resolve_conj(), persistent=False)
        # conjugate: conv3d does not turn the kernel round
        spectrum = torch.fft.rfftn(kernel, s=(whole,) * 3).conj().flatten(2).permute(2, 0, 1)
        self.register_buffer("spectrum", spectrum.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        whole, side = self.side + self.size - 1, self.side
        half = whole // 2 + 1
        out, c = self.spectrum.shape[1], x.shape[1]
        padded = functional.pad(x, [self.size // 2] * 6)
        tiles = padded.unfold(2, whole, side).unfold(3, whole, side).unfold(4, whole, side)
        tiles = tiles.permute(5, 6, 7, 1, 0, 2, 3, 4)  # taps first, then c, batch, tiles
        batch, nx, ny, nz = tiles.shape[4:]
        result = x.new_empty(batch, out, nx, side, ny, side, nz, side)
        rows = max(1, min(ny, self.tiles // nz))
        for item in range(batch):
            for i in range(nx):
                for j in range(0, ny, rows):
                    part = tiles[..., item, i, j : j + rows, :]
                    shape = part.shape[-2:]
                    part = part.to(self.forth.dtype).reshape(whole * whole, whole, -1)
                    part = (self.forth_half @ part).view(whole, whole, -1)
                    part = (self.forth @ part).view(whole, -1)
                    part = (self.forth @ part).view(whole * whole * half, c, -1)
                    part = torch.bmm(self.spectrum, part).view(whole, -1)
                    part = (self.back @ part).view(side, whole, -1)
                    part = (self.back @ part).view(side * side, half, -1)
                    part = (self.back_half @ part).real.view(side, side, side, out, *shape)
                    result[item, :, i, :, j : j + rows] = part.permute(3, 0, 4, 1, 5, 2)
        return result.view(batch, out, *x.shape[2:])


def fastest(kernel: Tensor, side: int | None) -> nn.Module:
    """The form that is fastest for crops of ``side``^3 voxels, by measurement on a CPU.

    docs/history.md has the figures; direct where the side is not known.
    """
    many = min(kernel.shape[:2])
    if side is None or kernel.shape[-1] < 5:
        return DirectConv(kernel)
    if side <= 4 and many >= 256:
        return MatrixConv(kernel)
    if side % 8 == 0 and side >= 16 and many >= 24:
        return TiledConv(kernel, 8)
    if side == 8 and many >= 128:
        return TiledConv(kernel, 4)
    return DirectConv(kernel)
