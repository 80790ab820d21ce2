"""Small chains, stand-ins for trained parts of them, and heads that these find."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from scripts.network import E3CNN, HeadPoseNet
from scripts.network.search import Best, DensestPlace, FirstPoses

TINY = {"features": 1, "levels": 2, "convolutions": 1, "lmax": 1}
TINY_CHAIN = {
    "crop_size": 8,
    "localizer_channels": (4, 4, 4, 4, 4, 4),
    "spacing_mm": 4.0,
    "landmarks": None,
}
AUTHORS_SMALL = {
    "features": 2,
    "levels": 3,
    "convolutions": 2,
    "num_radial": 5,
    "radius": 2.5,
}
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}


def tiny_net(in_channels: int = 3, **config) -> HeadPoseNet:
    """A HeadPoseNet that runs at once; its E3CNN sees the maps of the localizer as well."""
    return HeadPoseNet(E3CNN(**TINY, in_channels=in_channels), **{**TINY_CHAIN, **config})


def intensity_as_logits(volume: Tensor) -> Tensor:
    """Stand-in for a trained localizer, equivariant: the bright is brain, the brightest eyes."""
    return torch.cat([torch.full_like(volume, 0.35), volume, 2 * volume - 0.95], dim=1)


class Blind(nn.Module):
    """A localizer that sees nothing in volumes with two bright voxels side by side along x.

    ``mark`` blinds it, to a volume or to that volume turned. Plain torch that can be exported.
    """

    def __init__(self, localizer: nn.Module) -> None:
        super().__init__()
        self.localizer = localizer

    def forward(self, volume: Tensor) -> Tensor:
        logits = self.localizer(volume)
        bright = volume > 1.5
        beside = (bright[:, :, 1:] & bright[:, :, :-1]).flatten(1).any(1)
        none = torch.full_like(logits[:, :1], 20.0)
        nothing = torch.cat([none, torch.zeros_like(logits[:, 1:])], dim=1)
        return torch.where(beside[:, None, None, None, None], nothing, logits)


class Answering:
    """A network for HeadPoseEstimator that answers a batch with what ``fields`` gives for it."""

    chain = SimpleNamespace(spacing_mm=4.0)

    def to(self, _):
        return self

    def freeze(self):
        return self

    def predict(self, volume: Tensor):
        fields = self.fields(volume)
        return SimpleNamespace(_asdict=lambda: fields)


class Intensity(nn.Module):
    """``intensity_as_logits`` as a module."""

    def forward(self, volume: Tensor) -> Tensor:
        return intensity_as_logits(volume)


class Rated(nn.Module):
    """``DensestPlace`` that tells an expected error: 180 degrees times what confidence lacks.

    Holds one rather than being one: TorchScript knows no inheritance.
    """

    def __init__(self) -> None:
        super().__init__()
        self.search = DensestPlace()

    def forward(self, volume: Tensor, first: FirstPoses) -> Best:
        best = self.search(volume, first)
        rotation_sd_deg = 180.0 * (1.0 - best.confidence)
        return Best(
            best.cube,
            best.confidence,
            best.found,
            rotation_sd_deg,
            best.translation_sd_mm,
            best.eyes_mm,
        )


def mark(volume: Tensor, *axes: int) -> Tensor:
    """``volume`` (1, 1, x, y, z) with pairs of bright voxels along each of ``axes``, in its middle.

    With the axes exchanged, the pairs along y (1) lie along the first of them.
    """
    volume = volume.clone()
    middle = [n // 2 for n in volume.shape[2:]]
    for axis in axes:
        for step in (0, 1):
            place = list(middle)
            place[axis] += step
            volume[(0, 0, *place)] = 2.0
    return volume


def heads(shape=(18, 23, 20), batch: int = 1, seed: int = 0) -> Tensor:
    """Lumpy brains of about 100 ml with dim surroundings, (batch, 1, x, y, z), off the centre."""
    generator = torch.Generator().manual_seed(seed)
    steps = [4.0 * (torch.arange(n) - (n - 1) / 2) for n in shape]
    points = torch.stack(torch.meshgrid(*steps, indexing="ij"), dim=-1)
    volumes = []
    for _ in range(batch):
        middle = 6 * torch.randn(3, generator=generator)
        volume = 0.1 * torch.rand(shape, generator=generator)
        for _ in range(6):
            center = middle + 10 * torch.randn(3, generator=generator)
            distance2 = (points - center).square().sum(-1)
            volume += 0.5 * torch.exp(-distance2 / (2 * 11.0**2))
        volumes.append(volume)
    return torch.stack(volumes).unsqueeze(1).clamp(0, 1)


def in_a_large_volume(volume, offset, shape=(90, 75, 100)):
    """Zeros of ``shape`` with ``volume`` (batch, 1, x, y, z) from the voxel ``offset`` on."""
    large = volume.new_zeros(len(volume), 1, *shape)
    x, y, z = (slice(first, first + n) for first, n in zip(offset, volume.shape[2:], strict=True))
    large[:, :, x, y, z] = volume
    return large


class Recorder(nn.Module):
    """Rotation network that keeps the crops it is given."""

    in_channels = 3

    def __init__(self) -> None:
        super().__init__()
        self.crops: list[torch.Tensor] = []

    def forward(self, crop):
        self.crops.append(crop)
        return torch.ones(len(crop), 3, 3, 1, 1, 1)
