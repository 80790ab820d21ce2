"""start_weights.py: parts that fit are loaded whole, the others begin anew, and the log says so."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from scripts.training import start_weights
from scripts.training.optimization import parameter_groups
from scripts.training.start_weights import StartWeights


@pytest.fixture(autouse=True)
def _heard(monkeypatch, caplog):
    """Other tests read logging.conf, which silences the loggers that are there by then."""
    monkeypatch.setattr(start_weights.logger, "disabled", False)
    caplog.set_level(logging.INFO, logger=start_weights.logger.name)


def network(seed: int, **parts: nn.Module) -> nn.ModuleDict:
    torch.manual_seed(seed)
    usual = {"localizer": nn.Linear(2, 3), "rotation": nn.Linear(3, 4)}
    return nn.ModuleDict(usual | parts)


def load(path, into: nn.Module) -> None:
    engine = Engine(lambda *_: None)
    StartWeights(path, into).attach(engine)
    engine.run([0], max_epochs=1)


def changed(module: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {key for key, value in module.state_dict().items() if not value.equal(before[key])}


def copy_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def test_what_fits_is_loaded_as_by_load_state_dict(tmp_path, caplog):
    given, other = network(0), network(1)
    torch.save(given.state_dict(), tmp_path / "model.pt")
    load(tmp_path / "model.pt", other)
    assert not changed(other, given.state_dict())
    assert "localizer, rotation; anew: nothing" in caplog.text


@pytest.mark.parametrize(
    ("rotation", "reason"),
    [
        (nn.Linear(3, 5), r"bias is (4,), here (5,)"),  # another shape
        (nn.Linear(3, 4, bias=False), r"bias is (4,), here missing"),
        (nn.Conv1d(3, 4, 1), r"weight is (4, 3), here (4, 3, 1)"),
        (nn.Sequential(nn.Linear(3, 4)), r"0.bias is missing, here (4,)"),  # other names
    ],
)
def test_a_part_that_does_not_fit_begins_anew_as_a_whole(tmp_path, caplog, rotation, reason):
    given, other = network(0), network(1, rotation=rotation)
    torch.save(given.state_dict(), tmp_path / "model.pt")
    before = copy_of(rotation)
    load(tmp_path / "model.pt", other)
    assert not changed(rotation, before)
    assert not changed(other["localizer"], given["localizer"].state_dict())
    said = re.search(r"rotation begins anew: in (\S+) (.*)", caplog.text)
    assert said.group(1) == str(tmp_path / "model.pt")
    assert reason in said.group(2)
    assert "localizer; anew: rotation" in caplog.text


def test_a_part_that_the_file_lacks_begins_anew(tmp_path, caplog):
    given, other = network(0), network(1, landmarks=nn.Linear(1, 1))
    torch.save(given.state_dict(), tmp_path / "model.pt")
    load(tmp_path / "model.pt", other)
    assert not changed(other["rotation"], given["rotation"].state_dict())
    assert "localizer, rotation; anew: landmarks" in caplog.text


def test_a_part_that_is_not_trained_has_to_fit(tmp_path):
    """A random localizer that stays random is of no use to anybody."""
    given, other = network(0), network(1, localizer=nn.Linear(2, 7))
    torch.save(given.state_dict(), tmp_path / "model.pt")
    groups = parameter_groups(other, {"rotation": 0.1, "localizer": 0.0}, {"rotation": 0.5})
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(0.1, 0.5)]
    assert groups[0]["params"] == list(other["rotation"].parameters())
    assert [p.requires_grad for p in other.parameters()] == [False, False, True, True]
    with pytest.raises(ValueError, match=r"model\.pt: localizer is not trained .* bias is \(3,\)"):
        load(tmp_path / "model.pt", other)


def test_without_any_rate_nothing_is_frozen():
    """An optimizer refuses to have nothing; a federation may ask for steps that change nothing."""
    whole = network(0)
    groups = parameter_groups(whole, {"rotation": 0.0, "localizer": 0.0, "landmarks": 1.0}, {})
    assert [group["lr"] for group in groups] == [0.0, 0.0]
    assert all(p.requires_grad for p in whole.parameters())


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        load(tmp_path / "none.pt", network(0))
