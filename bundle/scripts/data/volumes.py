"""From a file to a volume on the working grid. Frames are those of geometry.py."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import zoom_affine
from monai.transforms import MapTransform, Orientationd, ScaleIntensityRange, SpatialResample
from numpy.typing import NDArray

from ..labels import UNKNOWN, Status, check_label
from ..reading import VolumeError, read_image
from ..reading.headers import by
from ..reading.printable import printable
from .smoothing import smoothed

Data = dict[Hashable, Any]
Matrix = NDArray[np.float64]


# 800 mm along each axis on a grid of 4 mm; the widest fields of view have a fifth of that
MAX_GRID_VOXELS = 8_000_000


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
    """Load volumes as (1, i, j, k) float32 with their affine; refuse what is not one volume.

    `reading.read_image` for every key: the world is what nibabel says it is. Where the data has
    ``reading``, a Case, that is read instead of the path, so one frame of a series too. Values of
    labels are left as they are. Metadata: "filename_or_obj", "warnings" (of reading, a list) and
    "doubt". Raises VolumeError, whose message names the file.

    Parameters
    ----------
    keys : of the paths
    label_keys : those of them that are labels
    voxel_mm : sizes along i, j, k that replace those of the headers

    >>> import tempfile
    >>> import nibabel as nib
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/stack.nii"
    >>> nib.save(nib.Nifti1Image(np.ones((4, 5, 6, 1), np.int16), np.diag([3, 3, 3, 1])), path)
    >>> image = LoadVolumed("image")({"image": path})["image"]
    >>> image.shape, image.dtype, image.affine.diagonal().tolist()
    (torch.Size([1, 4, 5, 6]), torch.float32, [3.0, 3.0, 3.0, 1.0])
    >>> folder.cleanup()
    """

    def __init__(
        self,
        keys: str | Sequence[str],
        allow_missing_keys: bool = False,
        label_keys: Sequence[str] = ("label",),
        voxel_mm: Sequence[float] | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_keys, self.voxel_mm = tuple(label_keys), voxel_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        d = dict(data)
        for key in self.key_iterator(d):
            is_label = key in self.label_keys
            case = None if is_label else d.get("reading")
            image = read_image(
                case or d[key],
                voxel_mm=self.voxel_mm,
                cured=not is_label,
                one_volume=case is None,
            )
            meta = {
                "affine": torch.from_numpy(image.affine),
                "filename_or_obj": case.shown if case else printable(str(d[key])),
                "warnings": list(image.warnings),
                "doubt": image.doubt,
            }
            d[key] = MetaTensor(torch.from_numpy(image.values).unsqueeze(0), meta=meta)
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

    Raises VolumeError ("empty") for an image without contrast, ("unreadable") for one too large for
    the grid, ValueError for a label whose grid is not the image's or which has values other than 0,
    1, 2, and 255 in an entry with ``twin_to_world``.

    >>> affine = torch.diag(torch.tensor([-2.0, 2, 8, 1]))  # left-handed, thick slices
    >>> image = MetaTensor(torch.rand(1, 8, 8, 4), affine=affine)
    >>> d = ToWorkingGridd(label_key=None)({"image": image})
    >>> d["image"].shape, d["image"].affine.diagonal().tolist()
    (torch.Size([1, 4, 4, 7]), [4.0, 4.0, 4.0, 1.0])
    >>> ToWorkingGridd(label_key=None)({"image": torch.zeros_like(image)})
    Traceback (most recent call last):
    scripts.reading.image.VolumeError: volume: every voxel is 0
    """

    def __init__(
        self, image_key: str = "image", label_key: str | None = "label", spacing_mm: float = 4.0
    ) -> None:
        super().__init__([image_key] + ([label_key] if label_key else []), allow_missing_keys=True)
        self.image_key, self.label_key, self.spacing_mm = image_key, label_key, spacing_mm
        self._reorient = Orientationd(self.keys, "RAS", labels=None, allow_missing_keys=True)
        self._resample = SpatialResample(padding_mode="border", dtype=np.float32)

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        d = dict(data)
        image = d[self.image_key]
        name = image.meta.get("filename_or_obj", "volume")
        warnings = image.meta.get("warnings", ())
        if image.min() == image.max():
            message = f"{name}: every voxel is {image.min().item():g}"
            raise VolumeError(Status.EMPTY, message, warnings)
        d = self._of_a_size(d)
        image = d[self.image_key]
        if self.label_key and self.label_key in d:
            check_label(d[self.label_key], image, d.get("twin_to_world") is not None)
        # a Gaussian whose width is half of what the coarser grid averages over
        ratio = self.spacing_mm / np.linalg.norm(np.asarray(image.affine)[:3, :3], axis=0)
        sigma = 0.5 * np.sqrt(np.clip(ratio**2 - 1, 0, None))
        if sigma.max() > 0.5:
            values = torch.from_numpy(smoothed(image.as_tensor()[0].numpy(), sigma))
            d[self.image_key] = MetaTensor(values.unsqueeze(0), meta=image.meta)
        d = dict(self._reorient(d))
        for key in self.key_iterator(d):
            mode = "bilinear" if key == self.image_key else "nearest"
            affine, shape = self._grid(d[key])
            size = shape.astype(int).tolist()
            d[key] = self._resample(d[key], torch.from_numpy(affine), size, mode)
        values = d[self.image_key].numpy()
        # Zeros, up to what resampling leaves of rounding, are padding: how much of it there is must
        # not move the scale.
        if not values.any():  # what the image shows lies between the voxels of the grid
            message = f"{name}: on a grid of {self.spacing_mm:g} mm every voxel is 0"
            raise VolumeError(Status.EMPTY, message, warnings)
        shown = np.abs(values) > 1e-5 * np.median(np.abs(values[values != 0]))
        # numpy's partial sort: torch.quantile sorts everything and takes ten times as long.
        low, high = np.percentile(values[shown], [0.5, 99.5])
        if high - low <= 1e-5 * max(abs(low), abs(high)):  # no range that could be scaled to [0, 1]
            message = f"{name}: 99 % of the voxels have one value"
            raise VolumeError(Status.EMPTY, message, warnings)
        scale = ScaleIntensityRange(a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True)
        d[self.image_key] = scale(d[self.image_key])
        if self.label_key and self.label_key not in d:
            unknown = torch.full_like(d[self.image_key].as_tensor(), UNKNOWN)
            d[self.label_key] = MetaTensor(unknown, affine=d[self.image_key].affine)
        return d

    def _of_a_size(self, data: Data) -> Data:
        """``data`` whose grid can be kept in memory: of a wide field of view without its padding.

        VolumeError "unreadable" where it cannot.
        """
        image = data[self.image_key]
        if self._grid_voxels(image) <= MAX_GRID_VOXELS:
            return data
        shown = image.as_tensor()[0] != 0
        box = []
        for axis in range(3):
            inside = torch.nonzero(shown.amax(tuple(a for a in range(3) if a != axis))).flatten()
            box.append(slice(int(inside[0]), int(inside[-1]) + 1))
        start = np.array([part.start for part in box])
        cropped = {}
        for key in self.keys:
            if key in data:
                volume = data[key]
                affine = np.asarray(volume.affine, dtype=np.float64).copy()
                affine[:3, 3] += affine[:3, :3] @ start
                meta = {**volume.meta, "affine": torch.from_numpy(affine)}
                cropped[key] = MetaTensor(volume.as_tensor()[(slice(None), *box)], meta=meta)
        image = cropped[self.image_key]
        count = self._grid_voxels(image)
        if not count <= MAX_GRID_VOXELS:
            sizes = np.linalg.norm(np.asarray(image.affine)[:3, :3], axis=0)
            raise VolumeError(
                Status.UNREADABLE,
                f"{image.meta.get('filename_or_obj', 'volume')}: voxels of {by(sizes)} mm give a "
                f"field of view of {by(sizes * image.shape[1:])} mm, which is {count:.3g} voxels "
                f"of {self.spacing_mm:g} mm; at most {MAX_GRID_VOXELS:.0e} are taken",
                image.meta.get("warnings", ()),
            )
        return data | cropped

    def _grid_voxels(self, image: MetaTensor) -> float:
        """How many voxels the image has on the grid."""
        affine = np.asarray(image.affine, dtype=np.float64)
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        least = np.prod(np.maximum(sizes * np.asarray(image.shape[1:]) / self.spacing_mm - 1, 1))
        return float(least if not least <= MAX_GRID_VOXELS else np.prod(self._grid(image)[1]))

    def _grid(self, image: MetaTensor) -> tuple[Matrix, NDArray[np.float64]]:
        """Affine (4, 4) and size (3,) of the image's grid; of a sheared one, of the box around it.

        It begins at the first voxel, and ends within half of one of the last. That is MONAI's
        ``Spacing`` without its leaps: there a shear by a rounding error, which every header has,
        moves all samples by half a voxel of the grid, and where half a voxel is left over (as of 48
        voxels of 6 mm) it decides whether that counts.
        """
        affine = np.asarray(image.affine, dtype=np.float64)
        grid = zoom_affine(affine, (self.spacing_mm,) * 3, diagonal=False)
        steps = np.linalg.solve(grid[:3, :3], affine[:3, :3])
        last = np.asarray(image.shape[1:], dtype=np.float64) - 1
        grid[:3, 3] = affine[:3, 3] + grid[:3, :3] @ (np.minimum(steps, 0) @ last)
        return grid, np.round(np.round(np.abs(steps) @ last + 1, 3))
