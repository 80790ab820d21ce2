"""The name that UNet had until 0.7, which stands in e3pose.json files; goes with 0.9."""

from __future__ import annotations

import warnings
from typing import Any

from .e3pose import unet


def __getattr__(name: str) -> Any:
    if name != "UNet":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        "scripts.unet.UNet is scripts.e3pose.unet.UNet since 0.8: change the config, or import the "
        "weights again",
        FutureWarning,
        stacklevel=2,
    )
    return unet.UNet
