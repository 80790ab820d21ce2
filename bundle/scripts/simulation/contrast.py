"""Tissue intensities of T2-like and EPI-like images, and what the scanner adds to them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.ndimage import gaussian_filter1d

from .shapes import Floats, Grid, WaveField

CONTRASTS = ("t2", "epi", "mixed", "bssfp", "random")
DRAWN = CONTRASTS[:3]  # of which one is drawn where none is asked for

# Range of the signal, relative to white matter, in T2-weighted HASTE and in T2*-weighted
# fat-suppressed EPI. Chosen by eye, not measured: T2 from how fetal HASTE generally looks, EPI by
# comparison with whole-uterus fetal EPI, whose brain is nearly uniform, veins, skull and skull base
# dark, and fluid brighter than the brain.
TISSUES: Mapping[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "white": ((1.00, 1.12), (0.96, 1.04)),
    "subplate": ((1.08, 1.25), (0.98, 1.06)),
    "cortex": ((0.68, 0.85), (0.88, 1.02)),
    "deep grey": ((0.72, 0.88), (0.84, 0.98)),
    "callosum": ((0.75, 0.92), (0.70, 0.92)),
    "cerebellum": ((0.82, 1.05), (0.92, 1.08)),
    "brainstem": ((0.70, 0.90), (0.86, 1.00)),
    "csf": ((1.90, 2.60), (0.75, 1.20)),
    "fissure": ((1.40, 2.30), (0.40, 1.10)),
    "vein": ((0.15, 0.50), (0.10, 0.40)),
    "skull": ((0.12, 0.35), (0.08, 0.30)),
    "skull base": ((0.20, 0.45), (0.05, 0.28)),
    "scalp": ((0.80, 1.50), (0.25, 0.60)),
    "face": ((0.55, 0.95), (0.22, 0.55)),
    "muscle of face": ((0.45, 0.75), (0.35, 0.85)),
    "eye": ((1.90, 2.60), (0.95, 1.60)),
    "lens": ((0.20, 0.50), (0.20, 0.60)),
    "orbit": ((0.40, 1.10), (0.12, 0.40)),
    "nasal cavity": ((0.35, 1.50), (0.08, 0.45)),
    "oral fluid": ((1.60, 2.40), (0.60, 1.40)),
    "cord csf": ((1.60, 2.40), (0.70, 1.20)),
    "spinal cord": ((0.80, 1.10), (0.60, 0.95)),
    "fetal bone": ((0.20, 0.45), (0.10, 0.32)),
    "fetal soft tissue": ((0.60, 1.05), (0.35, 0.75)),
    "lung": ((1.10, 1.90), (0.60, 1.25)),
    "liver": ((0.45, 0.75), (0.25, 0.55)),
    "heart": ((0.15, 0.50), (0.25, 0.90)),
    "fetal urine": ((2.20, 2.80), (1.30, 2.20)),
    "cord": ((0.60, 1.20), (0.40, 1.00)),
    "flowing blood": ((0.10, 0.30), (0.08, 0.60)),
    "amniotic fluid": ((2.20, 2.90), (1.05, 2.40)),
    "placenta": ((1.00, 1.60), (0.70, 1.50)),
    "uterus": ((0.50, 0.95), (0.30, 0.75)),
    "fat": ((1.20, 2.00), (0.03, 0.15)),
    "skin": ((0.50, 1.00), (0.10, 0.30)),
    "muscle": ((0.25, 0.50), (0.10, 0.32)),
    "viscera": ((0.40, 0.90), (0.08, 0.35)),
    "bowel low": ((0.10, 0.50), (0.01, 0.10)),
    "bowel high": ((1.20, 2.40), (0.40, 1.20)),
    "organ": ((0.40, 0.80), (0.15, 0.45)),
    "vertebra": ((0.40, 0.80), (0.08, 0.30)),
    "urine": ((2.20, 2.80), (1.10, 2.20)),
}


def draw_intensities(random: np.random.RandomState, contrast: str) -> dict[str, float]:
    """Signal of every tissue, relative to white matter.

    Each is uniform in its range for "t2" and for "epi"; for "mixed" the two are interpolated in
    the logarithm with one weight, uniform in [0.15, 0.85], and each tissue is multiplied by a
    log-normal factor of deviation 0.2. "bssfp" is "t2" with its contrast halved and bright blood:
    balanced SSFP has T2 / T1. "random" is domain randomisation: every tissue is log-uniform in
    [0.1, 3], so that no contrast is a surprise.
    """
    if contrast == "random":
        return {tissue: float(np.exp(random.uniform(*np.log([0.1, 3])))) for tissue in TISSUES}
    weights = {"t2": 0.0, "bssfp": 0.0, "epi": 1.0, "mixed": float(random.uniform(0.15, 0.85))}
    weight = weights[contrast]
    intensities = {}
    for tissue, (t2, epi) in TISSUES.items():
        low, high, spread = np.log(random.uniform(*t2)), np.log(random.uniform(*epi)), 0.0
        if contrast == "mixed":
            spread = 0.2 * random.normal()
        if contrast == "bssfp":
            low *= 0.5
        intensities[tissue] = float(np.exp((1 - weight) * low + weight * high + spread))
    if contrast == "bssfp":
        for tissue in ("vein", "flowing blood", "heart"):
            intensities[tissue] = float(random.uniform(1.2, 2.0))
    return intensities


def sensitivity(
    random: np.random.RandomState, grid: Grid, front: np.ndarray, aim_mm: np.ndarray, voids: bool
) -> Floats:
    """Logarithm of the coils' sensitivity on a grid, and of the signal left; float32 (i, j, k).

    A smooth field of deviation uniform in [0.05, 0.35], wavelengths log-uniform in [300, 900] mm,
    and a fall-off away from the surface coil, uniform in [0, 0.008] per mm, along `front`, the
    (3,) unit vector towards the mother's front, give or take a normal angle of about 30 degrees.
    With `voids`, the signal lost in EPI next to gas: 0 to 3 Gaussian holes of deviation 12..40 mm
    with a factor of exp(-3..-0.5) in their middle, normally spread by 90 mm about `aim_mm`.
    """
    field = WaveField.draw(random, 6, (300.0, 900.0), [random.uniform(0.05, 0.35)])
    towards = front + random.normal(scale=0.4, size=3)
    towards *= random.uniform(0, 0.008) / np.linalg.norm(towards)
    i, j, k = (t @ towards for t in grid.ticks(np.eye(4)))
    log = field.on_grid(grid, np.eye(4))[0]
    log += (i[:, None, None] + j[:, None] + k).astype(np.float32)
    log -= log.mean()
    for _ in range(int(random.randint(4)) if voids else 0):
        centre, width = aim_mm + random.normal(scale=90, size=3), random.uniform(12, 40)
        # A Gaussian on an orthogonal grid is a product of one factor per axis.
        gi, gj, gk = _gaussians(grid, centre, width)
        log -= np.float32(random.uniform(0.5, 3.0)) * gi[:, None, None] * gj[:, None] * gk
    return log


def _gaussians(grid: Grid, centre: np.ndarray, width_mm: float) -> list[Floats]:
    """Per grid axis the factor of a Gaussian of this deviation about a point of the world."""
    middle = np.linalg.solve(grid.affine, [*centre, 1.0])[:3]
    return [
        np.exp(-0.5 * ((np.arange(n) - m) * v / width_mm) ** 2).astype(np.float32)
        for n, m, v in zip(grid.shape, middle, grid.voxel_mm, strict=True)
    ]


def acquire(random: np.random.RandomState, signal: Floats, grid: Grid, coil: Floats) -> Floats:
    """Image of a signal: point spread, coil, ghost, Rician noise; the range is left as it is.

    Gaussian point spread of deviation uniform in [0.25, 0.55] voxels per axis; N/2 ghost along one
    of the first two axes, share uniform in [0, 0.04], in half of the images; noise deviation
    log-uniform in [0.01, 0.1] of the white matter's signal.

    Parameters
    ----------
    signal, coil : float32 (i, j, k); `coil` is the logarithm of the sensitivity.
    """
    image = signal
    for axis in range(3):
        sigma = random.uniform(0.25, 0.55)
        image = gaussian_filter1d(image, sigma, axis=axis, mode="nearest", radius=1)
    image *= np.exp(coil)
    axis, share = int(random.randint(2)), float(random.uniform(0.0, 0.04))
    if random.uniform() < 0.5:
        image = image + share * np.roll(image, grid.shape[axis] // 2, axis=axis)
    deviation = float(np.exp(random.uniform(np.log(0.01), np.log(0.1))))
    real, imaginary = (
        random.standard_normal(image.shape).astype(np.float32) * deviation for _ in range(2)
    )
    return np.hypot(image + real, imaginary)
