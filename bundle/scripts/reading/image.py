"""One volume as it is in its file, and why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..labels import Status

# 512 x 512 x 512: beyond what any scanner gives as one volume, and 0.5 GiB as float32
MAX_VOXELS = 2**27


class VolumeError(ValueError):
    """A volume that no pose can be told from.

    ``status`` says why: unreadable, not_3d, not_finite or empty. The message names the file;
    ``warnings`` are what was said of it before.
    """

    def __init__(self, status: Status, message: str, warnings: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.warnings = tuple(warnings)


@dataclass
class Notes:
    """What a reader has to say of a file: ``warnings``, and ``doubt`` where sides or geometry
    cannot be trusted."""

    warnings: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def doubt(self, text: str) -> None:
        """A warning for which a pose is at most "uncertain"."""
        self.warnings.append(text)
        self.doubts.append(text)


@dataclass(frozen=True)
class Image:
    """One volume of a file.

    values : float32 (i, j, k), as the file has them but for what ``warnings`` say
    affine : float64 (4, 4), voxel to world (RAS, mm)
    warnings : what does not fit together in the header or the values, one sentence each
    doubt : not empty where sides or geometry cannot be trusted: a pose is at most "uncertain"
    header : nibabel's header where the file is one of nibabel's, else None
    """

    values: NDArray[np.float32]
    affine: NDArray[np.float64]
    warnings: tuple[str, ...] = ()
    doubt: str = ""
    header: Any = None


def check_size(shape: Sequence[int], shown: str) -> None:
    """Refuse dimensions that cannot be meant, before memory is taken for them.

    shape : voxels of one volume as its header declares them
    VolumeError : a dimension below 1, or more than MAX_VOXELS voxels
    """
    text = " x ".join(str(int(n)) for n in shape)
    if any(n < 1 for n in shape):
        raise VolumeError(Status.UNREADABLE, f"{shown}: the header declares {text} voxels")
    count = 1
    for n in shape:
        count *= int(n)
    if count > MAX_VOXELS:
        raise VolumeError(
            Status.UNREADABLE,
            f"{shown}: the header declares {text} voxels in one volume; "
            f"at most {MAX_VOXELS // 10**6} million are read",
        )


def reason(error: BaseException) -> str:
    """What an exception says in one line, or its kind where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
