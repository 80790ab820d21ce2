"""training/validation.py: every training leaves its weights, or an error that says why not."""

from __future__ import annotations

import math

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.engines import Evaluator
from torch import nn

from scripts.training.checkpoint import BestModel
from scripts.training.validation import EpochValidation

HEAD, NONE = {"head_to_world": torch.eye(4)}, {"head_to_world": None}


class Validator(Evaluator):
    """An evaluator that says the next of some values of a metric."""

    def __init__(self, entries, values):
        Engine.__init__(self, lambda *_: None)
        self.data_loader = DataLoader(Dataset(entries), batch_size=1) if entries else []
        self.values, self.epochs = list(values), []

    def run(self, epoch):  # type: ignore[override]
        self.epochs.append(epoch)
        self.state.metrics["error"] = self.values.pop(0)
        self.fire_event(Events.COMPLETED)


def train(tmp_path, epochs, interval, entries=(HEAD,), values=(3.0, 2.0, 1.0)):
    """Trains one weight that counts the epochs; the validator, and the weight kept or None."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)

    def step(engine, _):
        nn.init.constant_(network.weight, engine.state.epoch)

    best = BestModel(tmp_path / "model.pt", network, "error")
    validator, trainer = Validator(list(entries), values), Engine(step)
    best.attach(validator)
    EpochValidation(validator, interval, best).attach(trainer)
    trainer.run([0], max_epochs=epochs)
    if not (tmp_path / "model.pt").exists():
        return validator, None
    return validator, torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item()


@pytest.mark.parametrize(
    ("epochs", "interval", "expected"),
    [(1, 4, [1]), (3, 4, [3]), (4, 4, [4]), (5, 2, [2, 4, 5]), (2, 1, [1, 2]), (3, 0, [])],
)
def test_validation_is_every_few_epochs_and_after_the_last(tmp_path, epochs, interval, expected):
    validator, weight = train(tmp_path, epochs, interval)
    assert validator.epochs == expected
    assert weight == (expected[-1] if expected else None)


def test_without_validation_volumes_the_last_weights_are_kept(tmp_path, caplog):
    validator, weight = train(tmp_path, 3, 2, entries=())
    assert (validator.epochs, weight) == ([], 3)
    assert f"{tmp_path}/model.pt will hold the last weights, unmeasured" in caplog.text


def test_validation_volumes_without_a_head_are_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="none of 2 validation volumes shows a head: error would"):
        train(tmp_path, 1, 1, entries=[NONE, NONE])
    assert train(tmp_path, 1, 1, entries=[NONE, HEAD])[1] == 1


def test_a_metric_that_is_never_a_number_ends_with_an_error(tmp_path):
    with pytest.raises(RuntimeError, match=r"error was not a number in any validation.*model\.pt"):
        train(tmp_path, 2, 1, values=[math.nan, math.nan])
    assert not (tmp_path / "model.pt").exists()
    assert train(tmp_path, 2, 1, values=[math.nan, 4.0])[1] == 2
    # nothing is written of the later weights, whose metric nobody knows
    assert train(tmp_path, 2, 1, values=[4.0, math.nan])[1] == 1
