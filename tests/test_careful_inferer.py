"""A volume that the network cannot take does not stop the others."""

from __future__ import annotations

import torch

from scripts.evaluation.careful_inferer import CarefulInferer
from scripts.network.chain import Prediction


class Fragile(torch.nn.Module):
    """Finds a head in every volume, and breaks on a batch whose sum is above a limit."""

    def predict(self, volume):
        if volume.sum() > 100:
            raise RuntimeError("out of memory\nmore of it")
        number = len(volume)
        label = torch.ones(volume.shape, dtype=torch.uint8)
        pose = torch.eye(4).repeat(number, 1, 1)
        pose[:, 0, 3] = volume.flatten(1).sum(1)  # tells which volume it is of
        ones = torch.ones(number)
        return Prediction(pose, ones, 200 * ones, label, ones, ones)


def test_all_is_well():
    found = CarefulInferer()(torch.zeros(2, 1, 4, 4, 4), Fragile())
    assert found["error"] == ["", ""]
    assert found["confidence"].tolist() == [1, 1]


def test_what_fails_alone_is_done_without_and_told():
    volumes = torch.zeros(3, 1, 4, 4, 4)
    volumes[0], volumes[1], volumes[2] = 1.0, 2.0, 0.5
    found = CarefulInferer()(volumes, Fragile())
    assert found["error"] == ["", "RuntimeError: out of memory", ""]
    assert found["head_to_grid"][:, 0, 3].tolist()[::2] == [64.0, 32.0]
    assert found["head_to_grid"][1].isnan().all()
    assert found["confidence"].tolist() == [1, 0, 1]
    assert found["label"].shape == volumes.shape
    assert not found["label"][1].any()


def test_a_batch_that_is_too_large_is_done_one_by_one():
    volumes = torch.full((4, 1, 4, 4, 4), 1.0)
    found = CarefulInferer()(volumes, Fragile())
    assert found["error"] == [""] * 4
    assert found["confidence"].tolist() == [1] * 4
