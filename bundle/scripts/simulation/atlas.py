"""Brains of a labelled atlas, with folds, ventricles and a cerebellum that no shape describes.

Written for the spina bifida atlas (Fidon et al. 2021, CC0): a folder for each gestational age with
``srr.nii.gz`` (T2), ``mask.nii.gz`` and ``parcellation.nii.gz``, the axes those of the head. The
anatomy is pathological, with large ventricles and a small posterior fossa, so ventricles are
drawn from narrow to as they are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates

from .anatomy import Head
from .shapes import Block, Floats, cover

TISSUE_OF = {
    1: "white",
    2: "csf",
    3: "cerebellum",
    4: "csf",
    5: "cortex",
    6: "deep grey",
    7: "brainstem",
    8: "callosum",
}
WHITE, VENTRICLES = 1, 2
# Ages that a head may borrow a brain from, to either side; the brain is scaled to the head.
NEAR_WEEKS = 3.0


class Brain(NamedTuple):
    """One age of the atlas: arrays (i, j, k), affine (4, 4) voxel to mm along the head's axes.

    centre_mm (3,) is the mask's centre of mass, spread_mm (3,) its deviation along each axis;
    depth_mm (i, j, k) how deep in a ventricle a voxel lies, 0 outside.
    """

    name: str
    ga_weeks: float
    t2: NDArray[np.float32]
    mask: NDArray[np.bool_]
    parcellation: NDArray[np.uint8]
    affine: NDArray[np.float64]
    centre_mm: NDArray[np.float64]
    spread_mm: NDArray[np.float64]
    depth_mm: NDArray[np.float32]


def atlas_ages(source: str | os.PathLike[str]) -> dict[Path, int]:
    """The folders of an atlas and their gestational ages in weeks.

    FileNotFoundError where there is none; ValueError for a folder that tells no age.
    """
    folders = sorted(path.parent for path in Path(source).glob("*GA*/parcellation.nii.gz"))
    if not folders:
        raise FileNotFoundError(f"{source}: no folder *GA*/ with a parcellation.nii.gz")
    ages = {}
    for folder in folders:
        found = re.search(r"GA(\d+)", folder.name)
        if found is None:
            raise ValueError(f"{folder}: no gestational age, such as GA25, in the name")
        ages[folder] = int(found.group(1))
    return ages


def chosen_ages(source: str | os.PathLike[str], weeks: Sequence[int]) -> dict[Path, int]:
    """``atlas_ages`` of these weeks alone; ValueError for one that the atlas does not have."""
    ages = atlas_ages(source)
    unknown = sorted(set(weeks) - set(ages.values()))
    if unknown:
        known = sorted(set(ages.values()))
        raise ValueError(f"{source}: no brains of {unknown} weeks, only {known}")
    return {folder: age for folder, age in ages.items() if age in weeks}


def read_brain(folder: Path, ga_weeks: float) -> Brain:
    """One age of the atlas."""
    images: list[Any] = [nib.load(folder / f"{n}.nii.gz") for n in ("srr", "mask", "parcellation")]
    t2, mask, parcellation = (np.asarray(image.dataobj) for image in images)
    affine = np.asarray(images[0].affine, dtype=np.float64)
    inside = mask > 0
    points = np.argwhere(inside) @ affine[:3, :3].T + affine[:3, 3]
    depth = distance_transform_edt(parcellation == VENTRICLES) * np.linalg.norm(affine[:3, 0])
    return Brain(
        folder.name,
        float(ga_weeks),
        t2.astype(np.float32),
        inside,
        parcellation.astype(np.uint8),
        affine,
        points.mean(axis=0),
        points.std(axis=0),
        depth.astype(np.float32),
    )


def narrowed(brain: Brain, depth_mm: float) -> NDArray[np.uint8]:
    """The parcellation, its ventricles having lost this much of their depth to white matter."""
    parcellation = brain.parcellation.copy()
    parcellation[(parcellation == VENTRICLES) & (brain.depth_mm < depth_mm)] = WHITE
    return parcellation


def as_scanned(brain: Brain, parcellation: NDArray[np.uint8]) -> Floats:
    """The T2 image; what the ventricles lost is as bright as the white matter."""
    values = brain.t2.copy()
    gone = (brain.parcellation == VENTRICLES) & (parcellation == WHITE)
    values[gone] = np.median(values[brain.parcellation == WHITE])
    return gaussian_filter(values, 0.6)


def repainted(parcellation: NDArray[np.uint8], tissue: Mapping[str, float]) -> Floats:
    """An image of these intensities, tissue by tissue."""
    levels = np.zeros(256, np.float32)
    for number, name in TISSUE_OF.items():
        levels[number] = tissue[name]
    return gaussian_filter(levels[parcellation], 0.8)


@dataclass(frozen=True)
class Interior:
    """What fills a head's skull: value and share of the voxel (i, j, k) float32.

    voxel_from_model (4, 4): from the head's warped model frame, mm, to voxels.
    """

    value: Floats
    share: Floats
    voxel_from_model: NDArray[np.floating]

    def lay(self, bent: Block, inner: Floats, csf: float) -> None:
        """Lay the brain over what lies within the skull; the gap between both is fluid.

        `inner` is the distance to the skull's inner table at the block's voxels, mm.
        """
        within = cover(inner, bent.width_mm)
        bent.blend(within, csf)
        points = np.stack([bent.x, bent.y, bent.z])
        voxel = np.tensordot(self.voxel_from_model[:3, :3], points, 1)
        voxel += self.voxel_from_model[:3, 3][:, None, None, None]
        value, share = (map_coordinates(a, voxel, order=1) for a in (self.value, self.share))
        # the value of what is brain, where a sample lies on the brain's edge
        value /= np.maximum(share, 1e-3)
        bent.blend(within * share, value)


def draw_interior(
    random: np.random.RandomState,
    ages: Mapping[Path, int],
    head: Head,
    contrast: str,
    tissue: Mapping[str, float],
) -> Interior:
    """A brain of about the head's age, in the head's size and in the tissue's intensities.

    Of ages up to 3 weeks away, else the nearest. Scaled along each axis so that its mask spreads as
    the space in the skull does. The ventricles lose 0 to 6 mm of their depth (uniform). Of the
    contrast "t2", half show the T2 image in place of the tissues.
    """
    gap = {folder: abs(age - head.ga_weeks) for folder, age in ages.items()}
    near = [f for f in gap if gap[f] <= max(NEAR_WEEKS, min(gap.values()))]
    folder = near[random.randint(len(near))]
    brain = _kept_brain(folder, ages[folder])
    parcellation = narrowed(brain, random.uniform(0, 6))
    if random.uniform() < 0.5 and contrast == "t2":
        value = as_scanned(brain, parcellation)
        value *= tissue["white"] / np.median(value[brain.parcellation == WHITE])
    else:
        value = repainted(parcellation, tissue)
    # weighted with the mask, so that `lay` can tell what is brain from what is beside it
    value, share = (gaussian_filter(a * brain.mask, 0.5) for a in (value, np.float32(1)))
    atlas_from_model: NDArray[np.float64] = np.diag(
        [*(brain.spread_mm / head.brain_spread_mm()), 1.0]
    )
    atlas_from_model[:3, 3] = brain.centre_mm - atlas_from_model[:3, :3] @ head.brain_centre_mm
    return Interior(value, share, np.linalg.inv(brain.affine) @ atlas_from_model)


@lru_cache(maxsize=16)
def _kept_brain(folder: Path, ga_weeks: float) -> Brain:
    return read_brain(folder, ga_weeks)
