"""Random cubes near the head, in and out of line with it: what LandmarkNet is trained on.

The frames are those of geometry.py; "cube" has the axes of the cube, lengths in sides, and its
origin in the cube's middle.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.transforms import Compose, MapTransform, Randomizable
from monai.utils import convert_to_tensor
from torch import Tensor, nn
from torch.nn import functional

from ..cubes import TYPICAL_BRAIN_MM, Cube, cube_cells, in_line, reference_cube, sample
from ..geometry import (
    axis_angle_to_rotation,
    geodesic_deg,
    half_turns,
    head_to_grid,
    landmark_frame,
    quaternion_to_rotation,
    voxel_to_grid,
)
from ..labels import BRAIN, EYES
from .transforms import world_pose
from .volumes import Data, grid_spacing_mm

# in line with the head, or not; between them a cube is neither
ALIGNED_DEG, ASTRAY_DEG = 25.0, 40.0


NEAR, FAR, NEAR_SCALE = 0.2, 0.4, 1.4  # distance from the brain in sides of the cube, its scale


LOST, LOST_DEG = 0.6, 75.0  # so far off, or out of line, there is nothing to correct


class HeadLandmarksd(MapTransform):
    """Add what the reference says of the head, in the grid frame of a volume on the working grid.

    ``landmarks_mm`` (3, 3): the brain's centre and the left and right eye, the eyes NaN where the
    label does not show both, unless the entry has ``left_eye_mm`` and ``right_eye_mm`` in the head
    frame (of a brain cut out of its head, where the eyes would be). ``twin_mm`` (3): origin of the
    entry's ``twin_to_world``, NaN where there is none. ``brain_mm`` (3) and
    ``brain_side_mm`` (): the cube around the label's brain, see ``reference_cube``. For a volume
    without a head all is NaN but the side, which is the typical one. ``spacing_mm`` of the grid: by
    default the volume's affine tells it.
    """

    def __init__(
        self,
        image_key: str = "image",
        label_key: str = "label",
        spacing_mm: float | None = None,
        fill: float = 0.6,
    ) -> None:
        super().__init__([image_key, label_key])
        self.image_key, self.label_key = image_key, label_key
        self.spacing_mm, self.fill = spacing_mm, fill

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        d = dict(data)
        image, label = d[self.image_key], d[self.label_key].as_tensor()
        pose = world_pose(d)
        landmarks, center = torch.full((3, 3), torch.nan), torch.full((3,), torch.nan)
        side = torch.tensor(TYPICAL_BRAIN_MM / self.fill)
        spacing_mm = self.spacing_mm or grid_spacing_mm(image)
        twin, twin_mm = world_pose(d, "twin_to_world"), torch.full((3,), torch.nan)
        if twin is not None:
            twin_mm = head_to_grid(image.affine, image.shape[1:], spacing_mm, twin)[:3, 3].float()
        if pose is not None:
            head = head_to_grid(image.affine, image.shape[1:], spacing_mm, pose)
            landmarks[0] = head[:3, 3]
            landmarks[1:] = _eyes(label, head, spacing_mm)
            if landmarks.isnan().any() and d.get("left_eye_mm") is not None:
                eyes = torch.tensor([d["left_eye_mm"], d["right_eye_mm"]], dtype=torch.float64)
                landmarks[1:] = eyes @ head[:3, :3].T + head[:3, 3]
            cube = reference_cube(label == BRAIN, landmarks[0], spacing_mm, self.fill)
            center, side = cube.center_mm, cube.side_mm
        d.update(landmarks_mm=landmarks, twin_mm=twin_mm, brain_mm=center, brain_side_mm=side)
        return d


def _eyes(label: Tensor, head: Tensor, spacing_mm: float) -> Tensor:
    """Middles (2, 3) of the labelled eyes left and right of the head's midline; NaN unless both."""
    to_grid = voxel_to_grid(label.shape[1:], spacing_mm)
    points = (label[0] == EYES).nonzero().double() @ to_grid[:3, :3].T + to_grid[:3, 3]
    lateral = (points - head[:3, 3]) @ head[:3, 0]
    return torch.stack([points[lateral < 0].mean(0), points[lateral > 0].mean(0)]).float()


class Head(NamedTuple):
    """What the reference says of a head; lengths in mm, points in the grid frame."""

    axes: Tensor  # (3, 3), in columns
    origin: Tensor  # (3,)
    landmarks_mm: Tensor  # (3, 3), NaN for unknown ones
    brain_mm: Tensor  # (3,); NaN for a volume without a head
    side_mm: Tensor  # (): of the right cube around the brain
    twin_mm: Tensor  # (3,): origin of a twin's head, NaN without one
    spacing_mm: float  # of the volume's voxels

    def own(self, points: Tensor, warp: Tensor) -> Tensor:
        """Points (..., 3) in the coordinates of the head before ``warp`` stretched it."""
        return (points - self.origin) @ self.axes / warp

    def own_landmarks(self, warp: Tensor) -> Tensor:
        """The landmarks (3, 3) there; in the mirror image of a head the left eye is a right one."""
        points = self.own(self.landmarks_mm, warp)
        return points[[0, 2, 1]] if warp[0] < 0 else points

    def upright(self, warp: Tensor) -> Tensor:
        """Rotation (3, 3) of a cube in line: stretching moves the eyes, which span the frame."""
        points = self.own_landmarks(warp)
        if points.isnan().any():
            return torch.eye(3)
        return landmark_frame(points[0], points[1], points[2])


class TrainingCube(NamedTuple):
    """A cube in the coordinates of the head before ``warp`` stretched it."""

    cube: Cube  # ()
    warp: Tensor  # (3,) factors along the head's axes; the first is negative for a mirrored head
    grow: float  # the cube's side as a factor of the right one
    blank: bool  # it shows a gradient in a box and nothing else

    def moved(self, point: Tensor) -> TrainingCube:
        """To where the landmarks (3, 3), in sides of the cube, would be in line."""
        return self._replace(cube=in_line(self.cube, point))

    def target(self, head: Head) -> tuple[Tensor, Tensor]:
        """Landmarks (3, 3) in sides of the cube, NaN for unknown ones, and ``aligned`` ()."""
        middle, side_mm, rotation = self.cube
        point = (head.own_landmarks(self.warp) - middle) @ rotation / side_mm
        off = (head.own(head.brain_mm, self.warp) - middle).norm() / side_mm
        angle = geodesic_deg(head.upright(self.warp), rotation)
        nothing = self.blank or bool(off.isnan())
        near = off < NEAR and abs(math.log(self.grow)) < math.log(NEAR_SCALE)
        aligned = torch.tensor(torch.nan)
        if nothing or off > FAR or angle > ASTRAY_DEG:
            aligned = torch.tensor(0.0)
        elif angle < ALIGNED_DEG and near:
            aligned = torch.tensor(1.0)
        beside = (head.own(head.twin_mm, self.warp) - middle).norm() / side_mm
        if beside <= FAR:  # a head, but of the other
            aligned = torch.tensor(torch.nan)
        if nothing or off > LOST or angle > LOST_DEG:
            point = torch.full_like(point, torch.nan)
        return point, aligned


class RandHeadCropsd(Randomizable, MapTransform):
    """Add random cubes of a volume, and where the landmarks are in them.

    Heads grow, shrink, bend and are mirrored; cubes stand near the head and nearly in line with
    it, or far out of line, or elsewhere in the volume. After ``HeadLandmarksd``.

    Adds, for ``crops`` cubes: ``crop`` (crops, 1, size, size, size), ``crop_point`` (crops, 3, 3)
    with the landmarks in sides of the cube and NaN for unknown ones, and ``crop_aligned`` (crops,):
    1, 0, or NaN where neither can be said.

    Parameters
    ----------
    transforms : random transforms of dictionaries with the "image" (1, size, size, size) of one
        cube and its "head_to_grid", the identity
    angle_deg : largest angle between cube and head, uniform, about a uniform axis
    turned_prob : probability of a cube that is half a turn about an axis of the head (and another
        random angle) out of line, or anyhow
    elsewhere_prob : probability of a cube somewhere in the volume, rather where it is bright, for
        what is dark is not taken for a head
    spread : where that is: as far from the volume's middle as this share of half its size
    blank_prob : probability of a cube that shows a gradient in a box and nothing else
    shift : standard deviation of the cube's centre along each axis, in sides of the right cube
    scale : range of the factor of the cube's side, log-uniform up to this and down to its inverse
    off_prob, off_shift, off_scale : probability of a cube that stands further off, as where the
        localizer sees a part of the head or more than the head, and ``shift`` and ``scale`` there
    stretch : the same for the head along each of its axes
    mirror_prob : probability of a mirrored head
    bend_prob, bend_mm : probability of a smooth random displacement; its standard deviation is
        uniform up to this
    motion_prob, motion_mm : the same for a displacement of every slice of a random orientation
    spacing_mm : of the grid; by default the volume's affine tells it
    corrector : ``LandmarkNet`` that moves cubes as the search for the head does, so that what is
        called a head then, rightly or not, is trained on: a ``shared_copy`` of the network
    corrected_prob, corrections : probability that a cube is so moved, and that it is so moved
        again, up to this number of times. Bending, motion and artefacts are drawn anew each time.
    """

    def __init__(
        self,
        transforms: Sequence[Any] = (),
        crops: int = 4,
        size: int = 32,
        angle_deg: float = 60.0,
        turned_prob: float = 0.4,
        elsewhere_prob: float = 0.25,
        spread: float = 1.0,
        blank_prob: float = 0.04,
        shift: float = 0.06,
        scale: float = 1.35,
        off_prob: float = 0.15,
        off_shift: float = 0.15,
        off_scale: float = 1.5,
        stretch: float = 1.2,
        mirror_prob: float = 0.5,
        bend_prob: float = 0.7,
        bend_mm: float = 3.0,
        motion_prob: float = 0.3,
        motion_mm: float = 2.5,
        spacing_mm: float | None = None,
        image_key: str = "image",
        corrector: nn.Module | None = None,
        corrected_prob: float = 0.5,
        corrections: int = 2,
    ) -> None:
        MapTransform.__init__(self, [image_key])
        self.transforms = Compose(transforms)
        self.crops, self.angle_deg = crops, angle_deg
        self.turned_prob, self.elsewhere_prob = turned_prob, elsewhere_prob
        self.spread, self.blank_prob, self.shift = spread, blank_prob, shift
        self.off_prob, self.off_shift, self.off_scale = off_prob, off_shift, off_scale
        self.scale, self.stretch = scale, stretch
        self.mirror_prob, self.spacing_mm = mirror_prob, spacing_mm
        self.bend_prob, self.bend_mm = bend_prob, bend_mm
        self.motion_prob, self.motion_mm = motion_prob, motion_mm
        self.corrector, self.corrected_prob = corrector, corrected_prob
        self.corrections = corrections
        self.cells = cube_cells(size, torch.float32)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandHeadCropsd:
        super().set_random_state(seed, state)
        self.transforms.set_random_state(int(self.R.randint(2**31)))
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        d = dict(data)
        spacing_mm = self.spacing_mm or grid_spacing_mm(d[self.keys[0]])
        axes, origin = head_frame(d, spacing_mm)
        landmarks_mm, brain_mm, side_mm = d["landmarks_mm"], d["brain_mm"], d["brain_side_mm"]
        head = Head(axes, origin, landmarks_mm, brain_mm, side_mm, d["twin_mm"], spacing_mm)
        image = d[self.keys[0]].as_tensor().float()
        cubes = [self._draw(image, head) for _ in range(self.crops)]
        shown = [self._show(image, head, cube) for cube in cubes]
        if self.corrector is not None:
            self._correct(image, head, cubes, shown, self.corrector)
        targets = [cube.target(head) for cube in cubes]
        d["crop"] = torch.stack(shown)
        d["crop_point"] = torch.stack([point for point, _ in targets])
        d["crop_aligned"] = torch.stack([aligned for _, aligned in targets])
        return d

    def _draw(self, image: Tensor, head: Head) -> TrainingCube:
        nowhere = bool(head.brain_mm.isnan().any())
        elsewhere = nowhere or self.R.uniform() < self.elsewhere_prob
        warp = self._warp()
        turn = head.upright(warp) @ self._turn()
        shift, scale = self.shift, self.scale
        if self.R.uniform() < self.off_prob:
            shift, scale = self.off_shift, self.off_scale
        grow = float(np.exp(self.R.uniform(-1, 1) * math.log(scale)))
        offset = head.side_mm * torch.from_numpy(self.R.normal(size=3) * shift).float()
        place = self._place(image, head.spacing_mm) if elsewhere else head.brain_mm
        middle = head.own(place, warp) + (0.0 if elsewhere else offset)
        blank = bool(self.R.uniform() < self.blank_prob)
        return TrainingCube(Cube(middle, head.side_mm * grow, turn), warp, grow, blank)

    def _show(self, image: Tensor, head: Head, cube: TrainingCube) -> Tensor:
        """The cube (1, size, size, size) of ``image``, with artefacts of its own."""
        middle, side_mm, rotation = cube.cube
        lattice = self._move(self.cells * side_mm @ rotation.T + middle, head.spacing_mm)
        if cube.blank:
            crop = self._gradient()
        else:
            points_mm = lattice * cube.warp @ head.axes.T + head.origin
            crop = sample(image[None], points_mm[None], head.spacing_mm)[0]
        crop = self.transforms({"image": crop, "head_to_grid": torch.eye(4)})["image"]
        return convert_to_tensor(crop, torch.float32, track_meta=False)

    def _correct(
        self,
        image: Tensor,
        head: Head,
        cubes: list[TrainingCube],
        shown: list[Tensor],
        network: nn.Module,
    ) -> None:
        """Move some of the cubes to where the network thinks that they should be."""
        chosen = [k for k, cube in enumerate(cubes) if not cube.blank]
        for _ in range(self.corrections):
            chosen = [k for k in chosen if self.R.uniform() < self.corrected_prob]
            if not chosen:
                return
            with torch.no_grad():
                found = network(torch.stack([shown[k] for k in chosen]))
            for k, point in zip(chosen, found.point.float(), strict=True):
                cubes[k] = cubes[k].moved(point)
                shown[k] = self._show(image, head, cubes[k])

    def _place(self, image: Tensor, spacing_mm: float) -> Tensor:
        """Somewhere (3,) in the volume, grid frame; the brighter, the likelier."""
        size = torch.tensor(image.shape[1:])
        places = torch.from_numpy(self.R.uniform(-1, 1, (16, 3))).float() * self.spread
        x, y, z = ((places + 1) / 2 * (size - 1)).round().long().T
        bright = image[0, x, y, z].double().clamp(min=1e-6).numpy()
        return places[self.R.choice(16, p=bright / bright.sum())] * size * spacing_mm / 2

    def _gradient(self) -> Tensor:
        """A linear gradient from 0 to 1 in a box, (1, size, size, size), zero around it."""
        half = torch.from_numpy(self.R.uniform(0.2, 0.7, 3)).float()
        ramp = self.cells @ torch.from_numpy(self.R.normal(size=3)).float()
        ramp = (ramp - ramp.min()) / (ramp.max() - ramp.min())
        return (ramp * (self.cells.abs() < half).all(-1))[None]

    def _warp(self) -> Tensor:
        """Factors (3,) along the head's axes; the first is negative for a mirrored head."""
        warp = np.exp(self.R.uniform(-1, 1, 3) * math.log(self.stretch))
        if self.R.uniform() < self.mirror_prob:
            warp[0] *= -1
        return torch.from_numpy(warp).float()

    def _turn(self) -> Tensor:
        """Rotation from the cube to the head's frame."""
        draw, flip = self.R.uniform(), self.R.uniform()
        axis, angle = self.R.normal(size=3), self.R.uniform(0, self.angle_deg)
        turn = axis_angle_to_rotation(torch.from_numpy(axis), torch.tensor(angle))
        if draw < self.turned_prob:
            if flip < 0.6:
                turn = half_turns()[self.R.randint(1, 4)].double() @ turn
            else:
                turn = quaternion_to_rotation(torch.from_numpy(self.R.normal(size=4)))
        return turn.float()

    def _move(self, lattice: Tensor, spacing_mm: float) -> Tensor:
        if self.R.uniform() < self.bend_prob:
            nodes = self.R.normal(size=(1, 3, 5, 5, 5)) * self.R.uniform(0, self.bend_mm)
            bend = functional.interpolate(
                torch.from_numpy(nodes).float(),
                size=lattice.shape[:3],
                mode="trilinear",
                align_corners=True,
            )
            lattice = lattice + bend[0].movedim(0, -1)
        if self.R.uniform() < self.motion_prob:
            normal = functional.normalize(torch.from_numpy(self.R.normal(size=3)), dim=0)
            number = (lattice @ normal.float() / spacing_mm).round().long()
            number = number - number.min()
            walk = self.R.normal(size=(int(number.max()) + 1, 3))
            steps = torch.from_numpy(walk * self.R.uniform(0, self.motion_mm)).float()
            lattice = lattice + steps[number]
        return lattice


def head_frame(d: Data, spacing_mm: float) -> tuple[Tensor, Tensor]:
    """Axes (3, 3), in columns, and origin (3,) of the head in the grid frame, float32.

    The identity for a volume without a head.
    """
    pose = world_pose(d)
    if pose is None:
        return torch.eye(3), torch.zeros(3)
    image = d["image"]
    head = head_to_grid(image.affine, image.shape[1:], spacing_mm, pose).float()
    return head[:3, :3], head[:3, 3]
