"""What a label map shows, in world mm: where the brain is, how large, and where the eyes are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..labels import BRAIN, EYES

# Of a pair of eyes, in radii of the brain: they lie 1 to 1.5 apart from 18 weeks to birth, and two
# parts of one eye that noise has torn lie nearer.
EYES_APART = (0.75, 2.2)


@dataclass(frozen=True)
class LabelFacts:
    """Of one label map; lengths in mm of the world (RAS), volumes in ml.

    Parameters
    ----------
    shape, affine : of the file
    values : that occur
    brain_ml, brain_mm : volume and centre of mass of the brain; NaN without one
    brain_parts : connected parts of it
    covariance : (3, 3) of the brain's voxels, mm^2
    cut : whether the brain touches the edge of the volume
    eyes_ml : volume of all eyes
    eyes_mm : (n, 3) centres of the two largest parts labelled as eyes, or of one
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    values: frozenset[int]
    brain_ml: float
    brain_mm: NDArray[np.float64]
    brain_parts: int
    covariance: NDArray[np.float64]
    cut: bool
    eyes_ml: float
    eyes_mm: NDArray[np.float64]

    @property
    def radius_mm(self) -> float:
        """Of a ball of the brain's volume."""
        return float((3000 * self.brain_ml / (4 * np.pi)) ** (1 / 3))

    @property
    def tolerance_mm(self) -> tuple[float, float]:
        """Distance of a pose's origin from the brain's centre that is doubtful, and that is wrong.

        A brain that the edge of the volume cuts has its centre elsewhere: then the origin may lie
        at the cut.
        """
        radius = self.radius_mm
        return max(6.0, 0.3 * radius), max(10.0, (1.2 if self.cut else 0.45) * radius)

    @property
    def long_axis(self) -> NDArray[np.float64] | None:
        """Direction (3) of the brain's longest axis; None where none is clearly the longest."""
        if self.cut or not self.brain_ml:
            return None
        lengths, axes = np.linalg.eigh(self.covariance)
        return axes[:, 2] if lengths[2] > 1.3 * lengths[1] else None

    @property
    def between_eyes(self) -> NDArray[np.float64] | None:
        """Direction (3) from one eye to the other, of either sign; None unless both are shown."""
        if len(self.eyes_mm) < 2 or not self.brain_ml:
            return None
        line = self.eyes_mm[1] - self.eyes_mm[0]
        length = np.linalg.norm(line)
        return line / length if EYES_APART[0] <= length / self.radius_mm <= EYES_APART[1] else None


def grid_of(path: str) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Shape, without axes of length one at its end, and affine, of a file's header.

    ValueError, naming the file, if it cannot be read.
    """
    source = _open(path)
    return _three(source.shape), np.asarray(source.affine, dtype=np.float64)


def _three(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return tuple(shape)


def _open(path: str | os.PathLike[str]) -> Any:
    try:
        source: Any = nib.load(path)
        affine = np.asarray(source.affine, dtype=np.float64)
    except Exception as error:  # nibabel raises many types for a broken file
        raise ValueError(f"{path}: cannot be read: {error}") from error
    if affine.shape != (4, 4) or not abs(np.linalg.det(affine[:3, :3])) > 0:
        raise ValueError(f"{path}: singular affine {affine.tolist()}")
    return source


def label_facts(path: str) -> LabelFacts:
    """What a label file shows. ValueError, naming the file, if it cannot be read or is not 3D."""
    source = _open(path)
    try:
        values = np.asanyarray(source.dataobj).reshape(_three(source.shape))
    except Exception as error:  # zlib, EOFError and others for a file that is cut short
        raise ValueError(f"{path}: cannot be read: {error}") from error
    if values.ndim != 3:
        raise ValueError(f"{path}: expected a 3D label, got shape {values.shape}")
    affine = np.asarray(source.affine, dtype=np.float64)
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    brain, eyes = values == BRAIN, values == EYES
    others = np.unique(values[~brain & ~eyes])[:8]
    found = {int(v) if float(v).is_integer() else -1 for v in others if np.isfinite(v)}
    found |= {number for number, mask in ((BRAIN, brain), (EYES, eyes)) if mask.any()}
    index = np.argwhere(brain)
    points = index @ affine[:3, :3].T + affine[:3, 3]
    return LabelFacts(
        shape=values.shape,
        affine=affine,
        values=frozenset(found),
        brain_ml=len(index) * voxel_ml,
        brain_mm=points.mean(0) if len(index) else np.full(3, np.nan),
        brain_parts=len(_parts(brain, index)) if len(index) else 0,
        covariance=np.cov(points.T) if len(index) > 1 else np.zeros((3, 3)),
        cut=any((index == 0).any(0)) or any((index == np.array(values.shape) - 1).any(0)),
        eyes_ml=float(eyes.sum() * voxel_ml),
        eyes_mm=_centers(eyes, affine),
    )


def _parts(mask: NDArray[np.bool_], index: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Voxels (n, 3) of every connected part of a mask, the largest first."""
    low, high = index.min(0), index.max(0) + 1
    box = mask[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    numbers, count = ndimage.label(box)
    found = [np.argwhere(numbers == k + 1) + low for k in range(min(count, 50))]
    return sorted(found, key=len, reverse=True)


def _centers(eyes: NDArray[np.bool_], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    index = np.argwhere(eyes)
    if not len(index):
        return np.zeros((0, 3))
    parts = _parts(eyes, index)
    # a crumb is no eye
    parts = [part for part in parts[:2] if len(part) > 0.2 * len(parts[0])]
    centers = np.stack([part.mean(0) for part in parts])
    return centers @ affine[:3, :3].T + affine[:3, 3]
