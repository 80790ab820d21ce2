"""How far a pose may be off, where the network does not tell: from its confidence."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Noise(NamedTuple):
    """How far a pose may be off: 68 % radii, and how likely it is quite wrong (0..1)."""

    rotation_sd_deg: float
    translation_sd_mm: float
    wrong_share: float


def expected_noise(confidence: float, status: str = "ok") -> Noise:
    """The noise of a pose that only its confidence (0..1) is known of.

    The radius that 68 % of the errors lie within, between what was seen on phantoms (3.1 degrees
    and 1.0 mm, n = 134 navigators) and on real navigators, whose truth is itself uncertain
    (docs/performance.md), with the weights of 0.8.0; and how often a pose may be off by more than
    30 degrees. Interpolated in the confidence.

    >>> expected_noise(1.0)
    Noise(rotation_sd_deg=5.0, translation_sd_mm=2.5, wrong_share=0.005)
    """
    known = (0.6, 0.95, 1.0)
    share = float(np.interp(confidence, known, (0.25, 0.02, 0.005)))
    return Noise(
        float(np.interp(confidence, known, (12.0, 6.0, 5.0))),
        float(np.interp(confidence, known, (6.0, 3.0, 2.5))),
        share if status == "ok" else max(share, 0.05),
    )
