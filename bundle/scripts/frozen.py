"""Eval-time form of the E3CNN: fixed kernels, channels first, plain torch only.

Made by ``E3CNN.freeze``. Nothing here is trained or stored: every tensor is a buffer that no
state_dict holds.
"""

# no "from __future__ import annotations": TorchScript reads annotations of classes as types
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from .steerable import Gate, InstanceNorm, SteerableConv, activation_scales, with_channels


class DirectConv(nn.Module):
    """``conv3d`` by a fixed kernel, (batch, c, x, y, z) -> (batch, o, x, y, z)."""

    kernel: Tensor

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        self.register_buffer("kernel", kernel, persistent=False)
        self.padding = kernel.shape[-1] // 2

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv3d(x, self.kernel, padding=self.padding)


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


def convolution(kernel: Tensor, side: int | None) -> nn.Module:
    """The form that is fastest for crops of ``side``^3 voxels, by measurement on a CPU.

    docs/performance.md has the figures; direct where the side is not known.
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


class FrozenBlock(nn.Module):
    """Convolution, instance norm and gate.

    The rows of the kernel are sorted so that what is treated alike stands together: even scalars,
    gates, odd scalars, then the gated irreps. So all parts are views; the concatenation at the end
    is the only copy.
    """

    scale: Tensor
    bias: Tensor
    other_scale: Tensor

    def __init__(
        self, conv: SteerableConv, norm: InstanceNorm, gate: Gate, side: int | None
    ) -> None:
        super().__init__()
        relu, tanh, sigmoid = activation_scales()
        self.tanh, self.sigmoid, self.eps = tanh, sigmoid, norm.eps
        channels = list(torch.arange(sum(gate.widths)).split(gate.widths))
        blocks = [channels[place] for place in gate.places]
        gates = blocks.pop(gate.num_scalars)
        kinds = list(zip(blocks, gate.outputs, strict=True))
        even = [block for block, (_, dim, p) in kinds if dim == 1 and p > 0]
        odd = [block for block, (_, dim, p) in kinds if dim == 1 and p < 0]
        gated = [(block, mul, dim) for block, (mul, dim, _) in kinds if dim > 1]
        # with the gate's own order of outputs: scalars in their blocks, then the gated irreps
        self.even_first = bool(even) and blocks[0] is even[0]
        if len(even) > 1 or len(odd) > 1:
            raise ValueError(f"expected one block of each kind of scalars, got {gate.outputs}")
        self.widths = [sum(map(len, even)), len(gates), sum(map(len, odd))]
        self.groups = [(mul, dim) for _, mul, dim in gated]
        order = torch.cat([*even, gates, *odd, *(block for block, _, _ in gated)])
        self.conv = convolution(conv.kernel().detach()[order], side)

        irreps = norm.irrep_of_channel.cpu()
        centred = torch.cat([*even, gates])
        weight = norm.weight.detach()[irreps[centred]]
        # biases stand for the even scalars in the order of the channels
        number = {channel: k for k, channel in enumerate(norm.even_channels.tolist())}
        bias = norm.bias.detach()[[number[channel] for channel in centred.tolist()]]
        # relu(c x) = c relu(x) for positive c
        gain = torch.ones_like(weight)
        gain[: self.widths[0]] = relu
        self.register_buffer("scale", weight * gain, persistent=False)
        self.register_buffer("bias", (bias * gain).view(1, -1, 1, 1, 1), persistent=False)
        firsts = torch.cat([*odd, *(block[::dim] for block, _, dim in gated)])
        self.register_buffer("other_scale", norm.weight.detach()[irreps[firsts]], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        voxels = y.shape[2] * y.shape[3] * y.shape[4]
        num_even, num_gates, num_odd = self.widths
        even = y[:, : num_even + num_gates]
        even = even - even.mean([2, 3, 4], keepdim=True)
        power = _sum_of_squares(even) / voxels
        scale = self.scale * (power + self.eps).rsqrt()
        even = torch.addcmul(self.bias, even, scale[:, :, None, None, None])
        gates = torch.sigmoid(even[:, num_even:]) * self.sigmoid
        start = num_even + num_gates
        odd = y[:, start : start + num_odd]
        power = _sum_of_squares(odd) / voxels
        scale = self.other_scale[:num_odd] * (power + self.eps).rsqrt()
        odd = torch.tanh(odd * scale[:, :, None, None, None]) * self.tanh
        even = torch.relu(even[:, :num_even])
        parts = [even, odd] if self.even_first else [odd, even]
        start, weight, gate = start + num_odd, num_odd, 0
        for mul, dim in self.groups:
            block = y[:, start : start + mul * dim]
            power = _sum_of_squares(block).unflatten(1, (mul, dim)).mean(2) / voxels
            scale = self.other_scale[weight : weight + mul] * (power + self.eps).rsqrt()
            factor = gates[:, gate : gate + mul] * scale[:, :, None, None, None]
            parts.append((block.unflatten(1, (mul, dim)) * factor.unsqueeze(2)).flatten(1, 2))
            start, weight, gate = start + mul * dim, weight + mul, gate + mul
        return torch.cat(parts, dim=1)


class FrozenE3CNN(nn.Module):
    """Blocks and pooling layers one after the other, and the convolution to the axes.

    Shapes: ``(batch, 1 to in_channels, S, S, S)`` -> ``(batch, 3, 3, s, s, s)``.
    """

    def __init__(self, layers: list[nn.Module], in_channels: int) -> None:
        super().__init__()
        self.layers, self.in_channels = nn.Sequential(*layers), in_channels

    def forward(self, crop: Tensor) -> Tensor:
        return self.layers(with_channels(crop, self.in_channels)).unflatten(1, (3, 3))


def _sum_of_squares(x: Tensor) -> Tensor:
    """(batch, c, x, y, z) -> (batch, c)."""
    return torch.linalg.vector_norm(x, dim=[2, 3, 4]).square()
