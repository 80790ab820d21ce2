"""When a training is validated, and what it must leave."""

from __future__ import annotations

import logging
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.handlers import ValidationHandler

from .checkpoint import BestModel

logger = logging.getLogger(__name__)


class EpochValidation(ValidationHandler):
    """Handler of a trainer that validates every few epochs, and always after the last one.

    So every training leaves a ``model.pt``. Without a volume to validate on, that has the weights
    as they are whenever they would have been validated, in the end the last ones.

    Parameters
    ----------
    validator : evaluator, with ``best_model`` among its handlers
    interval : epochs between validations; 0 for none at all, not even after the last epoch
    best_model : what keeps the weights

    ValueError at the start if no volume to validate on shows a head, and RuntimeError at the end if
    the metric was never a number: nobody could tell which weights were good.
    """

    def __init__(self, validator: Evaluator, interval: int, best_model: BestModel) -> None:
        super().__init__(interval=max(interval, 1), validator=validator)
        self.every, self.best_model = interval, best_model

    def attach(self, engine: Engine) -> None:
        if self.every < 1:
            return
        engine.add_event_handler(Events.STARTED, self._look)
        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=self._is_due), self)
        engine.add_event_handler(Events.COMPLETED, self._conclude)

    def __call__(self, engine: Engine) -> None:
        if self._size():
            super().__call__(engine)
            return
        self.best_model.keep()
        logger.info("no validation: the weights of epoch %d are kept", engine.state.epoch)

    def _is_due(self, engine: Engine, epoch: int) -> bool:
        return epoch % self.every == 0 or epoch == engine.state.max_epochs

    def _size(self) -> int:
        assert self.validator is not None
        return len(self.validator.data_loader)  # type: ignore[arg-type]

    def _look(self, _: Engine) -> None:
        if not self._size():
            logger.warning(
                "the validation section is empty: %s will hold the last weights, unmeasured",
                self.best_model.path,
            )
            return
        dataset: Any = getattr(self.validator.data_loader, "dataset", None)  # type: ignore[union-attr]
        entries = getattr(dataset, "data", None)
        if entries and all(
            isinstance(entry, dict) and entry.get("head_to_world", entry) is None
            for entry in entries
        ):
            raise ValueError(
                f"none of {len(entries)} validation volumes shows a head: {self.best_model.metric} "
                "would never be a number, and no weights the best; give one, or an empty section"
            )

    def _conclude(self, engine: Engine) -> None:
        if self._size() and self.best_model.best is None:
            raise RuntimeError(
                f"{self.best_model.metric} was not a number in any validation, so no weights were "
                f"kept in {self.best_model.path}; do the validation volumes show heads? The last "
                "weights are in checkpoint.pt, which --ckpt_path takes too"
            )
