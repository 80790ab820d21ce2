"""Eval-time form of the E3CNN: fixed kernels, channels first, plain torch only.

Made by ``E3CNN.freeze``. Nothing here is trained or stored: every tensor is a buffer that no
state_dict holds.
"""

# no "from __future__ import annotations": TorchScript reads annotations of classes as types

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from .steerable import ACTIVATION_SCALES, Gate, InstanceNorm, SteerableConv, with_channels


class DirectConv(nn.Module):
    """``conv3d`` by a fixed kernel, (batch, c, x, y, z) -> (batch, o, x, y, z)."""

    kernel: Tensor

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        self.register_buffer("kernel", kernel, persistent=False)
        self.padding = kernel.shape[-1] // 2

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv3d(x, self.kernel, padding=self.padding)


def direct(kernel: Tensor, side: int | None) -> nn.Module:
    """The form of a convolution that is right for every kernel and every crop."""
    return DirectConv(kernel)


# from a kernel (o, c, size, size, size) and the side of the crop in voxels, if it is known
Convolution = Callable[[Tensor, int | None], nn.Module]


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
        self,
        conv: SteerableConv,
        norm: InstanceNorm,
        gate: Gate,
        side: int | None = None,
        convolution: Convolution = direct,
    ) -> None:
        super().__init__()
        relu, tanh, sigmoid = ACTIVATION_SCALES
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
