"""From volume to pose by localizer, rotation network and landmarks: what a trained network does.

Plain torch that TorchScript, torch.export and ONNX understand, so that there is one form of it.
"""

# no "from __future__ import annotations": TorchScript reads annotations of classes as types

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..cubes import TYPICAL_BRAIN_MM, Box, brain_box, crop_cube, crop_turned_cubes
from ..geometry import (
    frame_to_rotation,
    half_turns,
    nearest_rotation,
    put_in_line,
    quarter_turns,
    rigid,
)
from ..regions import ball, center_of_mass, densest_place, largest_component, window
from .axes import pool_axes
from .landmarks import LandmarkNet


class Prediction(NamedTuple):
    """What is found in a batch of volumes."""

    head_to_grid: Tensor  # (batch, 4, 4) in mm; NaN where there is no head
    confidence: Tensor  # (batch,) in [0, 1]; 0 where there is no head
    brain_volume_ml: Tensor  # (batch,)
    label: Tensor  # (batch, 1, x, y, z) uint8: 1 the brain (its largest component), 2 eyes


class Look(NamedTuple):
    """A window of each volume, or of each place in it, and what the localizer sees there."""

    part: Tensor  # (batch, 1, w, w, w)
    logits: Tensor  # (batch, 3, w, w, w)
    start: Tensor  # (batch, 3): voxel of the volume where the window begins
    place: Tensor  # (batch, 3): voxel of the window where the brain is densest
    density: Tensor  # (batch,): probability of brain there


class Guess(NamedTuple):
    """Poses that a head may have, n of each volume."""

    rotation: Tensor  # (batch, n, 3, 3): head to grid
    center_mm: Tensor  # (batch, n, 3): the brain's centre, grid frame
    side_mm: Tensor  # (batch, n): of the cube around it


def densest(look: Look, batch: int) -> Look:
    """The densest of the looks at each volume."""
    best = look.density.view(batch, -1).argmax(1)
    best = best + look.density.shape[0] // batch * torch.arange(batch, device=best.device)
    return Look(
        look.part[best], look.logits[best], look.start[best], look.place[best], look.density[best]
    )


def most_probable(logits: Tensor) -> Tensor:
    """``logits.argmax(1, keepdim=True)`` of three classes as uint8, many times as fast on CPUs."""
    none, brain, eyes = logits.split(1, dim=1)
    is_brain = (brain > none) & (brain >= eyes)
    is_eyes = (eyes > none) & (eyes > brain)
    return is_brain.to(torch.uint8) + 2 * is_eyes.to(torch.uint8)


def take(guess: Guess, index: Tensor) -> Guess:
    """Those of the poses that ``index`` (batch, k) names."""
    item = torch.arange(index.shape[0], device=index.device).unsqueeze(1)
    return Guess(
        guess.rotation[item, index], guess.center_mm[item, index], guess.side_mm[item, index]
    )


def resized(guess: Guess, factors: list[float]) -> Guess:
    """Each of the poses with its cube in several sizes, all with the first of them first."""
    return Guess(
        torch.cat([guess.rotation for _ in factors], dim=1),
        torch.cat([guess.center_mm for _ in factors], dim=1),
        torch.cat([guess.side_mm * factor for factor in factors], dim=1),
    )


class PoseChain(nn.Module):
    """Localizer, crop, rotation network, frame: volumes (batch, 1, x, y, z) -> poses (batch, 4, 4).

    With ``landmarks`` the pose so found is where the search begins. It, its half turns and its
    quarter turns about the head's long axis, at each place where a head may be, are corrected by
    the landmarks in a cube that is turned with the head. Those whose cubes look most like a head
    are corrected again, in a smaller and a larger cube, and so on; the best of them twice more,
    together with its mirror image and at last in three sizes. The confidence is the probability,
    as the network sees it, that the cube is in line.

    Volumes are of any size, on a right-handed isotropic grid, intensities scaled to [0, 1].
    ``HeadPoseNet`` is such a chain that can be trained, and says what the parameters mean.

    Parameters
    ----------
    localizer : volumes -> logits (batch, 3, x, y, z) of background, brain and eyes
    rotation : crops (batch, in_channels, S, S, S) -> field of axes (batch, 3, 3, s, s, s)
    in_channels : of ``rotation``
    lattices : rotations (turns, 3, 3) of the lattices on which the crop is sampled
    landmarks : ``landmarks.LandmarkNet``, or None
    min_confidence : with landmarks, less confidence counts as "no head"
    """

    lattices: Tensor
    turns: Tensor

    def __init__(
        self,
        localizer: nn.Module,
        rotation: nn.Module,
        in_channels: int,
        lattices: Tensor,
        spacing_mm: float,
        crop_size: int,
        crop_fill: float,
        min_brain_ml: float,
        min_density: float,
        landmarks: LandmarkNet | None = None,
        min_confidence: float = 0.0,
    ) -> None:
        super().__init__()
        self.localizer = localizer
        self.rotation = rotation
        self.landmarks = landmarks
        self.in_channels = in_channels
        self.register_buffer("lattices", lattices.float(), persistent=False)
        turns = torch.cat([half_turns(), quarter_turns()])
        self.register_buffer("turns", turns, persistent=False)
        self.spacing_mm, self.crop_size, self.crop_fill = float(spacing_mm), crop_size, crop_fill
        self.min_brain_ml, self.min_density = float(min_brain_ml), float(min_density)
        self.min_confidence = float(min_confidence)
        self.window = 64  # voxels along the part of a volume that is looked at closely
        self.brain_radius_mm = 56.0  # half of the longest brain at term
        self.least_side_mm = 60.0  # of the cube around the smallest brain
        self.typical_side_mm = TYPICAL_BRAIN_MM / self.crop_fill
        self.apart_mm = 64.0  # radius in which there is no second head
        # poses that are corrected a second time, in two sizes; a third of them a third time
        self.kept = 6
        self.candidates = 2  # places of a volume that are looked at closely

    def forward(self, volume: Tensor) -> Tensor:
        """Pose ``head_to_grid`` (batch, 4, 4) in mm; NaN where there is no head."""
        return self.find(self.closer(volume), volume).head_to_grid

    @torch.jit.export
    def predict(self, volume: Tensor) -> Prediction:
        """Pose, confidence, brain volume and labels of every volume of the batch."""
        return self.find(self.closer(volume), volume)

    def look(self, volume: Tensor, center: Tensor) -> Look:
        """At the window around the voxel ``center`` (batch, 3)."""
        start = center - self.window // 2
        part = window(volume, start, [self.window] * 3)
        logits = self.localizer(part)
        # a denser place elsewhere in the window has a window of its own
        probability = logits.softmax(1)[:, 1:2]
        middle = torch.full_like(center, self.window // 2)
        near = ball(middle, [self.window] * 3, self.spacing_mm, self.brain_radius_mm)
        place, density = densest_place(probability * near, self.spacing_mm)
        return Look(part, logits, start, place, density)

    def closer(self, volume: Tensor) -> Look:
        """At the windows around the places where a head may be, those of one volume side by side.

        The whole volume is looked at for the places that look most like a brain. At each the
        localizer looks again at a window of the size that it was trained on, with far less of the
        mother in it. The density is the product of both looks.
        """
        probability = self.localizer(volume).softmax(1)[:, 1:2]
        # twice as coarse is exact enough for where to look; one voxel more, so that none is lost
        probability = functional.avg_pool3d(functional.pad(probability, [0, 1, 0, 1, 0, 1]), 2)
        shape = [probability.shape[2], probability.shape[3], probability.shape[4]]
        coarse_mm = 2 * self.spacing_mm
        places, densities = [], []
        for _ in range(self.candidates):
            place, density = densest_place(probability, coarse_mm)
            near = ball(place, shape, coarse_mm, self.brain_radius_mm)
            # the middle of what is there, so that its rim does not count as another place
            middle = center_of_mass(probability * near)
            near = ball(middle.round().long(), shape, coarse_mm, self.apart_mm)
            probability = probability.masked_fill(near, 0.0)
            places.append((2 * middle + 0.5).round().long())
            densities.append(density)
        volumes = volume.repeat_interleave(self.candidates, dim=0)
        found = self.look(volumes, torch.stack(places, dim=1).flatten(0, 1))
        both = torch.stack(densities, dim=1).flatten() * found.density
        return Look(found.part, found.logits, found.start, found.place, both)

    def axis_field(self, volume: Tensor, logits: Tensor, box: Box) -> Tensor:
        """Field of axes (batch, 3, 3, turns * s, s, s), in grid axes, from the crops in ``box``.

        The crop is sampled on every lattice, and the fields, turned back, stand one behind the
        other.
        """
        if self.in_channels > 1:
            volume = torch.cat([volume, logits.softmax(1)[:, 1:]], dim=1)
        crops = []
        for turn in self.lattices:
            crops.append(crop_cube(volume, box, self.crop_size, self.spacing_mm, turn))
        field = self.rotation(torch.cat(crops))
        shape = [self.lattices.shape[0], volume.shape[0], 3, 3, -1]
        turned = self.lattices[:, None, None].to(field.dtype) @ field.reshape(shape)
        turned = turned.unflatten(-1, field.shape[3:])
        return turned.permute(1, 2, 3, 0, 4, 5, 6).flatten(3, 4)

    def find(self, look: Look, volume: Tensor, reference: Box | None = None) -> Prediction:
        """Pose, confidence, brain volume and labels from looks at each volume of the batch.

        Each volume has as many looks, side by side, as there are items in ``look`` for each in
        ``volume``. With ``reference`` the crop is placed there instead of around the localizer's
        mask, and there is always a pose.
        """
        batch = volume.shape[0]
        if self.landmarks is None:
            look = densest(look, batch)
        looks = look.density.shape[0] // batch
        # from the middle of the volume to the middle of the window
        size = [volume.shape[2], volume.shape[3], volume.shape[4]]
        offsets = [look.start[:, k] + (self.window - size[k]) / 2 for k in range(3)]
        offset_mm = torch.stack(offsets, dim=1) * self.spacing_mm
        label = most_probable(look.logits)
        brain = self.near(label == 1, look.place)
        if self.landmarks is None:  # they do better than to leave out what is not connected
            brain = self.connected(brain, look.place)
        box, volume_ml = brain_box(brain, self.spacing_mm, self.crop_fill, look.logits.dtype)
        if reference is not None:
            box = Box(reference.center_mm - offset_mm, reference.side_mm)
        found = (volume_ml >= self.min_brain_ml) & (look.density >= self.min_density)

        axes, confidence = pool_axes(self.axis_field(look.part, look.logits, box))
        rotation = frame_to_rotation(axes)
        center_mm = (box.center_mm + offset_mm).to(axes.dtype)
        item = torch.arange(batch, device=volume.device)
        if self.landmarks is not None:
            identity = torch.eye(3, dtype=axes.dtype, device=axes.device)
            # landmarks bear a wrong size better than the mask, which may be a part of the brain,
            # tells it: half-way to the typical one. No brain is smaller than the least.
            side_mm = box.side_mm.to(axes.dtype).clamp(min=self.least_side_mm)
            guess = Guess(
                torch.where(rotation.isnan(), identity, rotation).view(batch, looks, 3, 3),
                center_mm.view(batch, looks, 3),
                (side_mm * self.typical_side_mm).sqrt().view(batch, looks),
            )
            # where no brain was seen, none is looked for
            may_win = found if reference is None else torch.ones_like(found)
            guess, confidence, best = self.search(volume, guess, may_win.view(batch, looks))
            found = found[looks * item + best]
            rotation, center_mm = guess.rotation[:, 0], guess.center_mm[:, 0]
            # the search may have begun beside the head: the brain is what lies around the pose,
            # in the window whose middle is nearest to it
            apart = offset_mm.view(batch, looks, 3) - center_mm.unsqueeze(1)
            item = looks * item + torch.linalg.vector_norm(apart, dim=2).argmin(1)
            middle = (center_mm - offset_mm[item]) / self.spacing_mm + (self.window - 1) / 2
            place = middle.round().long().clamp(0, self.window - 1)
            brain = self.connected(self.near(label[item] == 1, place), place)
            _, volume_ml = brain_box(brain, self.spacing_mm, self.crop_fill)
        pose = rigid(rotation, center_mm)
        if reference is None:
            found = found & (confidence >= self.min_confidence)
            pose = pose.masked_fill(~found[:, None, None], float("nan"))
            confidence = confidence.masked_fill(~found, 0.0)
        label = brain.to(torch.uint8) + (label[item] & 2)
        return Prediction(pose, confidence, volume_ml, window(label, -look.start[item], size))

    def search(self, volume: Tensor, start: Guess, may_win: Tensor) -> tuple[Guess, Tensor, Tensor]:
        """The best pose, n = 1, its confidence (batch,) and which of the first guesses led to it.

        ``may_win`` (batch, n) tells which of the guesses may win.
        """
        turns = self.turns.shape[0]
        rotation = start.rotation.unsqueeze(2) @ self.turns.to(start.rotation.dtype)
        guess = Guess(
            rotation.flatten(1, 2),
            start.center_mm.repeat_interleave(turns, dim=1),
            start.side_mm.repeat_interleave(turns, dim=1),
        )
        batch, places = may_win.shape
        place = torch.arange(places, device=may_win.device).repeat_interleave(turns)
        place = place.expand(batch, -1)
        guess, place = self.narrow(volume, guess, place, may_win, self.kept)
        # each once smaller and once larger: the merit tells which is right
        guess = resized(guess, [0.87, 1.15])
        place = place.repeat(1, 2)
        guess, place = self.narrow(volume, guess, place, may_win, self.kept // 3)
        guess, place = self.narrow(volume, guess, place, may_win, 1)
        guess, _, _ = self.correct(volume, guess, True)
        # the mean over three sizes
        guess, score, _ = self.correct(volume, resized(guess, [0.87, 1.0, 1.15]), True)
        guess = Guess(
            nearest_rotation(guess.rotation.sum(1, keepdim=True)),
            guess.center_mm.mean(1, keepdim=True),
            guess.side_mm[:, 1:2],
        )
        return guess, score.mean(1).sigmoid(), place[:, 0]

    def narrow(
        self, volume: Tensor, guess: Guess, place: Tensor, may_win: Tensor, number: int
    ) -> tuple[Guess, Tensor]:
        """The ``number`` best of the poses, corrected, and their places.

        ``place`` (batch, n) numbers the place where each pose began, ``may_win`` (batch, places)
        tells which places count. Where they have fewer poses than that, others fill up.
        """
        guess, _, merit = self.correct(volume, guess, False)
        merit = merit.masked_fill(~may_win.gather(1, place), -1e4)
        best = merit.topk(min(number, merit.shape[1]), dim=1).indices
        return take(guess, best), place.gather(1, best)

    def correct(self, volume: Tensor, guess: Guess, mirrored: bool) -> tuple[Guess, Tensor, Tensor]:
        """Better poses by the landmarks in the cubes of ``guess``, and how good those were.

        The score (batch, n) is the logit of a cube in line with the head. The merit (batch, n)
        also counts how sharp the heat maps are: far out of line they tell better whether the
        landmarks are there. With ``mirrored`` the mirror images of the cubes count as well: left
        and right are then treated alike.
        """
        assert self.landmarks is not None
        cubes = crop_turned_cubes(
            volume,
            guess.center_mm,
            guess.side_mm,
            guess.rotation,
            self.landmarks.crop_size,
            self.spacing_mm,
        )
        count = cubes.shape[0]
        if mirrored:
            cubes = torch.cat([cubes, cubes.flip(2)])
        found = self.landmarks(cubes)
        peak = found.heatmap.flatten(2).log_softmax(2).amax(2).mean(1)
        point, score, merit = found.point, found.score, found.score + 8 * peak
        if mirrored:
            # the mirror image of the left eye is a right eye
            back = point[count:].index_select(1, torch.tensor([0, 2, 1], device=point.device))
            back = back * torch.tensor([-1.0, 1.0, 1.0], dtype=point.dtype, device=point.device)
            point = (point[:count] + back) / 2
            score = (score[:count] + score[count:]) / 2
            merit = (merit[:count] + merit[count:]) / 2
        shape = [guess.side_mm.shape[0], guess.side_mm.shape[1]]
        point = point.unflatten(0, shape)
        rotation, center_mm = put_in_line(guess.rotation, guess.center_mm, guess.side_mm, point)
        better = Guess(rotation, center_mm, guess.side_mm)
        return better, score.unflatten(0, shape), merit.unflatten(0, shape)

    def near(self, mask: Tensor, place: Tensor) -> Tensor:
        """What of ``mask`` (batch, 1, x, y, z) lies in the ball of a brain around ``place``."""
        shape = [mask.shape[2], mask.shape[3], mask.shape[4]]
        return mask & ball(place, shape, self.spacing_mm, self.brain_radius_mm)

    def connected(self, mask: Tensor, place: Tensor) -> Tensor:
        """Largest component of ``mask`` (batch, 1, x, y, z), which is ``near`` the ``place``."""
        reach = int(self.brain_radius_mm / self.spacing_mm)
        part = window(mask, place - reach, [2 * reach + 1] * 3)
        shape = [mask.shape[2], mask.shape[3], mask.shape[4]]
        return window(largest_component(part), reach - place, shape)
