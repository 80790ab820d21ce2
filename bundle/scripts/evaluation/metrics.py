"""MONAI metrics of a pose and of a mask, one value per case, and the tables made of them.

Poses are ``head_to_grid`` (batch, 4, 4) in mm. A reference of NaN says that the case shows no head:
it does not count. A prediction of NaN where there is a head counts as the worst there is, 180
degrees and infinitely many mm, so that a head not found never flatters a median.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric
from monai.utils import CommonKeys
from torch import Tensor

from ..geometry import axis_angles_deg, geodesic_deg, nearer, no_head
from ..labels import BRAIN, EYES, UNKNOWN

SUMMARIES = ("median", "mean")


class CaseMetric(CumulativeIterationMetric):
    """One value per case, (batch, 1); NaN does not count.

    Parameters
    ----------
    summary : "median" or "mean" of the values, or a number: the share of values above it

    >>> share = Confidence(0.5)  # of the values above 0.5
    >>> _ = share(torch.tensor([0.4, 0.6, 0.8, torch.nan]))
    >>> share.aggregate()
    tensor(0.6667)
    """

    def __init__(self, summary: str | float = "median") -> None:
        super().__init__()
        if isinstance(summary, str) and summary not in SUMMARIES:
            raise ValueError(f"summary must be a number or one of {SUMMARIES}, got {summary!r}")
        self.summary = summary

    def aggregate(self) -> Tensor:
        """The summary over all cases so far (scalar); NaN if no case counts."""
        values = self.get_buffer().flatten()
        values = values[~values.isnan()]
        if not len(values):
            return torch.tensor(torch.nan)
        if self.summary == "median":
            values = values.sort().values  # quantile has no use for infinities
            return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
        if self.summary == "mean":
            return values.mean()
        return (values > self.summary).float().mean()


def _worst_if_missing(error: Tensor, y_pred: Tensor, y: Tensor, worst: float) -> Tensor:
    missing = no_head(y_pred) & ~no_head(y)
    return torch.where(missing, worst, error).unsqueeze(1)


class RotationError(CaseMetric):
    """Geodesic angle between predicted and true rotation, degrees.

    >>> true = torch.eye(4).repeat(3, 1, 1)
    >>> found = true.clone()
    >>> found[0, :2, :2] = torch.tensor([[0.0, -1], [1, 0]])  # a quarter turn about z
    >>> found[1] = torch.nan  # no head found
    >>> error = RotationError()
    >>> error(found, true).flatten()
    tensor([ 90., 180.,   0.], dtype=torch.float64)
    >>> error.aggregate()
    tensor(90., dtype=torch.float64)
    """

    def _compute_tensor(  # type: ignore[override]
        self, y_pred: Tensor, y: Tensor, **_: Any
    ) -> Tensor:
        error = geodesic_deg(y_pred[:, :3, :3].double(), y[:, :3, :3].double())
        return _worst_if_missing(error, y_pred, y, 180.0)


class AxisError(CaseMetric):
    """Angle between the predicted and the true axis "x", "y" or "z" of the head, degrees.

    >>> true, found = torch.eye(4)[None], torch.eye(4)[None]
    >>> found[0, :2, :2] = torch.tensor([[0.0, -1], [1, 0]])  # a quarter turn about z
    >>> AxisError("x")(found, true), AxisError("z")(found, true)
    (tensor([[90.]], dtype=torch.float64), tensor([[0.]], dtype=torch.float64))
    """

    def __init__(self, axis: str, summary: str | float = "median") -> None:
        super().__init__(summary)
        if axis not in ("x", "y", "z"):
            raise ValueError(f'axis must be "x", "y" or "z", got {axis!r}')
        self.axis = "xyz".index(axis)

    def _compute_tensor(  # type: ignore[override]
        self, y_pred: Tensor, y: Tensor, **_: Any
    ) -> Tensor:
        errors = axis_angles_deg(y_pred[:, :3, :3].double(), y[:, :3, :3].double())
        return _worst_if_missing(errors[:, self.axis], y_pred, y, 180.0)


class TranslationError(CaseMetric):
    """Distance between predicted and true head origin, mm.

    >>> true = torch.eye(4).repeat(2, 1, 1)
    >>> found = true.clone()
    >>> found[0, :2, 3] = torch.tensor([3.0, 4.0])
    >>> found[1] = torch.nan  # no head found
    >>> TranslationError()(found, true).flatten()
    tensor([5., inf], dtype=torch.float64)
    """

    def _compute_tensor(  # type: ignore[override]
        self, y_pred: Tensor, y: Tensor, **_: Any
    ) -> Tensor:
        error = (y_pred[:, :3, 3].double() - y[:, :3, 3].double()).norm(dim=1)
        return _worst_if_missing(error, y_pred, y, math.inf)


class LabelDice(CaseMetric):
    """Dice of one label in label maps (batch, 1, x, y, z); NaN where the reference lacks it.

    Voxels that the reference does not know do not count.

    >>> found = torch.tensor([0, 1, 1, 0]).view(1, 1, 4, 1, 1)
    >>> true = torch.tensor([0, 1, 0, 0]).view(1, 1, 4, 1, 1)
    >>> LabelDice(1)(found, true), LabelDice(2)(found, true)
    (tensor([[0.6667]]), tensor([[nan]]))
    """

    def __init__(self, label: int, summary: str | float = "mean") -> None:
        super().__init__(summary)
        self.label = label

    def _compute_tensor(  # type: ignore[override]
        self, y_pred: Tensor, y: Tensor, **_: Any
    ) -> Tensor:
        found = (y_pred == self.label) & (y != UNKNOWN)
        a, b = found.flatten(1), (y == self.label).flatten(1)
        dice = 2 * (a & b).sum(1) / (a.sum(1) + b.sum(1))
        return torch.where(b.any(1), dice, torch.nan).unsqueeze(1)


class HeadDetection(CaseMetric):
    """1 where a head is found if and only if there is one, else 0.

    >>> nothing = torch.full((4, 4), torch.nan)
    >>> found = torch.stack([torch.eye(4), nothing, torch.eye(4)])
    >>> true = torch.stack([torch.eye(4), nothing, nothing])
    >>> HeadDetection()(found, true).flatten()
    tensor([1., 1., 0.])
    """

    def __init__(self, summary: str | float = "mean") -> None:
        super().__init__(summary)

    def _compute_tensor(  # type: ignore[override]
        self, y_pred: Tensor, y: Tensor, **_: Any
    ) -> Tensor:
        return (no_head(y_pred) == no_head(y)).float().unsqueeze(1)


class Confidence(CaseMetric):
    """The network's confidence, beside the errors that it should foretell.

    >>> confidence = Confidence("mean")
    >>> _ = confidence(torch.tensor([0.5, 1.0]))
    >>> confidence.aggregate()
    tensor(0.7500)
    """

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **_: Any) -> Tensor:
        return y_pred.unsqueeze(1)


def true_pose(target: Mapping[str, Tensor]) -> Tensor:
    """Reference ``head_to_grid``, NaN for the volumes that show no head."""
    has_head = target["has_head"].bool().view(-1, 1, 1)
    return torch.where(has_head, target["head_to_grid"], torch.nan)


def poses(output: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """(predicted, true) pose of the whole chain, from an engine's output.

    Of twins the true one is that of the head whose origin lies nearer: either is an answer.
    """
    found, target = output[CommonKeys.PRED]["head_to_grid"], output[CommonKeys.LABEL]
    true = true_pose(target)
    return found, nearer(found, true, target.get("twin_to_grid", torch.full_like(true, torch.nan)))


def reference_crop_poses(output: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """(predicted, true) pose where the crop is placed by the reference instead of the localizer."""
    return output[CommonKeys.PRED]["reference_crop"], true_pose(output[CommonKeys.LABEL])


def labels(output: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """(predicted, true) label maps."""
    return output[CommonKeys.PRED]["label"], output[CommonKeys.LABEL]["label"]


def confidences(output: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """(confidence, has_head)."""
    return output[CommonKeys.PRED]["confidence"], output[CommonKeys.LABEL]["has_head"]


def training_loss(output: Sequence[Mapping[str, Any]]) -> float:
    """Loss of the last step, from what ``distributed.StepLoss`` leaves of a trainer's output."""
    return output[0][CommonKeys.LOSS].item()


def lower_is_better(current: float, previous: float) -> bool:
    """``metric_cmp_fn`` of an engine whose key metric is an error."""
    return current < previous


OUTPUTS = {
    "poses": poses,
    "reference_crop_poses": reference_crop_poses,
    "labels": labels,
    "confidences": confidences,
}


def metric(fn: CumulativeIterationMetric, of: str) -> IgniteMetricHandler:
    """Ignite handler of a metric of a part of the engine's output, one of ``OUTPUTS``."""
    return IgniteMetricHandler(metric_fn=fn, output_transform=OUTPUTS[of])


def key_metric() -> dict[str, IgniteMetricHandler]:
    """What the best model is chosen by: the median error of the rotation, degrees.

    >>> list(key_metric())
    ['rotation_deg']
    """
    return {"rotation_deg": metric(RotationError(), "poses")}


def head_pose_metrics() -> dict[str, IgniteMetricHandler]:
    """All that is measured beside the key metric, by name; the unit stands at the name's end.

    >>> sorted(head_pose_metrics())[:4]
    ['axis_x_deg', 'axis_y_deg', 'axis_z_deg', 'confidence']
    """
    return {
        "rotation_mean_deg": metric(RotationError("mean"), "poses"),
        "rotation_above_15": metric(RotationError(15.0), "poses"),
        "rotation_above_30": metric(RotationError(30.0), "poses"),
        "axis_x_deg": metric(AxisError("x"), "poses"),
        "axis_y_deg": metric(AxisError("y"), "poses"),
        "axis_z_deg": metric(AxisError("z"), "poses"),
        "translation_mm": metric(TranslationError(), "poses"),
        "dice_brain": metric(LabelDice(BRAIN), "labels"),
        "dice_eyes": metric(LabelDice(EYES), "labels"),
        "head_detection": metric(HeadDetection(), "poses"),
        "reference_crop_deg": metric(RotationError(), "reference_crop_poses"),
        "confidence": metric(Confidence(), "confidences"),
    }
