"""From the state_dicts of the authors of E(3)-Pose to this bundle's networks.

Sizes are read from the tensors. What does not fit is refused with a ValueError that names the file
and the key, and both shapes.

A scalar image cannot excite every irrep of the authors' first levels: until enough products with
harmonics have been taken, some stay zero whatever the weights are. ``E3CNN`` leaves them out, so
their weights are cut away here. e3nn divides by the square root of the number of inputs, which then
is smaller; the weights that stay are scaled by as much, and the function is the same.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..data.importers.e3pose import head_axes_matrix
from ..network.e3cnn import E3CNN, GatedBlock
from ..network.irreps import o3
from ..network.steerable import Gate, radial_functions, weight_chunks
from .unet import UNet

LMAX, KERNEL_SIZE, RADIUS, CONVOLUTIONS = 2, 5, 2.5, 2


FIELD = o3.Irreps("1e + 2x1o")


# buffers of the authors' modules that follow from the architecture
CONSTANTS = re.compile(r"\.(lattice|emb|sh|output_mask|_w3j_\d+_\d+_\d+)$")


State = dict[str, Tensor]


def _find(state: State, key: str, path: Any) -> Tensor:
    if key not in state:
        raise ValueError(f"{path}: no key {key!r}: not a checkpoint of this kind, or not all of it")
    return state[key]


def _levels(state: State, root: str) -> range:
    """Numbers of the levels of which ``state`` has anything under ``root``; 0 at least."""
    found = [re.match(rf"{re.escape(root)}\.(\d+)\.", key) for key in state]
    return range(1 + max((int(match[1]) for match in found if match), default=0))


def _take(state: State, key: str, shape: tuple[int, ...], path: Any) -> Tensor:
    """Remove ``key`` from ``state``; ValueError, with both shapes, if it is not as expected."""
    value = _find(state, key, path)
    if tuple(value.shape) != shape:
        raise ValueError(f"{path}: {key}: expected shape {shape}, got {tuple(value.shape)}")
    return state.pop(key)


def _refuse_unknown(keys: list[str], path: Any) -> None:
    if keys:
        raise ValueError(
            f"{path}: keys that the authors' network does not have: {', '.join(keys[:5])}"
            + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
        )


class _Interface(NamedTuple):
    """The channels between two layers: all irreps, and which of each block are not always zero."""

    irreps: o3.Irreps
    keep: list[Tensor]  # (mul,) bool for every block


def _hidden(m: int, reached: o3.Irreps) -> tuple[_Interface, _Interface]:
    """What the convolution of a gated block gives and what its gate gives.

    ``m`` is the multiplicity of degree 2 in the block's full layout, ``reached`` the irreps that
    are not always zero.
    """
    irreps = o3.Irreps(f"{4 * m}x0e+{4 * m}x0o+{2 * m}x1e+{2 * m}x1o+{m}x2e+{m}x2o")
    kinds = {ir for _, ir in reached}
    after = _Interface(irreps, [torch.full((mul,), ir in kinds) for mul, ir in irreps])
    # even scalars come first, then a gate for every irrep of higher degree in the order of these
    gates = torch.cat([keep for keep, (_, ir) in zip(after.keep, irreps, strict=True) if ir.l])
    before = o3.Irreps(Gate(irreps).irreps_in)
    even = torch.cat([after.keep[0], gates])
    keep = [even if ir.is_scalar() else torch.full((mul,), ir in kinds) for mul, ir in before]
    return _Interface(before, keep), after


def _chunks(
    weight: Tensor, pairs: list[tuple[int, int]], irreps_in: o3.Irreps, irreps_out: o3.Irreps
) -> list[Tensor]:
    """Parts (..., mul_in, mul_out) of a flat weight (..., number), one for each pair of blocks."""
    sizes = [(irreps_in[i].mul, irreps_out[o].mul) for i, o in pairs]
    chunks = weight.split([math.prod(size) for size in sizes], dim=-1)
    return [chunk.unflatten(-1, size) for chunk, size in zip(chunks, sizes, strict=True)]


def _cut(
    weight: Tensor, pairs: list[tuple[int, int]], given: _Interface, wanted: _Interface
) -> Tensor:
    """Part of a flat weight (..., number) between irreps that are kept, scaled as the fan-in is."""
    parts = []
    chunks = _chunks(weight, pairs, given.irreps, wanted.irreps)
    for (i, o), chunk in zip(pairs, chunks, strict=True):
        feeding = [given.keep[a] for a, b in pairs if b == o]
        share = torch.cat(feeding).double().mean().item()
        part = chunk[..., given.keep[i], :][..., wanted.keep[o]] * math.sqrt(share)
        parts.append(part.flatten(-2))
    return torch.cat(parts, dim=-1)


def _convolution(
    state: State, key: str, given: _Interface, wanted: _Interface, num_radial: int, path: Any
) -> State:
    """``weight`` and ``center_weight`` of a SteerableConv from the convolution ``key``."""
    paths, centers = weight_chunks(given.irreps, wanted.irreps, 2 * LMAX)
    pairs = [(i, o) for i, _, o in paths]
    numbers = [
        sum(given.irreps[i].mul * wanted.irreps[o].mul for i, o in chosen)
        for chosen in (pairs, centers)
    ]
    weight = _take(state, f"{key}.weight", (num_radial, numbers[0]), path)
    center = _take(state, f"{key}.sc.weight", (numbers[1],), path)
    _check_kernel(state, key, num_radial, path)
    return {
        "weight": _cut(weight, pairs, given, wanted),
        "center_weight": _cut(center, centers, given, wanted),
    }


def _turn_vectors(out: State, irreps_in: o3.Irreps, matrix: Tensor) -> None:
    """Mix the two vectors of the field, ``matrix`` (2, 2): from those trained to those wanted."""
    paths, centers = weight_chunks(irreps_in, FIELD, 2 * LMAX)
    for name, pairs in (("weight", [(i, o) for i, _, o in paths]), ("center_weight", centers)):
        chunks = _chunks(out[name], pairs, irreps_in, FIELD)
        turned = [c @ matrix if c.shape[-1] == len(matrix) else c for c in chunks]
        out[name] = torch.cat([c.flatten(-2) for c in turned], dim=-1)


def _check_kernel(state: State, key: str, num_radial: int, path: Any) -> None:
    """Refuse kernels with other taps, radial functions or harmonics than this bundle builds."""
    taps = torch.arange(KERNEL_SIZE, dtype=torch.float64) - KERNEL_SIZE // 2
    offsets = torch.stack(torch.meshgrid(taps, taps, taps, indexing="ij"), dim=-1)
    harmonics = o3.Irreps.spherical_harmonics(2 * LMAX)
    expected = {
        "emb": radial_functions(offsets.norm(dim=-1), num_radial, RADIUS),
        "sh": o3.spherical_harmonics(harmonics, offsets, True, "component"),
    }
    for name, values in expected.items():
        if f"{key}.{name}" in state:
            found = _take(state, f"{key}.{name}", tuple(values.shape), path)
            error = (found.double() - values).abs().max().item()
            if not error < 1e-4:
                raise ValueError(
                    f"{path}: {key}.{name}: the kernel is built from other functions than the "
                    f"authors' {num_radial} on [0, {RADIUS}] voxels (they differ by {error:.2g})"
                )


def import_rotation(state: State, path: Any, canonical_axes: str = "RAS") -> tuple[E3CNN, dict]:
    """E3CNN with the weights of an E(3)-CNN's state_dict, and its parameters.

    Levels, features of every level and the number of radial functions are read from the shapes.

    Parameters
    ----------
    path : of the file, for messages
    canonical_axes : to which side of the head each of the three axes points that the weights were
        trained for, such as "LPS"

    ValueError that names the file and the key, with both shapes where a shape is not as expected.
    """
    head_axes = head_axes_matrix(canonical_axes).to(torch.float32)
    if not head_axes[0, 0]:
        raise ValueError(
            "the first of canonical_axes must be R or L, because the pseudovector lies left-right, "
            f"got {canonical_axes!r}"
        )
    state, root = dict(state), "net.down.down_blocks"
    features: list[int] = []
    for level in _levels(state, root):
        key = f"{root}.{level}.batchnorm1.bias"
        # four even scalars for each of degree 2, and six gates
        m, rest = divmod(_find(state, key, path).numel(), 10)
        if rest or not m:
            shape = tuple(state[key].shape)
            raise ValueError(f"{path}: {key}: expected shape (10 m,) with an m > 0, got {shape}")
        features.append(m)
    num_radial = _find(state, f"{root}.0.conv1.weight", path).shape[0]
    config: dict[str, Any] = {
        "in_channels": 1,
        "features": features,
        "levels": len(features),
        "kernel_size": KERNEL_SIZE,
        "lmax": LMAX,
        "convolutions": CONVOLUTIONS,
        "pool": "signed_max",
        "num_radial": num_radial,
        "radius": RADIUS,
    }
    net = E3CNN(**config)
    imported: State = {}
    given = _Interface(o3.Irreps("0e"), [torch.ones(1, dtype=torch.bool)])
    for level, m in enumerate(features):
        for number in range(1, CONVOLUTIONS + 1):
            # the first module of every level but the first is the pooling
            place = number - 1 + (level > 0)
            reached = cast(GatedBlock, net.stages.get_submodule(f"{level}.{place}")).irreps_out
            wanted, after = _hidden(m, reached)
            here, there = f"{root}.{level}", f"stages.{level}.{place}"
            conv = _convolution(state, f"{here}.conv{number}", given, wanted, num_radial, path)
            imported |= {f"{there}.conv.{name}": value for name, value in conv.items()}
            blocks = zip(wanted.keep, wanted.irreps, strict=True)
            even = [keep for keep, (_, ir) in blocks if ir.is_scalar()]
            for name, keep in (("weight", torch.cat(wanted.keep)), ("bias", torch.cat(even))):
                key = f"{here}.batchnorm{number}.{name}"
                imported[f"{there}.norm.{name}"] = _take(state, key, (len(keep),), path)[keep]
            given = after
    wanted = _Interface(FIELD, [torch.ones(mul, dtype=torch.bool) for mul, _ in FIELD])
    out = _convolution(state, "net.out", given, wanted, num_radial, path)
    _turn_vectors(out, reached, head_axes[1:, 1:])
    imported |= {f"out.{name}": value for name, value in out.items()}
    unknown = [k for k, value in state.items() if value.numel() and not CONSTANTS.search(k)]
    _refuse_unknown(unknown, path)
    net.load_state_dict(imported)
    return net.eval(), config


def import_localizer(state: State, path: Any) -> tuple[UNet, dict]:
    """UNet with the weights of a Lightning state_dict, and its parameters.

    Levels, features and kernel size are read from the shapes. Keys without the prefix ``model.``
    (the weights of the loss) are not needed. ValueError as for ``import_rotation``.
    """
    state = {key: value for key, value in state.items() if key.startswith("model.")}
    root = "model.list_encoder_blocks"
    first = [_find(state, f"{root}.{level}.0.weight", path) for level in _levels(state, root)]
    config: dict[str, Any] = {
        "features": [weight.shape[0] for weight in first],
        "kernel_size": first[0].shape[-1],
    }
    net = UNet(**config)
    imported = {}
    for name, own in net.state_dict().items():
        key = re.sub(r"^(encoder|decoder)", r"model.list_\1_blocks", name)
        key = re.sub(r"^out\.", "model.last_conv.", key)
        imported[name] = _take(state, key, tuple(own.shape), path)
    _refuse_unknown(list(state), path)
    net.load_state_dict(imported)
    return net.eval(), config
