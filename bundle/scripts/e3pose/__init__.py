"""The world of E(3)-Pose's authors: their network, fast convolutions for it, their checkpoints.

What reads their files is not loaded with these: ``checkpoints`` and ``weights``.
"""

from .fast_convolutions import fastest
from .network import E3PoseNet
from .unet import UNet

__all__ = ["E3PoseNet", "UNet", "fastest"]
