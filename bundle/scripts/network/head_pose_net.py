"""HeadPoseNet: the chain from volume to pose that is trained, shipped and exported."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..cubes import Box, crop_cube
from ..geometry import spread_rotations
from .chain import PoseChain, Prediction
from .e3cnn import E3CNN
from .landmarks import LandmarkNet, Landmarks
from .localizer import Localizer


class HeadPoseNet(PoseChain):
    """The whole chain from volume to pose: localizer, crop, rotation network, frame, landmarks.

    Parameters
    ----------
    rotation : network from crop to field of axes, an ``E3CNN`` by default. If it has more than
        one input channel, it also sees the localizer's probabilities of brain and of eyes: scalar
        fields that turn with the image, so that equivariance stays.
    spacing_mm : voxel size of the working grid
    crop_size : voxels along the side of the crop
    crop_fill : share of the crop's side that the brain fills (0.6 as the authors have it)
    min_brain_ml : a smaller brain mask counts as "no head" (at 20 weeks a brain has about 45 ml)
    min_density : so does one whose brain is less probable where it is densest (mean over 44 mm,
        product of both looks)
    localizer_channels : features of the MONAI BasicUNet that labels brain and eyes: five levels,
        and the last layer
    maps_dropout : share of the training items that see the image alone, so that the rotation does
        not hang on the localizer
    turns : lattices on which the crop is sampled at inference; all their fields are pooled. More
        of them take more of the lattice out of the pose, at the cost of the rotation network.
    landmarks : network that corrects the pose, a ``LandmarkNet``, or None (see ``PoseChain``)
    min_confidence : with landmarks, less confidence counts as "no head"

    Volumes are ``(batch, 1, x, y, z)`` of any size, on a right-handed isotropic grid of
    ``spacing_mm``, intensities scaled to [0, 1].
    """

    def __init__(
        self,
        rotation: nn.Module | None = None,
        spacing_mm: float = 4.0,
        crop_size: int = 24,
        crop_fill: float = 0.6,
        min_brain_ml: float = 10.0,
        min_density: float = 0.2,
        localizer_channels: Sequence[int] = (16, 16, 32, 64, 64, 16),
        maps_dropout: float = 0.25,
        turns: int = 4,
        landmarks: LandmarkNet | None = None,
        min_confidence: float = 0.0,
    ) -> None:
        rotation = E3CNN(in_channels=3) if rotation is None else rotation
        super().__init__(
            localizer=Localizer(localizer_channels),
            rotation=rotation,
            in_channels=rotation.in_channels,  # type: ignore[arg-type]
            lattices=spread_rotations(turns),
            spacing_mm=spacing_mm,
            crop_size=crop_size,
            crop_fill=crop_fill,
            min_brain_ml=min_brain_ml,
            min_density=min_density,
            landmarks=landmarks,
            min_confidence=min_confidence,
        )
        self.maps_dropout = maps_dropout
        self.is_frozen = False

    def freeze(self) -> HeadPoseNet:
        """Turn into the eval-time form, for good, as ``E3CNN.freeze`` does."""
        self.eval()
        if isinstance(self.rotation, E3CNN):
            self.rotation.freeze(self.crop_size)
        self.is_frozen = True
        return self

    def train(self, mode: bool = True) -> HeadPoseNet:
        if mode and self.is_frozen:
            raise RuntimeError(
                "this HeadPoseNet is frozen and cannot be trained: build another one and load the "
                "state_dict of this one into it"
            )
        return super().train(mode)

    def plain(self) -> PoseChain:
        """The chain from volume to pose alone, in plain torch: what is exported."""
        rotation = self.rotation
        return PoseChain(
            copy.deepcopy(self.localizer),
            rotation.plain() if isinstance(rotation, E3CNN) else copy.deepcopy(rotation),
            self.in_channels,
            self.lattices,
            self.spacing_mm,
            self.crop_size,
            self.crop_fill,
            self.min_brain_ml,
            self.min_density,
            copy.deepcopy(self.landmarks),
            self.min_confidence,
        ).eval()

    def __prepare_scriptable__(self) -> PoseChain:
        """What ``torch.jit.script`` compiles in its place."""
        return self.plain()

    def localize(self, volume: Tensor) -> Tensor:
        """Logits (batch, 3, x, y, z) of background, brain and eyes."""
        return self.localizer(volume)

    def predict(  # type: ignore[override]
        self, volume: Tensor, reference: Box | None = None
    ) -> Prediction:
        """Pose, confidence, brain volume and labels of every volume of the batch.

        With ``reference`` the crop is placed there instead of around the localizer's mask.
        """
        if reference is None:
            return super().predict(volume)
        center = reference.center_mm / self.spacing_mm
        center = center + (center.new_tensor(volume.shape[2:]) - 1) / 2
        return self.find(self.look(volume, center.round().long()), volume, reference)

    def axis_field(self, volume: Tensor, logits: Tensor, box: Box) -> Tensor:
        """Field of axes from the crops in ``box``, in grid axes.

        In training (batch, 3, 3, s, s, s), from one lattice; some items lose the localizer's
        maps, and no gradient goes through those that stay. Else as ``PoseChain`` has it.
        """
        if not self.training:
            return super().axis_field(volume, logits, box)
        if self.in_channels > 1:
            foreground = logits.detach().softmax(1)[:, 1:]
            shown = torch.rand(len(volume), device=volume.device) >= self.maps_dropout
            volume = torch.cat([volume, foreground * shown.view(-1, 1, 1, 1, 1)], dim=1)
        return self.rotation(crop_cube(volume, box, self.crop_size, self.spacing_mm))

    def forward(  # type: ignore[override]
        self, volume: Tensor, box: Box | None = None, cubes: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor, Landmarks | None]:
        """Pose ``head_to_grid`` (batch, 4, 4); NaN where there is no head.

        With ``box``, the cubes around the reference brains, what training needs instead: the
        localizer's logits, the field of axes in those cubes, and the landmarks in ``cubes``
        (n, 1, S, S, S). One entry for both, because DistributedDataParallel sees calls of
        ``forward`` only.
        """
        if box is None:
            return super().forward(volume)
        logits = self.localize(volume)
        field = self.axis_field(volume, logits, box)
        if self.landmarks is None or cubes is None:
            return logits, field, None
        return logits, field, self.landmarks(cubes)
