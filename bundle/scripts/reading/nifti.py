"""NIfTI-1, NIfTI-2 and Analyze files, single or in pairs, compressed or not, whatever their names.

nibabel reads the header; what its fields mean is that of nifti1.h (https://nifti.nimh.nih.gov).
Geometry is voxel to world in RAS mm.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti2 import Nifti2Header
from numpy.typing import NDArray

from ..labels import Status
from .formats import (
    BZIP2,
    GZIP,
    broken_compression,
    check_end,
    first_bytes,
    read_exactly,
    suffix_of,
    uncompressed,
)
from .image import Notes, VolumeError, check_size, reason
from .nifti_geometry import nifti_affine
from .nifti_header import intent_of, layout, read_header
from .values import LUMA, to_real

CACHED_BYTES = 2**30  # of a compressed series, kept so that it is not unpacked for every frame
SLAB_VOXELS = 2**22  # converted to float32 at a time


def read_nifti(
    path: Path, frame: int, voxel_mm: Sequence[float] | None, notes: Notes, shown: str
) -> tuple[NDArray[np.float32], NDArray[np.float64], Any, int]:
    """Values (i, j, k), affine, header and number of frames of a file.

    VolumeError : unreadable or not_3d, with what is wrong
    """
    header, single = read_header(path, shown)
    shape = tuple(int(n) for n in header.get_data_shape())
    if not 1 <= len(shape) <= 7 or any(n < 1 for n in shape):
        check_size(shape, shown)
        raise VolumeError(Status.UNREADABLE, f"{shown}: the header declares shape {shape}")
    check_size(shape[:3], shown)
    axes = layout(shape, intent_of(header), notes, shown)
    space = tuple(shape[a] for a in axes.space)
    check_size(space, shown)
    if not 0 <= frame < axes.frames:
        raise VolumeError(
            Status.NOT_3D, f"{shown}: has no frame {frame}, only {axes.frames}", notes.warnings
        )
    affine = nifti_affine(header, space, voxel_mm, notes, shown)
    source = path if single else _partner(path, shown)
    blocks = max(axes.colours, 1)
    raw = _voxels(source, header, single, space, (frame, blocks, axes.frames), notes, shown)
    values = _scaled(raw, header, notes, shown)
    weights = LUMA if axes.colours else (1.0,)
    parts = [values[..., c] if w == 1 else w * values[..., c] for c, w in enumerate(weights)]
    return sum(parts[1:], start=parts[0]), affine, header, axes.frames


def _partner(path: Path, shown: str) -> Path:
    """The file with the voxels that belong to a .hdr file."""
    stem = path.name[: len(path.name) - len(suffix_of(path.name))].lower()
    for other in sorted(path.parent.iterdir()):
        if other.name.lower() in (f"{stem}.img", f"{stem}.img.gz"):
            return other
    raise VolumeError(Status.UNREADABLE, f"{shown}: the .img file with its voxels is not there")


def _voxels(
    path: Path,
    header: Any,
    single: bool,
    space: tuple[int, ...],
    part: tuple[int, int, int],
    notes: Notes,
    shown: str,
) -> NDArray[Any]:
    """Stored values (i, j, k, blocks); ``part`` is the first block, how many, and all of them."""
    frame, blocks, frames = part
    dtype = header.get_data_dtype()
    volume = int(np.prod(space, dtype=np.int64)) * dtype.itemsize
    total = volume * max(frames, blocks)
    start = first_bytes(path, 3)
    packed = start[:2] == GZIP or start == BZIP2
    size = None if packed else path.stat().st_size
    offset = _offset(header, single, size, total, notes, shown)
    if size is not None:
        if size < offset + total:
            raise VolumeError(
                Status.UNREADABLE,
                f"{shown}: cut off: {size} bytes, where the header declares {offset + total}",
                notes.warnings,
            )
        return np.memmap(path, dtype, "r", offset + frame * volume, (*space, blocks), order="F")
    begin, length = offset + frame * volume, volume * blocks
    try:
        if frames > 1 and offset + total <= CACHED_BYTES:
            data = memoryview(_series(path, offset + total, shown))[begin : begin + length]
        else:
            with uncompressed(path) as stream:
                stream.seek(begin)
                data = memoryview(read_exactly(stream, length, shown))
                if frame + blocks >= frames:
                    check_end(stream, shown)
    except (EOFError, OSError, zlib.error) as error:
        raise broken_compression(error, shown) from error
    return np.frombuffer(data, dtype).reshape((*space, blocks), order="F")


def _offset(
    header: Any, single: bool, size: int | None, total: int, notes: Notes, shown: str
) -> int:
    """Where the voxels start. In a single file that is behind the header (nifti1.h: 352)."""
    value = float(header["vox_offset"])
    least = (544 if isinstance(header, Nifti2Header) else 352) if single else 0
    if np.isfinite(value) and value >= least and value < 2**62:
        return int(value)
    if value == 0 and (size is None or size == least + total):
        notes.warn(f"vox_offset is 0, within the header: {least} is taken")
        return least
    raise VolumeError(
        Status.UNREADABLE,
        f"{shown}: vox_offset {value:g} lies within the header or is no number; "
        f"the voxels of a single file start at {least} or behind",
        notes.warnings,
    )


_kept: dict[tuple[str, int, int], bytearray] = {}  # the series that was unpacked last


def _series(path: Path, needed: int, shown: str) -> bytearray:
    """What is in a compressed file of several frames; kept until another one is read."""
    state = path.stat()
    key = (str(path), state.st_mtime_ns, state.st_size)
    if key not in _kept:
        _kept.clear()
        with uncompressed(path) as stream:
            data = read_exactly(stream, needed, shown)
            check_end(stream, shown)
        _kept[key] = data
    return _kept[key]


def _scaled(raw: NDArray[Any], header: Any, notes: Notes, shown: str) -> NDArray[np.float32]:
    """Float32 of the same shape, by scl_slope and scl_inter, some slices at a time."""
    try:
        slope, inter = header.get_slope_inter()
    except Exception as error:  # an intercept that is no number
        raise VolumeError(Status.UNREADABLE, f"{shown}: {reason(error)}", notes.warnings) from error
    slope, inter = 1.0 if slope is None else float(slope), 0.0 if inter is None else float(inter)
    if (
        slope < 0
        and inter == 0
        and not raw.dtype.names
        and raw.dtype.kind != "c"
        and raw.min() >= 0
    ):
        notes.warn(f"scl_slope {slope:g} would make every value negative: its size is taken")
        slope = -slope
    values = np.empty(raw.shape, np.float32, order="F")
    step = max(1, SLAB_VOXELS // int(np.prod(raw.shape[:2])))
    plain = slope == 1 and inter == 0
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(0, raw.shape[2], step):
            part = raw[:, :, k : k + step]
            if plain or part.dtype.names:
                values[:, :, k : k + step] = to_real(part)
            elif part.dtype.kind == "c":
                values[:, :, k : k + step] = to_real(part.astype(np.complex128) * slope + inter)
            else:
                values[:, :, k : k + step] = part.astype(np.float64) * slope + inter
    return values
