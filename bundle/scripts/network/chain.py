"""From volume to pose in four steps: localize, first poses, search, describe.

Plain torch that TorchScript, torch.export and ONNX understand, so there is one form of it: what
``HeadPoseNet`` does, what is exported, what the commands run. Everything that belongs to places of
volumes has the layout (batch, n, ...). Frames are those of geometry.py.
"""

# no "from __future__ import annotations": TorchScript reads annotations of classes as types
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..cubes import Cube, brain_cube, cube_cells, sample_cubes
from ..geometry import frame_to_rotation, no_head, rigid
from ..labels import BRAIN, EYES
from ..regions import ball, balls, densest_place, largest_component, likely_places, window
from .axes import pool_axes
from .landmarks import eye_radius_mm
from .search import Best, FirstPoses, with_half_turns


class Prediction(NamedTuple):
    """What is found in a batch of volumes."""

    head_to_grid: Tensor  # (batch, 4, 4) in mm; NaN where there is no head
    confidence: Tensor  # (batch,) in [0, 1]; 0 where there is no head
    brain_volume_ml: Tensor  # (batch,)
    # (batch, 1, x, y, z) uint8: 1 the brain (its largest component), 2 eyes, at their landmarks
    label: Tensor
    # expected errors: 68 % of the poses lie within; NaN where there is no head or nothing tells it
    rotation_sd_deg: Tensor  # (batch,)
    translation_sd_mm: Tensor  # (batch,)


class Places(NamedTuple):
    """Where a head may be: n windows of each volume, and what the localizer sees there."""

    window: Tensor  # (batch, n, 1, w, w, w): part of the volume
    maps: Tensor  # (batch, n, 2, w, w, w): probabilities of brain and of eyes
    label: Tensor  # (batch, n, 1, w, w, w) uint8
    start: Tensor  # (batch, n, 3): voxel of the volume where the window begins
    offset_mm: Tensor  # (batch, n, 3): from the middle of the volume to that of the window
    density: Tensor  # (batch, n): probability of brain where it is densest
    cube: Cube  # (batch, n): around the brain there, along the grid's axes
    volume_ml: Tensor  # (batch, n): of the brain there
    size: list[int]  # voxels of the volume


class PoseChain(nn.Module):
    """Volumes (batch, 1, x, y, z) -> poses (batch, 4, 4).

    ``localize`` finds places where a head may be, ``first_poses`` reads the rotation network there,
    ``search`` chooses and corrects a pose, ``describe`` says what was found. Volumes in which
    nothing is found, or nothing sure, are passed over once more with their axes exchanged.

    Volumes are of any size, on a right-handed isotropic grid, intensities scaled to [0, 1].

    Parameters
    ----------
    localizer : volumes -> logits (batch, 3, x, y, z) of background, brain and eyes
    rotation : crops (batch, in_channels, S, S, S) -> field of axes (batch, 3, 3, s, s, s)
    search : ``search.LandmarkSearch`` or ``search.DensestPlace``
    in_channels : of ``rotation``; with three it also sees the localizer's probabilities, with four
        the image once more as ``brain_units`` has it
    spacing_mm : voxel size of the volumes
    crop_size : S, voxels along the side of the crop
    crop_fill : share of the crop's side that the brain fills
    min_brain_ml : a place with less brain is no head
    min_density : so is one where brain is less probable
    places : places of a volume that are looked at closely
    window : voxels along the windows there: the localizer was trained on this size
    brain_radius_mm : half of the longest brain at term: what is brain further away is another's
    apart_mm : radius around a place in which no other one is looked for
    sure_deg : largest expected error, in degrees, with which there is no second pass, and of what
        the second pass finds; None for no second pass
    """

    def __init__(
        self,
        localizer: nn.Module,
        rotation: nn.Module,
        search: nn.Module,
        in_channels: int,
        spacing_mm: float,
        crop_size: int,
        crop_fill: float,
        min_brain_ml: float,
        min_density: float,
        places: int = 2,
        window: int = 64,
        brain_radius_mm: float = 56.0,
        apart_mm: float = 64.0,
        sure_deg: float | None = 20.0,
    ) -> None:
        super().__init__()
        self.localizer, self.rotation, self.search = localizer, rotation, search
        self.in_channels, self.crop_size, self.crop_fill = in_channels, crop_size, float(crop_fill)
        self.spacing_mm = float(spacing_mm)
        self.min_brain_ml, self.min_density = float(min_brain_ml), float(min_density)
        self.places, self.window = places, window
        self.brain_radius_mm, self.apart_mm = float(brain_radius_mm), float(apart_mm)
        self.second_pass = sure_deg is not None
        self.sure_deg = 0.0 if sure_deg is None else float(sure_deg)
        self.brain, self.eyes = BRAIN, EYES  # TorchScript knows no constants of modules

    def forward(self, volume: Tensor) -> Tensor:
        """Pose ``head_to_grid`` (batch, 4, 4) in mm; NaN where there is no head."""
        return self.predict(volume).head_to_grid

    @torch.jit.export
    def predict(self, volume: Tensor) -> Prediction:
        """Pose, confidence, brain volume and labels of every volume of the batch.

        The localizer is not equivariant: with the axes of the volume exchanged it often sees a
        head that it had missed; and where the first pose was upside down or back to front, a half
        turn of it is near. But each pass is another chance to take something else for a head,
        so what the second finds counts only if its expected error is at most ``sure_deg``, and
        that of the first is not.
        """
        found = self.one_pass(volume)
        if self.second_pass:
            found = self.where_unsure(volume, found)
        return found

    def one_pass(self, volume: Tensor, half_turns: bool = False) -> Prediction:
        """The four steps; with ``half_turns`` the search begins with turned first poses as well."""
        places = self.localize(volume)
        first = self.first_poses(places)
        if half_turns:
            first = with_half_turns(first)
        best = self.search(volume, first)
        return self.describe(places, best)

    def unsure(self, found: Prediction) -> Tensor:
        """(batch,) bool: no head, or one whose expected error is above ``sure_deg``."""
        return no_head(found.head_to_grid) | (found.rotation_sd_deg > self.sure_deg)

    def where_unsure(self, volume: Tensor, found: Prediction) -> Prediction:
        """``found``, with what the second pass says of the volumes of which it is unsure."""
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript leaves out what is inside)
            if torch.compiler.is_exporting():
                # torch 2.13 traces a branch (torch.cond), but can neither save nor convert it: the
                # second pass then always runs, and counts where it would have run
                return self.merged(volume, found)
        if bool(self.unsure(found).any()):
            found = self.merged(volume, found)
        return found

    def merged(self, volume: Tensor, found: Prediction) -> Prediction:
        """``found``, where it is unsure replaced by what is surely found in turned volumes.

        The volumes are turned by 120 degrees about their diagonal, which no more than puts the
        first axis last.
        """
        again = self.one_pass(volume.movedim(2, -1).contiguous(), True)
        pose = again.head_to_grid
        pose = torch.cat([pose[:, :3].roll(1, 1), pose[:, 3:]], dim=1)
        surely = ~no_head(pose) & (again.rotation_sd_deg <= self.sure_deg)
        surely = surely & self.unsure(found)
        label = again.label.movedim(-1, 2).contiguous()
        return Prediction(
            torch.where(surely[:, None, None], pose, found.head_to_grid),
            torch.where(surely, again.confidence, found.confidence),
            torch.where(surely, again.brain_volume_ml, found.brain_volume_ml),
            torch.where(surely[:, None, None, None, None], label, found.label),
            torch.where(surely, again.rotation_sd_deg, found.rotation_sd_deg),
            torch.where(surely, again.translation_sd_mm, found.translation_sd_mm),
        )

    def at(self, volume: Tensor, reference: Cube) -> Prediction:
        """What is found where the ``reference`` cubes (batch, 1) are, along the grid's axes.

        They stand in place of the localizer's, and whatever is found there is not refused.
        """
        size = reference.center_mm.new_tensor(volume.shape[2:])
        center = (reference.center_mm / self.spacing_mm + (size - 1) / 2).round().long()
        places = self.windows(volume, center, torch.ones_like(reference.side_mm))
        first = self.first_poses(places._replace(cube=reference))
        best = self.search(volume, first._replace(counts=torch.ones_like(first.counts)))
        return self.describe(places, best._replace(found=torch.ones_like(best.found)))

    # localize

    def localize(self, volume: Tensor) -> Places:
        """Where a head may be.

        The whole volume is looked at for the places that look most like a brain. At each the
        localizer looks again at a window of the size that it was trained on, with far less of the
        mother in it. The density is the product of both.
        """
        probability = self.localizer(volume).softmax(1)[:, 1:2]
        center, density = likely_places(
            probability, self.places, self.spacing_mm, self.brain_radius_mm, self.apart_mm
        )
        return self.windows(volume, center, density)

    def windows(self, volume: Tensor, center: Tensor, prior: Tensor) -> Places:
        """What the localizer sees in windows around the voxels ``center`` (batch, n, 3).

        ``prior`` (batch, n) is how dense the brain was there as seen from afar.
        """
        shape = [self.window] * 3
        layout = [center.shape[0], center.shape[1]]
        start = center - self.window // 2
        parts = []
        for k in range(layout[1]):
            parts.append(window(volume, start[:, k], shape))
        part = torch.stack(parts, dim=1).flatten(0, 1)
        logits = self.localizer(part)
        maps = logits.softmax(1)[:, 1:]
        label = most_probable(logits)
        # a denser place elsewhere in the window has a window of its own
        middle = torch.full_like(start.flatten(0, 1), self.window // 2)
        near = ball(middle, shape, self.spacing_mm, self.brain_radius_mm)
        peak, density = densest_place(maps[:, :1] * near, self.spacing_mm)
        brain = (label == self.brain) & ball(peak, shape, self.spacing_mm, self.brain_radius_mm)
        cube, volume_ml = brain_cube(brain, self.spacing_mm, self.crop_fill, logits.dtype)
        size = [volume.shape[2], volume.shape[3], volume.shape[4]]
        offsets = [start[..., k] + (self.window - size[k]) / 2 for k in range(3)]
        offset_mm = torch.stack(offsets, dim=2).to(logits.dtype) * self.spacing_mm
        return Places(
            part.unflatten(0, layout),
            maps.unflatten(0, layout),
            label.unflatten(0, layout),
            start,
            offset_mm,
            density.unflatten(0, layout) * prior,
            Cube(
                cube.center_mm.unflatten(0, layout) + offset_mm,
                cube.side_mm.unflatten(0, layout),
                cube.rotation.unflatten(0, layout),
            ),
            volume_ml.unflatten(0, layout),
            size,
        )

    # first poses

    def first_poses(self, places: Places) -> FirstPoses:
        """The rotation network's pose in the cube around the brain of every place."""
        layout = [places.density.shape[0], places.density.shape[1]]
        in_window = Cube(
            (places.cube.center_mm - places.offset_mm).flatten(0, 1).unsqueeze(1),
            places.cube.side_mm.flatten().unsqueeze(1),
            places.cube.rotation.flatten(0, 1).unsqueeze(1),
        )
        field = self.axis_field(places.window.flatten(0, 1), places.maps.flatten(0, 1), in_window)
        axes, agreement = pool_axes(field)
        rotation = frame_to_rotation(axes).unflatten(0, layout)
        return FirstPoses(
            Cube(places.cube.center_mm, places.cube.side_mm, rotation),
            agreement.unflatten(0, layout),
            places.density,
            (places.volume_ml >= self.min_brain_ml) & (places.density >= self.min_density),
        )

    def axis_field(self, volume: Tensor, maps: Tensor, cube: Cube) -> Tensor:
        """Field of axes (batch, 3, 3, s, s, s), in grid axes, from one ``cube`` (batch, 1) each.

        ``maps`` (batch, 2, x, y, z) are probabilities of brain and eyes on the volume's grid.
        """
        if self.in_channels > 1:
            volume = torch.cat([volume, maps], dim=1)
        crop = sample_cubes(volume, cube, self.crop_size, self.spacing_mm)[:, 0]
        return self.rotation(with_brain_units(crop, self.in_channels))

    # describe

    def describe(self, places: Places, best: Best) -> Prediction:
        """The pose, the brain around it, and the refusal where the search has found no head."""
        center_mm = best.cube.center_mm[:, 0]
        # the search may have begun beside the head: the brain is what lies around the pose, in the
        # window whose middle is nearest to it
        apart = torch.linalg.vector_norm(places.offset_mm - best.cube.center_mm, dim=2)
        nearest = apart.argmin(1)
        item = torch.arange(nearest.shape[0], device=nearest.device)
        label, start = places.label[item, nearest], places.start[item, nearest]
        voxel = (center_mm - places.offset_mm[item, nearest]) / self.spacing_mm
        voxel = (voxel + (self.window - 1) / 2).round().long().clamp(0, self.window - 1)
        brain = self.connected(label == self.brain, voxel)
        _, volume_ml = brain_cube(brain, self.spacing_mm, self.crop_fill)
        eyes = self.eyes_of(best.eyes_mm - places.offset_mm[item, nearest, None])
        # an eye that was cut away with the rest of the head is only where it would be
        eyes = torch.where(
            best.eyes_mm.isnan().flatten(1).any(1)[:, None, None, None, None],
            label == self.eyes,
            eyes & (places.window[item, nearest] != 0),
        )
        label = torch.where(eyes, self.eyes, self.brain * brain.to(torch.uint8)).to(torch.uint8)
        pose = rigid(best.cube.rotation[:, 0], center_mm)
        return Prediction(
            pose.masked_fill(~best.found[:, None, None], float("nan")),
            best.confidence.masked_fill(~best.found, 0.0),
            volume_ml,
            window(label, -start, places.size),
            best.rotation_sd_deg.masked_fill(~best.found, float("nan")),
            best.translation_sd_mm.masked_fill(~best.found, float("nan")),
        )

    def eyes_of(self, center_mm: Tensor) -> Tensor:
        """The eyes around these points (batch, 2, 3) of windows, mm from their middle, bool."""
        apart_mm = torch.linalg.vector_norm(center_mm[:, 0] - center_mm[:, 1], dim=1)
        voxel = center_mm / self.spacing_mm + (self.window - 1) / 2
        return balls(voxel, eye_radius_mm(apart_mm) / self.spacing_mm, [self.window] * 3)

    def connected(self, mask: Tensor, voxel: Tensor) -> Tensor:
        """Largest component of ``mask`` (batch, 1, w, w, w) in the ball around ``voxel``."""
        shape = [self.window] * 3
        reach = int(self.brain_radius_mm / self.spacing_mm)
        mask = mask & ball(voxel, shape, self.spacing_mm, self.brain_radius_mm)
        part = window(mask, voxel - reach, [2 * reach + 1] * 3)
        return window(largest_component(part), reach - voxel, shape)


def with_brain_units(crop: Tensor, channels: int) -> Tensor:
    """Crops (batch, up to 3, S, S, S) with ``brain_units`` for a network of more channels."""
    return torch.cat([crop, brain_units(crop)], dim=1) if channels > 3 else crop


def brain_units(crop: Tensor) -> Tensor:
    """The image of crops in units of the brain, (batch, 1, S, S, S).

    Less its mean in the brain, divided by its standard deviation there, limited to three of them
    and halved. What is bright beside the head sets the scale of a volume: a dark brain may have a
    twentieth of the range, and its structure counts as little.

    ``crop`` (batch, 3 or more, S, S, S) has the image, then the probability of brain, which weighs
    the voxels; where that is zero everywhere, a Gaussian about the middle does.
    """
    cells = cube_cells(crop.shape[-1], crop.dtype, crop.device)
    image = crop[:, 0]
    weight = crop[:, 1] + 1e-4 * torch.exp(-cells.square().sum(-1) / (2 * 0.2**2))
    weight = weight / weight.sum([1, 2, 3], keepdim=True)
    mean = (weight * image).sum([1, 2, 3], keepdim=True)
    variance = (weight * (image - mean).square()).sum([1, 2, 3], keepdim=True)
    return ((image - mean) / (variance.sqrt() + 0.01)).clamp(-3.0, 3.0).unsqueeze(1) / 2


def most_probable(logits: Tensor) -> Tensor:
    """``logits.argmax(1, keepdim=True)`` of three classes as uint8, many times as fast on CPUs."""
    none, brain, eyes = logits.split(1, dim=1)
    is_brain = (brain > none) & (brain >= eyes)
    is_eyes = (eyes > none) & (eyes > brain)
    return is_brain.to(torch.uint8) + 2 * is_eyes.to(torch.uint8)
