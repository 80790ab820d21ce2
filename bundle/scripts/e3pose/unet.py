"""U-Net in the form of E(3)-Pose's localizer, with running batch statistics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def _block(channels_in: int, channels_out: int, kernel_size: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (channels_in, channels_out):
        layers += [
            nn.Conv3d(channels, channels_out, kernel_size, padding=kernel_size // 2),
            nn.ELU(),
        ]
    return nn.Sequential(*layers, nn.BatchNorm3d(channels_out))


class UNet(nn.Module):
    """U-Net (Ronneberger et al., MICCAI 2015) of blocks conv-ELU-conv-ELU-BatchNorm.

    Max-pooling by 2 on the way down, trilinear interpolation (align_corners=False) on the way up,
    the skip before the interpolated channels. Written for imported weights: MONAI's U-Nets order
    these layers otherwise.

    Parameters
    ----------
    features : channels of every level; the authors have (16, 32, 64, 128)
    in_channels, out_channels : of the image, and classes
    kernel_size : taps along each axis, odd

    Shapes: ``(batch, in_channels, x, y, z)`` of any size -> logits
    ``(batch, out_channels, x, y, z)``. Sizes that are no multiple of ``2^(levels - 1)`` are padded
    with zeros at their ends, and the logits are cut back.
    """

    def __init__(
        self,
        features: Sequence[int] = (16, 32, 64, 128),
        in_channels: int = 1,
        out_channels: int = 3,
        kernel_size: int = 3,
    ) -> None:
        super().__init__()
        if not features or kernel_size % 2 == 0:
            raise ValueError(
                f"expected at least one level and an odd kernel, got features={list(features)} "
                f"and kernel_size={kernel_size}"
            )
        ins = [in_channels, *features[:-1]]
        self.encoder = nn.ModuleList(
            _block(a, b, kernel_size) for a, b in zip(ins, features, strict=True)
        )
        self.decoder = nn.ModuleList(
            _block(features[level] + features[level - 1], features[level - 1], kernel_size)
            for level in reversed(range(1, len(features)))
        )
        self.out = nn.Conv3d(features[0], out_channels, 1)

    def forward(self, volume: Tensor) -> Tensor:
        multiple, shape = 2 ** len(self.decoder), volume.shape[2:]
        x = functional.pad(volume, [p for n in reversed(shape) for p in (0, -n % multiple)])
        skips: list[Tensor] = []
        for block in self.encoder:
            x = block(functional.max_pool3d(x, 2) if skips else x)
            skips.append(x)
        for block, skip in zip(self.decoder, reversed(skips[:-1]), strict=True):
            x = functional.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
            x = block(torch.cat([skip, x], dim=1))
        return self.out(x)[..., : shape[0], : shape[1], : shape[2]]
