"""The chain of E(3)-Pose (volume -> pose) for the authors' weights: same contract as HeadPoseNet.

Muthukrishnan et al., arXiv 2512.04890. Frames are those of geometry.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..cubes import Box, brain_box, crop_cube
from ..geometry import frame_to_rotation, rigid
from ..labels import BRAIN, EYES
from ..network.chain import Prediction
from ..regions import largest_component


def extent_box(brain: Tensor, spacing_mm: float, fill: float) -> tuple[Box, Tensor]:
    """As ``crop.brain_box``, with the side that the authors take.

    That is the mean of the extents of the mask's bounding box along the three axes (from the outer
    faces of its voxels), divided by ``fill``. An empty mask gives a volume of 0 and a cube of 1 mm
    at the origin.
    """
    box, volume_ml = brain_box(brain, spacing_mm, fill)
    extents = []
    for axis in range(3):
        # whether any voxel of a slice is in the mask
        profile = brain.movedim(2 + axis, 1).flatten(2).any(2)
        first = profile.to(torch.uint8).argmax(1)
        last = profile.shape[1] - 1 - profile.flip(1).to(torch.uint8).argmax(1)
        extents.append(last - first + 1)
    side_mm = torch.stack(extents).to(box.side_mm).mean(0) * spacing_mm / fill
    return Box(box.center_mm, torch.where(volume_ml > 0, side_mm, box.side_mm)), volume_ml


def read_axes(field: Tensor) -> tuple[Tensor, Tensor]:
    """Axes (batch, 3, 3) and confidence (batch,) of a field (batch, 3, 3, s, s, s).

    As the authors read them: e_x is the vector at the voxel where it is longest, e_y and e_z are
    the means over the voxels of the unit vectors. Their loss does not train the length of e_x, so
    this is for imported weights; ``network.pool_axes`` uses every voxel.

    The authors give no confidence. Here it is the smallest of three measures of agreement between
    the voxels, in [0, 1]: for e_x the order parameter of axes, (3 <cos^2> - 1) / 2, with the angles
    between the vectors and the one that was read; for e_y and e_z the length of the mean. It is 1
    where all voxels agree, and about 0 where they point anywhere.
    """
    vectors = field.flatten(3)
    unit = functional.normalize(vectors, dim=2)
    longest = vectors[:, 0].norm(dim=1).argmax(1)
    # of every item its own voxel
    right = vectors[:, 0].gather(2, longest.view(-1, 1, 1).expand(-1, 3, 1))
    others = unit[:, 1:].mean(-1)
    cosine = (unit[:, 0] * functional.normalize(right, dim=1)).sum(1)
    order = (3 * cosine.square().mean(1, keepdim=True) - 1) / 2
    confidence = torch.cat([order, others.norm(dim=-1)], dim=1).amin(1)
    return torch.cat([right.mT, others], dim=1), confidence.clamp(0, 1)


class E3PoseNet(nn.Module):
    """One look by the localizer, the authors' crop, rotation network and way to read the axes.

    Two things differ from the authors' chain: the frame (``geometry.frame_to_rotation``; theirs is
    off by 180 degrees where e_x comes out with the sign that makes it left-handed), and the largest
    component of the brain's label is taken as elsewhere in this bundle.

    Parameters
    ----------
    localizer : (batch, 1, x, y, z) -> logits (batch, 3, x, y, z) of background, brain and eyes
    rotation : (batch, 1, S, S, S) -> field of axes (batch, 3, 3, s, s, s), as ``E3CNN`` gives it
    spacing_mm : voxel size of the working grid
    crop_size : S, voxels along the side of the crop
    crop_fill : share of the crop's side that the brain fills
    min_brain_ml : a smaller brain mask counts as "no head"

    Volumes are ``(batch, 1, x, y, z)`` of any size, on a right-handed isotropic grid of
    ``spacing_mm``, intensities scaled to [0, 1].
    """

    def __init__(
        self,
        localizer: nn.Module,
        rotation: nn.Module,
        spacing_mm: float = 3.0,
        crop_size: int = 64,
        crop_fill: float = 0.6,
        min_brain_ml: float = 10.0,
    ) -> None:
        super().__init__()
        self.localizer, self.rotation, self.landmarks = localizer, rotation, None
        self.spacing_mm = float(spacing_mm)
        self.crop_size, self.crop_fill = crop_size, crop_fill
        self.min_brain_ml = min_brain_ml

    def axis_field(self, volume: Tensor, box: Box) -> Tensor:
        """Field of axes (batch, 3, 3, s, s, s), in grid axes, from the crops in ``box``."""
        return self.rotation(crop_cube(volume, box, self.crop_size, self.spacing_mm))

    def predict(self, volume: Tensor, reference: Box | None = None) -> Prediction:
        """Pose, confidence, brain volume and labels of every volume of the batch.

        With ``reference`` the crop is placed there instead of around the localizer's mask.
        """
        label = self.localizer(volume).argmax(1, keepdim=True)
        brain = largest_component(label == BRAIN)
        box, volume_ml = extent_box(brain, self.spacing_mm, self.crop_fill)
        if reference is not None:
            box = reference
        axes, confidence = read_axes(self.axis_field(volume, box))
        pose = rigid(frame_to_rotation(axes), box.center_mm.to(axes))
        if reference is None:
            found = volume_ml >= self.min_brain_ml
            pose = torch.where(found[:, None, None], pose, torch.nan)
            confidence = torch.where(found, confidence, torch.zeros_like(confidence))
        label = (BRAIN * brain + EYES * (label == EYES)).to(torch.uint8)
        return Prediction(pose, confidence, volume_ml, label)

    def forward(
        self, volume: Tensor, box: Box | None = None, cubes: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor, None]:
        """Pose ``head_to_grid`` (batch, 4, 4); NaN where there is no head.

        With ``box``, the cubes around the reference brains, what training needs instead: the
        localizer's logits and the field of axes in those cubes. ``cubes`` are for networks with
        landmarks, which this one has not.
        """
        if box is None:
            return self.predict(volume).head_to_grid
        return self.localizer(volume), self.axis_field(volume, box), None
