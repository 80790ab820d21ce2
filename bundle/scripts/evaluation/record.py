"""What is said of a case: the record in ``<case>_pose.json``, and what the pictures need beside."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ..geometry import check_rigid, grid_to_world
from ..labels import Status

# given by networks that tell their own expected error, in degrees and mm
EXPECTED_ERRORS = ("rotation_sd_deg", "translation_sd_mm")


@dataclass(frozen=True)
class Finding:
    """One volume and what was found in it.

    ``record`` is what is written. ``pose`` is head_to_world (4, 4), mm, or None; ``label``
    (x, y, z) uint8 is 1 brain, 2 eyes, on the working grid with ``label_affine``, voxel to world.
    """

    record: dict[str, Any]
    source: Any  # what reading.read_image takes: the case, or a path
    pose: NDArray | None
    label: NDArray
    label_affine: NDArray
    doubt: str

    @property
    def usable(self) -> bool:
        """Whether there is a volume to show."""
        return Status(self.record["status"]).usable

    @property
    def title(self) -> str:
        """A line for pictures."""
        record = self.record
        text = f"{record['case']}: {record['status']}"
        if record.get("frames", 1) > 1:
            text += f", frame {record['frame'] + 1} of {record['frames']}"
        text += f", brain {record['brain_volume_ml']:.0f} ml"
        if self.pose is not None:
            text += f", confidence {record['confidence']:.2f}"
        return text

    def surer_than(self, other: Finding | None) -> bool:
        """Whether this frame of a series stands for it rather than ``other``: a pose before none,
        then the smaller expected error of the turn (an unknown one last), then the greater
        confidence, then a volume that could be looked at."""
        if other is None:
            return True
        return self._sureness > other._sureness

    @property
    def _sureness(self) -> tuple[bool, float, float, bool]:
        sd_deg = self.record.get("rotation_sd_deg")
        surely = -math.inf if sd_deg is None else -sd_deg
        return self.pose is not None, surely, self.record["confidence"], self.usable


def conclude(
    item: dict[str, Any],
    result: dict[str, Tensor],
    spacing_mm: float,
    uncertain_above_deg: float | None = None,
) -> Finding:
    """The record of one volume from an item of ``CaseDataset`` and the network's prediction for it.

    A pose is "uncertain" where its expected error lies above ``uncertain_above_deg`` or is not
    known (None: never), and also where the item has a ``doubt``: its header cannot be trusted,
    whatever the image shows. Fields: case,
    status, head_to_world, confidence, brain_volume_ml, message, warnings; frame (from 0), frames
    and time_s for a series; the expected errors where the network gives them.
    """
    reading = item.get("reading")
    doubt = item.get("doubt", "")
    record: dict[str, Any] = {
        "case": item["case"],
        "status": item["status"],
        "head_to_world": None,
        "confidence": 0.0,
        "brain_volume_ml": 0.0,
        "message": item["message"],
        "warnings": list(item.get("warnings", ())),
    }
    if reading is not None and reading.frames > 1:
        record |= {"frame": reading.frame, "frames": reading.frames, "time_s": reading.time_s}
    pose = None
    if record["status"] == Status.OK:
        record["brain_volume_ml"] = round(result["brain_volume_ml"].item(), 2)
        if torch.isfinite(result["head_to_grid"]).all():
            pose = _world_pose(item, result["head_to_grid"], spacing_mm, record)
        else:
            record["status"] = Status.NO_HEAD
            record["message"] = (
                f"{item['path']}: nothing looks enough like a brain; the most likely region "
                f"has {record['brain_volume_ml']} ml"
            )
            if doubt:
                record["message"] += f"; {doubt}"
    if pose is not None:
        record["head_to_world"] = pose.tolist()
        record["confidence"] = round(result["confidence"].item(), 4)
        expected = {k: round(result[k].item(), 3) for k in EXPECTED_ERRORS if k in result}
        record |= {k: value for k, value in expected.items() if math.isfinite(value)}
        if why := too_uncertain(record.get("rotation_sd_deg"), uncertain_above_deg):
            record["status"] = Status.UNCERTAIN
            record["message"] = f"{item['path']}: {why}: check the pose by eye, or scan again"
        if doubt:
            record["status"] = Status.UNCERTAIN
            so_far = f"{record['message']}; " if record["message"] else f"{item['path']}: "
            record["message"] = so_far + doubt
    return Finding(
        record,
        item["path"] if reading is None else reading,
        None if pose is None else pose.numpy(),
        result["label"][0].numpy() if "label" in result else _nothing(item),
        item["affine"].numpy(),
        doubt,
    )


def too_uncertain(rotation_sd_deg: float | None, above_deg: float | None) -> str:
    """Why a pose with this expected error is "uncertain"; "" if it is not.

    Parameters
    ----------
    rotation_sd_deg : None where it is not known
    above_deg : the largest that is "ok"; None for no limit

    >>> too_uncertain(4.0, 10.0), too_uncertain(21.3, 10.0)
    ('', 'its turn is expected to be off by 21.3 degrees, more than 10')
    """
    if above_deg is None:
        return ""
    if rotation_sd_deg is None or not math.isfinite(rotation_sd_deg):
        return "how far off its turn may be is not known"
    if rotation_sd_deg <= above_deg:
        return ""
    return (
        f"its turn is expected to be off by {rotation_sd_deg:.1f} degrees, more than {above_deg:g}"
    )


def _world_pose(
    item: dict[str, Any], head_to_grid: Tensor, spacing_mm: float, record: dict[str, Any]
) -> Tensor | None:
    """head_to_world (4, 4) float64; None, and why in the record, where that would be no pose."""
    try:
        grid = grid_to_world(item["affine"], item["image"].shape[1:], spacing_mm)
        pose = grid @ head_to_grid.double()
        check_rigid(pose, "head_to_world")
    except ValueError as error:
        record["status"], record["message"] = Status.FAILED, f"{item['path']}: {error}"
        return None
    return pose


def _nothing(item: dict[str, Any]) -> NDArray:
    return torch.zeros(item["image"].shape[1:], dtype=torch.uint8).numpy()
