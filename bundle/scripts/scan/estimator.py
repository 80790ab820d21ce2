"""From volumes in memory to poses in the world, as the inference command finds them in files."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from ..data.volumes import ToWorkingGridd, VolumeError
from ..evaluation.fingerprints import sha256
from ..evaluation.record import too_uncertain
from ..geometry import grid_to_world
from ..labels import BRAIN, Status
from ..network import HeadPoseNet
from ..weight_files import load_weights
from .pose_noise import Noise, expected_noise


class Estimate(NamedTuple):
    """What is found in one volume.

    head_to_world (4, 4) or None; brain (i, j, k) bool with affine (4, 4) voxel to world, on the
    working grid, None where the volume could not be looked at; noise, that of the pose; message,
    why a volume could not be looked at or its pose is uncertain, else empty.
    """

    status: Status
    head_to_world: NDArray[np.float64] | None
    confidence: float
    noise: Noise
    brain: NDArray[np.bool_] | None
    affine: NDArray[np.float64] | None
    message: str = ""


class HeadPoseEstimator:
    """Finds heads in volumes; `weights` is the hash of the file that it has learned from, if any.

    Parameters
    ----------
    network : in any mode; it is frozen, for good
    ckpt_path : weights to load first (`weight_files.load_weights`, and what that raises)
    uncertain_above_deg : see ``record.conclude``
    """

    def __init__(
        self,
        network: HeadPoseNet,
        ckpt_path: str | os.PathLike[str] | None = None,
        device: str | torch.device = "cpu",
        uncertain_above_deg: float | None = 10.0,
    ) -> None:
        if ckpt_path is not None:
            load_weights(network, ckpt_path)
        self.weights = "" if ckpt_path is None else sha256(ckpt_path)
        self.network, self.device = network.to(device).freeze(), torch.device(device)
        self.uncertain_above_deg = uncertain_above_deg
        self.spacing_mm = network.chain.spacing_mm
        self._to_grid = ToWorkingGridd(label_key=None, spacing_mm=self.spacing_mm)

    @torch.no_grad()
    def __call__(self, volumes: Sequence[tuple[NDArray, NDArray[np.float64]]]) -> list[Estimate]:
        """One estimate for each volume (i, j, k) with its affine (4, 4), voxel to world in mm."""
        images: list[MetaTensor | VolumeError] = []
        for values, affine in volumes:
            data = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None]
            image = MetaTensor(data, affine=torch.from_numpy(affine))
            try:
                images.append(self._to_grid({"image": image})["image"])
            except VolumeError as error:
                images.append(error)
        # volumes of one size go through the network together
        found: dict[int, Estimate] = {}
        sizes: dict[Any, list[int]] = {}
        for k, prepared in enumerate(images):
            if isinstance(prepared, VolumeError):
                found[k] = _nothing(prepared.status, str(prepared))
            else:
                sizes.setdefault(prepared.shape, []).append(k)
        for numbers in sizes.values():
            batch = [images[k] for k in numbers]
            tensors = [b.as_tensor() for b in batch if isinstance(b, MetaTensor)]
            output = self.network.predict(torch.stack(tensors).to(self.device))._asdict()
            for row, k in enumerate(numbers):
                result = {key: value[row].cpu() for key, value in output.items()}
                found[k] = self._conclude(images[k], result)
        return [found[k] for k in range(len(volumes))]

    def _conclude(self, image: Any, result: dict[str, torch.Tensor]) -> Estimate:
        brain = result["label"][0].numpy() == BRAIN
        affine = np.asarray(image.affine, dtype=np.float64)
        if not torch.isfinite(result["head_to_grid"]).all():
            return _nothing(Status.NO_HEAD)._replace(brain=brain, affine=affine)
        grid = grid_to_world(image.affine, image.shape[1:], self.spacing_mm)
        pose = (grid @ result["head_to_grid"].double()).numpy()
        confidence = result["confidence"].item()
        rotation_sd_deg = result["rotation_sd_deg"].item() if "rotation_sd_deg" in result else None
        why = too_uncertain(rotation_sd_deg, self.uncertain_above_deg)
        status = Status.UNCERTAIN if why else Status.OK
        noise = expected_noise(confidence, status)
        if rotation_sd_deg is not None and math.isfinite(rotation_sd_deg):
            noise = noise._replace(
                rotation_sd_deg=rotation_sd_deg,
                translation_sd_mm=result["translation_sd_mm"].item(),
            )
        return Estimate(status, pose, confidence, noise, brain, affine, why)


def _nothing(status: Status, message: str = "") -> Estimate:
    return Estimate(status, None, 0.0, expected_noise(0.0), None, None, message)
