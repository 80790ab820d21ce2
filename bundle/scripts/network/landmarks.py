"""Where the brain's centre and both eyes are in a cube that is roughly aligned with the head."""

# no "from __future__ import annotations": TorchScript reads annotations of classes as types

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..cubes import cube_cells
from .localizer import space_to_channels


class Landmarks(NamedTuple):
    """What is found in a batch of cubes. Points count in sides from the cube's middle, its axes."""

    heatmap: Tensor  # (batch, 3, s, s, s) logits
    point: Tensor  # (batch, 3, 3): brain's centre, left eye, right eye
    score: Tensor  # (batch,): logit of whether the cube is aligned with the head (25 degrees)


def eye_radius_mm(apart_mm: Tensor) -> Tensor:
    """Mean radius of a fetus's eye, mm, whose eyes have their centres ``apart_mm`` from each other.

    At a gestational age of GA weeks that distance is 1.00 GA + 2.46 mm, the diameter of an eye
    0.47 GA - 0.7 mm (Robinson et al. 2008, as ``simulation.anatomy`` has it).
    """
    return (0.47 * (apart_mm - 2.46) - 0.7).clamp(min=0.0) / 2


class LandmarkNet(nn.Module):
    """Small plain CNN that reads a cube of the head: heat maps, their centres of mass, a score.

    It needs no equivariance, because the cube is aligned with the head already, up to an error
    that it is there to remove. It works on blocks of 2 x 2 x 2 voxels as channels: half the time
    of a level of single voxels.

    Parameters
    ----------
    features : channels of the three levels, multiples of 8
    crop_size : voxels along the side of the cube, a multiple of 8

    Shapes: ``(batch, 1, S, S, S)``, of any scale of intensity -> ``Landmarks`` with ``s = S / 2``.
    """

    lattice: Tensor

    def __init__(self, features: Sequence[int] = (32, 64, 96), crop_size: int = 32) -> None:
        super().__init__()
        if len(features) != 3 or crop_size % 8:
            raise ValueError(
                "expected the features of three levels and a crop_size that is a multiple of 8, "
                f"got {list(features)} and {crop_size}"
            )
        a, b, c = features
        self.crop_size = crop_size
        self.level_1 = _block(8, a)
        self.level_2 = nn.Sequential(_block(a, b), _block(b, b))
        self.level_3 = nn.Sequential(_block(b, c), _block(c, c))
        self.narrow_3, self.up_2 = _block(c, b, 1), _block(b, b)
        self.narrow_2, self.up_1 = _block(b, a, 1), _block(a, a)
        self.heatmaps = nn.Conv3d(a, 3, 1)
        self.hidden = nn.Linear(c * (crop_size // 8) ** 3 + a, 64)
        self.summary = nn.Linear(64, 1)
        cells = cube_cells(crop_size // 2).flatten(0, 2)
        self.register_buffer("lattice", cells, persistent=False)

    def forward(self, crop: Tensor) -> Landmarks:
        flat = crop.flatten(1)
        mean = flat.mean(1).view(-1, 1, 1, 1, 1)
        deviation = flat.std(1).view(-1, 1, 1, 1, 1)
        first = self.level_1(space_to_channels((crop - mean) / (deviation + 1e-4)))
        second = self.level_2(functional.avg_pool3d(first, 2))
        third = self.level_3(functional.avg_pool3d(second, 2))
        up = functional.interpolate(self.narrow_3(third), scale_factor=2.0)
        up = functional.interpolate(self.narrow_2(self.up_2(second + up)), scale_factor=2.0)
        up = self.up_1(first + up)
        heatmap = self.heatmaps(up).to(self.lattice.dtype)
        point = heatmap.flatten(2).softmax(2) @ self.lattice
        # what is striking anywhere, such as eyes, beside what is where in the cube
        seen = torch.cat([third.flatten(1), up.amax([2, 3, 4])], dim=1)
        score = self.summary(functional.silu(self.hidden(seen)))[:, 0].to(self.lattice.dtype)
        return Landmarks(heatmap, point, score)


def _block(channels_in: int, channels_out: int, kernel_size: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(channels_in, channels_out, kernel_size, padding=kernel_size // 2, bias=False),
        nn.GroupNorm(8, channels_out),
        nn.SiLU(),
    )
