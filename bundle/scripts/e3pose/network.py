"""The chain of E(3)-Pose (volume -> pose) for the authors' weights: same contract as HeadPoseNet.

Muthukrishnan et al., arXiv 2512.04890. Frames are those of geometry.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..cubes import Cube, brain_cube, sample_cubes
from ..geometry import frame_to_rotation, rigid
from ..labels import BRAIN, EYES
from ..network.chain import Prediction
from ..network.head_pose_net import TrainingOutput
from ..regions import largest_component


def extent_cube(brain: Tensor, spacing_mm: float, fill: float) -> tuple[Cube, Tensor]:
    """As ``cubes.brain_cube``, with the side that the authors take.

    That is the mean of the extents of the mask's bounding box along the three axes (from the outer
    faces of its voxels), divided by ``fill``. An empty mask gives a volume of 0 and a cube of 1 mm
    at the origin.
    """
    cube, volume_ml = brain_cube(brain, spacing_mm, fill)
    extents = []
    for axis in range(3):
        # whether any voxel of a slice is in the mask
        profile = brain.movedim(2 + axis, 1).flatten(2).any(2)
        first = profile.to(torch.uint8).argmax(1)
        last = profile.shape[1] - 1 - profile.flip(1).to(torch.uint8).argmax(1)
        extents.append(last - first + 1)
    side_mm = torch.stack(extents).to(cube.side_mm).mean(0) * spacing_mm / fill
    return cube._replace(side_mm=torch.where(volume_ml > 0, side_mm, cube.side_mm)), volume_ml


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

    def axis_field(self, volume: Tensor, cube: Cube) -> Tensor:
        """Field of axes (batch, 3, 3, s, s, s), in grid axes, from one ``cube`` (batch, 1) each."""
        return self.rotation(sample_cubes(volume, cube, self.crop_size, self.spacing_mm)[:, 0])

    def predict(self, volume: Tensor, reference: Cube | None = None) -> Prediction:
        """Pose, confidence, brain volume and labels of every volume of the batch.

        With cubes ``reference`` (batch, 1) the crop is placed there instead of around the mask.
        """
        label = self.localizer(volume).argmax(1, keepdim=True)
        brain = largest_component(label == BRAIN)
        cube, volume_ml = extent_cube(brain, self.spacing_mm, self.crop_fill)
        cube = Cube(*(value.unsqueeze(1) for value in cube)) if reference is None else reference
        axes, confidence = read_axes(self.axis_field(volume, cube))
        pose = rigid(frame_to_rotation(axes), cube.center_mm[:, 0].to(axes))
        if reference is None:
            found = volume_ml >= self.min_brain_ml
            pose = torch.where(found[:, None, None], pose, torch.nan)
            confidence = torch.where(found, confidence, torch.zeros_like(confidence))
        label = (BRAIN * brain + EYES * (label == EYES)).to(torch.uint8)
        unknown = torch.full_like(confidence, torch.nan)
        return Prediction(pose, confidence, volume_ml, label, unknown, unknown)

    def forward(
        self, volume: Tensor, cube: Cube | None = None, landmark_cubes: Tensor | None = None
    ) -> Tensor | TrainingOutput:
        """Pose ``head_to_grid`` (batch, 4, 4); NaN where there is no head.

        With ``cube`` (batch, 1), around the reference brains, what training needs instead.
        ``landmark_cubes`` are for networks with landmarks, which this one has not.
        """
        if cube is None:
            return self.predict(volume).head_to_grid
        return TrainingOutput(self.localizer(volume), self.axis_field(volume, cube), None)
