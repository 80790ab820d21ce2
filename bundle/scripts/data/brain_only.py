"""Random MONAI dictionary transforms of what hospitals have beside whole scans of healthy heads.

Brains cut out of their surroundings, as reconstructions and atlases are, lesions, and padding that
stays exactly zero. Conventions are those of augmentation.py.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, RandGaussianNoise, RandomizableTransform
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from ..geometry import grid_points
from ..labels import BRAIN, EYES
from .volumes import Data


class RandBrainMaskd(RandomizableTransform, MapTransform):
    """Zero outside the brain, cut tight or loose, then scaled anew, as ToWorkingGridd would.

    Eyes that are cut away leave the label. Volumes whose label shows no brain stay as they are.

    Parameters
    ----------
    margin_mm : range of the distance from the label's brain up to which the image is kept; below
        0 the cut goes through the brain, beyond a few mm the skull stays
    ripple_mm : deviation of a smooth random field added to it, uniform up to this: masks are never
        exact

    >>> label = torch.zeros(1, 9, 9, 9)
    >>> label[:, 3:6, 3:6, 3:6] = 1
    >>> cut = RandBrainMaskd(prob=1.0, margin_mm=(0.0, 0.0), ripple_mm=0.0)
    >>> image = cut({"image": torch.rand(1, 9, 9, 9) + 1, "label": label})["image"]
    >>> int((image > 0).sum()) <= 27, bool(image.max() == 1)
    (True, True)
    """

    def __init__(
        self,
        prob: float = 0.3,
        margin_mm: tuple[float, float] = (-2.0, 10.0),
        ripple_mm: float = 2.0,
        spacing_mm: float = 4.0,
        image_key: str = "image",
        label_key: str = "label",
    ) -> None:
        MapTransform.__init__(self, [image_key, label_key])
        RandomizableTransform.__init__(self, prob)
        self.image_key, self.label_key = image_key, label_key
        self.margin_mm, self.ripple_mm, self.spacing_mm = margin_mm, ripple_mm, spacing_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        d = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return d
        margin_mm = self.R.uniform(*self.margin_mm)
        ripple = self.R.normal(size=(4, 4, 4)) * self.R.uniform(0, self.ripple_mm)
        brain = d[self.label_key][0].numpy() == BRAIN
        if brain.sum() < 8:
            return d
        kept = torch.from_numpy(within(brain, margin_mm, self.spacing_mm, ripple))
        image = d[self.image_key] * kept
        low, high = np.percentile(image[0][kept].numpy(), [0.5, 99.5])
        scaled = ((image - low) / max(high - low, 1e-6)).clamp(0, 1)
        d[self.image_key] = scaled * kept
        label = d[self.label_key]
        d[self.label_key] = torch.where(kept | (label != EYES), label, 0)
        return d


def within(
    brain: np.ndarray, margin_mm: float, spacing_mm: float, ripple_mm: np.ndarray
) -> np.ndarray:
    """(x, y, z) bool: voxels up to ``margin_mm`` from a mask (x, y, z), or as deep in it.

    ``ripple_mm`` (n, n, n), stretched over the mask's box, is added to the margin.
    """
    reach = int(np.ceil(max(margin_mm, 0) / spacing_mm)) + 4
    found = np.nonzero(brain)
    box = tuple(slice(max(int(i.min()) - reach, 0), int(i.max()) + reach + 1) for i in found)
    part = brain[box]
    distance = distance_transform_edt(~part) - distance_transform_edt(part)
    distance -= np.where(part, -0.5, 0.5)  # to the surface between the voxels' centres
    nodes = torch.from_numpy(np.asarray(ripple_mm, dtype=np.float32))[None, None]
    wave = torch.nn.functional.interpolate(
        nodes, size=part.shape, mode="trilinear", align_corners=True
    )[0, 0].numpy()
    kept = np.zeros(brain.shape, bool)
    kept[box] = distance * spacing_mm <= margin_mm + wave
    return kept


class RandLesiond(RandomizableTransform, MapTransform):
    """A blob of another brightness in the brain: cyst, haemorrhage, wide ventricle.

    Parameters
    ----------
    radius_mm : range of the ellipsoid's semi-axes, each drawn by itself
    level : range of the brightness, a share of the image's range

    >>> label = torch.ones(1, 9, 9, 9)
    >>> dark = RandLesiond(prob=1.0, radius_mm=(8.0, 8.0), level=(0.0, 0.0))
    >>> image = dark.set_random_state(0)({"image": torch.ones(1, 9, 9, 9), "label": label})["image"]
    >>> bool(image.min() < 0.1)
    True
    """

    def __init__(
        self,
        prob: float = 0.15,
        radius_mm: tuple[float, float] = (5.0, 30.0),
        level: tuple[float, float] = (0.0, 1.0),
        spacing_mm: float = 4.0,
        image_key: str = "image",
        label_key: str = "label",
    ) -> None:
        MapTransform.__init__(self, [image_key, label_key])
        RandomizableTransform.__init__(self, prob)
        self.image_key, self.label_key = image_key, label_key
        self.radius_mm, self.level, self.spacing_mm = radius_mm, level, spacing_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        d = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return d
        radii = torch.from_numpy(self.R.uniform(*self.radius_mm, size=3)).float()
        axes = torch.from_numpy(np.linalg.qr(self.R.normal(size=(3, 3)))[0]).float()
        level, draw = self.R.uniform(*self.level), self.R.uniform()
        brain = (
            d[self.label_key].as_tensor()
            if hasattr(d[self.label_key], "as_tensor")
            else (d[self.label_key])
        )
        places = (brain[0] == BRAIN).nonzero()
        if not len(places):
            return d
        middle = places[int(draw * len(places))]
        share = blob(brain.shape[1:], middle, axes, radii / self.spacing_mm)
        share = share * (brain[0] == BRAIN)
        d[self.image_key] = d[self.image_key] * (1 - share) + level * share
        return d


def blob(shape: tuple[int, ...], middle: Tensor, axes: Tensor, radii: Tensor) -> Tensor:
    """(x, y, z) share in [0, 1] of an ellipsoid with soft edges; all lengths in voxels.

    ``middle`` (3,) is a voxel, ``axes`` (3, 3) hold the semi-axes' directions in columns.
    """
    x, y, z = grid_points(shape, 1.0)
    half = (torch.tensor(shape) - 1) / 2
    p = [q - (m - h) for q, m, h in zip((x, y, z), middle, half, strict=True)]
    size = torch.zeros(())
    for k in range(3):
        along = sum(p[n] * axes[n, k] for n in range(3)) / radii[k]
        size = size + along * along
    return torch.sigmoid((1 - size.sqrt()) * radii.min() * 2)


class RandScannerNoised(RandomizableTransform, MapTransform):
    """MONAI's RandGaussianNoise that, in a share of the images, leaves exact zeros as they are.

    What was cut away or padded after the scan has no noise.

    Parameters
    ----------
    std : largest standard deviation, uniform below
    silent_prob : that share

    >>> still = RandScannerNoised(prob=1.0, silent_prob=1.0)
    >>> bool((still({"image": torch.zeros(1, 4, 4, 4)})["image"] == 0).all())
    True
    """

    def __init__(
        self, keys: str = "image", prob: float = 0.9, std: float = 0.05, silent_prob: float = 0.5
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.silent_prob = silent_prob
        self.noise = RandGaussianNoise(prob=1.0, std=std)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandScannerNoised:
        super().set_random_state(seed, state)
        self.noise.set_random_state(state=self.R)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        d = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return d
        silent = self.R.uniform() < self.silent_prob
        for key in self.key_iterator(d):
            noisy: Any = self.noise(d[key])
            d[key] = torch.where(d[key] == 0, d[key], noisy) if silent else noisy
        return d
