"""Gradient norms in bounds, and steps that are not finite skipped."""

from __future__ import annotations

import logging

import pytest
import torch
from ignite.engine import Engine
from monai.engines import IterationEvents
from torch import nn

from scripts.training.optimization import ClipGradients


def trainer(network: nn.Module, scale: dict[str, float]) -> Engine:
    """An engine whose loss has a gradient of ``scale`` in every weight of each part."""
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)

    def step(engine: Engine, batch: object) -> None:
        optimizer.zero_grad()
        parts = network.named_children()
        loss = sum(scale[name] * sum(p.sum() for p in part.parameters()) for name, part in parts)
        loss.backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        optimizer.step()

    engine = Engine(step)
    engine.register_events(*IterationEvents)
    return engine


@pytest.fixture
def network() -> nn.ModuleDict:
    return nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})


def moved(network: nn.Module, scale: dict[str, float], max_norm: float) -> dict[str, float]:
    """How far one step of learning rate 1 moves each part: the norm of its gradient."""
    before = {name: part.weight.detach().clone() for name, part in network.named_children()}
    engine = trainer(network, scale)
    ClipGradients(network, max_norm).attach(engine)
    engine.run([0], max_epochs=1)
    return {
        name: (part.weight - before[name]).norm().item() for name, part in network.named_children()
    }


def test_each_part_is_bounded_by_itself(network):
    norms = moved(network, {"a": 100.0, "b": 0.1}, max_norm=2.0)
    assert norms["a"] == pytest.approx(2.0, rel=1e-4)
    assert norms["b"] == pytest.approx(0.2, rel=1e-4)  # 0.1 in each of four weights


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_skipped_with_a_warning(network, caplog, value):
    with caplog.at_level(logging.WARNING, logger="scripts.gradients"):
        norms = moved(network, {"a": value, "b": 0.1}, max_norm=2.0)
    assert norms["a"] == 0
    assert norms["b"] == pytest.approx(0.2, rel=1e-4)
    assert "step 1 of a skipped" in caplog.text
