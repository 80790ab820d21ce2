"""Gradients that are kept in bounds while training."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine
from monai.engines import IterationEvents
from torch import nn

logger = logging.getLogger(__name__)


def parameter_groups(
    network: nn.Module, lr: Mapping[str, float], weight_decay: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Groups of an optimizer, one for each part of a network that it has.

    Parameters
    ----------
    lr : learning rate by the part's name
    weight_decay : the same, 0 for parts that are not named
    """
    parts = dict(network.named_children())
    return [
        {
            "params": list(parts[name].parameters()),
            "lr": rate,
            "weight_decay": weight_decay.get(name, 0.0),
        }
        for name, rate in lr.items()
        if name in parts
    ]


class ClipGradients:
    """Handler of a trainer that bounds the gradient norm of each part of a network.

    A step whose gradient is not finite is skipped with a warning: instance norm of a nearly
    constant patch can blow a gradient up, and one such step would end in weights that are NaN.

    Parameters
    ----------
    network : its direct children are the parts, each bounded by itself
    max_norm : largest norm
    """

    def __init__(self, network: nn.Module, max_norm: float) -> None:
        self.network, self.max_norm = network, max_norm

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._clip)

    def _clip(self, engine: Engine) -> None:
        for name, part in self.network.named_children():
            norm = nn.utils.clip_grad_norm_(part.parameters(), self.max_norm)
            if not norm.isfinite():
                part.zero_grad(set_to_none=True)
                logger.warning(
                    "step %d of %s skipped: gradient norm %s", engine.state.iteration, name, norm
                )
