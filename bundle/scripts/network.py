"""E3CNN (crop -> field of head axes) and HeadPoseNet (volume -> pose)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn

from .chain import PoseChain, Prediction, pool_axes
from .crop import Box, crop_cube
from .frozen import DirectConv, FrozenBlock, FrozenE3CNN
from .geometry import spread_rotations
from .landmarks import LandmarkNet, Landmarks
from .localizer import Localizer
from .steerable import (
    AveragePool,
    Gate,
    InstanceNorm,
    NormMaxPool,
    SignedMaxPool,
    SteerableConv,
    with_channels,
)

__all__ = ["E3CNN", "HeadPoseNet", "Prediction", "pool_axes"]

POOLS = {"average": AveragePool, "norm_max": NormMaxPool, "signed_max": SignedMaxPool}


def reachable(irreps_in: o3.Irreps, irreps_out: o3.Irreps, lmax: int) -> o3.Irreps:
    """The part of ``irreps_out`` that some product of ``irreps_in`` with harmonics can produce."""
    harmonics = o3.Irreps.spherical_harmonics(lmax)
    products = {ir for _, a in irreps_in for _, b in harmonics for ir in a * b}
    return o3.Irreps([(mul, ir) for mul, ir in irreps_out if ir in products])


class GatedBlock(nn.Module):
    """Steerable convolution, instance normalisation and gate: irreps_in -> hidden irreps.

    Hidden irreps that no product of the input with the spherical harmonics reaches would be zero
    for ever; they are left out (the block after a scalar image has natural parity only).
    """

    def __init__(self, irreps_in: o3.Irreps, hidden: o3.Irreps, lmax: int, **kernel: Any) -> None:
        super().__init__()
        self.irreps_out = reachable(irreps_in, hidden, lmax)
        self.gate = Gate(self.irreps_out)
        self.conv = SteerableConv(irreps_in, self.gate.irreps_in, lmax=lmax, **kernel)
        self.norm = InstanceNorm(self.gate.irreps_in)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.norm(self.conv(x)))


class E3CNN(nn.Module):
    """O(3)-equivariant CNN from a cubic crop to a field of the head's axes.

    A reflection g of the crop turns the field as g turns a pseudovector and two vectors, so the
    left-right symmetry of the head is in the architecture (docs/method.md).

    Parameters
    ----------
    features : multiplicity m of the highest degree at each level, or that of the first level,
        doubling from level to level. Degree l has m * 2^(lmax - l) irreps of either parity.
    levels : resolutions; each but the first begins with pooling by 2
    kernel_size : taps of every kernel along each axis, odd
    lmax : highest degree of the hidden irreps; kernels reach 2 * lmax
    convolutions : gated blocks at each level, or one number for all. One at the first, largest
        level is far cheaper.
    pool : "average", "norm_max", or "signed_max" (imported weights only: breaks reflections)
    num_radial, radius : radial functions of the kernels, see ``SteerableConv``
    in_channels : scalar channels of the crop: the image, and what else turns with it. Channels
        that a crop lacks count as zero, so an image alone is always understood.

    The authors' network is ``E3CNN(features=2, levels=5, convolutions=2, pool="signed_max",
    num_radial=5, radius=2.5)``.

    Shapes: ``(batch, 1, S, S, S)``, or up to ``in_channels`` channels -> ``(batch, 3, 3, s, s, s)``
    with ``s = S / 2^(levels - 1)``: [pseudovector e_x, vector e_y, vector e_z] x (x, y, z) in the
    crop's axes, of any length.
    ``ValueError`` if S is not a multiple of ``2^(levels - 1)``.
    """

    def __init__(
        self,
        features: int | Sequence[int] = (2, 2, 4),
        levels: int = 3,
        kernel_size: int = 5,
        lmax: int = 2,
        convolutions: int | Sequence[int] = (1, 2, 2),
        pool: str = "average",
        num_radial: int = 3,
        radius: float | None = None,
        in_channels: int = 1,
    ) -> None:
        super().__init__()
        kernel: dict[str, Any] = {
            "kernel_size": kernel_size,
            "num_radial": num_radial,
            "radius": radius,
        }
        if isinstance(features, int):
            features = [features * 2**level for level in range(levels)]
        if isinstance(convolutions, int):
            convolutions = [convolutions] * levels
        if len(features) != levels or len(convolutions) != levels:
            raise ValueError(
                f"expected one entry for each of the {levels} levels, got features="
                f"{list(features)} and convolutions={list(convolutions)}"
            )
        if pool not in POOLS:
            raise ValueError(f"pool must be one of {sorted(POOLS)}, got {pool!r}")
        self.levels, self.in_channels = levels, in_channels
        irreps = o3.Irreps([(in_channels, (0, 1))])
        stages: list[nn.Module] = []
        for level, (m, count) in enumerate(zip(features, convolutions, strict=True)):
            hidden = o3.Irreps(
                [
                    (m * 2 ** (lmax - degree), (degree, p))
                    for degree in range(lmax + 1)
                    for p in (1, -1)
                ]
            )
            blocks: list[nn.Module] = [POOLS[pool](irreps)] if level else []
            for _ in range(count):
                block = GatedBlock(irreps, hidden, 2 * lmax, **kernel)
                irreps = block.irreps_out
                blocks.append(block)
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.out = SteerableConv(irreps, "1e + 2x1o", lmax=2 * lmax, **kernel)
        self.frozen: FrozenE3CNN | None = None

    def freeze(self, crop_size: int | None = None) -> E3CNN:
        """Turn into the eval-time form: kernels built once, plain torch operations only.

        For good: training is refused from then on, and weights can no longer be loaded.
        ``state_dict`` stays the trainable one. With ``crop_size`` the convolutions take the form
        that is fastest for crops of that many voxels along each side.
        """
        self.eval()
        self.frozen = self.plain(crop_size)
        return self

    def plain(self, crop_size: int | None = None) -> FrozenE3CNN:
        """The eval-time form as a module of its own."""
        layers: list[nn.Module] = []
        side = crop_size
        for level, stage in enumerate(self.stages):
            if level and side is not None:
                side = side // 2
            for layer in stage:  # type: ignore[attr-defined]
                if isinstance(layer, GatedBlock):
                    layer = FrozenBlock(layer.conv, layer.norm, layer.gate, side)
                layers.append(layer)
        out = self.out.kernel().detach()
        return FrozenE3CNN([*layers, DirectConv(out)], self.in_channels)

    def __prepare_scriptable__(self) -> FrozenE3CNN:
        """What ``torch.jit.script`` compiles in its place."""
        return self.plain().eval()

    def train(self, mode: bool = True) -> E3CNN:
        if mode and self.frozen is not None:
            raise RuntimeError(
                "this E3CNN is frozen and cannot be trained: build another one and load the "
                "state_dict of this one into it"
            )
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if self.frozen is not None:
            raise RuntimeError("this E3CNN is frozen: load weights before freeze()")
        super()._load_from_state_dict(*args, **kwargs)

    def forward(self, crop: Tensor) -> Tensor:
        if any(n % 2 ** (self.levels - 1) for n in crop.shape[2:]):
            raise ValueError(
                f"{self.levels} levels need a crop whose side is a multiple of "
                f"{2 ** (self.levels - 1)} voxels, got {tuple(crop.shape)}"
            )
        if self.frozen is not None:
            return self.frozen(crop)
        crop = with_channels(crop, self.in_channels)
        return self.out(self.stages(crop)).unflatten(1, (3, 3))


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
