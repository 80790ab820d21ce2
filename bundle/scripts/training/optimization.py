"""Gradients that are kept in bounds while training."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine
from monai.engines import IterationEvents
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

logger = logging.getLogger(__name__)


def parameter_groups(
    network: nn.Module, lr: Mapping[str, float], weight_decay: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Groups of an optimizer, one for each part of a network that it has.

    A part whose learning rate is 0 is frozen: it gets no group, and no gradient is computed for it.
    Without any rate none is: training then takes steps that change nothing.

    Parameters
    ----------
    lr : learning rate by the part's name
    weight_decay : the same, 0 for parts that are not named
    """
    parts, groups = dict(network.named_children()), []
    trained = any(rate for name, rate in lr.items() if name in parts)
    for name, rate in lr.items():
        if name not in parts:
            continue
        if trained and not rate:
            parts[name].requires_grad_(False)
            continue
        decay = weight_decay.get(name, 0.0)
        groups.append({"params": list(parts[name].parameters()), "lr": rate, "weight_decay": decay})
    return groups


def go_to_step(scheduler: LambdaLR, step: int) -> None:
    """Set the learning rates of a step, counted from 0, as if all before it had been taken.

    (``load_state_dict`` would also bring back the length and the base rates of the schedule as it
    was planned when the state was written.)
    """
    scheduler.last_epoch = step - 1
    with warnings.catch_warnings():
        # that the optimizer has taken no step yet
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        scheduler.step()


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
