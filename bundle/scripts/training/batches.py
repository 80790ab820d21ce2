"""What each network is trained on, out of a batch of training data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.engines import PrepareBatch
from torch import Tensor

from ..cubes import Box


class PrepareHeadBatch(PrepareBatch):
    """Volumes, targets and the cubes around the reference brains, from a batch of training data.

    Gives ``image``; ``label``, ``head_to_grid``, ``has_head`` and the targets of the landmarks as
    one dictionary; and the ``Box`` and, if the batch has them, the cubes for the landmarks, which
    engines hand to the inferer after the network.
    """

    def __call__(  # type: ignore[override]
        self,
        batchdata: dict[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **_: Any,
    ) -> tuple[Tensor, dict[str, Tensor], tuple[Any, ...], dict]:
        def move(key: str) -> Tensor:
            return torch.as_tensor(batchdata[key]).to(device, non_blocking=non_blocking)

        target = {key: move(key) for key in ("label", "head_to_grid", "has_head")}
        inputs: tuple[Any, ...] = (Box(move("center_mm"), move("side_mm")),)
        if "crop" in batchdata:
            cubes, cube_target = _cubes(move)
            inputs += (cubes,)
            target |= cube_target
        return move("image"), target, inputs, {}


class PrepareLabelBatch(PrepareBatch):
    """``image`` and ``label`` from a batch of training data, for the localizer alone."""

    def __call__(  # type: ignore[override]
        self,
        batchdata: dict[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        image, label = (
            torch.as_tensor(batchdata[key]).to(device, non_blocking=non_blocking)
            for key in ("image", "label")
        )
        return image, label


class PrepareCubeBatch(PrepareBatch):
    """The cubes for the landmarks, and their targets, from a batch of training data."""

    def __call__(  # type: ignore[override]
        self,
        batchdata: dict[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **_: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return _cubes(lambda key: batchdata[key].to(device, non_blocking=non_blocking))


def _cubes(get: Callable[[str], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Those of all items, (batch, n, ...), as one batch."""
    targets = ("crop_point", "crop_aligned")
    return get("crop").flatten(0, 1), {key: get(key).flatten(0, 1) for key in targets}
