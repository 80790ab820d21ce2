"""Volumes of different sizes in one batch."""

from __future__ import annotations

import torch

from scripts.data.case_batches import collate_cases


def test_padding_is_behind_the_last_voxels_so_that_affines_stay_true():
    shapes = ((4, 7, 5), (6, 3, 5), (1, 1, 1))
    items = [
        {"case": str(k), "reading": object(), "image": torch.rand(1, *shape) + 1, "affine": affine}
        for k, (shape, affine) in enumerate(zip(shapes, torch.rand(3, 4, 4).double(), strict=True))
    ]
    batch = collate_cases(items)
    assert batch["image"].shape == (3, 1, 6, 7, 5)
    for k, (item, (x, y, z)) in enumerate(zip(items, shapes, strict=True)):
        assert batch["image"][k, :, :x, :y, :z].equal(item["image"])
        assert (batch["image"][k] > 0).sum() == x * y * z
        assert batch["affine"][k].equal(item["affine"])
        assert batch["reading"][k] is item["reading"]
