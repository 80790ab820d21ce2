"""Headers of NIfTI-1, NIfTI-2 and Analyze files: of which kind, and what the axes are."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header, Nifti1PairHeader
from nibabel.nifti2 import Nifti2Header, Nifti2PairHeader
from nibabel.spm99analyze import Spm99AnalyzeHeader

from ..labels import Status
from .formats import broken_compression, first_bytes, pretender, suffix_of, uncompressed
from .image import Notes, VolumeError, reason

RGB_VECTOR = (2003, 2004)  # intents "RGB vector" and "RGBA vector" of nifti1.h


@dataclass(frozen=True)
class Layout:
    """Which of a file's axes are i, j and k, and what the others are.

    space : the three axes; frames : volumes along the rest; colours : 3 or 4 where these are the
    colours of one volume, else 0
    """

    space: tuple[int, int, int]
    frames: int = 1
    colours: int = 0


def layout(shape: Sequence[int], intent: int, notes: Notes, shown: str) -> Layout:
    """The meaning of the axes of a file of this shape.

    Axes of length one behind the third are dropped; one before it, with three others that are
    longer, is taken for a channel. VolumeError "not_3d" where there is no volume.
    """
    dims = list(shape)
    while len(dims) > 3 and dims[-1] == 1:
        dims.pop()
    long = [axis for axis, n in enumerate(dims) if n > 1]
    text = tuple(int(n) for n in shape)
    if long[:3] == [0, 1, 2] and len(long) == 3:
        return Layout((0, 1, 2))
    if len(long) == 4 and long[:3] == [0, 1, 2]:
        count = int(dims[long[3]])
        if intent in RGB_VECTOR and count in (3, 4):
            return Layout((0, 1, 2), colours=count)
        return Layout((0, 1, 2), frames=count)
    if len(long) == 3 and len(dims) == 4:
        (one,) = set(range(4)) - set(long)
        say = notes.doubt if one == 2 else notes.warn
        meant = "slices along the fourth axis" if one == 2 else "a volume with an axis of one"
        say(f"shape {text} is taken for {meant}; the affine for the axes that are longer")
        return Layout((long[0], long[1], long[2]))
    raise VolumeError(
        Status.NOT_3D,
        f"{shown}: expected one 3D volume, got shape {text}",
        notes.warnings,
    )


def read_header(path: Path, shown: str) -> tuple[Any, bool]:
    """Header of a file, and whether its voxels are in the same file.

    VolumeError "unreadable" : what the file is instead, or what nibabel says of the header
    """
    try:
        with uncompressed(path) as stream:
            block = stream.read(540)
    except FileNotFoundError as error:
        raise VolumeError(Status.UNREADABLE, f"{shown}: no such file") from error
    except (EOFError, zlib.error, OSError) as error:
        raise broken_compression(error, shown) from error
    if found := pretender(first_bytes(path)) or pretender(block):
        raise VolumeError(Status.UNREADABLE, f"{shown}: {found}")
    kind, single = _header_class(path, block, shown)
    size = 540 if kind in (Nifti2Header, Nifti2PairHeader) else 348
    try:
        header = kind(block[:size], check=False)
        header.get_data_dtype()
        return header, single
    except Exception as error:  # nibabel raises many types for a broken header
        raise VolumeError(
            Status.UNREADABLE, f"{shown}: cannot be read as NIfTI: {reason(error)}"
        ) from error


def _header_class(path: Path, block: bytes, shown: str) -> tuple[Any, bool]:
    pair = suffix_of(path.name) in (".hdr", ".hdr.gz")
    first = {int.from_bytes(block[:4], order) for order in ("little", "big")}  # type: ignore[arg-type]
    if 540 in first and len(block) >= 540:
        magic = block[4:8]
        if magic[:3] in (b"n+2", b"ni2"):
            single = magic[:3] == b"n+2"
            return (Nifti2Header if single else Nifti2PairHeader), single
    if 348 in first and len(block) >= 348:
        magic = block[344:347]
        if magic in (b"n+1", b"ni1"):
            single = magic == b"n+1"
            return (Nifti1Header if single else Nifti1PairHeader), single
        if pair:
            return Spm99AnalyzeHeader, False
    raise VolumeError(
        Status.UNREADABLE,
        f"{shown}: cannot be read as NIfTI: its first bytes are not those of a header",
    )


def frames_of(path: Path) -> tuple[int, float | None]:
    """Volumes in a file, and seconds from one to the next where the header says them."""
    header, _ = read_header(path, str(path))
    axes = layout(header.get_data_shape(), intent_of(header), Notes(), str(path))
    if axes.frames == 1 or "xyzt_units" not in header.keys():  # noqa: SIM118  (no mapping)
        return axes.frames, None
    # units of time: 8 s, 16 ms, 24 us (nifti1.h); without, nobody waits 100 s for a volume
    step = float(header["pixdim"][4])
    unit = {8: 1.0, 16: 1e-3, 24: 1e-6}.get(int(header["xyzt_units"]) & 0x38)
    if not np.isfinite(step) or step <= 0:
        return axes.frames, None
    return axes.frames, step * (unit or (1e-3 if step >= 100 else 1.0))


def intent_of(header: Any) -> int:
    return int(header["intent_code"]) if isinstance(header, Nifti1Header) else 0
