"""HeadPoseNet: the chain from volume to pose that is trained, shipped and exported."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..cubes import TYPICAL_BRAIN_MM, Cube
from .chain import PoseChain, Prediction
from .e3cnn import E3CNN
from .landmarks import LandmarkNet, Landmarks
from .localizer import Localizer
from .search import DensestPlace, LandmarkSearch

PARTS = ("localizer", "rotation", "landmarks")


class TrainingOutput(NamedTuple):
    """What the losses need of a batch."""

    logits: Tensor  # (batch, 3, x, y, z): background, brain and eyes
    field: Tensor  # (batch, 3, 3, s, s, s): axes in the cubes around the reference brains
    landmarks: Landmarks | None  # in the cubes given, if any


class HeadPoseNet(nn.Module):
    """The networks of the chain from volume to pose, and the chain that they form.

    Without arguments it is the shipped network. The parts that are trained are ``localizer``,
    ``rotation`` and, if there are landmarks, ``landmarks``.

    Parameters
    ----------
    rotation : network from crop to field of axes, an ``E3CNN`` by default. If it has more than
        one input channel, it also sees the localizer's probabilities of brain and of eyes, and with
        four the image as ``chain.brain_units`` has it: scalar fields that turn with the image, so
        that equivariance stays.
    spacing_mm : voxel size of the working grid
    crop_size : voxels along the side of the crop
    crop_fill : share of the crop's side that the brain fills (0.6 as the authors have it)
    min_brain_ml : a smaller brain mask counts as "no head" (at 20 weeks a brain has about 45 ml)
    min_density : so does one whose brain is less probable where it is densest (mean over 52 mm,
        product of the localizer's two looks)
    localizer_channels : features of the MONAI BasicUNet that labels brain and eyes: five levels,
        and the last layer
    maps_dropout : share of the training items that see the image alone, so that the rotation does
        not hang on the localizer
    landmarks : network that chooses between first poses and corrects them (``LandmarkSearch``);
        None for the first pose as it is (``DensestPlace``)
    max_rotation_sd_deg : with landmarks, a larger expected error counts as "no head"
    places : places of a volume that are looked at closely (one in place of two: docs/method.md)
    sure_deg : largest expected error, in degrees, with which there is no second pass, and of what
        the second pass finds; None for no second pass
    turns : the number of lattices of version 0.7, where 1 was shipped; nothing else is accepted

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
        min_density: float = 0.05,
        localizer_channels: Sequence[int] = (16, 16, 32, 64, 64, 16),
        maps_dropout: float = 0.25,
        landmarks: LandmarkNet | Literal["shipped"] | None = "shipped",
        max_rotation_sd_deg: float = 45.0,
        places: int = 2,
        sure_deg: float | None = 20.0,
        turns: int | None = None,
    ) -> None:
        super().__init__()
        if turns is not None:
            if turns != 1:
                raise ValueError(f"turns: only one lattice is sampled since 0.8, got {turns}")
            warnings.warn("turns is gone since 0.8: leave it out", FutureWarning, stacklevel=2)
        self.localizer = Localizer(localizer_channels)
        self.rotation = E3CNN(in_channels=4) if rotation is None else rotation
        self.landmarks = LandmarkNet() if landmarks == "shipped" else landmarks
        self.maps_dropout = maps_dropout
        search: nn.Module = DensestPlace()
        if self.landmarks is not None:
            search = LandmarkSearch(
                self.landmarks,
                spacing_mm,
                TYPICAL_BRAIN_MM / crop_fill,
                max_rotation_sd_deg=max_rotation_sd_deg,
            )
        chain = PoseChain(
            self.localizer,
            self.rotation,
            search,
            self.rotation.in_channels,  # type: ignore[arg-type]
            spacing_mm,
            crop_size,
            crop_fill,
            min_brain_ml,
            min_density,
            places=places,
            sure_deg=sure_deg,
        )
        # in a tuple, so that it is no part of its own: every weight has one name, and one home
        self._chain = (chain,)
        self.is_frozen = False

    def __setattr__(self, name: str, value: Any) -> None:
        if name in PARTS and "_chain" in self.__dict__:
            raise AttributeError(
                f"{name} is a part of the chain: build another HeadPoseNet with it"
            )
        super().__setattr__(name, value)

    @property
    def chain(self) -> PoseChain:
        """The chain of this network's parts."""
        return self._chain[0]

    def freeze(self) -> HeadPoseNet:
        """Turn into the eval-time form, for good, as ``E3CNN.freeze`` does."""
        self.eval()
        if isinstance(self.rotation, E3CNN):
            self.rotation.freeze(self.chain.crop_size)
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
        """A copy of the chain in plain torch: what is exported."""
        chain = copy.deepcopy(self.chain)
        if isinstance(chain.rotation, E3CNN):
            chain.rotation = chain.rotation.plain()
        return chain.eval()

    def __prepare_scriptable__(self) -> PoseChain:
        """What ``torch.jit.script`` compiles in its place."""
        return self.plain()

    def predict(self, volume: Tensor, reference: Cube | None = None) -> Prediction:
        """Pose, confidence, brain volume and labels of every volume of the batch.

        With cubes ``reference`` (batch, 1) around the brains, in the axes of the grid, these stand
        in place of what the localizer finds: there is one place, it counts, and what the search
        says of it is not refused.
        """
        if reference is None:
            return self.chain.predict(volume)
        return self.chain.at(volume, reference)

    def forward(
        self, volume: Tensor, cube: Cube | None = None, landmark_cubes: Tensor | None = None
    ) -> Tensor | TrainingOutput:
        """Pose ``head_to_grid`` (batch, 4, 4); NaN where there is no head.

        With ``cube`` (batch, 1), around the reference brains and in the axes of the grid, what
        training needs instead; ``landmark_cubes`` are (n, 1, S, S, S). One entry for both, because
        DistributedDataParallel sees calls of ``forward`` only.

        In training some items lose the localizer's maps, and no gradient of the rotation network
        reaches the localizer.
        """
        if cube is None:
            return self.chain(volume)
        logits = self.localizer(volume)
        maps = logits.detach().softmax(1)[:, 1:]
        if self.training:
            shown = torch.rand(len(volume), device=volume.device) >= self.maps_dropout
            maps = maps * shown.view(-1, 1, 1, 1, 1)
        field = self.chain.axis_field(volume, maps, cube)
        if self.landmarks is None or landmark_cubes is None:
            return TrainingOutput(logits, field, None)
        return TrainingOutput(logits, field, self.landmarks(landmark_cubes))
