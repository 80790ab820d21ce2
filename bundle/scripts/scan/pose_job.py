"""What a process that finds heads is asked, and what it says: plain values that can be pickled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Job:
    """A volume (i, j, k) with its voxel-to-world matrix (RAS mm), by session and navigator.

    tilt_deg : of the axes along which the session measures the brain
    """

    session: int
    number: int
    values: NDArray[np.float32]
    affine: NDArray[np.float64]
    tilt_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Found:
    """What was found in a volume.

    status as in ``labels.Status``; head_to_world (4, 4) or None; extent_mm (3, 2) of the brain
    along the head's axes, None without one; rotation_sd_deg and translation_sd_mm, 68 % radii.
    """

    status: str
    head_to_world: NDArray[np.float64] | None = None
    confidence: float = 0.0
    extent_mm: NDArray[np.float64] | None = None
    rotation_sd_deg: float = 1.0
    translation_sd_mm: float = 1.0
    wrong_share: float = 0.5
    message: str = ""
    seconds: float = 0.0
