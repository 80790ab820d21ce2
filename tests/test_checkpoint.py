"""checkpoint.py: resumed training equals training in one go; files are whole or not there."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.optimizers import WarmupCosineSchedule
from monai.transforms import RandShiftIntensity
from torch import nn

from scripts.files import write_tensors
from scripts.training import checkpoint
from scripts.training.checkpoint import BestModel, ResumableTraining
from scripts.training.optimization import go_to_step

DATA = [torch.randn(5, 3, generator=torch.Generator().manual_seed(k)) for k in range(3)]


class Training:
    """A tiny training with everything that has a state; built anew as a new process would."""

    def __init__(self, folder, resume=False, losses=None, data=DATA, epochs=4, lr=0.1):
        torch.manual_seed(1)
        self.data = data
        self.network = nn.Linear(3, 2)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=lr, momentum=0.9)
        self.scheduler = WarmupCosineSchedule(self.optimizer, 2, epochs * len(data))
        self.evaluator = Engine(lambda engine, batch: None)
        self.best_model = BestModel(folder / "model.pt", self.network, "error")
        self.best_model.attach(self.evaluator)
        self.trainer = Engine(self.step)
        self.epochs, self.iterations, self.rates, self.losses = [], [], [], losses
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self.end_epoch)
        objects = {
            "network": self.network,
            "optimizer": self.optimizer,
            "best_model": self.best_model,
        }
        ResumableTraining(folder, objects, self.scheduler, resume).attach(self.trainer)

    def step(self, engine, batch):
        self.iterations.append(engine.state.iteration)
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        self.optimizer.zero_grad()
        loss = self.network(batch).square().mean()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return loss.item()

    def end_epoch(self, engine):
        self.epochs.append(engine.state.epoch)
        if self.losses:
            validate(self.evaluator, self.losses[engine.state.epoch - 1])

    def run(self, max_epochs):
        self.trainer.run(self.data, max_epochs=max_epochs)
        return self


def validate(evaluator, value):
    """Run an evaluator whose metric has the given value."""

    def set_metric(engine):
        engine.state.metrics["error"] = value

    with evaluator.add_event_handler(Events.EPOCH_COMPLETED, set_metric):
        evaluator.run([0])


def test_resumed_training_equals_training_in_one_go(tmp_path):
    whole = Training(tmp_path / "whole").run(4)
    first = Training(tmp_path / "parts").run(2)
    second = Training(tmp_path / "parts", resume=True).run(4)
    assert (first.epochs, second.epochs) == ([1, 2], [3, 4])
    assert first.iterations + second.iterations == whole.iterations == list(range(1, 13))
    for name, value in whole.network.state_dict().items():
        assert torch.equal(second.network.state_dict()[name], value)
        assert not torch.equal(first.network.state_dict()[name], value)
    assert first.rates + second.rates == whole.rates
    momentum = [t.optimizer.state_dict()["state"][0]["momentum_buffer"] for t in (whole, second)]
    assert torch.equal(*momentum)


def test_checkpoint_is_written_after_every_epoch(tmp_path):
    training = Training(tmp_path)
    found = []

    @training.trainer.on(Events.EPOCH_COMPLETED)
    def look():
        state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        found.append(state["epoch"])

    training.run(3)
    assert found == [1, 2, 3]


def test_another_plan_after_the_break_is_followed(tmp_path):
    """More epochs, other base rate, fewer steps an epoch (as of more processes)."""
    Training(tmp_path).run(2)
    plan = {"data": DATA[:2], "epochs": 6, "lr": 0.02}
    resumed = Training(tmp_path, resume=True, **plan).run(6)
    whole = Training(tmp_path / "whole", **plan).run(6)
    assert (resumed.epochs, resumed.iterations) == ([3, 4, 5, 6], list(range(5, 13)))
    assert resumed.rates == whole.rates[4:]
    assert resumed.rates[-1] < 0.1 * resumed.rates[0]


@pytest.mark.parametrize("step", [0, 1, 2, 7, 11])
def test_the_scheduler_goes_to_a_step_as_if_it_had_taken_all_before(tmp_path, step):
    stepped, jumped = Training(tmp_path), Training(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the optimizer of the first takes no step at all
        for _ in range(step):
            stepped.scheduler.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        go_to_step(jumped.scheduler, step)
    for _ in range(3):
        assert jumped.optimizer.param_groups[0]["lr"] == stepped.optimizer.param_groups[0]["lr"]
        assert jumped.scheduler.get_last_lr() == stepped.scheduler.get_last_lr()
        for training in (stepped, jumped):
            training.optimizer.step()
            training.scheduler.step()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_augmentation_after_a_resume_is_new_and_reproducible(tmp_path, num_workers):
    def shifts(resume):
        """What a random transform adds to three items in the next epoch of a training."""
        torch.manual_seed(5)
        data = Dataset([torch.zeros(1, 1)] * 3, RandShiftIntensity(1.0, prob=1.0))
        loader, seen = DataLoader(data, num_workers=num_workers), []
        trainer = Engine(lambda engine, batch: seen.append(batch.item()))
        ResumableTraining(tmp_path, {}, Training(tmp_path).scheduler, resume).attach(trainer)
        trainer.run(loader, max_epochs=2 if resume else 1)
        return seen

    first, second = shifts(False), shifts(True)
    assert len(set(first + second)) == 6
    assert shifts(False) == first
    assert shifts(True) == second


@pytest.mark.parametrize("name", ["network", "best_model"])
def test_a_checkpoint_of_another_training_is_an_error(tmp_path, name):
    Training(tmp_path).run(1)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    state[name] = {}
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=rf"checkpoint\.pt is not of this .* {name} does not fit"):
        Training(tmp_path, resume=True).run(2)


def test_without_resume_training_starts_anew(tmp_path):
    Training(tmp_path).run(2)
    assert Training(tmp_path).run(2).epochs == [1, 2]


def test_resuming_from_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checkpoint\.pt: no checkpoint to resume from"):
        Training(tmp_path, resume=True).run(2)


@pytest.mark.parametrize("max_epochs", [1, 2])
def test_nothing_left_to_resume_is_an_error(tmp_path, max_epochs):
    Training(tmp_path).run(2)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match="finished 2 epochs"):
        Training(tmp_path, resume=True).run(max_epochs)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_interrupted_save_leaves_the_previous_file(tmp_path, monkeypatch):
    training = Training(tmp_path, losses=[2.0, 1.0]).run(1)
    before = {name: (tmp_path / name).read_bytes() for name in ("checkpoint.pt", "model.pt")}
    plain, calls = torch.save, []

    def interrupted(content, path):
        plain(content, path)
        calls.append(path)
        with open(path, "r+b") as file:
            file.truncate(100)
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint.torch, "save", interrupted)
    with pytest.raises(OSError, match="disk full"):
        training.run(2)
    with pytest.raises(OSError, match="disk full"):
        write_tensors({}, tmp_path / "checkpoint.pt")
    assert len(calls) == 2
    for name, content in before.items():
        assert (tmp_path / name).read_bytes() == content
    assert {path.name for path in tmp_path.iterdir()} == set(before)  # nothing half-written
    monkeypatch.undo()
    assert Training(tmp_path, resume=True).run(2).epochs == [2]


def test_save_leaves_nothing_but_the_file(tmp_path):
    write_tensors({"a": torch.ones(2)}, tmp_path / "new" / "a.pt")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.pt"]


def kept(folder):
    """Weights on disk, read as a stranger would read them."""
    return torch.load(folder / "model.pt", weights_only=True)


def test_best_model_keeps_the_lowest(tmp_path):
    network = nn.Linear(1, 1, bias=False)
    best, evaluator = BestModel(tmp_path / "model.pt", network, "error"), Engine(lambda e, b: None)
    best.attach(evaluator)
    # value of the metric, and which weights must be on disk afterwards; of equals the later
    for number, (value, expected) in enumerate([(9, 0), (4, 1), (6, 1), (4, 3), (5, 3), (1, 5)]):
        nn.init.constant_(network.weight, number)
        validate(evaluator, value)
        assert kept(tmp_path)["weight"].item() == expected
    assert best.best == 1
    nn.Linear(1, 1, bias=False).load_state_dict(kept(tmp_path))


def test_best_model_prefers_what_it_is_told(tmp_path):
    network, evaluator = nn.Linear(1, 1), Engine(lambda e, b: None)
    best = BestModel(tmp_path / "model.pt", network, "error", better=lambda a, b: a > b)
    best.attach(evaluator)
    for value in (0.2, 0.7, 0.5):
        validate(evaluator, value)
    assert best.best == 0.7


def test_nan_is_never_the_best(tmp_path):
    network = nn.Linear(1, 1, bias=False)
    best, evaluator = BestModel(tmp_path / "model.pt", network, "error"), Engine(lambda e, b: None)
    best.attach(evaluator)
    expected = [(math.nan, None), (7.0, 1), (math.nan, 1), (8.0, 1), (6.0, 4)]
    for number, (value, weight) in enumerate(expected):
        nn.init.constant_(network.weight, number)
        validate(evaluator, value)
        if weight is None:
            assert best.best is None
            assert not (tmp_path / "model.pt").exists()
        else:
            assert kept(tmp_path)["weight"].item() == weight, number
    best.load_state_dict({"best": math.nan})  # a checkpoint of version 0.8
    assert best.best is None


@pytest.mark.parametrize("content", [b"", b"half a file", b"PK\x03\x04"])
def test_a_broken_checkpoint_is_named(tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint\.pt: no checkpoint of training"):
        Training(tmp_path, resume=True).run(2)


def test_best_survives_a_resume(tmp_path):
    losses = [5.0, 2.0, 3.0, 1.0]
    first = Training(tmp_path, losses=losses).run(2)
    best = {name: value.clone() for name, value in first.network.state_dict().items()}
    assert first.best_model.best == 2
    second = Training(tmp_path, resume=True, losses=losses).run(3)
    assert second.best_model.best == 2  # epoch 3 was worse than what was there before the break
    assert all(torch.equal(kept(tmp_path)[name], value) for name, value in best.items())
    third = Training(tmp_path, resume=True, losses=losses).run(4)
    assert third.best_model.best == 1
    weights = third.network.state_dict()
    assert all(torch.equal(kept(tmp_path)[name], value) for name, value in weights.items())
