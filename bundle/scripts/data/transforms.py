"""What the reference says of a volume on the working grid: pose and cube. Frames: geometry.py."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor

from ..cubes import reference_cube
from ..geometry import check_rigid, head_to_grid
from ..labels import BRAIN
from .volumes import Data


class HeadToGridd(MapTransform):
    """Add ``head_to_grid`` (4, 4) float32 and ``has_head`` (1 or 0) from ``head_to_world``.

    To come after every spatial transform, because augmentation leaves its trace in the image's
    affine. An entry without pose, or with null, is a volume without a head: identity and 0; 0 also
    where the head's origin lies outside the volume.
    ValueError if the pose is not rigid.
    """

    def __init__(self, image_key: str = "image", spacing_mm: float = 4.0) -> None:
        super().__init__(["head_to_world"], allow_missing_keys=True)
        self.image_key, self.spacing_mm = image_key, spacing_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        d = dict(data)
        image = d[self.image_key]
        pose = world_pose(d)
        d["has_head"] = torch.tensor(float(pose is not None))
        d["head_to_grid"] = torch.eye(4)
        if pose is not None:
            matrix = head_to_grid(image.affine, image.shape[1:], self.spacing_mm, pose)
            d["head_to_grid"] = matrix.to(torch.float32)
            half_mm = torch.tensor(image.shape[1:]) * self.spacing_mm / 2
            d["has_head"] = (matrix[:3, 3].abs() <= half_mm).all().float()
        d.pop("head_to_world", None)  # null does not collate, and the grid's pose has replaced it
        return d


def world_pose(entry: Mapping[Any, Any]) -> Tensor | None:
    """The entry's ``head_to_world`` (4, 4) float64, checked; None for a volume without a head."""
    if entry.get("head_to_world") is None:
        return None
    pose = torch.as_tensor(entry["head_to_world"], dtype=torch.float64)
    check_rigid(pose, f"head_to_world of {entry.get('subject', 'an entry')}")
    return pose


class HeadBoxd(RandomizableTransform, MapTransform):
    """Add ``center_mm`` (3) and ``side_mm`` (): the cube around the reference brain.

    Without a brain in the label it stands at the pose's origin, with the size of a typical brain.

    Parameters
    ----------
    shift : largest shift along each axis, as a share of the side; 0 for none. Centre and size are
        jittered because the localizer's mask will be no better.
    scale : largest relative change of the side
    """

    def __init__(
        self,
        label_key: str = "label",
        spacing_mm: float = 4.0,
        fill: float = 0.6,
        shift: float = 0.0,
        scale: float = 0.0,
    ) -> None:
        MapTransform.__init__(self, [label_key])
        RandomizableTransform.__init__(self)
        self.spacing_mm, self.fill, self.shift, self.scale = spacing_mm, fill, shift, scale

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        d = dict(data)
        brain = d[self.keys[0]].as_tensor() == BRAIN
        origin = d["head_to_grid"][:3, 3]
        center, side = reference_cube(brain, origin, self.spacing_mm, self.fill)
        if self.shift or self.scale:
            shift = torch.from_numpy(self.R.uniform(-self.shift, self.shift, 3)).float()
            center = center + side * shift
            side = side * (1 + self.R.uniform(-self.scale, self.scale))
        d["center_mm"], d["side_mm"] = center, side
        return d
