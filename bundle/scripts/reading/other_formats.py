"""What nibabel reads besides NIfTI (.mgz, .mnc, AFNI, Philips PAR/REC), and .nrrd, .mha, .mhd.

The latter by SimpleITK, an extra (``formats``). Affines are voxel to world in RAS mm.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ..labels import Status
from .formats import (
    GZIP,
    broken_compression,
    check_end,
    first_bytes,
    pretender,
    suffix_of,
    uncompressed,
)
from .image import Notes, VolumeError, check_size, reason
from .values import LUMA, to_real

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
NEEDS_ITK = (
    "reading .nrrd, .mha and .mhd needs SimpleITK, the extra `formats`: pip install SimpleITK"
)

Read = tuple[NDArray[np.float32], NDArray[np.float64], Any, int]


def _not_3d(shape: tuple[int, ...], shown: str) -> VolumeError:
    return VolumeError(Status.NOT_3D, f"{shown}: expected one 3D volume, got shape {shape}")


def _frames(shape: tuple[int, ...], frame: int, shown: str) -> int:
    """Number of volumes (i, j, k, frames); VolumeError for any other shape, or frame."""
    dims = list(shape)
    while len(dims) > 3 and dims[-1] == 1:
        dims.pop()
    if len(dims) not in (3, 4) or min(dims) < 2:
        raise _not_3d(shape, shown)
    frames = dims[3] if len(dims) == 4 else 1
    if not 0 <= frame < frames:
        raise VolumeError(Status.NOT_3D, f"{shown}: has no frame {frame}, only {frames}")
    return frames


def refuse_pretenders(path: Path, shown: str) -> None:
    """VolumeError "unreadable" for what is no image, and for a gzip file that is cut or damaged."""
    try:
        start = first_bytes(path)
    except OSError as error:
        raise VolumeError(Status.UNREADABLE, f"{shown}: {reason(error)}") from error
    if found := pretender(start):
        raise VolumeError(Status.UNREADABLE, f"{shown}: {found}")


def open_nibabel(path: Path, shown: str) -> Any:
    """nibabel's image of a file, without its voxels."""
    refuse_pretenders(path, shown)
    try:
        source: Any = nib.load(path)
    except Exception as error:  # nibabel raises many types for a broken file
        raise VolumeError(Status.UNREADABLE, f"{shown}: cannot be read: {reason(error)}") from error
    check_size(source.shape[:3], shown)
    return source


def read_nibabel(path: Path, frame: int, notes: Notes, shown: str) -> Read:
    """Values (i, j, k), affine, header and number of frames of a file that nibabel reads."""
    source = open_nibabel(path, shown)
    frames = _frames(source.shape, frame, shown)
    try:
        if first_bytes(path, 2) == GZIP:
            # all that is said of its voxels lies within: what follows them is small
            with uncompressed(path) as stream:
                stream.seek(284 + int(np.prod(source.shape)) * source.get_data_dtype().itemsize)
                check_end(stream, shown)
        part = source.dataobj[..., frame] if frames > 1 else np.asarray(source.dataobj)
        values = to_real(part.reshape(part.shape[:3]))
    except (EOFError, zlib.error) as error:
        raise broken_compression(error, shown) from error
    except VolumeError:
        raise
    except Exception as error:
        raise VolumeError(Status.UNREADABLE, f"{shown}: cannot be read: {reason(error)}") from error
    if suffix_of(path.name) in (".mgz", ".mgh"):
        with uncompressed(path) as stream:  # nibabel puts a default in its place
            good = stream.read(30)[28:]
        if good == b"\0\0":
            notes.doubt("goodRASFlag is 0: the header says nothing of the sides")
    return values, np.asarray(source.affine, dtype=np.float64), source.header, frames


def _itk() -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise VolumeError(Status.UNREADABLE, NEEDS_ITK) from error
    return SimpleITK


def open_itk(path: Path, shown: str) -> Any:
    """SimpleITK's reader of a file, with what its header says. Dimensions are checked."""
    itk = _itk()
    refuse_pretenders(path, shown)
    reader = itk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except (RuntimeError, UnicodeError) as error:
        raise VolumeError(Status.UNREADABLE, f"{shown}: cannot be read: {reason(error)}") from error
    check_size(reader.GetSize()[:3], shown)
    return reader


def frames_of_itk(path: Path) -> int:
    """Volumes along a fourth axis."""
    reader = open_itk(path, str(path))
    return _frames(tuple(reader.GetSize()), 0, str(path))


def read_itk(path: Path, frame: int, notes: Notes, shown: str) -> Read:
    """Values (i, j, k), affine, None and number of frames. ITK's world is LPS."""
    reader = open_itk(path, shown)
    size = tuple(int(n) for n in reader.GetSize())
    frames = _frames(size, frame, shown)
    colours = reader.GetNumberOfComponents()
    if frames > 1:
        reader.SetExtractIndex([0, 0, 0, frame])
        reader.SetExtractSize([*size[:3], 0])
    try:
        image = reader.Execute()
        stored = _itk().GetArrayFromImage(image)
    except RuntimeError as error:
        raise VolumeError(Status.UNREADABLE, f"{shown}: cannot be read: {reason(error)}") from error
    if colours in (3, 4) and not np.iscomplexobj(stored):
        stored = sum(w * stored[..., c].astype(np.float32) for c, w in enumerate(LUMA))
    elif colours > 1 and not np.iscomplexobj(stored):
        raise _not_3d((*size, colours), shown)
    values = to_real(stored.reshape(stored.shape[-3:]).transpose(2, 1, 0))
    axes = len(size)
    direction = np.array(reader.GetDirection()).reshape(axes, axes)[:3, :3]
    lps = np.eye(4)
    lps[:3, :3] = direction * np.array(reader.GetSpacing()[:3])
    lps[:3, 3] = reader.GetOrigin()[:3]
    if not _says_directions(path):
        notes.doubt("the header says nothing of the sides: LPS is taken, as ITK does")
    return values, LPS_TO_RAS @ lps, None, frames


def _says_directions(path: Path) -> bool:
    """Whether the text at the head of the file names a space (NRRD) or a matrix (MetaImage)."""
    start = first_bytes(path, 4096).lower()
    if start.startswith(b"nrrd"):
        return b"\nspace:" in start and b"\nspace directions:" in start
    return any(word in start for word in (b"transformmatrix", b"orientation =", b"rotation ="))
