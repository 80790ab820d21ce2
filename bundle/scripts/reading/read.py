"""One volume from any kind of file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..labels import Status
from .cases import Case
from .dicom import assemble
from .dicom_frames import frames_of
from .dicom_headers import read_file
from .dicom_planes import NoPlanes
from .formats import (
    DICOM,
    DICOM_SUFFIXES,
    ITK,
    KINDS,
    NIBABEL,
    NIFTI,
    first_bytes,
    is_dicom,
    suffix_of,
)
from .headers import check_affine, check_voxel_mm, voxel_size_note, voxel_sizes_mm, with_voxel_sizes
from .image import Image, Notes, VolumeError
from .nifti import read_nifti
from .other_formats import read_itk, read_nibabel
from .printable import printable
from .values import cure


def kind_of(path: Path) -> str:
    """Kind of a file by its name, or by its first bytes; "" for none that is read."""
    kind = KINDS.get(suffix_of(path.name, KINDS), "")
    if not kind and path.is_file():
        is_one = is_dicom(first_bytes(path)) or path.suffix.lower() in DICOM_SUFFIXES
        return DICOM if is_one else ""
    return kind


def read_image(
    source: Case | str | os.PathLike[str],
    frame: int = 0,
    voxel_mm: Any = None,
    *,
    cured: bool = True,
    one_volume: bool = False,
) -> Image:
    """Read one volume: a case that was found, or a file.

    Parameters
    ----------
    source : a Case, whose frame and voxel size are taken, or the path of a file
    frame : which volume of a file of several
    voxel_mm : sizes along i, j, k that replace those of the header
    cured : put values right that would hide the rest (padding, NaN, spikes); not for labels
    one_volume : refuse a file of several frames

    Raises
    ------
    VolumeError : what is wrong with the file, which the message names
    ValueError : voxel_mm that are no three sizes
    """
    if not isinstance(source, Case):
        path = Path(source)
        shown = printable(str(path))
        kind = _kind_for(path)
        source = Case(name=path.name, path=path, kind=kind, frame=frame, shown=shown)
        if kind == DICOM:
            source = _dicom_file(source)
    sizes = source.voxel_mm if voxel_mm is None else check_voxel_mm(voxel_mm)
    return _read(source, sizes, cured, one_volume)


def _dicom_file(case: Case) -> Case:
    """The case of one DICOM file, with its planes."""
    try:
        frames, remarks = frames_of(read_file(case.path).planes)
    except NoPlanes as error:
        raise VolumeError(Status.UNREADABLE, f"{case.shown}: {error}") from error
    if not 0 <= case.frame < len(frames):
        raise VolumeError(
            Status.NOT_3D, f"{case.shown}: has no frame {case.frame}, only {len(frames)}"
        )
    return replace(case, frames=len(frames), planes=frames[case.frame], remarks=tuple(remarks))


def _kind_for(path: Path) -> str:
    try:
        return kind_of(path) or NIFTI
    except OSError:
        return NIFTI


def _read(case: Case, voxel_mm: Sequence[float] | None, cured: bool, one_volume: bool) -> Image:
    notes = Notes(warnings=list(case.remarks))
    shown = case.shown or printable(str(case.path))
    header: Any = None
    if case.kind == NIFTI:
        values, affine, header, frames = read_nifti(case.path, case.frame, voxel_mm, notes, shown)
    else:
        if case.kind == DICOM:
            values, affine = assemble(case.planes, notes, shown)
            frames = case.frames
        elif case.kind == ITK:
            values, affine, header, frames = read_itk(case.path, case.frame, notes, shown)
        elif case.kind == NIBABEL:
            values, affine, header, frames = read_nibabel(case.path, case.frame, notes, shown)
        else:
            raise VolumeError(Status.UNREADABLE, f"{shown}: no kind of file that is read")
        if voxel_mm is not None:
            before = voxel_sizes_mm(affine)
            affine = with_voxel_sizes(affine, voxel_mm)
            notes.warn(voxel_size_note(voxel_mm, before))
        check_affine(affine, values.shape, notes, shown)
    if one_volume and frames > 1:
        raise VolumeError(
            Status.NOT_3D, f"{shown}: expected one 3D volume, got {frames} frames", notes.warnings
        )
    if cured:
        values = cure(values, abs(float(np.linalg.det(affine[:3, :3]))) / 1000, notes, shown)
    return Image(values, affine, tuple(notes.warnings), "; ".join(notes.doubts), header)
