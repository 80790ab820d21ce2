"""From the planes of one frame of a DICOM series to a volume. LPS in the files, RAS mm out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..labels import Status
from .dicom_planes import Plane, normal_of
from .image import Notes, VolumeError, check_size, reason
from .values import LUMA, to_real

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SAME_DIRECTION = np.cos(np.radians(0.5))
ON_LATTICE = 0.05  # of the slice spacing; positions are rounded by scanners and by anonymizers
MISSING_SHARE = 0.1  # of the slices, that are filled in from those beside them


def assemble(
    planes: Sequence[Plane], notes: Notes, shown: str
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Values (i, j, k) and affine (4, 4) of one frame.

    i grows along a row of the picture, j down a column, k along the slices. Single missing slices
    are the mean of their neighbours, with a warning.

    VolumeError : slices of several orientations, sizes or spacings, at one place, with gaps, too
    few of them; pixels that cannot be decoded
    """
    first = planes[0]
    normal = normal_of(first)
    _same(planes, shown)
    along = np.array([np.dot(p.position, normal) for p in planes])
    order = np.argsort(along)
    if len(order) < 2:
        raise VolumeError(Status.NOT_3D, f"{shown}: one slice, expected a volume")
    steps, step_mm = _lattice(along[order], shown)
    count = int(steps[-1]) + 1
    check_size((first.columns, first.rows, count), shown)
    ends = np.array([planes[order[0]].position, planes[order[-1]].position])
    slope = (ends[1] - ends[0]) / steps[-1]
    expected = ends[0] + np.outer(steps, slope)
    beside = np.abs(expected - [planes[k].position for k in order]).max()
    if beside > max(0.5, ON_LATTICE * step_mm):
        raise VolumeError(
            Status.NOT_3D,
            f"{shown}: the slices do not lie in one line: up to {beside:.1f} mm beside",
        )
    values = np.zeros((first.columns, first.rows, count), np.float32, order="F")
    for k, picture in _pictures([planes[k] for k in order], shown):
        values[:, :, int(steps[k])] = picture.T
    _fill(values, steps.astype(int), notes, shown)
    lps = np.eye(4)
    lps[:3, 0] = np.array(first.row) * first.spacing_mm[1]
    lps[:3, 1] = np.array(first.column) * first.spacing_mm[0]
    lps[:3, 2], lps[:3, 3] = slope, ends[0]
    return values, LPS_TO_RAS @ lps


def _same(planes: Sequence[Plane], shown: str) -> None:
    """Refuse planes that cannot be of one volume."""
    first = planes[0]
    axes = np.array([[p.row, p.column] for p in planes])
    if not np.isfinite(axes).all() or np.abs(np.linalg.norm(axes, axis=2) - 1).max() > 0.01:
        raise VolumeError(
            Status.UNREADABLE,
            f"{shown}: ImageOrientationPatient {axes[0].tolist()} is no direction",
        )
    if (axes * axes[0]).sum(axis=2).min() < SAME_DIRECTION:
        normals = np.cross(axes[:, 0], axes[:, 1])
        kinds: list[np.ndarray] = []
        for normal in normals:
            if not any(abs(normal @ other) > SAME_DIRECTION for other in kinds):
                kinds.append(normal)
        raise VolumeError(
            Status.NOT_3D,
            f"{shown}: {len(planes)} slices of {max(len(kinds), 2)} orientations, like a localizer",
        )
    sizes = sorted({(p.columns, p.rows) for p in planes})
    spacings = sorted({p.spacing_mm for p in planes})
    if len(sizes) > 1:
        raise VolumeError(Status.NOT_3D, f"{shown}: slices of several sizes: {sizes}")
    if np.ptp(np.array(spacings), axis=0).max() > 1e-3 * np.min(spacings):
        raise VolumeError(Status.NOT_3D, f"{shown}: slices of several PixelSpacings: {spacings}")
    if not min(first.spacing_mm) > 0:
        raise VolumeError(Status.UNREADABLE, f"{shown}: PixelSpacing {first.spacing_mm} mm")


def _lattice(along: NDArray[np.float64], shown: str) -> tuple[NDArray[np.float64], float]:
    """Number of each slice on an even spacing, and that spacing in mm; ``along`` is sorted."""
    gaps = np.diff(along)
    step_mm = float(np.median(gaps))
    if not np.isfinite(gaps).all() or gaps.min() < 1e-3:
        raise VolumeError(Status.NOT_3D, f"{shown}: several slices lie at one place")
    # from gap to gap, so that rounded positions do not add up
    whole = np.round(gaps / step_mm)
    if whole.min() < 1 or np.abs(gaps - whole * step_mm).max() > ON_LATTICE * step_mm + 0.01:
        raise VolumeError(
            Status.NOT_3D,
            f"{shown}: the slices are {gaps.min():.3f} to {gaps.max():.3f} mm apart, "
            "expected an even spacing",
        )
    missing = whole - 1
    if missing.max() > 1 or missing.sum() > MISSING_SHARE * (len(along) + missing.sum()):
        raise VolumeError(
            Status.NOT_3D,
            f"{shown}: {int(missing.sum())} slices are missing: gaps of up to {gaps.max():.3f} mm "
            f"between slices that are {step_mm:.3f} mm apart",
        )
    return np.concatenate([[0.0], np.cumsum(whole)]), step_mm


def _fill(values: NDArray[np.float32], present: NDArray[np.int_], notes: Notes, shown: str) -> None:
    """Missing slices, in place, as the mean of their neighbours."""
    missing = np.setdiff1d(np.arange(values.shape[2]), present)
    for k in missing:
        values[:, :, k] = (values[:, :, k - 1] + values[:, :, k + 1]) / 2
    if len(missing):
        notes.warn(f"slices {missing.tolist()} are missing: filled in from their neighbours")


def _pictures(planes: Sequence[Plane], shown: str) -> Any:
    """(number in ``planes``, pixels (row, column) float32) for each plane, file by file."""
    numbers: dict[Any, list[int]] = {}
    for k, plane in enumerate(planes):
        numbers.setdefault(plane.file, []).append(k)
    for file, mine in numbers.items():
        for k, stored, inverted in _pixels(file, [planes[k] for k in mine], shown):
            plane = planes[mine[k]]
            if stored.ndim == 3:
                stored = sum(w * stored[..., c].astype(np.float32) for c, w in enumerate(LUMA))
            if inverted is not None:
                stored = inverted - stored.astype(np.float32)
            yield mine[k], to_real(stored) * np.float32(plane.slope) + np.float32(plane.intercept)


def _pixels(file: Any, planes: Sequence[Plane], shown: str) -> Any:
    """(number, stored pixels, largest value if those are inverted) for planes of one file."""
    import pydicom
    from pydicom.pixels import iter_pixels

    try:
        data = pydicom.dcmread(file, force=True)
        inverted = None
        if data.get("PhotometricInterpretation") == "MONOCHROME1":
            inverted = np.float32(2 ** int(data.BitsStored) - 1)
        if planes[0].tiles:
            whole = data.pixel_array
            for k, plane in enumerate(planes):
                down, right = divmod(plane.number, plane.tiles)
                rows = slice(down * plane.rows, (down + 1) * plane.rows)
                columns = slice(right * plane.columns, (right + 1) * plane.columns)
                yield k, whole[rows, columns], inverted
        elif int(data.get("NumberOfFrames") or 1) > 1:
            wanted = [plane.number for plane in planes]
            for k, picture in enumerate(iter_pixels(data, indices=wanted)):
                yield k, picture, inverted
        else:
            yield 0, data.pixel_array, inverted
    except VolumeError:
        raise
    except Exception as error:  # pydicom and its decoders raise many types
        raise VolumeError(Status.UNREADABLE, f"{shown}: {_why(file, error)}") from error


def _why(file: Any, error: Exception) -> str:
    """What is wrong with pixels that cannot be decoded."""
    import pydicom

    try:
        syntax = pydicom.dcmread(file, stop_before_pixels=True, force=True).file_meta
        uid = syntax.TransferSyntaxUID
    except Exception:
        return f"the pixels cannot be read: {reason(error)}"
    if uid.is_compressed and "missing dependencies" in str(error):
        return f"pixels compressed as {uid.name}, which needs a decoder: pip install python-gdcm"
    return f"the pixels ({uid.name}) cannot be decoded: {reason(error)}"
