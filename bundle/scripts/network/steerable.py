"""O(3)-equivariant layers for voxel grids, in e3nn's irreps and conventions.

Tensors are channels-first, ``(batch, irreps.dim, x, y, z)``: the components of the irreps stand
along the channels as e3nn orders them, multiplicity before component, and the array axes are the
axes x, y, z of the representation. Kernels sample steerable functions on the lattice, so the 48
symmetries of the cube hold to rounding and other angles up to the error of sampling.

The layers read ``Irreps`` when they are built and keep plain integers, because attribute access on
``Irreps`` in ``forward`` breaks compilation and export.
"""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .irreps import o3

# of relu, tanh and sigmoid to unit second moment under a standard normal: ``normalize2mom`` of
# e3nn, which estimates them from a fixed sample of a million numbers at every start
ACTIVATION_SCALES = (1.4163393446331365, 1.5937334472592695, 1.8467055342154763)


def radial_functions(distance: Tensor, number: int, radius: float) -> Tensor:
    """e3nn's ``smooth_finite`` bumps at evenly spaced middles on [0, radius], (..., number).

    Written out because e3nn rounds a constant to the default type, so that its values depend on
    what that type was at the time.
    """
    middles = torch.linspace(0.0, radius, number, dtype=distance.dtype)
    step = radius / (number - 1)
    inside = 1 - ((distance.unsqueeze(-1) - middles) / step).square()
    bump = 1.14136 * math.exp(2) * torch.exp(-2 / inside.clamp(min=1e-9))
    return torch.where(inside > 0, bump, 0.0)


@cache
def kernel_basis(
    l_in: int, l_sh: int, l_out: int, size: int, num_radial: int, radius: float
) -> Tensor:
    """Steerable kernels (num_radial, 2 l_out + 1, 2 l_in + 1, size, size, size), float64.

    Radial function x spherical harmonic of the voxel offset, contracted with Wigner 3j. The radial
    functions are e3nn's ``smooth_finite`` bumps on [0, radius] voxels, the harmonics have
    component normalisation, and the sum over taps is averaged.
    """
    taps = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    offsets = torch.stack(torch.meshgrid(taps, taps, taps, indexing="ij"), dim=-1)
    radial = radial_functions(offsets.norm(dim=-1), num_radial, radius)
    harmonic = o3.spherical_harmonics(l_sh, offsets, normalize=True, normalization="component")
    wigner = o3.wigner_3j(l_in, l_sh, l_out, dtype=torch.float64)
    return torch.einsum("ijk,xyzj,xyzr->rkixyz", wigner, harmonic, radial) / size**3


class _Pair(NamedTuple):
    """How one block of input irreps feeds one block of output irreps."""

    block_in: int
    block_out: int
    mul_in: int
    mul_out: int
    paths: tuple[int, ...]  # which of the chunks of the flat weight, (mul_in, mul_out) each
    center: int | None  # which chunk of the self-connection's weight


def weight_chunks(
    irreps_in: o3.Irreps, irreps_out: o3.Irreps, lmax: int
) -> tuple[list[tuple[int, int, int]], list[tuple[int, int]]]:
    """What the chunks of the flat weights of a ``SteerableConv`` join, in e3nn's order.

    (input block, degree of the harmonic, output block) for every chunk of the kernel's weight, and
    (input block, output block) for those of the self-connection's. A chunk holds a weight for every
    irrep of the one block and every irrep of the other, the output's last.
    """
    ins, harmonics, outs = list(irreps_in), o3.Irreps.spherical_harmonics(lmax), list(irreps_out)
    paths = [
        (i, harmonic.l, o)
        for i, (_, a) in enumerate(ins)
        for _, harmonic in harmonics
        for o, (_, b) in enumerate(outs)
        if b in a * harmonic
    ]
    centers = [(i, o) for i, (_, a) in enumerate(ins) for o, (_, b) in enumerate(outs) if a == b]
    return paths, centers


def with_channels(crop: Tensor, channels: int) -> Tensor:
    """``crop`` (batch, c, x, y, z) with zeros for the channels that it lacks.

    ValueError if it has more than ``channels``.
    """
    missing = channels - crop.shape[1]
    if missing < 0:
        raise ValueError(f"expected at most {channels} channels, got {crop.shape}")
    return functional.pad(crop, [0, 0, 0, 0, 0, 0, 0, missing]) if missing > 0 else crop


class SteerableConv(nn.Module):
    """Convolution by radial functions x spherical harmonics, plus a self-connection.

    The parametrisation is that of e3nn's ``FullyConnectedTensorProduct`` of the input with the
    spherical harmonics of the voxel offset (degrees 0..lmax, parity (-1)^l), and of an e3nn
    ``Linear`` added at the centre; weights are laid out as there, so that either can be loaded
    from the other. The kernel is one matrix product per pair of irreps, and is kept while the
    module is in eval mode and the weights stay as they are.

    Parameters
    ----------
    irreps_in, irreps_out : irreps of the input and output channels
    kernel_size : taps along each axis, odd
    lmax : highest degree of the spherical harmonics
    num_radial : number of radial functions
    radius : where the last of them has its middle, voxels. By default (kernel_size - 1) / 2, from
        where it fades out inside the taps: the kernel is a ball. Larger, as the authors have it
        (kernel_size / 2), the cube of taps cuts the ball, and angles off the lattice suffer; so do
        they from more and narrower functions than the taps resolve.

    Shapes: ``(batch, irreps_in.dim, x, y, z)`` -> ``(batch, irreps_out.dim, x, y, z)``.
    """

    def __init__(
        self,
        irreps_in: o3.Irreps | str,
        irreps_out: o3.Irreps | str,
        kernel_size: int = 5,
        lmax: int = 4,
        num_radial: int = 3,
        radius: float | None = None,
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd to have a centre, got {kernel_size}")
        radius = (kernel_size - 1) / 2 if radius is None else radius
        blocks_in, blocks_out = o3.Irreps(irreps_in), o3.Irreps(irreps_out)
        self.dims_in = [block.dim for block in blocks_in]
        self.dims_out = [block.dim for block in blocks_out]
        self.kernel_size = kernel_size

        pairs = list(itertools.product(range(len(blocks_in)), range(len(blocks_out))))
        paths, centers = weight_chunks(blocks_in, blocks_out, lmax)
        degrees: dict[tuple[int, int], list[int]] = {pair: [] for pair in pairs}
        for i, degree, o in paths:
            degrees[i, o].append(degree)
        self.chunks = [blocks_in[i].mul * blocks_out[o].mul for i, _, o in paths]
        self.center_chunks = [blocks_in[i].mul * blocks_out[o].mul for i, o in centers]
        self.weight = nn.Parameter(torch.randn(num_radial, sum(self.chunks)))
        self.center_weight = nn.Parameter(torch.randn(sum(self.center_chunks)))

        self._pairs: list[_Pair] = []
        for i, o in pairs:
            if not degrees[i, o]:
                continue
            (mul_in, ir_in), (mul_out, ir_out) = blocks_in[i], blocks_out[o]
            # element normalisation: unit variance of the output however many inputs feed it
            fan_in = sum(blocks_in[a].mul for a, _, b in paths if b == o)
            rows = [
                kernel_basis(ir_in.l, degree, ir_out.l, kernel_size, num_radial, radius)
                * math.sqrt(ir_out.dim / fan_in)
                for degree in degrees[i, o]
            ]
            center = centers.index((i, o)) if (i, o) in centers else None
            if center is not None:
                fan_in = sum(blocks_in[a].mul for a, b in centers if b == o)
                delta = torch.zeros_like(rows[0][:1])
                delta[0, :, :, kernel_size // 2, kernel_size // 2, kernel_size // 2] = torch.eye(
                    ir_in.dim
                ) / math.sqrt(fan_in)
                rows.append(delta)
            basis = torch.cat(rows).flatten(1).to(torch.get_default_dtype())
            self.register_buffer(f"basis_{len(self._pairs)}", basis, persistent=False)
            chunks = tuple(paths.index((i, degree, o)) for degree in degrees[i, o])
            self._pairs.append(_Pair(i, o, mul_in, mul_out, chunks, center))
        self._kept: tuple[tuple[object, ...], Tensor] | None = None

    def kernel(self) -> Tensor:
        """The dense kernel (irreps_out.dim, irreps_in.dim, size, size, size)."""
        taps = self.kernel_size**3
        blocks: dict[tuple[int, int], Tensor] = {}
        # split, not slices: the backward pass of each slice would fill a tensor of full size
        chunks = self.weight.split(self.chunks, dim=1)
        center_chunks = self.center_weight.unsqueeze(0).split(self.center_chunks, dim=1)
        for index, pair in enumerate(self._pairs):
            rows = [chunks[path] for path in pair.paths]
            if pair.center is not None:
                rows.append(center_chunks[pair.center])
            block = torch.cat(rows).T @ self.get_buffer(f"basis_{index}")
            dim_out = self.dims_out[pair.block_out] // pair.mul_out
            dim_in = self.dims_in[pair.block_in] // pair.mul_in
            block = block.view(pair.mul_in, pair.mul_out, dim_out, dim_in, taps)
            blocks[pair.block_in, pair.block_out] = block.permute(1, 2, 0, 3, 4).reshape(
                pair.mul_out * dim_out, pair.mul_in * dim_in, taps
            )
        rows_out = [
            torch.cat(
                [
                    blocks[i, o] if (i, o) in blocks else self.weight.new_zeros(dim_o, dim_i, taps)
                    for i, dim_i in enumerate(self.dims_in)
                ],
                dim=1,
            )
            for o, dim_o in enumerate(self.dims_out)
        ]
        return torch.cat(rows_out).unflatten(2, (self.kernel_size,) * 3)

    def _eval_kernel(self) -> Tensor:
        key = tuple(
            (p._version, p.data_ptr(), p.device, p.dtype) for p in (self.weight, self.center_weight)
        )
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, self.kernel().detach())
        return self._kept[1]

    def train(self, mode: bool = True) -> SteerableConv:
        self._kept = None
        return super().train(mode)

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_kept": None}

    def forward(self, x: Tensor) -> Tensor:
        keep = not self.training and not torch.is_grad_enabled()
        kernel = self._eval_kernel() if keep else self.kernel()
        return functional.conv3d(x, kernel, padding=self.kernel_size // 2)

    def extra_repr(self) -> str:
        return f"{sum(self.dims_in)} -> {sum(self.dims_out)}, kernel_size={self.kernel_size}"


class InstanceNorm(nn.Module):
    """e3nn's ``BatchNorm(instance=True)`` for channels-first tensors.

    Even scalars lose their mean over the voxels; every irrep is divided by the root mean square
    of its components. No running statistics, so that one volume never depends on others.
    """

    average: Tensor
    other: Tensor
    irrep_of_channel: Tensor
    even_channels: Tensor

    def __init__(self, irreps: o3.Irreps | str, eps: float = 1e-5) -> None:
        super().__init__()
        irreps = o3.Irreps(irreps)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(irreps.num_irreps))
        self.bias = nn.Parameter(torch.zeros(sum(mul for mul, ir in irreps if ir.is_scalar())))
        members = [ir for mul, ir in irreps for _ in range(mul)]
        channels = [k for k, ir in enumerate(members) for _ in range(ir.dim)]
        average = torch.zeros(irreps.dim, irreps.num_irreps)
        for channel, k in enumerate(channels):
            average[channel, k] = 1 / members[k].dim
        even = torch.tensor([members[k].is_scalar() for k in channels])
        self.register_buffer("average", average, persistent=False)
        self.register_buffer("irrep_of_channel", torch.tensor(channels), persistent=False)
        self.register_buffer("other", (~even).to(average.dtype), persistent=False)
        self.register_buffer("even_channels", even.nonzero().flatten(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x.flatten(2), dim=2, correction=0)
        second_moment = variance + mean.square() * self.other
        scale = (second_moment @ self.average + self.eps).rsqrt() * self.weight
        scale = scale.index_select(1, self.irrep_of_channel)
        shift = -(1 - self.other) * mean * scale
        bias = self.bias.unsqueeze(0).expand(shift.shape[0], -1)
        shift = shift.index_add(1, self.even_channels, bias)
        return torch.addcmul(shift[..., None, None, None], x, scale[..., None, None, None])


class Gate(nn.Module):
    """e3nn's ``Gate`` for channels-first tensors: relu on 0e, tanh on 0o, sigmoid gates on l > 0.

    Each activation is scaled to unit second moment under a standard normal, as e3nn does.

    Attributes
    ----------
    irreps_in : what the layer before must produce, ``irreps_out`` and a 0e gate for every
        irrep with l > 0, sorted as e3nn's Gate sorts them
    """

    def __init__(self, irreps_out: o3.Irreps | str) -> None:
        super().__init__()
        irreps_out = o3.Irreps(irreps_out)
        gates = sum(mul for mul, ir in irreps_out if ir.l > 0)
        scalars = o3.Irreps([x for x in irreps_out if x.ir.l == 0])
        gated = o3.Irreps([x for x in irreps_out if x.ir.l > 0])
        order = (scalars + o3.Irreps([(gates, "0e")]) + gated).sort()
        self.irreps_in = str(order.irreps.simplify())
        self.widths = [block.dim for block in order.irreps]
        self.places = list(order.p)  # of scalars, gates, gated among the sorted blocks
        self.outputs = [(mul, ir.dim, ir.p) for mul, ir in scalars + gated]
        self.num_scalars = len(scalars)
        self._gate_chunks = [mul for mul, _ in gated]
        self._relu, self._tanh, self._sigmoid = ACTIVATION_SCALES

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(self.widths, dim=1)
        blocks = [parts[place] for place in self.places]
        gates = torch.sigmoid(blocks.pop(self.num_scalars)) * self._sigmoid
        chunks = iter(gates.split(self._gate_chunks, dim=1))
        outputs = []
        for block, (mul, dim, parity) in zip(blocks, self.outputs, strict=True):
            if dim > 1:
                gate = next(chunks).unsqueeze(2)
                outputs.append((block.unflatten(1, (mul, dim)) * gate).flatten(1, 2))
            elif parity > 0:
                outputs.append(torch.relu(block) * self._relu)
            else:
                outputs.append(torch.tanh(block) * self._tanh)
        return torch.cat(outputs, dim=1)


class AveragePool(nn.Module):
    """Mean over windows of 2 x 2 x 2 voxels that tile the grid; equivariant for every irrep."""

    def __init__(self, irreps: o3.Irreps | str) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        _check_tiles(x)
        return functional.avg_pool3d(x, 2)


class NormMaxPool(nn.Module):
    """In every 2 x 2 x 2 window, even scalars by value, other irreps where their norm is largest.

    An odd scalar changes sign under a reflection, so its signed maximum is not equivariant: the
    largest magnitude is. Exact for inputs without ties between different values in a window.
    """

    signed_odd_scalars = False

    def __init__(self, irreps: o3.Irreps | str) -> None:
        super().__init__()
        self._blocks = [(mul, ir.dim, ir.p) for mul, ir in o3.Irreps(irreps)]

    def forward(self, x: Tensor) -> Tensor:
        _check_tiles(x)
        outputs = []
        channels = [mul * dim for mul, dim, _ in self._blocks]
        for part, (mul, dim, parity) in zip(x.split(channels, dim=1), self._blocks, strict=True):
            if dim == 1 and (parity > 0 or self.signed_odd_scalars):
                outputs.append(functional.max_pool3d(part, 2))
                continue
            part = part.unflatten(1, (mul, dim))
            # the square: no kink at zero, and the same place of the maximum
            norm = part.square().sum(2)
            _, index = functional.max_pool3d(norm, 2, return_indices=True)
            picked = part.flatten(3).gather(
                3, index.flatten(2).unsqueeze(2).expand(-1, -1, dim, -1)
            )
            outputs.append(picked.unflatten(3, index.shape[2:]).flatten(1, 2))
        return torch.cat(outputs, dim=1)


class SignedMaxPool(NormMaxPool):
    """``NormMaxPool`` with odd scalars by signed maximum, as the authors' checkpoints need.

    Not equivariant under reflections: for imported weights only.
    """

    signed_odd_scalars = True


def _check_tiles(x: Tensor) -> None:
    if x.shape[2] % 2 + x.shape[3] % 2 + x.shape[4] % 2 > 0:
        raise ValueError(
            f"pooling by 2 needs an even number of voxels along each axis, got {x.shape[2:]}"
        )
