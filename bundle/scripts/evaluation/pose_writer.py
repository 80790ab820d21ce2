"""Writes the result of inference: a JSON file and a picture per volume."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys
from torch import Tensor

from ..files import replacing, write_text
from ..geometry import grid_to_world
from ..labels import Status
from .drawing import draw_pose

logger = logging.getLogger(__name__)


class PoseWriter:
    """Handler that writes ``<case>_pose.json`` and ``<case>_pose.png`` as soon as a case is done.

    A run in which no volume could be read ends with RuntimeError, after all files are written.

    Parameters
    ----------
    output_dir : folder to write to, made if it is not there
    spacing_mm : voxel size of the working grid
    pictures : whether to draw
    uncertain_below : a pose of less confidence is written with the status "uncertain"
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        spacing_mm: float,
        pictures: bool = True,
        uncertain_below: float = 0.0,
    ) -> None:
        self.output_dir, self.spacing_mm, self.pictures = Path(output_dir), spacing_mm, pictures
        self.uncertain_below = uncertain_below
        self._statuses: list[Status] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, lambda _: self._statuses.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write_batch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._conclude)

    def _write_batch(self, engine: Engine) -> None:
        state: Any = engine.state
        batch, prediction = state.batch, state.output[CommonKeys.PRED]
        for k in range(len(batch["case"])):
            item = {key: values[k] for key, values in batch.items()}
            result = {key: values[k].cpu() for key, values in prediction.items()}
            self._statuses.append(self._write(item, result))

    def _write(self, item: dict[str, Any], result: dict[str, Tensor]) -> Status:
        record: dict[str, Any] = {
            "case": item["case"],
            "status": item["status"],
            "head_to_world": None,
            "confidence": 0.0,
            "brain_volume_ml": 0.0,
            "message": item["message"],
        }
        pose = None
        if record["status"] == Status.OK:
            record["brain_volume_ml"] = round(result["brain_volume_ml"].item(), 2)
            if torch.isfinite(result["head_to_grid"]).all():
                grid = grid_to_world(item["affine"], item["image"].shape[1:], self.spacing_mm)
                pose = grid @ result["head_to_grid"].double()
                record["head_to_world"] = pose.tolist()
                record["confidence"] = round(result["confidence"].item(), 4)
                if record["confidence"] < self.uncertain_below:
                    record["status"] = Status.UNCERTAIN
                    record["message"] = (
                        f"{item['path']}: confidence {record['confidence']} lies below "
                        f"{self.uncertain_below}: check the pose by eye, or scan again"
                    )
            else:
                record["status"] = Status.NO_HEAD
                record["message"] = (
                    f"{item['path']}: nothing looks enough like a brain; the most likely region "
                    f"has {record['brain_volume_ml']} ml"
                )
        if record["message"]:
            logger.warning("%s: %s", record["status"], record["message"])
        base = self.output_dir / f"{item['case']}_pose"
        # the picture first: whoever sees the JSON file finds the picture beside it
        if self.pictures and Status(record["status"]).usable:
            self._draw(base.with_name(base.name + ".png"), item, result, pose, record)
        write_text(base.with_name(base.name + ".json"), json.dumps(record, indent=2) + "\n")
        return Status(record["status"])

    def _draw(
        self,
        path: Path,
        item: dict[str, Any],
        result: dict[str, Tensor],
        pose: Tensor | None,
        record: dict[str, Any],
    ) -> None:
        source: Any = nib.load(item["path"])
        image = np.asarray(source.dataobj, dtype=np.float32)
        title = f"{item['case']}: {record['status']}, brain {record['brain_volume_ml']:.0f} ml"
        if pose is not None:
            title += f", confidence {record['confidence']:.2f}"
        with replacing(path) as partial:
            draw_pose(
                partial,
                image.reshape(image.shape[:3]),
                source.affine,
                result["label"][0].numpy(),
                item["affine"].numpy(),
                None if pose is None else pose.numpy(),
                title,
            )

    def _conclude(self, engine: Engine) -> None:
        found = sorted(set(self._statuses))
        counts = {str(status): self._statuses.count(status) for status in found}
        logger.info("%d volumes: %s; results in %s", len(self._statuses), counts, self.output_dir)
        if not any(status.usable for status in found):
            raise RuntimeError(
                f"no volume could be used: {counts}; the reasons are in {self.output_dir}"
            )
