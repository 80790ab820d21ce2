"""Shape of the fetal head from 18 to 38 weeks, as implicit functions.

Head frame: origin at the brain's centre of mass, +x right, +y anterior, +z superior, mm. The shapes
are described in the model frame, which has the same axes and its origin at the cerebrum's centre:
p_model = p_head + brain_centre_mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .shapes import Floats, Grid, WaveField, capsule, cover, ellipsoid, smooth_union

AGE_RANGE_WEEKS = (20.0, 38.0)  # by default
KNOWN_WEEKS = (18.0, 38.0)
_WEEKS = np.arange(14, 40)
# Means by completed week, 14 to 39: Snijders and Nicolaides, Ultrasound Obstet Gynecol 1994.
_BPD_MM = [28, 31, 34, 36, 39, 42, 45, 48, 51, 54, 57, 60, 63, 66, 69, 72]
_BPD_MM += [74, 77, 79, 81, 83, 85, 86, 87, 88, 89]
_OFD_MM = [35, 39, 42, 46, 50, 54, 57, 61, 65, 69, 73, 77, 81, 84, 87, 91]
_OFD_MM += [94, 96, 99, 101, 103, 105, 106, 107, 107, 107]


def biparietal_mm(ga_weeks: float) -> float:
    """Mean biparietal diameter in mm at a gestational age (Snijders and Nicolaides 1994)."""
    return float(np.interp(ga_weeks, _WEEKS, _BPD_MM))


def occipitofrontal_mm(ga_weeks: float) -> float:
    """Mean occipitofrontal diameter in mm at a gestational age (Snijders and Nicolaides 1994)."""
    return float(np.interp(ga_weeks, _WEEKS, _OFD_MM))


def eye_diameter_mm(ga_weeks: float) -> float:
    """Mean diameter of the globe in mm (Robinson et al. 2008)."""
    return 0.47 * ga_weeks - 0.7


def eye_distance_mm(ga_weeks: float) -> float:
    """Mean distance between the centres of the globes in mm (Robinson et al. 2008)."""
    return 1.00 * ga_weeks + 2.46


@dataclass
class Head:
    """Parameters of one head; lengths in mm, `eyes_mm` (right, left) in the head frame."""

    ga_weeks: float
    bpd_mm: float
    ofd_mm: float
    radii_mm: tuple[float, float, float]
    taper: float
    bossing: float
    occiput: float
    squareness: float
    fossa: float
    csf_mm: float
    skull_mm: float
    scalp_mm: float
    ventricle_mm: float
    septum_mm: float
    fissure_mm: float
    sylvian: float
    sulcus_mm: float
    jaw: float
    lens_side: float
    eyes_mm: np.ndarray
    eye_radius_mm: float
    warp: WaveField
    asymmetry: WaveField
    folds: WaveField
    brain_centre_mm: np.ndarray

    @classmethod
    def draw(cls, random: np.random.RandomState, ga_weeks: float) -> Head:
        """Random head of an age; see the comments for every range (uniform unless said)."""
        grown = (ga_weeks - 20) / 18
        # Size +-5 %; cephalic index: width and length scaled by up to 8 % against each other.
        size, index = random.uniform(0.95, 1.05), random.uniform(-0.08, 0.08)
        bpd = biparietal_mm(ga_weeks) * size * (1 + 0.6 * index)
        ofd = occipitofrontal_mm(ga_weeks) * size * (1 - 0.4 * index)
        height = 0.46 * bpd * random.uniform(0.95, 1.08)
        # Eyes: 30 +- 4 degrees below the horizontal, 0.93 OFD / 2 +- 6 % away, then per-eye
        # jitter of deviation 0.4 mm.
        below, far = np.deg2rad(random.uniform(26, 34)), random.uniform(0.94, 1.06)
        middle = 0.93 * ofd / 2 * far * np.array([0, np.cos(below), -np.sin(below)])
        half = 0.5 * eye_distance_mm(ga_weeks) * size * random.uniform(0.94, 1.06)
        eyes = middle + np.multiply([[1.0], [-1.0]], (half, 0, 0))
        eyes += random.normal(scale=0.4, size=(2, 3))
        head = cls(
            ga_weeks=ga_weeks,
            bpd_mm=bpd,
            ofd_mm=ofd,
            radii_mm=(bpd / 2 - 2.5, ofd / 2 - 2.5, height),
            taper=random.uniform(0.04, 0.20),  # narrowing of the frontal lobes
            bossing=random.uniform(-0.06, 0.10),  # upper forehead forward
            occiput=random.uniform(-0.08, 0.06),  # flat to bulging
            squareness=random.uniform(2.0, 2.4),  # exponent of the skull's superellipsoid
            fossa=random.uniform(0.90, 1.10) * (0.90 + 0.12 * grown),
            csf_mm=random.uniform(1.0, 2.2) + 1.8 * (1 - grown) * random.uniform(0.3, 1),
            skull_mm=random.uniform(1.2, 2.2) + 0.8 * grown,
            scalp_mm=random.uniform(1.8, 3.2) + 1.2 * grown,
            ventricle_mm=random.uniform(2.6, 4.6),  # radius at the atrium
            septum_mm=random.uniform(0.8, 3.0) * (1.0 if ga_weeks < 36 else 0.5),
            fissure_mm=random.uniform(0.6, 1.8),
            sylvian=max(0.05, 0.24 - 0.22 * grown) * random.uniform(0.7, 1.2),
            sulcus_mm=10 * min(max((ga_weeks - 23) / 13, 0), 1) * random.uniform(0.7, 1.2),
            jaw=random.uniform(0.85, 1.15),
            lens_side=random.uniform(-0.5, 0.5),
            eyes_mm=eyes,
            eye_radius_mm=eye_diameter_mm(ga_weeks) / 2 * size,
            # Symmetric deformation, deviation 0.5-1.5 % of OFD; asymmetric, a quarter of it.
            warp=WaveField.draw(
                random,
                12,
                (0.7 * ofd, 2.0 * ofd),
                [ofd * random.uniform(0.005, 0.015)] * 3,
                mirror=(-1, 1, 1),
            ),
            asymmetry=WaveField.draw(
                random, 8, (0.7 * ofd, 2.0 * ofd), [ofd * random.uniform(0.001, 0.005)] * 3
            ),
            # Sulci run where this field is near zero; mostly symmetric.
            folds=WaveField.draw(random, 24, (13, 24), [1.0], mirror=(1,)),
            brain_centre_mm=np.zeros(3),
        )
        head.brain_centre_mm = head._moments()[0]
        return head

    @property
    def reach_mm(self) -> float:
        """Radius of a ball about the brain's centre that holds the skull, in mm."""
        return 0.5 * self.ofd_mm + 12

    @property
    def bounds_mm(self) -> tuple[np.ndarray, np.ndarray]:
        """Centre and semi-axes, in the head frame, of an ellipsoid that holds head and face."""
        return np.multiply((0, 0.05, -0.09), self.ofd_mm), np.multiply(
            (0.60, 0.74, 0.82), self.ofd_mm
        )

    def brain_spread_mm(self) -> np.ndarray:
        """(3,) deviation of the brain about its centre along the axes of the head, mm."""
        centre, square = self._moments()
        return np.sqrt(square - centre**2)

    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and mean square of the brain in the model frame, mm, from a 1.5 mm grid."""
        half = 0.5 * self.ofd_mm * np.array([0.95, 1.15, 1.15])
        shape = np.ceil(half / 0.75).astype(int)
        affine = np.diag([1.5, 1.5, 1.5, 1.0])
        affine[:3, 3] = -0.75 * (shape - 1)
        affine[2, 3] -= 0.08 * self.ofd_mm
        grid = Grid(affine, (int(shape[0]), int(shape[1]), int(shape[2])))
        x, y, z = grid.coordinates(np.eye(4))
        xs, ys, zs = self.warped(grid, np.eye(4))
        share = cover(self.brain(xs, ys, zs), 1.5)
        weight = float(share.sum(dtype=np.float64))
        first, second = (
            np.array([float((q**n * share).sum(dtype=np.float64)) / weight for q in (x, y, z)])
            for n in (1, 2)
        )
        return first, second

    def warped(self, grid: Grid, model_from_grid: np.ndarray) -> tuple[Floats, Floats, Floats]:
        """Voxel positions in the model frame after the head's own smooth deformation, mm."""
        moved = self.warp.on_grid(grid, model_from_grid)
        moved += self.asymmetry.on_grid(grid, model_from_grid)
        x, y, z = (q + d for q, d in zip(grid.coordinates(model_from_grid), moved, strict=True))
        return x, y, z

    def vault(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Distance to the egg-shaped superellipsoid of the cranial vault, before its base."""
        a, b, c = self.radii_mm
        u = np.abs(x) / (a * (1.0 - self.taper * np.clip(y / b, -1, 1.2)))
        back = np.where(y > 0, 1 + self.bossing * np.clip(z / c, -1, 1), 1 + self.occiput)
        v, w = np.abs(y) / (b * back), np.abs(z) / c
        n = self.squareness
        size = (u**n + v**n + w**n + 1e-9) ** np.float32(1 / n)
        slope = np.sqrt((u / a) ** 2 + (v / b) ** 2 + (w / c) ** 2) + 1e-6
        distance: Floats = (size - 1) * np.sqrt(u * u + v * v + w * w) / slope
        return distance

    def brain(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Distance to the skull's inner table: what is labelled brain. Warped model frame."""
        a, b, c = self.radii_mm
        side = np.abs(x)
        vault = self.vault(x, y, z)
        # Floor of the anterior fossa, rising to the front; the middle hangs lower.
        floor = (0.16 * y - z - (0.60 * c + 0.056 * b)).astype(np.float32, copy=False)
        inside = -smooth_union(-vault, -floor, 6.0)
        temporal = ellipsoid(
            side, y, z, (0.54 * a, 0.14 * b, -0.50 * c), (0.38 * a, 0.46 * b, 0.44 * c)
        )
        inside = smooth_union(inside, temporal, 4.0)
        inside = smooth_union(inside, self.posterior_fossa(x, y, z), 4.0)
        stem = capsule(x, y, z, *self.stem_ends(), (0.24 * a, 0.17 * a))
        inside = smooth_union(inside, stem, 4.0)
        # The petrous ridges part the temporal lobes from the cerebellum.
        petrous = capsule(
            side,
            y,
            z,
            (0.28 * a, 0.00 * b, -0.90 * c),
            (0.85 * a, -0.24 * b, -0.84 * c),
            (0.13 * c, 0.15 * c),
        )
        return np.maximum(inside, -petrous)

    def posterior_fossa(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Distance to the space under the tentorium, its roof being the tentorium."""
        (a, b, c), f = self.radii_mm, self.fossa
        return ellipsoid(
            x, y, z, (0, -0.42 * b, -0.70 * c), (0.80 * a * f, 0.43 * b * f, 0.58 * c * f)
        )

    def cerebrum(self, x: Floats, y: Floats, z: Floats, inner: Floats) -> Floats:
        """Distance to the pial surface of the hemispheres; `inner`: `brain` at the same points."""
        stem = capsule(
            x, y, z, *self.stem_ends(), (0.26 * self.radii_mm[0], 0.22 * self.radii_mm[0])
        )
        below = np.minimum(self.posterior_fossa(x, y, z), stem)
        return np.maximum(inner + self.csf_mm, 0.5 - below)

    def stem_ends(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Midbrain and foramen magnum in the model frame, mm."""
        _, b, c = self.radii_mm
        return (0.0, -0.08 * b, -0.42 * c), (0.0, -0.22 * b, -1.38 * c)

    def clefts(self, x: Floats, y: Floats, z: Floats, pia: Floats, fold: Floats) -> Floats:
        """Distance to what fluid fills between the hemispheres, Sylvian fissures and sulci.

        `pia` is `cerebrum` at the same points and `fold` the field whose zeros are the sulci.
        """
        a, b, c = self.radii_mm
        # The fissure is open except where the callosum and the brain's centre join the halves.
        joined = ellipsoid(x * 0, y, z, (0, 0.02 * b, -0.08 * c), (a, 0.50 * b, 0.46 * c))
        cleft = np.maximum(np.abs(x) - self.fissure_mm / 2, -joined)
        sylvian = ellipsoid(
            np.abs(x),
            y,
            z - 0.25 * (y - 0.05 * b) * 0.4,
            (0.98 * a, 0.10 * b, -0.16 * c),
            (0.30 * a, 0.32 * b, max(self.sylvian, 0.05) * c),
        )
        cleft = np.minimum(cleft, sylvian)
        if self.sulcus_mm > 0.5:
            # 17 mm is the mean wavelength: |grad| is about 2 pi / 17 per mm.
            sulcus = np.abs(fold) * np.float32(17 / (2 * np.pi)) - 0.5
            cleft = np.minimum(cleft, np.maximum(sulcus, -pia - self.sulcus_mm))
        return cleft
