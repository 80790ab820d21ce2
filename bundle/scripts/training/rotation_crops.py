"""Crops for the rotation network, cut once and read many times.

To load, turn and localize a patch takes as long as the rotation network needs to learn from two
crops of it, and the network learns for many times longer than patches stay new to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite import distributed as idist
from monai.transforms import Compose
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from ..cubes import Cube, along_grid, brain_cube, sample_cubes
from ..files import write_tensors
from ..labels import BRAIN
from ..network.chain import with_brain_units
from ..network.head_pose_net import HeadPoseNet
from ..regions import largest_component
from ..weight_files import part_of, read_weights
from .losses import AxisEvidenceLoss
from .precision import TrainingInferer


class RotationCrops(Dataset):
    """What the cubes around heads show, and how the heads are turned in them.

    Two crops of every patch with a head: one in its jittered reference cube, one in the cube around
    the localizer's own mask, as in the chain; where that mask lies elsewhere, in a cube that is
    jittered more. Files that are missing are cut first, so a run that was stopped goes on; every
    process has files of its own.

    Items: ``crop`` (channels, S, S, S) float32, what the rotation network is given, the image
    through ``transforms``; ``rotation`` (3, 3), head to crop.

    Parameters
    ----------
    folder : of the files
    passes : through ``loader``, of each of which one file is made
    loader : batches of train.json's items, with ``image``, ``has_head``, ``head_to_grid``,
        ``center_mm`` and ``side_mm``
    network : whose localizer and sizes count; its localizer is loaded from ``ckpt_path``
    transforms : random transforms of dictionaries with the "image" (1, S, S, S)
    maps_dropout : share of the items that lose the localizer's probabilities

    Raises
    ------
    ValueError, FileNotFoundError : weights that are not there, patches without a single head
    """

    def __init__(
        self,
        folder: str | Path,
        passes: int,
        loader: Iterable[Mapping[str, Any]],
        network: HeadPoseNet,
        ckpt_path: str | Path,
        transforms: Sequence[Any] = (),
        maps_dropout: float = 0.25,
        mixed_precision: bool = False,
    ) -> None:
        self.transforms, self.maps_dropout = Compose(transforms), maps_dropout
        rank = idist.get_rank()
        paths = [Path(folder) / f"crops_{number:04}_{rank}.pt" for number in range(passes)]
        missing = [number for number, path in enumerate(paths) if not path.exists()]
        if missing:
            load_localizer(network, ckpt_path)
            cut = CropCutter(network, mixed_precision)
            for number in tqdm(missing, desc="crops", unit="file", disable=rank > 0):
                # as a trainer's epochs: other draws in every pass
                sampler = getattr(loader, "sampler", None)
                if hasattr(sampler, "set_epoch"):
                    sampler.set_epoch(number)  # type: ignore[union-attr]
                write_tensors(cut.all_of(loader), paths[number])
        files = [torch.load(path, weights_only=True, mmap=True) for path in paths]
        self.files = [file for file in files if len(file["crop"])]
        if not self.files:
            raise ValueError(f"{folder}: no patch shows a head")
        self.in_channels = network.chain.in_channels
        self.index = [(k, n) for k, file in enumerate(self.files) for n in range(len(file["crop"]))]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        file, place = self.index[number]
        crop = self.files[file]["crop"][place].float()
        image = self.transforms({"image": crop[:1]})["image"]
        maps = crop[1:] * (torch.rand(()) >= self.maps_dropout)
        crop = torch.cat([torch.as_tensor(image), maps])
        crop = with_brain_units(crop[None], self.in_channels)[0]
        return {"crop": crop, "rotation": self.files[file]["rotation"][place]}


class CropCutter:
    """Cuts crops out of batches of patches, as ``RotationCrops`` describes them."""

    def __init__(self, network: HeadPoseNet, mixed_precision: bool = False) -> None:
        self.network, self.infer = network, TrainingInferer(mixed_precision)

    def all_of(self, loader: Iterable[Mapping[str, Any]]) -> dict[str, Tensor]:
        """``crop`` (n, channels, S, S, S) float16 and ``rotation`` (n, 3, 3) of all batches."""
        crops, rotations = zip(*(self(batch) for batch in loader), strict=True)
        return {"crop": torch.cat(crops).half(), "rotation": torch.cat(rotations)}

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Crops (n, channels, S, S, S) and rotations (n, 3, 3) of a batch, on the CPU."""
        chain = self.network.chain
        device = next(self.network.parameters()).device
        given = {
            key: torch.as_tensor(batch[key]).to(device)
            for key in ("image", "has_head", "head_to_grid", "center_mm", "side_mm")
        }
        logits = self.infer(given["image"], self.network.localizer).float()
        maps = logits.softmax(1)[:, 1:]
        reference = along_grid(given["center_mm"][:, None], given["side_mm"][:, None])
        brain = largest_component(logits.argmax(1, keepdim=True) == BRAIN)
        own, volume_ml = brain_cube(brain, chain.spacing_mm, chain.crop_fill)
        own = Cube(own.center_mm[:, None], own.side_mm[:, None], own.rotation[:, None])
        away = torch.linalg.vector_norm(own.center_mm - reference.center_mm, dim=2)
        grown = own.side_mm / reference.side_mm
        near = (away < 0.25 * reference.side_mm) & (grown > 0.65) & (grown < 1.5)
        near = near & (volume_ml >= chain.min_brain_ml)[:, None]
        second = jittered(reference)
        second = Cube(
            torch.where(near[..., None], own.center_mm, second.center_mm),
            torch.where(near, own.side_mm, second.side_mm),
            reference.rotation,
        )
        cubes = Cube(*(torch.cat(pair, dim=1) for pair in zip(reference, second, strict=True)))
        volume = torch.cat([given["image"], maps], dim=1)[:, : min(chain.in_channels, 3)]
        crops = sample_cubes(volume, cubes, chain.crop_size, chain.spacing_mm)
        shown = given["has_head"] == 1
        rotation = given["head_to_grid"][shown, :3, :3].repeat_interleave(2, dim=0)
        return crops[shown].flatten(0, 1).cpu(), rotation.float().cpu()


def jittered(cube: Cube, shift: float = 0.1, scale: float = 1.25) -> Cube:
    """Cubes (batch, n) moved by up to ``shift`` sides, and resized by up to ``scale``."""
    moved = (2 * torch.rand_like(cube.center_mm) - 1) * shift * cube.side_mm[..., None]
    factor = scale ** (2 * torch.rand_like(cube.side_mm) - 1)
    return Cube(cube.center_mm + moved, cube.side_mm * factor, cube.rotation)


def load_localizer(network: HeadPoseNet, ckpt_path: str | Path | None) -> None:
    """Weights of a model.pt for the localizer. ValueError without a file, or for other weights."""
    if ckpt_path is None:
        raise ValueError("crops are cut with a trained localizer: give its model.pt, --init_path")
    try:
        network.localizer.load_state_dict(part_of(read_weights(ckpt_path), "localizer"))
    except RuntimeError as error:
        raise ValueError(f"{ckpt_path}: not the weights of this localizer: {error}") from error


class CropLoss(nn.Module):
    """Mean over the batch of ``AxisEvidenceLoss``, whose parameters it takes."""

    def __init__(self, **options: float) -> None:
        super().__init__()
        self.of_items = AxisEvidenceLoss(**options)

    def forward(self, field: Tensor, rotation: Tensor) -> Tensor:
        return self.of_items(field, rotation).mean()
