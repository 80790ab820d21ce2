"""E3CNN: O(3)-equivariant network from a cube around the brain to a field of head axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .frozen import Convolution, DirectConv, FrozenBlock, FrozenE3CNN, direct
from .irreps import o3
from .steerable import (
    AveragePool,
    Gate,
    InstanceNorm,
    NormMaxPool,
    SignedMaxPool,
    SteerableConv,
    with_channels,
)

POOLS = {"average": AveragePool, "norm_max": NormMaxPool, "signed_max": SignedMaxPool}


def reachable(irreps_in: o3.Irreps, irreps_out: o3.Irreps, lmax: int) -> o3.Irreps:
    """The part of ``irreps_out`` that some product of ``irreps_in`` with harmonics can produce."""
    harmonics = o3.Irreps.spherical_harmonics(lmax)
    products = {ir for _, a in irreps_in for _, b in harmonics for ir in a * b}
    return o3.Irreps([(mul, ir) for mul, ir in irreps_out if ir in products])


def of_more_channels(weight: Tensor, chunks: Sequence[int], channels: int) -> Tensor:
    """Flat weights (..., n) of a first ``SteerableConv`` with zeros for the channels they lack.

    ``chunks`` are those of a convolution of ``channels`` scalars. Weights of as many channels, or
    of no such convolution, are returned as they are.
    """
    outputs = [size // channels for size in chunks]
    given, rest = divmod(weight.shape[-1], sum(outputs))
    if rest or not 0 < given < channels:
        return weight
    parts = weight.split([given * n for n in outputs], dim=-1)
    padded = [
        functional.pad(part.unflatten(-1, (given, n)), [0, 0, 0, channels - given]).flatten(-2)
        for part, n in zip(parts, outputs, strict=True)
    ]
    # the convolution divides by the square root of its number of inputs
    return torch.cat(padded, dim=-1) * math.sqrt(channels / given)


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

    def freeze(self, crop_size: int | None = None, convolution: Convolution = direct) -> E3CNN:
        """Turn into the eval-time form: kernels built once, plain torch operations only.

        For good: training is refused from then on, and weights can no longer be loaded.
        ``state_dict`` stays the trainable one.

        Parameters
        ----------
        crop_size : voxels along each side of the crops, for a ``convolution`` that depends on it
        convolution : makes the form of every convolution but the last, such as
            ``e3pose.fast_convolutions.fastest``
        """
        self.eval()
        self.frozen = self.plain(crop_size, convolution)
        return self

    def plain(self, crop_size: int | None = None, convolution: Convolution = direct) -> FrozenE3CNN:
        """The eval-time form as a module of its own."""
        layers: list[nn.Module] = []
        side = crop_size
        for level, stage in enumerate(self.stages):
            if level and side is not None:
                side = side // 2
            for layer in stage:  # type: ignore[attr-defined]
                if isinstance(layer, GatedBlock):
                    layer = FrozenBlock(layer.conv, layer.norm, layer.gate, side, convolution)
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

    def of_older(self, state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """``state`` as this network has it, where it is of one with fewer input channels.

        Releases up to 0.10 had three. What they lack counts as zero, as in crops that lack it.
        """
        state = dict(state)
        first: SteerableConv = self.stages[0][0].conv  # type: ignore[index, assignment]
        for name, chunks in (("weight", first.chunks), ("center_weight", first.center_chunks)):
            key = f"{prefix}stages.0.0.conv.{name}"
            if key in state:
                state[key] = of_more_channels(state[key], chunks, self.in_channels)
        return state

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """As ever, but weights of fewer input channels are taken too: the others count as zero."""
        if self.frozen is not None:
            raise RuntimeError("this E3CNN is frozen: load weights before freeze()")
        state_dict.update(self.of_older(state_dict, prefix))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

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
