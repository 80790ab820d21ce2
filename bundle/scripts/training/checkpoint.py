"""Training that can be stopped and resumed, and its best model; files are whole or not there.

Of several processes rank 0 alone reads and writes; files do not tell how many there were.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import set_rnd
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ..distributed import from_rank0, is_not_rank0, mixed_seed
from ..evaluation.metrics import lower_is_better
from ..files import write_tensors
from .optimization import go_to_step

logger = logging.getLogger(__name__)


class ResumableTraining:
    """Handler that keeps the state of training in ``output_dir/checkpoint.pt`` after every epoch.

    (MONAI's CheckpointSaver cannot hold the trainer that it is attached to when declared in a
    config, writes in place, and forgets the best metric on resuming.)

    What follows from the epoch is not kept but found anew: the step and the learning rate. So
    training may go on with another number of epochs, learning rate, batch size or processes. The
    random numbers of augmentation after a resume are others than before, and the same every time.

    Parameters
    ----------
    output_dir : folder of the checkpoint
    objects : what has a state, by name
    lr_scheduler : a function of the step since the start, such as ``WarmupCosineSchedule``
    resume : load the checkpoint before the first epoch. FileNotFoundError if there is none;
        ValueError if it is of another network, or has finished as many epochs as are asked for.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        objects: Mapping[str, Any],
        lr_scheduler: LambdaLR,
        resume: bool = False,
    ) -> None:
        self.path = Path(output_dir) / "checkpoint.pt"
        self.objects, self.lr_scheduler, self.resume = dict(objects), lr_scheduler, resume

    def attach(self, engine: Engine) -> None:
        if self.resume:
            engine.add_event_handler(Events.STARTED, self._load)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            raise FileNotFoundError(f"{self.path}: no checkpoint to resume from")
        try:
            return torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch and zip raise many types for a broken file
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{self.path}: no checkpoint of training: {reason}") from error

    def _load(self, engine: Engine) -> None:
        state = from_rank0(self._read)
        epoch = state["epoch"]
        if epoch >= (engine.state.max_epochs or math.inf):
            raise ValueError(
                f"{self.path} has finished {epoch} epochs of {engine.state.max_epochs}: "
                "nothing to resume; ask for more epochs or start anew"
            )
        for name, target in self.objects.items():
            try:
                target.load_state_dict(state[name])
            except (KeyError, RuntimeError, ValueError) as error:
                raise ValueError(
                    f"{self.path} is not of this training, its {name} does not fit: {error}"
                ) from error
        step = epoch * (engine.state.epoch_length or 0)
        engine.state.epoch, engine.state.iteration = epoch, step
        go_to_step(self.lr_scheduler, step)
        _draw_anew(engine, epoch)
        logger.info("resumed from %s after epoch %d", self.path, epoch)

    def _save(self, engine: Engine) -> None:
        if is_not_rank0():
            return
        state = {name: target.state_dict() for name, target in self.objects.items()}
        write_tensors(state | {"epoch": engine.state.epoch}, self.path)


def _draw_anew(engine: Engine, epoch: int) -> None:
    """Seed by the epoch, else a resumed training repeats the augmentation of the first epochs."""
    seed = mixed_seed(torch.initial_seed(), epoch)
    torch.manual_seed(seed)  # also seeds the loader's workers
    set_rnd(getattr(engine.state.dataloader, "dataset", None), seed)


class BestModel:
    """Handler of an evaluator that keeps the weights with the best metric so far.

    The file is a plain state_dict. Of equally good weights the later are kept, of weights whose
    metric is no number none. The metric must be the same in all processes, as MONAI's are.

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
        best = state["best"]
        self.best = None if best is None or math.isnan(best) else best

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self._save)

    def _save(self, engine: Engine) -> None:
        value = float(engine.state.metrics[self.metric])
        if math.isnan(value):
            logger.warning("%s is no number: these weights are not kept as the best", self.metric)
        elif self.best is None or not self.better(self.best, value):
            self.best = value
            self.keep()
            logger.info("%s = %.3f is the best so far, kept in %s", self.metric, value, self.path)

    def keep(self) -> None:
        """Write the weights as they are, whatever the metric."""
        if not is_not_rank0():
            write_tensors(self.network.state_dict(), self.path)
