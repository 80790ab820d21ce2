"""Inference in which one volume that the network cannot take never stops the others."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from ..cubes import Cube
from ..network import HeadPoseNet
from .inferer import HeadPoseInferer

logger = logging.getLogger(__name__)


class CarefulInferer(HeadPoseInferer):
    """``HeadPoseInferer`` that gives ``error``, one text for each volume, "" where all is well.

    A batch that fails (too large for the device, for example) is done once more volume by volume.
    What fails then has no pose, no brain and the reason in ``error``.
    """

    def __call__(  # type: ignore[override]
        self, inputs: Tensor, network: HeadPoseNet, cube: Cube | None = None, *rest: Tensor | None
    ) -> dict[str, Any]:
        try:
            found: dict[str, Any] = super().__call__(inputs, network, cube, *rest)
        except Exception as error:
            if len(inputs) == 1:
                return _nothing_found(inputs, error)
            logger.warning("a batch of %d volumes failed, now one by one: %s", len(inputs), error)
        else:
            return found | {"error": [""] * len(inputs)}
        parts = [self(volume[None], network) for volume in inputs]
        names = set.intersection(*(set(part) for part in parts))
        joined = {
            name: torch.cat([part[name].to(inputs.device) for part in parts])
            for name in names - {"error"}
        }
        return joined | {"error": [part["error"][0] for part in parts]}


def _nothing_found(volume: Tensor, error: Exception) -> dict[str, Any]:
    """What ``HeadPoseNet.predict`` says of a volume (1, 1, x, y, z) without a head, and why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return {
        "head_to_grid": volume.new_full((1, 4, 4), float("nan")),
        "confidence": volume.new_zeros(1),
        "brain_volume_ml": volume.new_zeros(1),
        "label": torch.zeros(volume.shape, dtype=torch.uint8, device=volume.device),
        "error": [f"{type(error).__name__}: {lines[0] if lines else 'no message'}"],
    }
