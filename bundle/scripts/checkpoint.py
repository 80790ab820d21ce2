"""Training that can be stopped and resumed, and its best model; files are whole or not there."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from .files import partial_path
from .metrics import lower_is_better

logger = logging.getLogger(__name__)


def save(content: Any, path: str | os.PathLike[str]) -> None:
    """``torch.save`` through a temporary name."""
    partial = partial_path(path)
    torch.save(content, partial)
    os.replace(partial, path)


class ResumableTraining:
    """Handler that keeps the state of training in ``output_dir/checkpoint.pt`` after every epoch.

    (MONAI's CheckpointSaver cannot hold the trainer that it is attached to when declared in a
    config, writes in place, and forgets the best metric on resuming.)

    Parameters
    ----------
    output_dir : folder of the checkpoint
    objects : what has a state, by name; the trainer is added
    resume : load the checkpoint before the first epoch. FileNotFoundError if there is none.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        objects: Mapping[str, Any],
        resume: bool = False,
        map_location: str | torch.device | None = None,
    ) -> None:
        self.path = Path(output_dir) / "checkpoint.pt"
        self.objects, self.resume, self.map_location = dict(objects), resume, map_location

    def attach(self, engine: Engine) -> None:
        if self.resume:
            engine.add_event_handler(Events.STARTED, self._load)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _load(self, engine: Engine) -> None:
        if not self.path.exists():
            raise FileNotFoundError(f"{self.path}: no checkpoint to resume from")
        state = torch.load(self.path, map_location=self.map_location, weights_only=True)
        for name, target in self.objects.items():
            target.load_state_dict(state[name])
        engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]
        logger.info("resumed from %s after epoch %d", self.path, state["epoch"])
        if state["epoch"] >= (engine.state.max_epochs or math.inf):
            raise ValueError(
                f"{self.path} has finished {state['epoch']} epochs of {engine.state.max_epochs}: "
                "nothing to resume; ask for more epochs or start anew"
            )

    def _save(self, engine: Engine) -> None:
        state = {name: target.state_dict() for name, target in self.objects.items()}
        state |= {"epoch": engine.state.epoch, "iteration": engine.state.iteration}
        save(state, self.path)


class BestModel:
    """Handler of an evaluator that keeps the weights with the best metric so far.

    The file is a plain state_dict. Of equally good weights the later are kept.

    Parameters
    ----------
    path : file to write
    network : whose weights
    metric : name of the evaluator's metric
    better : whether a value is better than another; lower is, unless told otherwise
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        network: nn.Module,
        metric: str,
        better: Callable[[float, float], bool] = lower_is_better,
    ) -> None:
        self.path, self.network, self.metric, self.better = path, network, metric, better
        self.best: float | None = None

    def state_dict(self) -> dict[str, float | None]:
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, float | None]) -> None:
        self.best = state["best"]

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self._save)

    def _save(self, engine: Engine) -> None:
        value = float(engine.state.metrics[self.metric])
        undefined = math.isnan(value) and not math.isnan(self.best or 0.0)
        if self.best is None or not (undefined or self.better(self.best, value)):
            self.best = value
            save(self.network.state_dict(), self.path)
            logger.info("%s = %.3f is the best so far, kept in %s", self.metric, value, self.path)
