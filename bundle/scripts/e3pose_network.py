"""The name that E3PoseNet had until 0.7, which stands in e3pose.json files; goes with 0.9."""

from __future__ import annotations

import warnings
from typing import Any

from .e3pose import network


def __getattr__(name: str) -> Any:
    if name != "E3PoseNet":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        "scripts.e3pose_network.E3PoseNet is scripts.e3pose.network.E3PoseNet since 0.8: change "
        "the config, or import the weights again",
        FutureWarning,
        stacklevel=2,
    )
    return network.E3PoseNet
