"""The networks and the chain from volume to pose that they form; knows no data sets."""

from .axes import pool_axes
from .chain import Prediction
from .e3cnn import E3CNN
from .head_pose_net import HeadPoseNet
from .landmarks import LandmarkNet
from .localizer import Localizer
from .plain_cnn import PlainCNN

__all__ = [
    "E3CNN",
    "HeadPoseNet",
    "LandmarkNet",
    "Localizer",
    "PlainCNN",
    "Prediction",
    "pool_axes",
]
