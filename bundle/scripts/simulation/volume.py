"""Synthetic fetal MRI with known head pose: a head in its fetus, uterus and mother.

Everything is an implicit function evaluated at the voxels of the final grid, so nothing is
resampled. World is RAS mm as nibabel gives it; `head_to_world` is the pose of the head frame
(origin at the brain's centre of mass, +x the fetus's right, +y anterior, +z superior, mm).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from monai.transforms import Randomizable
from numpy.typing import NDArray

from ..labels import UNKNOWN
from .anatomy import AGE_RANGE_WEEKS, KNOWN_WEEKS, Head
from .atlas import Interior, chosen_ages, draw_interior
from .contrast import CONTRASTS, DRAWN, acquire, draw_intensities, sensitivity
from .fetus import Fetus, random_rotation, rigid, rotation
from .head import paint_head
from .mother import Mother
from .shapes import Canvas, Grid, WaveField
from .stack import SEQUENCES, SliceMotion, draw_motion, draw_plan

_AXES = ("LR", "PA", "IS")
AXCODES = tuple(
    "".join(pair[sign] for pair, sign in zip(order, signs, strict=True))
    for order in itertools.permutations(_AXES)
    for signs in itertools.product((0, 1), repeat=3)
)
VOXEL_RANGE_MM = (1.0, 10.0)
MAX_VOXELS = 1_700_000
MAX_STACK_VOXELS = 7_000_000


@dataclass
class Phantom:
    """One synthetic volume and its truth.

    image (i, j, k) int16; label (i, j, k) uint8: 0 background, 1 brain, 2 eyes, 255 brain and eyes
    of a twin; affine (4, 4) voxel to world; head_to_world (4, 4) rigid, or None without a head;
    right_eye_mm and left_eye_mm (3,) in the head frame, None without a head; twin_to_world (4, 4)
    as head_to_world, of the twin's head, None without a twin.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]
    head_to_world: NDArray[np.float64] | None
    ga_weeks: float
    right_eye_mm: NDArray[np.float64] | None
    left_eye_mm: NDArray[np.float64] | None
    contrast: str
    twin_to_world: NDArray[np.float64] | None = None


@dataclass
class Anatomy:
    """What a phantom shows: world_from_mother and head_to_world are (4, 4), rigid, mm."""

    ga_weeks: float
    mother: Mother
    world_from_mother: NDArray[np.float64]
    fetus: Fetus
    head_to_world: NDArray[np.float64]
    texture: WaveField


class PhantomGenerator(Randomizable):
    """Draws phantoms; all randomness comes from `self.R`.

    Parameters
    ----------
    ga_weeks : range of gestational ages in weeks, uniform, within 18..38.
    contrast : one of ``contrast.CONTRASTS``; None draws "t2", "epi" and "mixed" with probability
        0.25, 0.5 and 0.25, or what goes with the sequence.
    axcodes : orientation of the voxel axes, such as "LPS"; None draws one of the 48.
    voxel_mm : voxel size in mm along i, j, k, within 1..10; None draws it.
    shape : voxels along i, j, k; None draws a field of view.
    sequence : "haste" or "bssfp", stacks of slices between which the head moves (stack.py); None
        for volumes like EPI, at rest; "varied" draws HASTE (0.6), bSSFP (0.15) and volumes like
        EPI (0.25), the contrast of all of the last and of a third of the others being "random".
    coarsen : factor of the slices' in-plane voxel.
    brains : folder of an atlas (atlas.py) whose brains the heads get in place of their own.
    brain_weeks : the ages of it that are taken.

    Raises
    ------
    ValueError
        For a value outside its range.
    FileNotFoundError
        For an atlas that is not there.
    """

    def __init__(
        self,
        ga_weeks: tuple[float, float] = AGE_RANGE_WEEKS,
        contrast: str | None = None,
        axcodes: str | None = None,
        voxel_mm: Sequence[float] | None = None,
        shape: Sequence[int] | None = None,
        sequence: str | None = None,
        coarsen: float = 1.0,
        brains: str | os.PathLike[str] | None = None,
        brain_weeks: Sequence[int] = (),
    ) -> None:
        low, high = KNOWN_WEEKS
        if len(ga_weeks) != 2 or not low <= ga_weeks[0] <= ga_weeks[1] <= high:
            raise ValueError(f"ga_weeks must lie in {low:g}..{high:g} weeks, got {ga_weeks}")
        if contrast is not None and contrast not in CONTRASTS:
            raise ValueError(f"contrast must be one of {CONTRASTS} or None, got {contrast!r}")
        if axcodes is not None and axcodes not in AXCODES:
            raise ValueError(f"axcodes must be an orientation such as 'RAS', got {axcodes!r}")
        if voxel_mm is not None and (
            len(voxel_mm) != 3
            or not all(VOXEL_RANGE_MM[0] <= v <= VOXEL_RANGE_MM[1] for v in voxel_mm)
        ):
            raise ValueError(f"voxel_mm must be 3 sizes in {VOXEL_RANGE_MM} mm, got {voxel_mm}")
        if shape is not None and (len(shape) != 3 or min(shape) < 1):
            raise ValueError(f"shape must be 3 positive numbers, got {shape}")
        if sequence is not None and sequence not in (*SEQUENCES, "varied"):
            known = (*SEQUENCES, "varied")
            raise ValueError(f"sequence must be one of {known} or None, got {sequence!r}")
        if not 1 <= coarsen <= 4:
            raise ValueError(f"coarsen must lie in 1..4, got {coarsen}")
        if (brains is None) != (not brain_weeks):
            raise ValueError(
                f"brains and brain_weeks go together, got {brains} and {list(brain_weeks)}"
            )
        self.brains = {} if brains is None else chosen_ages(brains, brain_weeks)
        self.ga_weeks = ga_weeks
        self.contrast = contrast
        self.sequence, self.coarsen = sequence, coarsen
        self.axcodes = axcodes
        self.voxel_mm = voxel_mm
        self.shape = shape

    def __call__(self, head: bool = True, twin: bool = False) -> Phantom:
        """A new phantom; without `head` the uterus is empty and the label all 0.

        With `twin` a second fetus of the same age lies beside the first, with a brain of the
        phantom's own. ValueError for a twin without a head.
        """
        if twin and not head:
            raise ValueError("a twin lies beside a fetus with a head, got head=False")
        anatomy = self.draw_anatomy()
        second = [self._beside(anatomy)] if twin else []
        mother, world_from_mother = anatomy.mother, anatomy.world_from_mother
        fetus, head_to_world, texture = anatomy.fetus, anatomy.head_to_world, anatomy.texture
        shape, ga_weeks = fetus.head, anatomy.ga_weeks
        # One draw for everything that follows keeps the anatomy free of the acquisition's options.
        contrast = str(self.R.choice(DRAWN, p=[0.25, 0.5, 0.25]))
        sequence = self.sequence
        if sequence == "varied":
            draw = self.R.uniform()
            sequence = "haste" if draw < 0.6 else "bssfp" if draw < 0.75 else None
        if sequence is not None:
            contrast = {"haste": "t2", "bssfp": "bssfp"}[sequence]
        if self.sequence == "varied" and (sequence is None or self.R.uniform() < 1 / 3):
            contrast = "random"
        contrast = self.contrast or contrast
        aim = head_to_world[:3, 3] if head else world_from_mother[:3, 3]
        grid = self._draw_grid(aim, world_from_mother[:3, 3], shape.reach_mm, contrast, sequence)
        tissue = draw_intensities(self.R, contrast)

        canvas = Canvas(grid, np.zeros(grid.shape, np.float32), texture.on_grid(grid, np.eye(4))[0])
        label = np.zeros(grid.shape, np.uint8)
        # Half of the volumes without a head show a trunk and limbs.
        body = head or self.R.uniform() < 0.5
        fetuses = [*second, (fetus, head_to_world)] if body else []
        mother.paint(canvas, world_from_mother, tissue, fetuses)
        for one, pose in fetuses:
            one.paint(canvas, pose, tissue)
        gain = np.ones(grid.shape[2], np.float32)
        interior = None
        if head and self.brains:
            interior = draw_interior(self.R, self.brains, shape, contrast, tissue)
        for one, pose in fetuses if head else []:
            first = one is fetus
            marks = label if first else np.zeros_like(label)
            inside = interior if first else None
            if sequence is None:
                _paint_head(canvas, marks, one, pose, tissue, texture, inside)
            else:
                motion = draw_motion(self.R, grid.shape[2], _slices_with(grid, pose, one.head))
                gain = motion.gain.astype(np.float32)  # of a stack: the first's, which comes last
                _paint_moving_head(canvas, marks, one, pose, motion, tissue, texture, inside)
            if not first:
                label[marks > 0] = UNKNOWN
        voids = contrast != "t2" and sequence is None
        coil = sensitivity(self.R, grid, world_from_mother[:3, 1], aim, voids)
        image = acquire(self.R, canvas.value * gain, grid, coil)
        # Scaled so that the brightest voxel is log-uniform in 500..3000.
        top = float(np.exp(self.R.uniform(np.log(500), np.log(3000))))
        image *= top / max(float(image.max()), 1e-6)
        return Phantom(
            image=np.round(image).astype(np.int16),
            label=label,
            affine=grid.affine,
            head_to_world=head_to_world if head else None,
            ga_weeks=ga_weeks,
            right_eye_mm=shape.eyes_mm[0] if head else None,
            left_eye_mm=shape.eyes_mm[1] if head else None,
            contrast=contrast,
            twin_to_world=second[0][1] if second else None,
        )

    def draw_anatomy(self) -> Anatomy:
        """A mother and a fetus in her, to be painted on any grid."""
        ga_weeks = float(self.R.uniform(*self.ga_weeks))
        mother = Mother.draw(self.R, ga_weeks)
        # The mother lies at up to +-20 degrees about each axis, her uterus off the isocentre.
        lying = [rotation(axis, self.R.uniform(-20, 20)) for axis in range(3)]
        world_from_mother = rigid(lying[0] @ lying[1] @ lying[2], self.R.uniform(-30, 30, size=3))
        shape = Head.draw(self.R, ga_weeks)
        fetus = Fetus.draw(self.R, shape)
        head_to_world = self._place(mother, world_from_mother, fetus)
        texture = WaveField.draw(self.R, 64, (10, 90), [1.0])
        return Anatomy(ga_weeks, mother, world_from_mother, fetus, head_to_world, texture)

    def _place(
        self, mother: Mother, world_from_mother: NDArray[np.float64], fetus: Fetus
    ) -> NDArray[np.float64]:
        """(4, 4) head_to_world: any rotation; the position leaves room for the trunk."""
        turn = random_rotation(self.R)
        uterus = world_from_mother[:3, :3] @ mother.uterus_turn
        free = np.maximum(mother.uterus_radii_mm - 0.5 * fetus.head.bpd_mm, 5.0)
        # Away from the trunk, by a share of the free path uniform in 0.4..1.1; normal jitter.
        away = uterus.T @ turn @ fetus.body_to_head[:3, 2]
        offset = away * self.R.uniform(0.4, 1.1) + self.R.normal(scale=0.3, size=3)
        offset /= max(1.0, float(np.linalg.norm(offset)))
        return rigid(turn, world_from_mother[:3, 3] + uterus @ (free * offset))

    def _beside(self, anatomy: Anatomy) -> tuple[Fetus, NDArray[np.float64]]:
        """A second fetus and its head_to_world: any way round, close to the first.

        Between them are 2-15 mm of fluid at least. Of 16 directions that in which its head comes to
        lie nearest to the uterus's centre.
        """
        twin = Fetus.draw(self.R, Head.draw(self.R, anatomy.ga_weeks))
        turn = random_rotation(self.R)
        apart_mm = self.R.uniform(2, 15)
        directions = self.R.normal(size=(16, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        first = anatomy.head_to_world
        (own, own_mm), (others, others_mm) = anatomy.fetus.balls_mm(), twin.balls_mm()
        own, others = own @ first[:3, :3].T, others @ turn.T
        moved = np.arange(2, 600, 2)[:, None] * directions[:, None]  # (directions, steps, 3)
        between = others + moved[:, :, None, None] - own[:, None]
        least = own_mm[:, None] + others_mm + apart_mm
        clear = (np.linalg.norm(between, axis=-1) >= least).all(axis=(2, 3))
        free = first[:3, 3] + moved[np.arange(len(moved)), clear.argmax(axis=1)]
        off_mm = np.linalg.norm(free - anatomy.world_from_mother[:3, 3], axis=1)
        place = free[off_mm.argmin()]
        return twin, rigid(turn, place)

    def _draw_grid(
        self,
        aim: NDArray[np.float64],
        uterus: NDArray[np.float64],
        reach_mm: float,
        contrast: str,
        sequence: str | None,
    ) -> Grid:
        """Voxel grid around the head, world mm.

        Orientation uniform over the 48; in 3 of 4 oblique by normal angles about each axis, of
        deviation 9 and at most 12 degrees, together up to about 20.
        The centre lies between the uterus's and the head's, and moves so that the head is inside
        as far as it fits; in 8 % of the volumes the edge may cut off up to 40 % of its radius.
        """
        random = self.R
        kind = random.uniform()
        cut = 0.08
        if sequence is not None:
            plan = draw_plan(random, self.coarsen)
            voxel, size, cut = plan.voxel_mm, plan.size, 0.2
        elif kind < 0.2:  # navigator: 3D EPI with 64 x 64 voxels
            voxel = np.full(3, random.uniform(5.3, 6.3))
            size = np.array([64, 64, random.randint(24, 37)])
        else:  # slices: field of view uniform in 300..480 mm in plane, 110..300 mm across
            if kind < 0.45:
                voxel = np.array([3.0, 3.0, 4.5])
            elif kind < 0.7:
                voxel = np.array([3.0, 3.0, 3.0])
            else:
                plane = random.uniform(2.5, 4.5)
                voxel = np.array([plane, plane, random.uniform(plane, 6.5)])
            extent = np.array([random.uniform(300, 480)] * 2 + [random.uniform(110, 300)])
            size = np.round(extent / voxel).astype(int)
        if self.voxel_mm is not None:
            size = np.maximum(np.round(size * voxel / self.voxel_mm), 8).astype(int)
            voxel = np.asarray(self.voxel_mm, dtype=np.float64)
        size[:2] = np.minimum(size[:2], 192 if sequence is None else 384)
        most = MAX_VOXELS if sequence is None else MAX_STACK_VOXELS
        size[2] = max(8, min(int(size[2]), most // int(size[0] * size[1])))
        if self.shape is not None:
            size = np.asarray(self.shape, dtype=int)
        axcodes = self.axcodes or AXCODES[random.randint(len(AXCODES))]
        frame = np.zeros((3, 3))
        for axis, code in enumerate(axcodes):
            row = next(n for n, pair in enumerate(_AXES) if code in pair)
            frame[row, axis] = 1.0 if code in "RAS" else -1.0
        tilt = np.clip(random.normal(scale=9.0, size=3), -12, 12) * (random.uniform() < 0.75)
        oblique = rotation(0, tilt[0]) @ rotation(1, tilt[1]) @ rotation(2, tilt[2])
        axes = oblique @ frame

        half = 0.5 * voxel * size
        blend = random.uniform(0, 1)
        centre = (
            blend * aim + (1 - blend) * uterus + axes @ (random.normal(scale=0.08, size=3) * half)
        )
        slack = half - reach_mm * (0.6 if random.uniform() < cut else 1.0)
        to_head = axes.T @ (aim - centre)
        inside = np.clip(to_head, -np.maximum(slack, 0), np.maximum(slack, 0))
        centre += axes @ (to_head - inside)
        affine = np.eye(4)
        affine[:3, :3] = axes * voxel
        affine[:3, 3] = centre - affine[:3, :3] @ ((size - 1) / 2)
        # Interleaved slices: every second one displaced, in a third of the EPI-like volumes.
        jump = axes @ (random.normal(size=3) * [1, 1, 0.3]) * random.uniform(0.2, 1.5)
        shift = None
        if sequence is None and contrast != "t2" and random.uniform() < 0.33:
            shift = np.where(np.arange(size[2])[:, None] % 2, 0.5, -0.5) * jump
        return Grid(affine, (int(size[0]), int(size[1]), int(size[2])), shift)


def _paint_head(
    canvas: Canvas,
    label: NDArray[np.uint8],
    fetus: Fetus,
    head_to_world: NDArray[np.float64],
    tissue: dict[str, float],
    texture: WaveField,
    interior: Interior | None,
) -> None:
    """Lay the head on the canvas and its brain and eyes on the label.

    The head is painted on voxels split to about 2 mm, whose mean gives its partial volume.
    """
    grid = canvas.grid
    middle, radii = fetus.head.bounds_mm
    centre = head_to_world[:3, :3] @ middle + head_to_world[:3, 3]
    box = grid.box(centre, head_to_world[:3, :3] * radii)
    if box is None:
        return
    factors = [max(1, round(v / 2.0)) for v in grid.voxel_mm]
    fine = grid.refined(box, factors)
    neck = fetus.body_to_head[:3, 3]
    head_from_world = np.linalg.inv(head_to_world)
    head = paint_head(fetus.head, fine, head_from_world, tissue, texture, neck, interior)

    def mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
        ni, nj, nk = (n // f for n, f in zip(values.shape, factors, strict=True))
        fi, fj, fk = factors
        return values.reshape(ni, fi, nj, fj, nk, fk).mean(axis=(1, 3, 5))

    share = mean(head.head)
    canvas.value[box] *= 1 - share
    canvas.value[box] += mean(head.head * head.value)
    marks = label[box]
    marks[mean(head.brain) >= 0.5] = 1
    for globe in (mean(eye) for eye in head.eyes):
        # An eye smaller than a voxel keeps the voxel that holds most of it.
        if globe.max() > 0:
            marks[globe >= min(0.5, float(globe.max()))] = 2


def _slices_with(grid: Grid, head_to_world: NDArray[np.float64], head: Head) -> NDArray[np.bool_]:
    """(k,) which slices meet the head's skull."""
    seen = np.zeros(grid.shape[2], bool)
    box = grid.box(head_to_world[:3, 3], head.reach_mm)
    if box is not None:
        seen[box[2]] = True
    return seen


def _paint_moving_head(
    canvas: Canvas,
    label: NDArray[np.uint8],
    fetus: Fetus,
    head_to_world: NDArray[np.float64],
    motion: SliceMotion,
    tissue: dict[str, float],
    texture: WaveField,
    interior: Interior | None,
) -> None:
    """``_paint_head`` slice by slice, each with the head where it then is.

    The head alone moves; the trunk and the mother are at rest.
    """
    for k in range(canvas.grid.shape[2]):
        affine = canvas.grid.affine.copy()
        affine[:3, 3] += k * affine[:3, 2]
        one = Grid(affine, (*canvas.grid.shape[:2], 1))
        part = Canvas(one, canvas.value[:, :, k : k + 1])
        pose = motion.pose(k, head_to_world)
        _paint_head(part, label[:, :, k : k + 1], fetus, pose, tissue, texture, interior)


def make_phantom(
    seed: int,
    ga_weeks: float | None = None,
    contrast: str | None = None,
    axcodes: str | None = None,
    voxel_mm: Sequence[float] | None = None,
    shape: Sequence[int] | None = None,
    head: bool = True,
    sequence: str | None = None,
) -> Phantom:
    """One phantom from a seed; for the arguments see `PhantomGenerator`.

    The same seed gives the same anatomy and pose with any contrast, orientation and voxel size.
    """
    ages = AGE_RANGE_WEEKS if ga_weeks is None else (ga_weeks, ga_weeks)
    generator = PhantomGenerator(ages, contrast, axcodes, voxel_mm, shape, sequence)
    generator.set_random_state(seed=seed)
    return generator(head)
