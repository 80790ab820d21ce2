"""What each network is trained on, out of a batch of training data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from monai.engines import PrepareBatch
from torch import Tensor

from ..cubes import Cube, along_grid


class HeadInputs(NamedTuple):
    """What engines hand to the inferer after the network, as HeadPoseNet takes it in training."""

    cube: Cube  # (batch, 1), around the reference brains, along the grid's axes
    landmark_cubes: Tensor | None  # (n, 1, S, S, S)


class PrepareHeadBatch(PrepareBatch):
    """Volumes, targets and the cubes around the reference brains, from a batch of training data.

    Gives ``image``; ``label``, ``head_to_grid``, ``twin_to_grid``, ``has_head`` and the targets of
    the landmarks as one dictionary; and ``HeadInputs``.
    """

    def __call__(  # type: ignore[override]
        self,
        batchdata: dict[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **_: Any,
    ) -> tuple[Tensor, dict[str, Tensor], HeadInputs, dict]:
        def move(key: str) -> Tensor:
            return torch.as_tensor(batchdata[key]).to(device, non_blocking=non_blocking)

        target = {key: move(key) for key in ("label", "head_to_grid", "has_head")}
        if "twin_to_grid" in batchdata:
            target["twin_to_grid"] = move("twin_to_grid")
        cube, shown = along_grid(move("center_mm")[:, None], move("side_mm")[:, None]), None
        if "crop" in batchdata:
            shown, cube_target = _cubes(move)
            target |= cube_target
        return move("image"), target, HeadInputs(cube, shown), {}


class PreparePairBatch(PrepareBatch):
    """Two entries of a batch of training data: what the network is given, and the target."""

    def __init__(self, given: str, target: str) -> None:
        self.keys = given, target

    def __call__(  # type: ignore[override]
        self,
        batchdata: dict[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        given, target = (
            torch.as_tensor(batchdata[key]).to(device, non_blocking=non_blocking)
            for key in self.keys
        )
        return given, target


class PrepareLabelBatch(PreparePairBatch):
    """``image`` and ``label`` from a batch of training data, for the localizer alone."""

    def __init__(self) -> None:
        super().__init__("image", "label")


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
