"""From volume to pose by a localizer and a rotation network: what a trained network does.

Plain torch that TorchScript, torch.export and ONNX understand, so that there is one form of it.
"""

# no "from __future__ import annotations": TorchScript reads annotations of classes as types
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .crop import Box, ball, brain_box, crop_cube, densest_place, largest_component, window
from .geometry import frame_to_rotation, rigid, top_eigenvector


class Prediction(NamedTuple):
    """What is found in a batch of volumes."""

    head_to_grid: Tensor  # (batch, 4, 4) in mm; NaN where there is no head
    confidence: Tensor  # (batch,) in [0, 1]; 0 where there is no head
    brain_volume_ml: Tensor  # (batch,)
    label: Tensor  # (batch, 1, x, y, z) uint8: 1 the brain (its largest component), 2 eyes


class Look(NamedTuple):
    """A window of each volume, and what the localizer sees in it."""

    part: Tensor  # (batch, 1, w, w, w)
    logits: Tensor  # (batch, 3, w, w, w)
    start: Tensor  # (batch, 3): voxel of the volume where the window begins
    place: Tensor  # (batch, 3): voxel of the window where the brain is densest
    density: Tensor  # (batch,): probability of brain there


def pool_axes(field: Tensor) -> tuple[Tensor, Tensor]:
    """Axes (batch, 3, 3) and confidence (batch,) of a field (batch, 3, 3, s, s, s).

    e_x is the top eigenvector of the sum of v v^T over the voxels: blind to sign, and every voxel
    counts. e_y and e_z are the sums of v. Longer vectors count more; the loss trains their length
    through the same sums, so the network learns where to look. The confidence in [0, 1] is the
    smallest of the eigenvalue gap, as a share of the trace, and the lengths of the two sums, as
    shares of the sums of lengths: 1 where all voxels agree, about 0 without a preferred frame.
    """
    tiny = 1e-37  # above the smallest float32, so that a field of zeros stays finite
    vectors = field.flatten(3)
    moment = vectors[:, 0] @ vectors[:, 0].mT
    trace = moment.diagonal(dim1=-2, dim2=-1).sum(-1).clamp(min=tiny)
    moment = moment / trace[:, None, None]
    top = top_eigenvector(moment)
    others = vectors[:, 1:].sum(-1)
    axes = torch.cat([top.unsqueeze(1), others], dim=1)
    # the second eigenvalue from the sum, and the sum of squares, of all three
    first = (top * (moment @ top.unsqueeze(-1)).squeeze(-1)).sum(-1)
    rest = moment.diagonal(dim1=-2, dim2=-1).sum(-1) - first
    squares = moment.square().sum((-2, -1)) - first.square()
    second = (rest + (2 * squares - rest.square()).clamp(min=0).sqrt()) / 2
    gap = first - second
    lengths = torch.linalg.vector_norm(vectors[:, 1:], dim=2).sum(-1)
    agreement = torch.linalg.vector_norm(others, dim=-1) / lengths.clamp(min=tiny)
    confidence = torch.cat([gap.unsqueeze(1), agreement], dim=1).amin(1)
    return axes, confidence.clamp(0, 1)


class PoseChain(nn.Module):
    """Localizer, crop, rotation network, frame: volumes (batch, 1, x, y, z) -> poses (batch, 4, 4).

    Volumes are of any size, on a right-handed isotropic grid, intensities scaled to [0, 1].
    ``HeadPoseNet`` is such a chain that can be trained, and says what the parameters mean.

    Parameters
    ----------
    localizer : volumes -> logits (batch, 3, x, y, z) of background, brain and eyes
    rotation : crops (batch, in_channels, S, S, S) -> field of axes (batch, 3, 3, s, s, s)
    in_channels : of ``rotation``
    lattices : rotations (turns, 3, 3) of the lattices on which the crop is sampled
    """

    lattices: Tensor

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
    ) -> None:
        super().__init__()
        self.localizer = localizer
        self.rotation = rotation
        self.in_channels = in_channels
        self.register_buffer("lattices", lattices.float(), persistent=False)
        self.spacing_mm, self.crop_size, self.crop_fill = float(spacing_mm), crop_size, crop_fill
        self.min_brain_ml, self.min_density = float(min_brain_ml), float(min_density)
        self.window = 64  # voxels along the part of a volume that is looked at closely
        self.brain_radius_mm = 56.0  # half of the longest brain at term
        self.candidates = 3  # places of a volume that are looked at closely

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
        place, density = densest_place(logits.softmax(1)[:, 1:2], self.spacing_mm)
        return Look(part, logits, start, place, density)

    def closer(self, volume: Tensor) -> Look:
        """At the window around the head.

        The whole volume is looked at for the places that look most like a brain. At each the
        localizer looks again at a window of the size that it was trained on, with far less of the
        mother in it; the window in which the brain is densest in both looks is kept, and the
        density is the product of both.
        """
        probability = self.localizer(volume).softmax(1)[:, 1:2]
        places, densities = [], []
        for _ in range(self.candidates):
            place, density = densest_place(probability, self.spacing_mm)
            shape = probability.shape[2:]
            near = ball(place, shape, self.spacing_mm, self.brain_radius_mm)
            probability = probability.masked_fill(near, 0.0)
            places.append(place)
            densities.append(density)
        # all candidates of all volumes as one batch, those of one volume side by side
        volumes = volume.repeat_interleave(self.candidates, dim=0)
        found = self.look(volumes, torch.stack(places, dim=1).flatten(0, 1))
        both = torch.stack(densities, dim=1) * found.density.view(-1, self.candidates)
        density, best = both.max(1)
        best = best + self.candidates * torch.arange(volume.shape[0], device=volume.device)
        return Look(
            found.part[best], found.logits[best], found.start[best], found.place[best], density
        )

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
        """Pose, confidence, brain volume and labels from a ``look`` at each volume of the batch.

        With ``reference`` the crop is placed there instead of around the localizer's mask, and
        there is always a pose.
        """
        # from the middle of the volume to the middle of the window
        size = [volume.shape[2], volume.shape[3], volume.shape[4]]
        offsets = [look.start[:, k] + (self.window - size[k]) / 2 for k in range(3)]
        offset_mm = torch.stack(offsets, dim=1) * self.spacing_mm
        label = look.logits.argmax(1, keepdim=True)
        brain = self.brain(label == 1, look.place)
        box, volume_ml = brain_box(brain, self.spacing_mm, self.crop_fill)
        if reference is not None:
            box = Box(reference.center_mm - offset_mm, reference.side_mm)
        axes, confidence = pool_axes(self.axis_field(look.part, look.logits, box))
        pose = rigid(frame_to_rotation(axes), (box.center_mm + offset_mm).to(axes.dtype))
        if reference is None:
            found = (volume_ml >= self.min_brain_ml) & (look.density >= self.min_density)
            pose = pose.masked_fill(~found[:, None, None], float("nan"))
            confidence = confidence.masked_fill(~found, 0.0)
        label = brain.to(torch.uint8) + 2 * (label == 2).to(torch.uint8)
        return Prediction(pose, confidence, volume_ml, window(label, -look.start, size))

    def brain(self, mask: Tensor, place: Tensor) -> Tensor:
        """Largest component of ``mask`` (batch, 1, x, y, z) within the ball around ``place``."""
        reach = int(self.brain_radius_mm / self.spacing_mm)
        sides = [2 * reach + 1] * 3
        middle = torch.full_like(place, reach)
        inside = ball(middle, sides, self.spacing_mm, self.brain_radius_mm)
        near = window(mask, place - reach, sides) & inside
        whole = [mask.shape[2], mask.shape[3], mask.shape[4]]
        return window(largest_component(near), reach - place, whole)
