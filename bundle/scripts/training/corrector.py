"""A copy of LandmarkNet that moves the training cubes as the search does."""

# no "from __future__ import annotations": TorchScript reads annotations of classes as types

import copy

from ignite.engine import Engine, Events
from torch import nn


def shared_copy(network: nn.Module) -> nn.Module:
    """A copy of a network on the CPU, to look through, in memory that a loader's workers share."""
    return copy.deepcopy(network).cpu().eval().requires_grad_(False).share_memory()


class FreshCopy:
    """Handler of a trainer that brings the copy of a network up to date before every epoch.

    Within an epoch it stays as it is, so that what the workers make does not depend on how many
    they are.
    """

    def __init__(self, copied: nn.Module, network: nn.Module) -> None:
        self.copied, self.network = copied, network

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.refresh)

    def refresh(self) -> None:
        self.copied.load_state_dict(self.network.state_dict())
