"""network/expected_error.py: the formula, its form in TorchScript, bad weights."""

from __future__ import annotations

import math

import pytest
import torch

from scripts.network.expected_error import ExpectedError, Spread


def spread(**values: float) -> Spread:
    """One pose whose estimates agree, but for what is given."""
    still = {"rotation_deg": 0.0, "mirror_mm": 0.0, "score": 50.0, "sharpness": 0.0}
    return Spread(*(torch.tensor([v]) for v in {**still, "side_mm": 100.0, **values}.values()))


def test_without_spread_the_first_weight_alone_counts():
    error = ExpectedError((math.log(5.0), 1, 1, 1, 1, 1), (math.log(3.0), 1, 1, 1, 1, 1))
    degrees, mm = error(spread())
    assert degrees.item() == pytest.approx(5)
    assert mm.item() == pytest.approx(3)


@pytest.mark.parametrize(
    ("given", "factor"),
    [
        ({"rotation_deg": 1.0}, 2.0),
        ({"mirror_mm": 3.0}, 4.0),
        ({"score": 0.0}, 2.0),  # softplus(0) = log 2
        ({"sharpness": -1.0}, math.exp(-1)),
        ({"side_mm": 150.0}, 1.5),
    ],
)
def test_each_feature_enters_as_documented(given, factor):
    error = ExpectedError([0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0])
    degrees, mm = error(spread(**given))
    assert degrees.item() == pytest.approx(factor, rel=1e-5)
    assert mm.item() == 1


def test_torchscript_is_the_same_and_a_batch_is_a_loop():
    error = ExpectedError([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    many = Spread(*(torch.rand(4) * 5 + 1 for _ in range(5)))
    together = error(many)
    for k in range(4):
        one = error(Spread(*(value[k : k + 1] for value in many)))
        for whole, single in zip(together, one, strict=True):
            torch.testing.assert_close(whole[k : k + 1], single)
    torch.testing.assert_close(torch.jit.script(error)(many), together)


def test_the_number_of_weights_is_checked():
    with pytest.raises(ValueError, match="expected 6 weights each"):
        ExpectedError([1.0], [1.0] * 6)
