"""What a network finds, rated, tabled, drawn and written.

What draws is not loaded with these, so that training needs no matplotlib: ``drawing``, ``tables``,
``pose_writer``.
"""

from .case_table import CaseTable, read_cases
from .inferer import HeadPoseInferer
from .metrics import (
    AxisError,
    CaseMetric,
    Confidence,
    HeadDetection,
    LabelDice,
    RotationError,
    TranslationError,
    head_pose_metrics,
    key_metric,
)

__all__ = [
    "AxisError",
    "CaseMetric",
    "CaseTable",
    "Confidence",
    "HeadDetection",
    "HeadPoseInferer",
    "LabelDice",
    "RotationError",
    "TranslationError",
    "head_pose_metrics",
    "key_metric",
    "read_cases",
]
