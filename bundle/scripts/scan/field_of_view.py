"""Where fields of view lie: which way a slice is phase-encoded, and the next navigator's centre."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Phase = Literal["row", "column"]

# Widths of an ellipsoid in the place of the mother's body, from right to left, from back to front
# and along her: what can fold into the image. A round number for late pregnancy, not a measurement.
MOTHER_MM = (380.0, 280.0, 600.0)
# The phase direction is kept until the other one is narrower by this factor: in a slice across the
# mother that is a head turned by 61 degrees from where the one in use is best.
SWAP_BELOW = 0.85


def body_widths_mm(row: ArrayLike, column: ArrayLike) -> tuple[float, float]:
    """How wide the mother is in a slice, along its row and along its column direction, in mm.

    ``row`` and ``column`` (3,) are orthogonal unit vectors of the world. The slice is taken through
    the middle of the ellipsoid: no parallel one is wider.

    >>> [round(width) for width in body_widths_mm([1, 0, 0], [0, 1, 0])]  # across the mother
    [380, 280]
    """
    plane = np.stack([np.asarray(row, float), np.asarray(column, float)], axis=1)
    section = plane.T @ np.diag((np.array(MOTHER_MM) / 2) ** -2.0) @ plane
    across, along = 2 * np.sqrt(np.linalg.inv(section).diagonal())
    return float(across), float(along)


def phase_direction(
    row: ArrayLike, column: ArrayLike, before: Phase | None = None
) -> tuple[Phase, float]:
    """Which of an image's directions to phase-encode, and how wide the mother is along it, in mm.

    What lies outside the field of view folds back along the phase direction alone. The image stays
    upright in the head, so its sides turn with it, and of the two that one is phase-encoded along
    which the mother is narrower. ``before`` is what the slice before this one had: it is kept until
    the other direction is clearly better (``SWAP_BELOW``), so that a head about half way between
    does not make every slice change sides.
    """
    widths: dict[Phase, float] = dict(
        zip(("row", "column"), body_widths_mm(row, column), strict=True)  # type: ignore[arg-type]
    )
    best: Phase = "row" if widths["row"] < widths["column"] else "column"
    if before is not None and widths[best] > SWAP_BELOW * widths[before]:
        best = before
    return best, widths[best]


def next_centre_mm(
    head_mm: ArrayLike, last_mm: ArrayLike | None, step_mm: float
) -> NDArray[np.float64]:
    """Middle (3,) of the next navigator's field of view, in the frame of ``head_mm``, mm.

    It goes to the brain's centre ``head_mm``, but no further than ``step_mm`` from ``last_mm``,
    where the last one lay, so that one wrong pose cannot lose the head. None: there was none.

    >>> next_centre_mm([50.0, 0, 0], [0.0, 0, 0], step_mm=20.0).tolist()
    [20.0, 0.0, 0.0]
    """
    head = np.array(head_mm, dtype=np.float64)
    if last_mm is None:
        return head
    last = np.asarray(last_mm, dtype=np.float64)
    way = float(np.linalg.norm(head - last))
    return head if way <= step_mm else last + (head - last) * (step_mm / way)
