"""Random MONAI dictionary transforms that MONAI lacks: similarity with pose, MRI artefacts.

Frames are those of geometry.py. Every random parameter is uniform in the range stated unless said
otherwise, and drawn from ``Randomizable.R``; a random transform samples, then calls the
deterministic function beside it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Affine, MapTransform, RandomizableTransform
from torch import Tensor
from torch.nn import functional

from ..cubes import sample
from ..geometry import (
    grid_points,
    head_to_grid,
    quaternion_to_rotation,
    rotation_about_x,
    rotation_about_y,
    rotation_about_z,
)
from .transforms import world_pose
from .volumes import Data, grid_spacing_mm


class RandSimilarityd(RandomizableTransform, MapTransform):
    """Random rotation, mirror, scale, stretch and position, resampled once to a patch of one size.

    The rotation is uniform on SO(3). The patch is centred on the head (on the volume where there
    is none) and shifted. All of it is written into the affine, from which ``HeadToGridd`` reads
    the pose; there is stated what the pose of a mirrored head means.

    Parameters
    ----------
    keys, mode : images and their interpolation
    spatial_size : voxels of the patch along each axis
    rotate_prob, mirror_prob : probabilities
    scale : range of the factor by which the content grows, log-uniform
    stretch : largest factor by which the head grows or shrinks along each of its own axes,
        log-uniform: other shapes of head, whose axes are known as exactly
    shift_mm : largest shift of the head from the patch's centre along each axis
    away_prob : probability that the patch lies somewhere in the volume instead, wherever the head
        is: what is not a head must be learned from all of the mother
    spacing_mm : of the grid; by default the volume's affine tells it

    >>> affine = torch.diag(torch.tensor([4.0, 4, 4, 1]))
    >>> image = MetaTensor(torch.rand(1, 8, 8, 8), affine=affine)
    >>> smaller = RandSimilarityd(["image"], ["bilinear"], spatial_size=6, scale=(0.5, 0.5))
    >>> moved = smaller.set_random_state(0)({"image": image})["image"]
    >>> moved.shape, moved.affine[:3, :3].norm(dim=0).round()  # a voxel shows 8 mm of the original
    (torch.Size([1, 6, 6, 6]), tensor([8., 8., 8.], dtype=torch.float64))
    """

    def __init__(
        self,
        keys: Sequence[str] = ("image", "label"),
        mode: Sequence[str] = ("bilinear", "nearest"),
        spatial_size: int = 80,
        rotate_prob: float = 1.0,
        mirror_prob: float = 0.5,
        scale: tuple[float, float] = (0.8, 1.25),
        stretch: float = 1.0,
        shift_mm: float = 60.0,
        away_prob: float = 0.0,
        spacing_mm: float | None = None,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self)
        self.mode, self.away_prob = mode, away_prob
        self.spatial_size = (spatial_size,) * 3
        self.rotate_prob, self.mirror_prob = rotate_prob, mirror_prob
        self.scale, self.stretch = scale, stretch
        self.shift_mm, self.spacing_mm = shift_mm, spacing_mm

    def randomize(self, data: Any = None) -> None:
        normal = torch.from_numpy(self.R.normal(size=4))
        self.linear = torch.eye(3, dtype=torch.float64)
        if self.R.uniform() < self.rotate_prob:
            self.linear = quaternion_to_rotation(normal)
        if self.R.uniform() < self.mirror_prob:
            self.linear = self.linear @ torch.diag(torch.tensor([-1.0, 1.0, 1.0]).double())
        low, high = np.log(self.scale)
        self.linear = self.linear * float(np.exp(self.R.uniform(low, high)))
        most = np.log(self.stretch)
        self.stretches = torch.from_numpy(np.exp(self.R.uniform(-most, most, 3)))
        self.offset_mm = torch.from_numpy(self.R.uniform(-self.shift_mm, self.shift_mm, 3))
        self.away = self.R.uniform() < self.away_prob
        self.place = torch.from_numpy(self.R.uniform(-0.5, 0.5, 3))

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        d = dict(data)
        self.randomize()
        image = d[self.keys[0]]
        spacing_mm = self.spacing_mm or grid_spacing_mm(image)
        pose = world_pose(d)
        center = torch.zeros(3, dtype=torch.float64)
        linear = self.linear
        if pose is not None:
            head = head_to_grid(image.affine, image.shape[1:], spacing_mm, pose)
            center, axes = head[:3, 3], head[:3, :3]
            linear = linear @ axes @ torch.diag(self.stretches) @ axes.mT
        if self.away:
            center = self.place * torch.tensor(image.shape[1:]) * spacing_mm
        resample = similarity(linear, self.offset_mm, center, spacing_mm, self.spatial_size)
        for key, mode in zip(self.keys, self.mode, strict=True):
            d[key] = resample(d[key], mode=mode)
        return d


def similarity(
    linear: Tensor, offset_mm: Tensor, center_mm: Tensor, spacing_mm: float, size: Sequence[int]
) -> Affine:
    """Transform that moves a grid point p to ``linear @ (p - center_mm) + offset_mm``, in mm.

    ``linear`` (3, 3) is a rotation, times a mirror, times a scale (times a stretch along the head's
    axes); the result has ``size`` voxels, zero where the input has none.

    >>> image = MetaTensor(torch.arange(3.0).view(1, 3, 1, 1), affine=torch.eye(4))
    >>> still, origin = torch.eye(3).double(), torch.zeros(3).double()
    >>> to_the_right = similarity(still, origin + torch.tensor([4, 0, 0]), origin, 4.0, (3, 1, 1))
    >>> to_the_right(image).flatten().round().tolist()
    [0.0, 0.0, 1.0]
    """
    output_to_input = torch.eye(4, dtype=torch.float64)
    output_to_input[:3, :3] = torch.linalg.inv(linear)
    output_to_input[:3, 3] = (center_mm - output_to_input[:3, :3] @ offset_mm) / spacing_mm
    return Affine(
        affine=output_to_input,
        spatial_size=tuple(size),
        padding_mode="zeros",
        dtype=np.float32,
        image_only=True,
    )


class RandSpinHistoryd(RandomizableTransform, MapTransform):
    """Dark Gaussian slab through the head: the saturation that the last slices leave.

    Parameters
    ----------
    sigma_mm : range of the slab's width (2.3-4.6 mm for E(3)-Pose's rotation network)
    delay_s, t1_s : ranges of the time since excitation and of the tissue's T1
    offset_mm : largest distance of the slab's middle from the head's origin
    The slab's normal is uniform on the sphere.

    >>> d = {"image": torch.ones(1, 8, 8, 8), "head_to_grid": torch.eye(4)}
    >>> dark = RandSpinHistoryd(prob=1.0, offset_mm=0.0).set_random_state(0)(d)["image"]
    >>> bool(dark[0, 3:5, 3:5, 3:5].mean() < dark.mean())  # darkest at the head's origin
    True
    """

    def __init__(
        self,
        keys: Sequence[str] = ("image",),
        prob: float = 0.5,
        sigma_mm: tuple[float, float] = (1.5, 4.6),
        delay_s: tuple[float, float] = (0.2, 2.5),
        t1_s: tuple[float, float] = (3.0, 5.0),
        offset_mm: float = 40.0,
        spacing_mm: float = 4.0,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.sigma_mm, self.delay_s, self.t1_s = sigma_mm, delay_s, t1_s
        self.offset_mm, self.spacing_mm = offset_mm, spacing_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        d = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return d
        normal = functional.normalize(torch.from_numpy(self.R.normal(size=3)), dim=0)
        point = d["head_to_grid"][:3, 3] + normal * self.R.uniform(-self.offset_mm, self.offset_mm)
        sigma = self.R.uniform(*self.sigma_mm)
        alpha = float(np.exp(-self.R.uniform(*self.delay_s) / self.R.uniform(*self.t1_s)))
        for key in self.key_iterator(d):
            d[key] = d[key] * saturation(
                d[key].shape[1:], self.spacing_mm, normal, point, sigma, alpha
            )
        return d


def saturation(
    shape: Sequence[int],
    spacing_mm: float,
    normal: Tensor,
    point_mm: Tensor,
    sigma_mm: float,
    alpha: float,
) -> Tensor:
    """Factor 1 - alpha exp(-d^2 / 2 sigma^2) on a grid of ``shape``; d = distance to the plane.

    ValueError unless 0 <= alpha <= 1: a larger share than all cannot be saturated.

    >>> along_z = torch.tensor([0.0, 0, 1])
    >>> saturation((1, 1, 5), 4.0, along_z, torch.zeros(3), sigma_mm=4.0, alpha=0.5).flatten()
    tensor([0.9323, 0.6967, 0.5000, 0.6967, 0.9323])
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    distance = distance_to_plane(shape, spacing_mm, normal, point_mm)
    return 1 - alpha * torch.exp(-0.5 * (distance / sigma_mm).square())


class RandFieldOfViewd(RandomizableTransform, MapTransform):
    """Field of view that ends near the head or in it: zero beyond a random plane.

    Parameters
    ----------
    keys : image and label; what the image does not show is no longer labelled
    distance_mm : range of the plane's distance from the head's origin (a brain's radius is 25 mm
        at 20 weeks and 50 mm at term)
    The plane's normal is uniform on the sphere.

    >>> d = {"image": torch.ones(1, 8, 8, 8), "head_to_grid": torch.eye(4)}
    >>> cut = RandFieldOfViewd(["image"], prob=1.0, distance_mm=(0.0, 0.0)).set_random_state(0)
    >>> cut(d)["image"].mean()  # the plane goes through the head's origin: half is left
    tensor(0.5000)
    """

    def __init__(
        self,
        keys: Sequence[str] = ("image", "label"),
        prob: float = 0.2,
        distance_mm: tuple[float, float] = (20.0, 80.0),
        spacing_mm: float = 4.0,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.distance_mm, self.spacing_mm = distance_mm, spacing_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        d = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return d
        normal = functional.normalize(torch.from_numpy(self.R.normal(size=3)), dim=0)
        distance = self.R.uniform(*self.distance_mm)
        for key in self.key_iterator(d):
            seen = half_space(
                d[key].shape[1:], self.spacing_mm, normal, d["head_to_grid"][:3, 3], distance
            )
            d[key] = d[key] * seen
        return d


def half_space(
    shape: Sequence[int], spacing_mm: float, normal: Tensor, point_mm: Tensor, distance_mm: float
) -> Tensor:
    """1 up to ``distance_mm`` from ``point_mm`` along the unit ``normal`` on a grid, 0 beyond.

    >>> along_z = torch.tensor([0.0, 0, 1])
    >>> half_space((1, 1, 5), 4.0, along_z, torch.zeros(3), distance_mm=4.0).flatten()
    tensor([1., 1., 1., 1., 0.])
    """
    return (distance_to_plane(shape, spacing_mm, normal, point_mm) <= distance_mm).float()


def distance_to_plane(
    shape: Sequence[int], spacing_mm: float, normal: Tensor, point_mm: Tensor
) -> Tensor:
    """Signed distance in mm of a grid's voxels to the plane through ``point_mm``, float32.

    >>> along_z = torch.tensor([0.0, 0, 1])
    >>> distance_to_plane((1, 1, 5), 4.0, along_z, torch.zeros(3)).flatten()
    tensor([-8., -4.,  0.,  4.,  8.])
    """
    x, y, z = grid_points(shape, spacing_mm)
    n, p = normal.to(torch.float32), point_mm.to(torch.float32)
    return n[0] * (x - p[0]) + n[1] * (y - p[1]) + n[2] * (z - p[2])


class RandSliceMotiond(RandomizableTransform, MapTransform):
    """Motion between the slices of a stack: every slice shows the head a little elsewhere.

    A random walk over the order of acquisition (odd slices after even ones), with the mean taken
    off, so that the pose stays the mean pose.

    Parameters
    ----------
    rotate_deg, shift_mm : standard deviation of the walk over the stack, each uniform up to this

    >>> image = MetaTensor(torch.rand(1, 8, 8, 8))
    >>> d = {"image": image, "head_to_grid": torch.eye(4)}
    >>> still = RandSliceMotiond(["image"], ["bilinear"], prob=1.0, rotate_deg=0.0, shift_mm=0.0)
    >>> still.set_random_state(0)(d)["image"].allclose(image, atol=1e-5)  # as it was
    True
    """

    def __init__(
        self,
        keys: Sequence[str] = ("image", "label"),
        mode: Sequence[str] = ("bilinear", "nearest"),
        prob: float = 0.2,
        rotate_deg: float = 4.0,
        shift_mm: float = 3.0,
        spacing_mm: float = 4.0,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.mode = mode
        self.rotate_deg, self.shift_mm, self.spacing_mm = rotate_deg, shift_mm, spacing_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        d = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return d
        axis = int(self.R.randint(3))
        slices = d[self.keys[0]].shape[1 + axis]
        walk = np.cumsum(self.R.normal(size=(slices, 6)), axis=0)
        walk = (walk - walk.mean(0)) / (walk.std(0) + 1e-6)
        order = np.concatenate([np.arange(0, slices, 2), np.arange(1, slices, 2)])
        steps = np.empty_like(walk)
        steps[order] = walk
        amplitude = [self.R.uniform(0, self.rotate_deg), self.R.uniform(0, self.shift_mm)]
        steps = torch.from_numpy(steps * np.repeat(amplitude, 3)).float()
        center = d["head_to_grid"][:3, 3]
        for key, mode in zip(self.keys, self.mode, strict=True):
            image = d[key]
            moved = move_slices(
                image, axis, steps[:, :3], steps[:, 3:], center, self.spacing_mm, mode
            )
            d[key] = MetaTensor(moved, meta=image.meta)
        return d


def move_slices(
    image: Tensor,
    axis: int,
    rotations_deg: Tensor,
    shifts_mm: Tensor,
    center_mm: Tensor,
    spacing_mm: float,
    mode: str = "bilinear",
) -> Tensor:
    """Show in every slice along ``axis`` the ``image`` (channels, x, y, z) at another pose.

    Slice k samples the image turned by ``rotations_deg[k]`` (about x, then y, then z, through
    ``center_mm``) and shifted by ``shifts_mm[k]``. Zero outside.

    >>> image = torch.arange(5.0).repeat(3, 1).view(1, 3, 1, 5)  # three equal slices
    >>> shifts_mm = torch.tensor([[0.0, 0, 0], [0, 0, 4], [0, 0, -8]])
    >>> move_slices(image, 0, torch.zeros(3, 3), shifts_mm, torch.zeros(3), 4.0)[0, :, 0].round()
    tensor([[0., 1., 2., 3., 4.],
            [0., 0., 1., 2., 3.],
            [2., 3., 4., 0., 0.]])
    """
    image = torch.as_tensor(image).float()
    about = (rotation_about_x, rotation_about_y, rotation_about_z)
    x, y, z = (rotate(rotations_deg[:, k]) for k, rotate in enumerate(about))
    rotation = z @ y @ x
    points = torch.stack(torch.broadcast_tensors(*grid_points(image.shape[1:], spacing_mm)), dim=-1)
    points = points.movedim(axis, 0).flatten(1, 2)  # (slices, voxels of a slice, 3)
    source = (points - center_mm - shifts_mm[:, None]) @ rotation + center_mm  # inverse of R
    shape = [n for k, n in enumerate(image.shape[1:]) if k != axis]
    source = source.unflatten(1, shape).movedim(0, axis)
    return sample(image[None], source[None], spacing_mm, mode)[0]
