"""How wrong a pose is expected to be, from how far the estimates behind it lie apart."""

# no "from __future__ import annotations": TorchScript reads annotations of classes as types

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Spread(NamedTuple):
    """How far the estimates of each pose (batch,) lie apart, and how good they look."""

    rotation_deg: Tensor  # root mean square angle to their mean
    mirror_mm: Tensor  # mean distance of the landmarks from those of the mirror image
    score: Tensor  # mean logit of a cube in line with the head
    sharpness: Tensor  # mean logarithm of the heat maps' peaks
    side_mm: Tensor  # of the cube


FEATURES = 6


class ExpectedError(nn.Module):
    """Standard deviations of a pose: exp(weights @ features) in degrees, at most 180, and in mm.

    The features are 1, log(1 + rotation_deg), log(1 + mirror_mm), softplus(-score), sharpness and
    log(side_mm / 100). The weights were fitted so that 68 % of the errors lie below the standard
    deviation (``scripts.calibrate``; docs/performance.md has the data and the result).

    Parameters
    ----------
    rotation, translation : six weights each
    """

    def __init__(self, rotation: Sequence[float], translation: Sequence[float]) -> None:
        super().__init__()
        if not len(rotation) == len(translation) == FEATURES:
            raise ValueError(
                f"expected {FEATURES} weights each, got {list(rotation)} and {list(translation)}"
            )
        self.rotation, self.translation = list(rotation), list(translation)

    def forward(self, spread: Spread) -> tuple[Tensor, Tensor]:
        """(batch,) degrees and (batch,) mm."""
        features = self.features(spread)
        rotation = features @ torch.tensor(self.rotation, dtype=features.dtype).to(features.device)
        translation = torch.tensor(self.translation, dtype=features.dtype).to(features.device)
        return rotation.exp().clamp(max=180), (features @ translation).exp()

    def features(self, spread: Spread) -> Tensor:
        """(batch, 6)."""
        return torch.stack(
            [
                torch.ones_like(spread.score),
                torch.log1p(spread.rotation_deg),
                torch.log1p(spread.mirror_mm),
                functional.softplus(-spread.score),
                spread.sharpness,
                torch.log(spread.side_mm / 100),
            ],
            dim=1,
        )
