"""Which of the first poses of a volume is that of its head, and how exactly it lies.

Two searches, of one form: ``LandmarkSearch`` reads a cube in line with each pose, ``DensestPlace``
takes a pose as it is. Plain torch, as chain.py.
"""

# no "from __future__ import annotations": TorchScript reads annotations of classes as types
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..cubes import Cube, chosen, in_line, resized, sample_cubes
from ..geometry import geodesic_deg, nearest_rotation
from .expected_error import ExpectedError, Spread
from .landmarks import LandmarkNet

# of ``ExpectedError``, by ``scripts.calibrate`` for the shipped weights (docs/performance.md)
ROTATION_WEIGHTS = (0.27, 0.608, 0.464, 6.553, -0.382, -0.798)
TRANSLATION_WEIGHTS = (-0.124, 0.252, 0.826, 0.0, -0.021, 0.276)


class FirstPoses(NamedTuple):
    """What the rotation network says of n places of each volume."""

    cube: Cube  # (batch, n), around the brain; the rotation, head to grid, is NaN for no frame
    agreement: Tensor  # (batch, n) in [0, 1]: of the voxels of the field, see ``pool_axes``
    density: Tensor  # (batch, n): probability of brain at the place
    counts: Tensor  # (batch, n) bool: whether there is enough brain for a head


class Best(NamedTuple):
    """The one pose that a search has chosen for each volume."""

    cube: Cube  # (batch, 1)
    confidence: Tensor  # (batch,) in [0, 1]
    found: Tensor  # (batch,) bool: whether it is the pose of a head
    rotation_sd_deg: Tensor  # (batch,) expected error, NaN where nothing tells it
    translation_sd_mm: Tensor  # (batch,)
    eyes_mm: Tensor  # (batch, 2, 3): left and right eye on the grid, NaN where nothing tells them


class Corrected(NamedTuple):
    """Cubes (batch, n) put in line with their landmarks, and how good they were before."""

    cube: Cube
    score: Tensor  # (batch, n) logit of a cube in line with the head
    merit: Tensor  # (batch, n) the score, and how sharp the heat maps are
    peak: Tensor  # (batch, n) logarithm of the heat maps' peaks
    mirror_mm: Tensor  # (batch, n) distance of the landmarks from the mirror image's; else 0
    eyes_mm: Tensor  # (batch, n, 2, 3) left and right eye on the grid


def with_half_turns(first: FirstPoses) -> FirstPoses:
    """The poses (batch, n), then each turned by 180 degrees about the head's axes: (batch, 4 n).

    A rotation network that errs by much mostly takes the front for the back, or the top for the
    bottom.
    """
    rotation = first.cube.rotation
    signs = torch.tensor(
        [[1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]],
        dtype=rotation.dtype,
        device=rotation.device,
    )
    turned = (rotation[:, None] * signs[None, :, None, None]).flatten(1, 2)
    return FirstPoses(
        Cube(first.cube.center_mm.repeat(1, 4, 1), first.cube.side_mm.repeat(1, 4), turned),
        first.agreement.repeat(1, 4),
        first.density.repeat(1, 4),
        first.counts.repeat(1, 4),
    )


class DensestPlace(nn.Module):
    """The pose where the brain is densest, as the rotation network gives it.

    The confidence is the agreement of the field's voxels; an expected error and the eyes are not
    known.
    """

    def forward(self, volume: Tensor, first: FirstPoses) -> Best:
        best = first.density.argmax(1, keepdim=True)
        agreement, counts = first.agreement.gather(1, best), first.counts.gather(1, best)
        cube = chosen(first.cube, best)
        defined = ~cube.rotation.isnan().flatten(1).any(1)
        unknown = torch.full_like(agreement[:, 0], torch.nan)
        eyes_mm = unknown[:, None, None].expand(-1, 2, 3)
        return Best(cube, agreement[:, 0], counts[:, 0] & defined, unknown, unknown, eyes_mm)


class LandmarkSearch(nn.Module):
    """The pose in which landmarks look most like a head's, corrected by them.

    At every place LandmarkNet reads two cubes in line with the first pose, a smaller and a larger
    one. The best two, corrected by their landmarks, are read again, and the better one of them in
    three sizes, each together with its mirror image, so that left and right are treated alike; the
    mean is the result. That makes 4 + 2 + 6 = 12 cubes for two places. No other turn of the head is
    tried, but half turns in the second pass (``with_half_turns``): the first pose has to be near
    (docs/method.md has what each step is worth).

    Parameters
    ----------
    landmarks : reads the cubes
    spacing_mm : voxel size of the volumes
    typical_side_mm : side of the cube around a typical brain. The cubes read have the geometric
        mean of it and the mask's: landmarks bear a wrong size better than a mask, which may be a
        part of the brain, tells it (8 of 28 left-out navigators wrong with the mask's own size, 5
        with the mean).
    least_side_mm : no cube around a brain is smaller (at 20 weeks a brain measures 44 mm)
    first_sizes : factors of the side in which every place is read
    kept : how many of them are read again
    last_sizes : the same for the best pose; the middle one is its own
    sharpness : weight of the heat maps' peaks, as logarithms, beside the score in the choice
        between cubes. Far out of line they tell better than the score whether landmarks are there.
    max_rotation_sd_deg : a larger expected error is no head (docs/performance.md has the choice)
    rotation_weights, translation_weights : see ``expected_error.ExpectedError``
    """

    def __init__(
        self,
        landmarks: LandmarkNet,
        spacing_mm: float,
        typical_side_mm: float,
        least_side_mm: float = 60.0,
        first_sizes: Sequence[float] = (0.87, 1.15),
        kept: int = 2,
        last_sizes: Sequence[float] = (0.87, 1.0, 1.15),
        sharpness: float = 8.0,
        max_rotation_sd_deg: float = 45.0,
        rotation_weights: Sequence[float] = ROTATION_WEIGHTS,
        translation_weights: Sequence[float] = TRANSLATION_WEIGHTS,
    ) -> None:
        super().__init__()
        self.landmarks = landmarks
        self.expected_error = ExpectedError(rotation_weights, translation_weights)
        self.spacing_mm, self.typical_side_mm = float(spacing_mm), float(typical_side_mm)
        self.least_side_mm, self.sharpness = float(least_side_mm), float(sharpness)
        self.first_sizes, self.last_sizes = list(first_sizes), list(last_sizes)
        self.kept = kept
        self.max_rotation_sd_deg = float(max_rotation_sd_deg)

    def forward(self, volume: Tensor, first: FirstPoses) -> Best:
        undefined = first.cube.rotation.isnan()
        straight = torch.eye(3, dtype=volume.dtype, device=volume.device)
        side_mm = first.cube.side_mm.clamp(min=self.least_side_mm) * self.typical_side_mm
        cube = Cube(
            first.cube.center_mm,
            side_mm.sqrt(),
            torch.where(undefined, straight, first.cube.rotation),
        )
        cube = resized(cube, self.first_sizes)
        counts = first.counts.repeat(1, len(self.first_sizes))
        cube, counts = self.best(volume, cube, counts, self.kept)
        one, found = self.best(volume, cube, counts, 1)
        last = self.correct(volume, resized(one, self.last_sizes), True)
        confidence = last.score.mean(1).sigmoid()
        mean = Cube(
            last.cube.center_mm.mean(1, keepdim=True),
            one.side_mm,
            nearest_rotation(last.cube.rotation.sum(1, keepdim=True)),
        )
        spread = self.spread(last, mean)
        rotation_sd_deg, translation_sd_mm = self.expected_error(spread)
        return Best(
            mean,
            confidence,
            found[:, 0] & (rotation_sd_deg <= self.max_rotation_sd_deg),
            rotation_sd_deg,
            translation_sd_mm,
            last.eyes_mm.mean(1),
        )

    def spread(self, last: Corrected, mean: Cube) -> Spread:
        """How far the last cubes (batch, n) lie from their mean (batch, 1)."""
        apart_deg = geodesic_deg(mean.rotation.expand_as(last.cube.rotation), last.cube.rotation)
        return Spread(
            apart_deg.square().mean(1).sqrt(),
            last.mirror_mm.mean(1),
            last.score.mean(1),
            last.peak.mean(1),
            mean.side_mm[:, 0],
        )

    def best(self, volume: Tensor, cube: Cube, counts: Tensor, number: int) -> tuple[Cube, Tensor]:
        """The ``number`` best of the cubes (batch, n), corrected, and which of them count.

        Those that do not count, because no brain was seen there, come last.
        """
        corrected = self.correct(volume, cube, False)
        merit = corrected.merit.masked_fill(~counts, -1e4)
        index = merit.topk(min(number, merit.shape[1]), dim=1).indices
        return chosen(corrected.cube, index), counts.gather(1, index)

    def correct(self, volume: Tensor, cube: Cube, mirrored: bool) -> Corrected:
        """The cubes (batch, n) put in line with their landmarks, and how good they were before.

        With ``mirrored`` the mirror images of the cubes count as well.
        """
        shown = sample_cubes(volume, cube, self.landmarks.crop_size, self.spacing_mm)
        shape = [shown.shape[0], shown.shape[1]]
        shown = shown.flatten(0, 1)
        count = shown.shape[0]
        if mirrored:
            shown = torch.cat([shown, shown.flip(2)])
        found = self.landmarks(shown)
        peak = found.heatmap.flatten(2).log_softmax(2).amax(2).mean(1)
        point, score = found.point, found.score
        mirror = torch.zeros_like(peak[:count])
        if mirrored:
            # the mirror image of the left eye is a right eye
            back = point[count:].index_select(1, torch.tensor([0, 2, 1], device=point.device))
            back = back * torch.tensor([-1.0, 1.0, 1.0], dtype=point.dtype, device=point.device)
            mirror = torch.linalg.vector_norm(point[:count] - back, dim=2).mean(1)
            point = (point[:count] + back) / 2
            score = (score[:count] + score[count:]) / 2
            peak = (peak[:count] + peak[count:]) / 2
        merit = score + self.sharpness * peak
        point = point.unflatten(0, shape)
        eyes = point[:, :, 1:] * cube.side_mm[:, :, None, None]
        return Corrected(
            in_line(cube, point),
            score.unflatten(0, shape),
            merit.unflatten(0, shape),
            peak.unflatten(0, shape),
            mirror.unflatten(0, shape) * cube.side_mm,
            cube.center_mm[:, :, None] + eyes @ cube.rotation.mT,
        )
