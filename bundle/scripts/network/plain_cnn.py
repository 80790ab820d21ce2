"""Plain CNN from crop to axes, to compare with E3CNN: the same trunk without equivariance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .steerable import with_channels


class PlainCNN(nn.Module):
    """Convolutions, instance norm and ReLU where E3CNN has steerable convolutions and gates.

    Every voxel of the last level votes with a rotation in six dimensions (Zhou et al., CVPR 2019):
    two vectors, anterior and superior, whose cross product is the head's right. So the output has
    the form of E3CNN's, and crop, loss, pooling and confidence are the same.

    Parameters
    ----------
    channels : of every level; each level but the first begins with average pooling by 2. The
        default costs about as much as the default E3CNN.
    kernel_size : taps of every kernel along each axis, odd
    convolutions : convolutions at each level
    in_channels : as for ``E3CNN``

    Shapes: ``(batch, 1, S, S, S)``, or up to ``in_channels`` channels -> ``(batch, 3, 3, s, s, s)``
    with ``s = S / 2^(levels - 1)``, axes x components as ``E3CNN`` gives them.
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 128),
        kernel_size: int = 5,
        convolutions: Sequence[int] = (1, 2, 2),
        in_channels: int = 1,
    ) -> None:
        super().__init__()
        if len(channels) != len(convolutions):
            raise ValueError(
                f"expected one entry for each level, got channels={list(channels)} and "
                f"convolutions={list(convolutions)}"
            )
        self.in_channels = in_channels
        padding = kernel_size // 2
        layers: list[nn.Module] = []
        before = in_channels
        for level, (width, count) in enumerate(zip(channels, convolutions, strict=True)):
            if level:
                layers.append(nn.AvgPool3d(2))
            for _ in range(count):
                layers += [
                    nn.Conv3d(before, width, kernel_size, padding=padding, bias=False),
                    nn.InstanceNorm3d(width, affine=True),
                    nn.ReLU(),
                ]
                before = width
        layers.append(nn.Conv3d(before, 6, kernel_size, padding=padding))
        self.layers = nn.Sequential(*layers)

    def forward(self, crop: Tensor) -> Tensor:
        vectors = self.layers(with_channels(crop, self.in_channels)).unflatten(1, (2, 3))
        right = torch.linalg.cross(vectors[:, 0], vectors[:, 1], dim=1)
        return torch.cat([right.unsqueeze(1), vectors], dim=1)
