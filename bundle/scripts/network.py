"""E3CNN (crop -> field of head axes) and HeadPoseNet (volume -> pose)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from e3nn import o3
from monai.networks.nets import BasicUNet
from torch import Tensor, nn
from torch.nn import functional

from .crop import Box, ball, brain_box, crop_cube, densest_place, largest_component, window
from .geometry import frame_to_rotation, rigid, spread_rotations
from .steerable import AveragePool, Gate, InstanceNorm, NormMaxPool, SignedMaxPool, SteerableConv

WINDOW = 64  # voxels along the part of the volume that is looked at closely
CANDIDATES = 3  # places that are looked at closely
LOCALIZER_STRIDE = 32  # voxels: blocks of 2, and four levels of pooling by 2
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

    def forward(self, crop: Tensor) -> Tensor:
        if any(n % 2 ** (self.levels - 1) for n in crop.shape[2:]):
            raise ValueError(
                f"{self.levels} levels need a crop whose side is a multiple of "
                f"{2 ** (self.levels - 1)} voxels, got {tuple(crop.shape)}"
            )
        crop = with_channels(crop, self.in_channels)
        return self.out(self.stages(crop)).unflatten(1, (3, 3))


def with_channels(crop: Tensor, channels: int) -> Tensor:
    """``crop`` (batch, c, x, y, z) with zeros for the channels that it lacks.

    ValueError if it has more than ``channels``.
    """
    missing = channels - crop.shape[1]
    if missing < 0:
        raise ValueError(f"expected at most {channels} channels, got {tuple(crop.shape)}")
    return functional.pad(crop, (0, 0) * 3 + (0, missing)) if missing else crop


def pool_axes(field: Tensor) -> tuple[Tensor, Tensor]:
    """Axes (batch, 3, 3) and confidence (batch,) of a field (batch, 3, 3, s, s, s).

    e_x is the top eigenvector of the sum of v v^T over the voxels: blind to sign, and every voxel
    counts. e_y and e_z are the sums of v. Longer vectors count more; the loss trains their length
    through the same sums, so the network learns where to look. The confidence in [0, 1] is the
    smallest of the eigenvalue gap, as a share of the trace, and the lengths of the two sums, as
    shares of the sums of lengths: 1 where all voxels agree, about 0 without a preferred frame.
    """
    vectors = field.flatten(3)
    tiny = torch.finfo(field.dtype).tiny
    moment = vectors[:, 0] @ vectors[:, 0].mT
    trace = moment.diagonal(dim1=-2, dim2=-1).sum(-1).clamp(min=tiny)
    values, directions = torch.linalg.eigh(moment / trace[:, None, None])
    others = vectors[:, 1:].sum(-1)
    axes = torch.cat([directions[:, None, :, 2], others], dim=1)
    gap = values[:, 2] - values[:, 1]
    agreement = others.norm(dim=-1) / vectors[:, 1:].norm(dim=2).sum(-1).clamp(min=tiny)
    confidence = torch.cat([gap.unsqueeze(1), agreement], dim=1).amin(1)
    return axes, confidence.clamp(0, 1)


def space_to_channels(x: Tensor) -> Tensor:
    """(batch, c, 2x, 2y, 2z) -> (batch, 8c, x, y, z): every block of 2^3 voxels as channels."""
    x = x.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def channels_to_space(x: Tensor) -> Tensor:
    """Inverse of ``space_to_channels``: (batch, 8c, x, y, z) -> (batch, c, 2x, 2y, 2z)."""
    x = x.unflatten(1, (-1, 2, 2, 2)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


class Prediction(NamedTuple):
    """What HeadPoseNet finds in a batch of volumes."""

    head_to_grid: Tensor  # (batch, 4, 4) in mm; NaN where there is no head
    confidence: Tensor  # (batch,) in [0, 1]; 0 where there is no head
    brain_volume_ml: Tensor  # (batch,)
    label: Tensor  # (batch, 1, x, y, z) uint8: 1 the brain (its largest component), 2 eyes


class HeadPoseNet(nn.Module):
    """The whole chain from volume to pose: localizer, crop, rotation network, frame.

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

    Volumes are ``(batch, 1, x, y, z)`` of any size, on a right-handed isotropic grid of
    ``spacing_mm``, intensities scaled to [0, 1].
    """

    turns: Tensor

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
    ) -> None:
        super().__init__()
        self.spacing_mm = float(spacing_mm)
        self.crop_size = crop_size
        self.crop_fill = crop_fill
        self.min_brain_ml, self.min_density = min_brain_ml, min_density
        self.maps_dropout = maps_dropout
        self.register_buffer("turns", spread_rotations(turns).float(), persistent=False)
        self.localizer = BasicUNet(
            spatial_dims=3,
            in_channels=8,
            out_channels=3 * 8,
            features=tuple(localizer_channels),
            # transposed convolutions are several times slower on CPUs
            upsample="nontrainable",
        )
        self.rotation = E3CNN(in_channels=3) if rotation is None else rotation

    def localize(self, volume: Tensor) -> Tensor:
        """Logits (batch, 3, x, y, z) of background, brain and eyes.

        The UNet works on blocks of 2 x 2 x 2 voxels as channels: an eighth of the cost, and
        unlike pooling it keeps the small eyes.
        """
        shape = volume.shape[2:]
        # whole blocks, and two of them at the bottom: instance norm needs more than one voxel
        padding = [p for n in reversed(shape) for p in (0, max(n % 2, 2 * LOCALIZER_STRIDE - n))]
        blocks = space_to_channels(functional.pad(volume, padding))
        logits = channels_to_space(self.localizer(blocks))
        return logits[..., : shape[0], : shape[1], : shape[2]]

    def axis_field(self, volume: Tensor, logits: Tensor, box: Box) -> Tensor:
        """Field of axes (batch, 3, 3, s, s, s), in grid axes, from the crops in ``box``.

        At inference the crop is sampled on every lattice of ``turns``, and the fields, turned
        back, stand one behind the other: (batch, 3, 3, turns * s, s, s).
        """
        maps = [volume]
        if cast(int, self.rotation.in_channels) > 1:
            foreground = logits.detach().softmax(1)[:, 1:]
            if self.training and self.maps_dropout:
                shown = torch.rand(len(volume), device=volume.device) >= self.maps_dropout
                foreground = foreground * shown.view(-1, 1, 1, 1, 1)
            maps.append(foreground)
        channels = torch.cat(maps, dim=1)
        if self.training:
            return self.rotation(crop_cube(channels, box, self.crop_size, self.spacing_mm))
        fields = []
        for turn in self.turns:
            crop = crop_cube(channels, box, self.crop_size, self.spacing_mm, turn)
            field = self.rotation(crop)
            fields.append(torch.einsum("ij,bajxyz->baixyz", turn.to(field), field))
        return torch.cat(fields, dim=3)

    def closer(
        self, volume: Tensor, center: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Window around the head, the logits in it, its first voxel (batch, 3), and the density.

        The whole volume is looked at for the places that look most like a brain. At each the
        localizer looks again at a window of the size that it was trained on, with far less of the
        mother in it; the window in which the brain is densest in both looks is kept. With
        ``center``, a voxel (batch, 3), the window lies there. The density (batch,) is the
        probability of brain where it is densest, the product of both looks.
        """
        if center is not None:
            start = center - WINDOW // 2
            part = window(volume, start, (WINDOW,) * 3)
            logits = self.localize(part)
            _, density = densest_place(logits.softmax(1)[:, 1:2], self.spacing_mm)
            return part, logits, start, density
        probability = self.localize(volume).softmax(1)[:, 1:2]
        looks = []
        for _ in range(CANDIDATES):
            place, density = densest_place(probability, self.spacing_mm)
            probability = probability * ~ball(place, volume.shape[2:], self.spacing_mm)
            part, logits, start, close = self.closer(volume, place)
            looks.append((part, logits, start, density * close))
        parts, all_logits, starts, densities = (torch.stack(x) for x in zip(*looks, strict=True))
        best, item = densities.argmax(0), torch.arange(len(volume), device=volume.device)
        return parts[best, item], all_logits[best, item], starts[best, item], densities[best, item]

    def predict(self, volume: Tensor, reference: Box | None = None) -> Prediction:
        """Pose, confidence, brain volume and labels of every volume of the batch.

        With ``reference`` the crop is placed there instead of around the localizer's mask.
        """
        shape = torch.tensor(volume.shape[2:], device=volume.device)
        center = None
        if reference is not None:
            center = (reference.center_mm / self.spacing_mm + (shape - 1) / 2).round().long()
        part, logits, start, density = self.closer(volume, center)
        # from the middle of the volume to the middle of the window
        offset_mm = (start + (WINDOW - 1) / 2 - (shape - 1) / 2) * self.spacing_mm
        label = logits.argmax(1, keepdim=True)
        place, _ = densest_place(logits.softmax(1)[:, 1:2], self.spacing_mm)
        brain = largest_component((label == 1) & ball(place, part.shape[2:], self.spacing_mm))
        box, volume_ml = brain_box(brain, self.spacing_mm, self.crop_fill)
        if reference is not None:
            box = Box(reference.center_mm - offset_mm, reference.side_mm)
        axes, confidence = pool_axes(self.axis_field(part, logits, box))
        pose = rigid(frame_to_rotation(axes), box.center_mm + offset_mm.to(axes))
        if reference is None:
            found = (volume_ml >= self.min_brain_ml) & (density >= self.min_density)
            pose = torch.where(found[:, None, None], pose, torch.nan)
            confidence = torch.where(found, confidence, torch.zeros_like(confidence))
        label = window(brain + 2 * (label == 2), -start, volume.shape[2:]).to(torch.uint8)
        return Prediction(pose, confidence, volume_ml, label)

    def forward(self, volume: Tensor, box: Box | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Pose ``head_to_grid`` (batch, 4, 4); NaN where there is no head.

        With ``box``, the cubes around the reference brains, what training needs instead: the
        localizer's logits and the field of axes in those cubes. One entry for both, because
        DistributedDataParallel sees calls of ``forward`` only.
        """
        if box is None:
            return self.predict(volume).head_to_grid
        logits = self.localize(volume)
        return logits, self.axis_field(volume, logits, box)
