"""What the reference says of a volume on the working grid: pose and cube. Frames: geometry.py."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, MutableMapping
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

    ``twin_to_grid`` is the same of ``twin_to_world``, NaN where there is none. To come after every
    spatial transform, because augmentation leaves its trace in the image's affine. An entry without
    pose, or with null, is a volume without a head: identity and 0; 0 also where the head's origin
    lies outside the volume.
    ValueError if the pose is not rigid.

    >>> from monai.data import MetaTensor
    >>> affine = torch.diag(torch.tensor([4.0, 4, 4, 1]))  # the middle voxel lies at (8, 8, 8) mm
    >>> image = MetaTensor(torch.zeros(1, 5, 5, 5), affine=affine)
    >>> d = HeadToGridd()({"image": image, "head_to_world": torch.eye(4).tolist()})
    >>> d["has_head"], d["head_to_grid"][:3, 3]
    (tensor(1.), tensor([-8., -8., -8.]))
    >>> HeadToGridd()({"image": image, "head_to_world": None})["has_head"]
    tensor(0.)
    """

    def __init__(self, image_key: str = "image", spacing_mm: float = 4.0) -> None:
        super().__init__(["head_to_world", "twin_to_world"], allow_missing_keys=True)
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
        twin = world_pose(d, "twin_to_world")
        d["twin_to_grid"] = torch.full((4, 4), torch.nan)
        if twin is not None:
            matrix = head_to_grid(image.affine, image.shape[1:], self.spacing_mm, twin)
            d["twin_to_grid"] = matrix.to(torch.float32)
        for key in self.keys:  # null does not collate, and the grid's pose has replaced it
            d.pop(key, None)
        return d


def world_pose(entry: MutableMapping[Any, Any], key: str = "head_to_world") -> Tensor | None:
    """The entry's ``head_to_world`` (4, 4) float64, rigid; None for a volume without a head.

    Or another pose, of another ``key``.

    A float64 tensor, as in the entries of ``datalist``, is one that was checked. Lists, as in
    dataset.json, are checked, and the tensor takes their place in the entry.
    ValueError if the pose is not rigid.

    >>> entry = {"head_to_world": torch.eye(4).tolist()}
    >>> world_pose(entry) is entry["head_to_world"]
    True
    >>> stretched = torch.diag(torch.tensor([2.0, 1, 1, 1])).tolist()
    >>> world_pose({"subject": "f01", "head_to_world": stretched})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: head_to_world of f01: expected a rigid transform with det +1, got det 2.0000 ...
    """
    pose = entry.get(key)
    if pose is None or (isinstance(pose, Tensor) and pose.dtype == torch.float64):
        return pose
    pose = torch.as_tensor(pose, dtype=torch.float64)
    check_rigid(pose, f"{key} of {entry.get('subject', 'an entry')}")
    entry[key] = pose
    return pose


class ReferenceCubed(RandomizableTransform, MapTransform):
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
        cube = reference_cube(brain, origin, self.spacing_mm, self.fill)
        center, side = cube.center_mm, cube.side_mm
        if self.shift or self.scale:
            shift = torch.from_numpy(self.R.uniform(-self.shift, self.shift, 3)).float()
            center = center + side * shift
            side = side * (1 + self.R.uniform(-self.scale, self.scale))
        d["center_mm"], d["side_mm"] = center, side
        return d
