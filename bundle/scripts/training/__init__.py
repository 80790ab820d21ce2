"""What a trainer needs beside MONAI: batches, losses, steps, weights to start from, checkpoints.

How several processes come together is in ``processes``.
"""

from .batches import HeadInputs, PrepareCubeBatch, PrepareHeadBatch, PrepareLabelBatch
from .checkpoint import BestModel, ResumableTraining
from .corrector import FreshCopy, shared_copy
from .losses import AxisFieldLoss, HeadPoseLoss, LandmarkLoss, SegmentationLoss
from .optimization import ClipGradients, parameter_groups
from .precision import TrainingInferer
from .start_weights import StartWeights
from .validation import EpochValidation

__all__ = [
    "AxisFieldLoss",
    "BestModel",
    "ClipGradients",
    "EpochValidation",
    "FreshCopy",
    "HeadInputs",
    "HeadPoseLoss",
    "LandmarkLoss",
    "PrepareCubeBatch",
    "PrepareHeadBatch",
    "PrepareLabelBatch",
    "ResumableTraining",
    "SegmentationLoss",
    "StartWeights",
    "TrainingInferer",
    "parameter_groups",
    "shared_copy",
]
