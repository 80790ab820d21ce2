"""From files to what the networks are trained and run on; knows no network.

Datalists, volumes on the working grid, what the reference says of them, augmentation, the cubes for
LandmarkNet and the order of the cases. What makes or changes data sets is not loaded with these:
``phantoms``, ``variants``, ``importers``.
"""

from .augmentation import RandFieldOfViewd, RandSimilarityd, RandSliceMotiond, RandSpinHistoryd
from .datalists import CaseDataset, datalist, mixture, volumes_in
from .sampling import MixtureSampler, in_order, shuffled
from .training_cubes import HeadLandmarksd, RandHeadCropsd
from .transforms import HeadToGridd, ReferenceCubed
from .volumes import LoadVolumed, ToWorkingGridd, VolumeError

__all__ = [
    "CaseDataset",
    "HeadLandmarksd",
    "HeadToGridd",
    "LoadVolumed",
    "MixtureSampler",
    "RandFieldOfViewd",
    "RandHeadCropsd",
    "RandSimilarityd",
    "RandSliceMotiond",
    "RandSpinHistoryd",
    "ReferenceCubed",
    "ToWorkingGridd",
    "VolumeError",
    "datalist",
    "in_order",
    "mixture",
    "shuffled",
    "volumes_in",
]
