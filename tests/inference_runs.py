"""Runs of inference in this process, with everything but the network: it says what it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from monai.data import DataLoader
from monai.transforms import Compose
from monai.utils import CommonKeys

from conftest import head_pose, landmark_volume, make_affine
from scripts.data.case_batches import collate_cases
from scripts.data.datalists import CaseDataset, volumes_in
from scripts.data.volumes import LoadVolumed, ToWorkingGridd
from scripts.evaluation.pose_writer import PoseWriter
from scripts.evaluation.report_page import ReportWriter
from scripts.evaluation.run_folder import RunFolder
from scripts.files import write_nifti
from scripts.geometry import head_to_grid

SHAPE, VOXEL_MM = (40, 44, 36), (4.0, 4.0, 4.0)
BRAIN_MM = 40.0  # radius of the ball that the network calls brain


def save_head(path: Path, axcodes: str = "LAS", pose: np.ndarray | None = None, **changes) -> Path:
    """Write blobs at the landmarks of a head (``conftest.landmark_volume``)."""
    options: dict[str, Any] = {"shape": SHAPE, "voxel_mm": VOXEL_MM, "tilt_deg": 0.0} | changes
    affine = make_affine(axcodes, options["voxel_mm"], options["tilt_deg"], options["shape"])
    volume = landmark_volume(head_pose() if pose is None else pose, affine, options["shape"])
    write_nifti(path, volume, affine)
    return path


def prediction(
    batch: dict[str, Any], pose: np.ndarray | None, confidence: float | Sequence[float]
) -> dict[str, Any]:
    """What ``HeadPoseNet`` would say if it found ``pose`` (4, 4), head to world, or no head.

    The turn's expected error is 180 degrees times what confidence lacks, the place's not known.
    """
    images, affines = batch["image"], batch["affine"]
    shape = images.shape[2:]
    number = len(images)
    grid = torch.full((number, 4, 4), float("nan"))
    label = torch.zeros(images.shape, dtype=torch.uint8)
    if pose is not None:
        index = torch.stack(torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij"), -1)
        for k, affine in enumerate(affines):
            world = index.double() @ affine[:3, :3].T + affine[:3, 3]
            label[k, 0] = (world - torch.tensor(pose[:3, 3])).norm(dim=-1) < BRAIN_MM
            grid[k] = head_to_grid(affine, shape, 4.0, torch.tensor(pose))
    found = torch.zeros(number) + (0.0 if pose is None else torch.as_tensor(confidence))
    unknown = torch.full((number,), float("nan"))
    return {
        "head_to_grid": grid,
        "confidence": found,
        "brain_volume_ml": label.flatten(1).sum(1) * 0.064,
        "label": label,
        "rotation_sd_deg": unknown if pose is None else 180 * (1 - found),
        "translation_sd_mm": unknown,
    }


def run(
    dataset_dir: Path,
    folder: RunFolder,
    pose: np.ndarray | None = None,
    confidence: Callable[[str, int], float] | float = 0.99,
    batch_size: int = 1,
    headless: Sequence[str] = (),
    **options: Any,
) -> Engine:
    """Run inference over ``dataset_dir``; the network finds ``pose`` in all but ``headless``.

    ``confidence`` is a number, or a function of the case's name and its frame.
    """
    transform = Compose([LoadVolumed("image"), ToWorkingGridd(label_key=None)])
    entries = folder.to_do(volumes_in(dataset_dir, folder.output_dir))
    loader = DataLoader(
        CaseDataset(entries, transform), batch_size=batch_size, collate_fn=collate_cases
    )

    def step(engine: Engine, batch: dict[str, Any]) -> dict[str, Any]:
        found = head_pose() if pose is None else pose
        sure = [
            confidence(case, reading.frame) if callable(confidence) else confidence
            for case, reading in zip(batch["case"], batch["reading"], strict=True)
        ]
        if set(batch["case"]) <= set(headless):
            found = None
        return {CommonKeys.PRED: prediction(batch, found, sure)}

    engine = Engine(step)
    PoseWriter(folder, 4.0, **options).attach(engine)
    ReportWriter(folder).attach(engine)
    if len(entries):
        engine.run(loader)
    else:
        engine.state.epoch_length = 0
        folder.run(engine)
    return engine
