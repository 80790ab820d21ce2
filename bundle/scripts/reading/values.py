"""Values of a volume that can hardly be meant, put right with a warning or refused.

Padding is 0 wherever a volume comes from here: constants at the border, NaN and infinities become
0, and where a volume has negative values the whole of it is shifted so that 0 is its least.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..labels import Status
from .image import Notes, VolumeError

LUMA = (0.299, 0.587, 0.114)  # grey from red, green and blue (ITU-R BT.601)
INTERIOR_ML = 20.0  # of the brain of the youngest fetuses this is about half
INTERIOR_SHARE = 0.01
HOT_SLICE, HOT_VOXEL = 8.0, 20.0
LARGEST = 1e30  # sums and differences of more are beyond float32
SAMPLE = 10_000  # voxels that a percentile is taken from


def to_real(values: NDArray[Any]) -> NDArray[np.float32]:
    """Float32 of the same shape: magnitude of complex values, grey of (R, G, B) records.

    >>> to_real(np.array([3 + 4j])).tolist()
    [5.0]
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if values.dtype.names:
            parts = (values[name].astype(np.float32) for name in values.dtype.names[:3])
            return sum(w * part for w, part in zip(LUMA, parts, strict=True))  # type: ignore[return-value]
        if np.iscomplexobj(values):
            values = np.abs(values)
        return values.astype(np.float32, copy=False)


def cure(
    values: NDArray[np.float32], voxel_ml: float, notes: Notes, shown: str
) -> NDArray[np.float32]:
    """``values`` (i, j, k) without what would hide the rest; what was done is noted.

    voxel_ml : volume of a voxel
    VolumeError : "not_finite" where voxels that are no numbers may be much of the head
    """
    finite = np.isfinite(values)
    if np.abs(values).max(initial=0, where=finite) > LARGEST:
        notes.warn(f"values beyond {LARGEST:g}: all are divided by 2^30")
        values = values * np.float32(2.0**-30)
    if not finite.all():
        values = _filled(values, ~finite, voxel_ml, notes, shown)
    else:
        padding = _constant_border(values, notes)
        if padding is not None:
            values = _emptied(values, padding)
    some = _sample(values)
    if some.size < 100:
        return values
    # voxels first: one of 1e9 makes its slices hot
    return _without_hot_slices(_without_hot_voxels(values, some, notes), some, notes)


def _filled(
    values: NDArray[np.float32],
    holes: NDArray[np.bool_],
    voxel_ml: float,
    notes: Notes,
    shown: str,
) -> NDArray[np.float32]:
    """NaN and infinities as padding, unless a part of the head may be among them."""
    share = holes.mean()
    if share == 1:
        raise VolumeError(Status.NOT_FINITE, f"{shown}: every voxel is NaN or infinite")
    parts, _ = ndimage.label(holes)
    border = set()
    for axis in range(3):
        for end in (0, -1):
            border.update(np.unique(parts.take(end, axis)).tolist())
    inside = int((holes & ~np.isin(parts, list(border - {0}))).sum())
    if inside > INTERIOR_SHARE * (~holes).sum() or inside * voxel_ml > INTERIOR_ML:
        raise VolumeError(
            Status.NOT_FINITE,
            f"{shown}: has voxels that are NaN or infinite: {inside} of {holes.size} "
            f"({inside * voxel_ml:.3g} ml) within the volume",
            notes.warnings,
        )
    notes.warn(f"{int(holes.sum())} voxels ({share:.2%}) are NaN or infinite: taken as padding")
    return _emptied(values, holes)


def _emptied(values: NDArray[np.float32], holes: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A copy with 0 in the holes and nothing below 0."""
    low = min(values[~holes].min(), np.float32(0))
    return np.where(holes, low, values) - low


def _constant_border(values: NDArray[np.float32], notes: Notes) -> NDArray[np.bool_] | None:
    """Which voxels have the constant, other than 0, that the border is padded with."""
    corners = values[tuple(slice(None, None, max(n - 1, 1)) for n in values.shape)].ravel()
    found, counts = np.unique(corners, return_counts=True)
    constant = found[counts.argmax()]
    if counts.max() < 4:
        return None
    faces = (values.take(end, axis) for axis in range(3) for end in (0, -1))
    if counts.max() < 8 and not any((face == constant).mean() > 0.99 for face in faces):
        return None
    padding = values == constant
    share = padding.mean()
    # an integer image whose air happens to be 1 all around has nothing to be told of
    if share == 1 or share < 0.01:
        return None
    rest = values[~padding]
    low, high = float(rest.min()), float(rest.max())
    if low == high or (constant == 0 and high > 0):  # 0 is no padding only above all the rest
        return None
    notes.warn(f"{share:.0%} of the voxels, at the border, are {constant:g}: taken as padding")
    return padding


def _sample(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Some voxels that are not 0, evenly from the volume, as they lie in memory."""
    flat = values.ravel(order="K")
    step = max(1, flat.size // SAMPLE)
    while math.gcd(step, flat.size) > 1:  # a divisor would pass over whole slices
        step += 1
    some = flat[::step]
    return some[some != 0]


def _without_hot_slices(
    values: NDArray[np.float32], some: NDArray[np.float32], notes: Notes
) -> NDArray[np.float32]:
    """Slices far above all that are near are replaced by those beside them.

    A receive coil's bias or the body's edge changes many slices; a spike changes one or two.
    """
    low = float(np.percentile(some, 1))
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        means = values.mean(axis=others, dtype=np.float64) - low
        count = len(means)
        if count < 8:
            continue
        around = np.pad(means, 3, constant_values=-np.inf)
        around = np.delete(np.lib.stride_tricks.sliding_window_view(around, 7), 3, axis=1)
        # the third largest of the three neighbours on either side: two may be hot themselves
        around = np.sort(around, axis=1)[:, -3]
        spread = np.median(np.abs(means))
        hot = np.flatnonzero(means > HOT_SLICE * np.maximum(around, spread))
        if not len(hot) or len(hot) > max(2, count // 10):
            continue
        good = np.setdiff1d(np.arange(count), hot)
        values = values.copy()
        for k in hot:
            nearest = good[np.argsort(np.abs(good - k), kind="stable")[:2]]
            np.moveaxis(values, axis, 0)[k] = values.take(nearest, axis).mean(axis)
        notes.warn(
            f"slices {hot.tolist()} along voxel axis {axis} are more than {HOT_SLICE:g} times as "
            "bright as those around them: replaced by their neighbours"
        )
    return values


def _without_hot_voxels(
    values: NDArray[np.float32], some: NDArray[np.float32], notes: Notes
) -> NDArray[np.float32]:
    """Single voxels far beyond all others are clipped to the 99.9 percentile."""
    low, middle, high = (float(q) for q in np.percentile(some, [0.5, 50, 99.5]))
    above = middle + HOT_VOXEL * (high - middle)
    below = min(middle - HOT_VOXEL * (middle - low), 0.0)
    least, most = float(values.min()), float(values.max())
    if high == low or (most <= above and least >= below):
        return values
    ends = np.percentile(some[(some <= above) & (some >= below)], [0.1, 99.9])
    hot = int((values > above).sum() + (values < below).sum())
    notes.warn(
        f"{hot} voxels lie far beyond the rest ({least:.4g} to {most:.4g}, where 99 % lie within "
        f"{low:.4g} to {high:.4g}): clipped"
    )
    return np.clip(
        values,
        np.float32(min(ends[0], 0)) if least < below else None,
        np.float32(ends[1]) if most > above else None,
    )
