"""From a file to a volume on the working grid. Frames are those of geometry.py."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    GaussianSmooth,
    MapTransform,
    Orientationd,
    ScaleIntensityRange,
    Spacingd,
)

from ..labels import UNKNOWN, Status, check_label

Data = dict[Hashable, Any]


class VolumeError(ValueError):
    """A volume that no pose can be told from.

    ``status`` says why: unreadable, not_3d, not_finite or empty. The message names the file.
    """

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


def grid_spacing_mm(image: MetaTensor) -> float:
    """Voxel size of a volume on the working grid, from its affine.

    Before augmentation only: scales and stretches are written into the affine, while the grid that
    the networks see keeps its spacing.
    ValueError for voxels that are no cubes, so of a volume that was never brought to the grid.

    >>> affine = torch.diag(torch.tensor([3.0, 3, 3, 1]))
    >>> grid_spacing_mm(MetaTensor(torch.zeros(1, 2, 2, 2), affine=affine))
    3.0
    """
    sides = torch.as_tensor(image.affine, dtype=torch.float64)[:3, :3].norm(dim=0)
    if not sides.max() - sides.min() <= 1e-3 * sides.min():
        raise ValueError(
            f"expected a volume on the working grid, got voxels of {sides.tolist()} mm"
        )
    return round(sides.mean().item(), 6)  # an oblique affine has the spacing up to rounding


class LoadVolumed(MapTransform):
    """Load NIfTI files as (1, i, j, k) float32 with their affine; refuse what is not one volume.

    nibabel itself, not MONAI's reader: that one replaces an affine which disagrees with the voxel
    sizes in the header, and the world is what nibabel says it is. A fourth axis of length one is
    dropped. Raises VolumeError, whose message names the file.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/stack.nii"
    >>> nib.save(nib.Nifti1Image(np.ones((4, 5, 6, 1), np.int16), np.diag([3, 3, 3, 1])), path)
    >>> image = LoadVolumed("image")({"image": path})["image"]
    >>> image.shape, image.dtype, image.affine.diagonal().tolist()
    (torch.Size([1, 4, 5, 6]), torch.float32, [3.0, 3.0, 3.0, 1.0])
    >>> folder.cleanup()
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        d = dict(data)
        for key in self.key_iterator(d):
            path = d[key]
            try:
                source: Any = nib.load(path)
                values = np.asarray(source.dataobj, dtype=np.float32)
                affine = np.asarray(source.affine, dtype=np.float64)
            except Exception as error:  # nibabel raises many types for a broken file
                message = f"{path}: cannot be read as NIfTI: {error}"
                raise VolumeError(Status.UNREADABLE, message) from error
            if values.ndim == 4 and values.shape[3] == 1:
                values = values[..., 0]
            if values.ndim != 3 or min(values.shape) < 2:
                raise VolumeError(
                    Status.NOT_3D, f"{path}: expected one 3D volume, got shape {values.shape}"
                )
            if not np.isfinite(values).all():
                raise VolumeError(Status.NOT_FINITE, f"{path}: has voxels that are NaN or infinite")
            if not abs(np.linalg.det(affine[:3, :3])) > 1e-6:
                raise VolumeError(Status.UNREADABLE, f"{path}: singular affine {affine.tolist()}")
            meta = {"affine": torch.from_numpy(affine), "filename_or_obj": str(path)}
            d[key] = MetaTensor(torch.from_numpy(values).unsqueeze(0), meta=meta)
        return d


class ToWorkingGridd(MapTransform):
    """Reorient to RAS axis order and resample to right-handed isotropic voxels.

    The affine follows, so a pose in the world stays true; oblique volumes stay oblique. Images
    finer than the grid are smoothed first (aliasing), then clipped to the 0.5 and 99.5 percentiles
    of the voxels that are not zero, and scaled to [0, 1]. Labels are resampled to the nearest.

    Parameters
    ----------
    image_key, label_key : the label may be absent; it then becomes ``UNKNOWN`` everywhere
    spacing_mm : voxel size of the grid

    Raises VolumeError ("empty") for an image without contrast, ValueError for a label whose grid
    is not the image's or which has values other than 0, 1, 2.

    >>> affine = torch.diag(torch.tensor([-2.0, 2, 8, 1]))  # left-handed, thick slices
    >>> image = MetaTensor(torch.rand(1, 8, 8, 4), affine=affine)
    >>> d = ToWorkingGridd(label_key=None)({"image": image})
    >>> d["image"].shape, d["image"].affine.diagonal().tolist()
    (torch.Size([1, 4, 4, 7]), [4.0, 4.0, 4.0, 1.0])
    >>> ToWorkingGridd(label_key=None)({"image": torch.zeros_like(image)})
    Traceback (most recent call last):
    scripts.data.volumes.VolumeError: volume: every voxel is 0
    """

    def __init__(
        self, image_key: str = "image", label_key: str | None = "label", spacing_mm: float = 4.0
    ) -> None:
        super().__init__([image_key] + ([label_key] if label_key else []), allow_missing_keys=True)
        self.image_key, self.label_key, self.spacing_mm = image_key, label_key, spacing_mm
        resample = [
            Orientationd(self.keys, axcodes="RAS", labels=None, allow_missing_keys=True),
            Spacingd(
                self.keys,
                pixdim=(spacing_mm,) * 3,
                mode=["bilinear", "nearest"][: len(self.keys)],
                padding_mode="border",
                dtype=np.float32,
                allow_missing_keys=True,
            ),
        ]
        self._resample = Compose(resample)

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        d = dict(data)
        image = d[self.image_key]
        name = image.meta.get("filename_or_obj", "volume")
        if image.min() == image.max():
            raise VolumeError(Status.EMPTY, f"{name}: every voxel is {image.min().item():g}")
        if self.label_key and self.label_key in d:
            check_label(d[self.label_key], image)
        # a Gaussian whose width is half of what the coarser grid averages over
        ratio = self.spacing_mm / np.linalg.norm(np.asarray(image.affine)[:3, :3], axis=0)
        sigma = 0.5 * np.sqrt(np.clip(ratio**2 - 1, 0, None))
        if sigma.max() > 0.5:
            d[self.image_key] = GaussianSmooth(sigma=sigma.tolist())(image)  # keeps the affine
        d = dict(self._resample(d))
        values = d[self.image_key].numpy()
        # Zeros, up to what resampling leaves of rounding, are padding: how much of it there is must
        # not move the scale.
        shown = np.abs(values) > 1e-5 * np.median(np.abs(values[values != 0]))
        # numpy's partial sort: torch.quantile sorts everything and takes ten times as long.
        low, high = np.percentile(values[shown], [0.5, 99.5])
        if high - low <= 1e-5 * max(abs(low), abs(high)):  # no range that could be scaled to [0, 1]
            raise VolumeError(Status.EMPTY, f"{name}: 99 % of the voxels have one value")
        scale = ScaleIntensityRange(a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True)
        d[self.image_key] = scale(d[self.image_key])
        if self.label_key and self.label_key not in d:
            unknown = torch.full_like(d[self.image_key].as_tensor(), UNKNOWN)
            d[self.label_key] = MetaTensor(unknown, affine=d[self.image_key].affine)
        return d
