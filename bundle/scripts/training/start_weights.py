"""Weights to start from that fit a part of the network only."""

from __future__ import annotations

import logging
import os

from ignite.engine import Engine, Events
from torch import nn

from ..weight_files import difference, for_network, part_of, read_weights

logger = logging.getLogger(__name__)


class StartWeights:
    """Handler of a trainer that loads before the first epoch what a model.pt has for each part.

    A part, a direct child of the network, is loaded as a whole or begins anew: another rotation
    network beside the shipped localizer and landmarks, for one. The log says which. For training
    that continues all parts use ``weight_files.CheckpointLoader``, which insists on every weight.

    Parameters
    ----------
    path : a file that ``read_weights`` knows
    network : to load into

    FileNotFoundError if there is no such file; ValueError, which names file, part and a weight, if
    a part that is not trained (``parameter_groups``) does not fit: nobody could use what it says.
    """

    def __init__(self, path: str | os.PathLike[str], network: nn.Module) -> None:
        self.path, self.network = path, network

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._load)

    def _load(self, _: Engine) -> None:
        given = for_network(self.network, read_weights(self.path))
        fitting, anew = [], []
        for name, part in self.network.named_children():
            state = part_of(given, name)
            differing = difference(part.state_dict(), state)
            if not differing:
                part.load_state_dict(state)
                fitting.append(name)
            elif any(parameter.requires_grad for parameter in part.parameters()):
                logger.warning("%s begins anew: in %s %s", name, self.path, differing)
                anew.append(name)
            else:
                raise ValueError(
                    f"{self.path}: {name} is not trained and needs weights of its own, but "
                    f"{differing}"
                )
        logger.info("from %s: %s; anew: %s", self.path, _names(fitting), _names(anew))


def _names(parts: list[str]) -> str:
    return ", ".join(parts) or "nothing"
