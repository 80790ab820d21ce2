"""What each part of the chain contributes: the same volumes without it, or with a stand-in."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..cubes import Cube
from ..geometry import geodesic_deg, nearer, no_head, quaternion_to_rotation
from ..network.chain import PoseChain
from ..network.search import Corrected, DensestPlace, LandmarkSearch

Change = Callable[[PoseChain], None]


class RandomPose(nn.Module):
    """A rotation uniform on SO(3) in E3CNN's place: crops (batch, ...) -> field of axes."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, crop: Tensor) -> Tensor:
        quaternion = torch.randn(len(crop), 4, generator=self.generator)
        return _as_field(quaternion_to_rotation(quaternion).to(crop))


class IdentityPose(nn.Module):
    """The axes of the volume in E3CNN's place: crops (batch, ...) -> field of axes."""

    def forward(self, crop: Tensor) -> Tensor:
        return _as_field(torch.eye(3).expand(len(crop), 3, 3).to(crop))


class WithoutMirror(LandmarkSearch):
    """``LandmarkSearch`` that never looks at the mirror image of a cube."""

    def correct(self, volume: Tensor, cube: Cube, mirrored: bool) -> Corrected:
        return super().correct(volume, cube, False)


def _as_field(rotation: Tensor) -> Tensor:
    """Field (batch, 3, 3, 1, 1, 1) of the axes that are the columns of (batch, 3, 3)."""
    return rotation.mT[..., None, None, None]


def changes(plain_cnn: nn.Module | None = None) -> dict[str, Change]:
    """Variants by name: what to change in the shipped chain.

    ``plain_cnn`` is a trained network of ``configs/plain_cnn.json``; without it there is no row of
    it.
    """

    def first_pose(rotation: nn.Module | None, landmarks: bool = True) -> Change:
        def change(chain: PoseChain) -> None:
            chain.rotation = chain.rotation if rotation is None else rotation
            chain.search = chain.search if landmarks else DensestPlace()

        return change

    def search(**options: object) -> Change:
        def change(chain: PoseChain) -> None:
            for name, value in options.items():
                setattr(chain.search, name, value)

        return change

    def without_mirror(chain: PoseChain) -> None:
        chain.search.__class__ = WithoutMirror

    others = {} if plain_cnn is None else {"plain CNN": plain_cnn}
    others |= {"random rotation": RandomPose(), "identity": IdentityPose()}
    rows = {"shipped: E3CNN, landmarks": first_pose(None)}
    rows |= {f"{name}, landmarks": first_pose(network) for name, network in others.items()}
    rows["E3CNN alone"] = first_pose(None, landmarks=False)
    rows |= {f"{name} alone": first_pose(network, False) for name, network in others.items()}
    return rows | {
        "one place": lambda chain: setattr(chain, "places", 1),
        "one first size": search(first_sizes=[1.0]),
        "best cube alone read again": search(kept=1),
        "one last size": search(last_sizes=[1.0]),
        "no mirror image": without_mirror,
        "no second pass": lambda chain: setattr(chain, "second_pass", False),
    }


class Variant:
    """A changed copy of a chain, and what it has found.

    ``errors`` has for each volume with a head the rotation error in degrees and the distance in mm,
    180 and infinite where no head is found; ``cubes`` for every volume how many LandmarkNet has
    read; ``headless`` for each volume without a head whether one is found.

    Parameters
    ----------
    chain : as ``HeadPoseNet.plain`` gives it
    change : done to the copy
    """

    def __init__(self, chain: PoseChain, change: Change) -> None:
        self.chain = copy.deepcopy(chain)
        change(self.chain)
        self.errors: list[tuple[float, float]] = []
        self.cubes: list[int] = []
        self.headless: list[bool] = []
        if isinstance(self.chain.search, LandmarkSearch):
            self.chain.search.landmarks.register_forward_pre_hook(self._count)

    def _count(self, _: nn.Module, given: tuple[Tensor]) -> None:
        self.cubes[-1] += len(given[0])

    @torch.no_grad()
    def look(
        self, volume: Tensor, head_to_grid: Tensor | None, twin_to_grid: Tensor | None = None
    ) -> None:
        """Note what is found in ``volume`` (1, 1, x, y, z), whose true pose is (4, 4) or None.

        ``twin_to_grid`` (4, 4): pose of a second head, which is as good an answer, or NaN.
        """
        self.cubes.append(0)
        found = self.chain(volume)
        missed = bool(no_head(found))
        if head_to_grid is None:
            self.headless.append(not missed)
            return
        pose, true = found[0].double(), head_to_grid.double()
        if twin_to_grid is not None:
            true = nearer(pose, true, twin_to_grid.double())
        angle = geodesic_deg(pose[:3, :3], true[:3, :3]).item()
        distance = (pose[:3, 3] - true[:3, 3]).norm().item()
        self.errors.append((180.0, math.inf) if missed else (angle, distance))
