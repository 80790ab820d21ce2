"""Which voxels are brain and which are eyes: MONAI's BasicUNet on blocks of voxels."""

# no "from __future__ import annotations": TorchScript reads annotations of classes as types

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets import BasicUNet
from torch import Tensor, nn
from torch.nn import functional


class Localizer(BasicUNet):
    """Logits of background, brain and eyes of volumes of any size.

    The UNet works on blocks of 2 x 2 x 2 voxels as channels: an eighth of the cost, and unlike
    pooling it keeps the small eyes. Layers and names of weights are MONAI's.

    Parameters
    ----------
    features : of the five levels, and of the last layer

    Shapes: ``(batch, 1, x, y, z)`` -> ``(batch, 3, x, y, z)``.
    """

    def __init__(self, features: Sequence[int] = (16, 16, 32, 64, 64, 16)) -> None:
        super().__init__(
            spatial_dims=3,
            in_channels=8,
            out_channels=3 * 8,
            features=tuple(features),
            # transposed convolutions are several times slower on CPUs
            upsample="nontrainable",
        )
        # two at the bottom, below four levels of pooling by 2: instance norm needs more than one
        self.least_blocks = 32
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                module.__class__ = SmallVolumeConv  # the same weights under the same names

    def forward(self, volume: Tensor) -> Tensor:
        nx, ny, nz = volume.shape[2], volume.shape[3], volume.shape[4]
        hx, hy, hz = self.blocks(nx), self.blocks(ny), self.blocks(nz)
        padding = [0, 2 * hz - nz, 0, 2 * hy - ny, 0, 2 * hx - nx]
        first = self.conv_0(space_to_channels(functional.pad(volume, padding)))
        second = self.down_1(first)
        third = self.down_2(second)
        fourth = self.down_3(third)
        up = _joined(self.upcat_4.upsample(self.down_4(fourth)), fourth)
        up = _joined(self.upcat_3.upsample(self.upcat_4.convs(up)), third)
        up = _joined(self.upcat_2.upsample(self.upcat_3.convs(up)), second)
        up = _joined(self.upcat_1.upsample(self.upcat_2.convs(up)), first)
        logits = self.final_conv(self.upcat_1.convs(up))
        return channels_to_space(logits)[:, :, :nx, :ny, :nz]

    def blocks(self, voxels: int) -> int:
        """Blocks along an axis of so many voxels, with those of the padding."""
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript leaves out what is inside)
            if torch.compiler.is_exporting():
                return _size_of_the_export(voxels, self.least_blocks)
        return max((voxels + 1) // 2, self.least_blocks)


class SmallVolumeConv(nn.Conv3d):
    """``Conv3d`` by oneDNN also for one small volume on a CPU.

    torch takes a routine of its own there that is up to ten times slower (48 x 48 x 36 voxels of 8
    channels: 35 ms, by oneDNN 3).
    """

    def forward(self, x: Tensor) -> Tensor:
        small = x.shape[0] == 1 and x.shape[1] * x.shape[2] * x.shape[3] <= 20480
        if not _fixed() or self.training or x.device.type != "cpu" or not small:
            return self._conv_forward(x, self.weight, self.bias)
        if torch.jit.is_scripting():  # whose file may be run by a torch without oneDNN
            return self._conv_forward(torch.cat([x, x]), self.weight, self.bias)[:1]
        return _by_onednn(self, x)


@torch.jit.ignore
def _by_onednn(conv: nn.Conv3d, x: Tensor) -> Tensor:
    ones = [1, 1, 1]
    if not torch.backends.mkldnn.is_available() or x.dtype != torch.float32:
        return conv._conv_forward(x, conv.weight, conv.bias)
    padding: Any = conv.padding
    return torch.mkldnn_convolution(x, conv.weight, conv.bias, padding, ones, ones, 1)


def _joined(upsampled: Tensor, skip: Tensor) -> Tensor:
    """Both as channels; where pooling dropped an odd voxel, the last one is repeated."""
    for axis in (2, 3, 4):
        if not _fixed() or upsampled.shape[axis] != skip.shape[axis]:
            index = torch.arange(skip.shape[axis], device=skip.device)
            upsampled = upsampled.index_select(axis, index.clamp(max=upsampled.shape[axis] - 1))
    return torch.cat([skip, upsampled], 1)


@torch.jit.ignore
def _size_of_the_export(voxels: int, least_blocks: int) -> int:
    """``blocks`` as a number of which the exporter knows no more than what it is told here."""
    count = ((torch.scalar_tensor(voxels) + 1) // 2).clamp(min=least_blocks).long().item()
    torch._check(count >= least_blocks)
    torch._check(2 * count >= voxels)
    return count  # type: ignore[return-value]


def _fixed() -> bool:
    """Whether what is done may depend on the shape: what is exported must not."""
    if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript leaves out what is inside)
        if torch.compiler.is_compiling():
            return False
    return True


def space_to_channels(x: Tensor) -> Tensor:
    """(batch, c, 2x, 2y, 2z) -> (batch, 8c, x, y, z): every block of 2^3 voxels as channels."""
    x = x.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def channels_to_space(x: Tensor) -> Tensor:
    """Inverse of ``space_to_channels``: (batch, 8c, x, y, z) -> (batch, c, 2x, 2y, 2z)."""
    x = x.unflatten(1, (-1, 2, 2, 2)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
