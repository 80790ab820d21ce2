"""data/brain_only.py: what is kept, what leaves the label, what stays zero."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.data.brain_only import RandBrainMaskd, RandLesiond, RandScannerNoised, blob, within

AFFINE = torch.diag(torch.tensor([4.0, 4, 4, 1]))


def case(size: int = 24) -> dict[str, MetaTensor]:
    label = torch.zeros(1, size, size, size)
    label[:, 8:16, 8:16, 8:16] = 1
    label[:, 16:18, 10:12, 10:12] = 2
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(label.shape, generator=generator) * 0.5 + 0.2
    return {"image": MetaTensor(image, affine=AFFINE), "label": MetaTensor(label, affine=AFFINE)}


@pytest.mark.parametrize(("margin_mm", "side"), [(0.0, 8), (4.0, 10), (-4.0, 6)])
def test_the_margin_is_in_mm(margin_mm: float, side: int) -> None:
    brain = case()["label"][0].numpy() == 1
    kept = within(brain, margin_mm, 4.0, np.zeros((4, 4, 4)))
    axis = kept[:, 12, 12]
    assert axis.sum() == side
    assert kept[brain].all() or margin_mm < 0


def test_a_tight_mask_takes_the_eyes_and_scales_anew() -> None:
    cut = RandBrainMaskd(prob=1.0, margin_mm=(-2.0, -2.0), ripple_mm=0.0).set_random_state(0)(
        case()
    )
    kept = cut["image"] > 0
    assert not (cut["label"] == 2).any()
    assert (cut["label"] == 1).sum() == 8**3
    assert cut["image"].max() == 1
    assert kept.sum() <= 8**3
    assert torch.equal(torch.as_tensor(cut["image"].affine), AFFINE.double())


def test_a_loose_mask_keeps_what_is_near() -> None:
    cut = RandBrainMaskd(prob=1.0, margin_mm=(12.0, 12.0), ripple_mm=0.0).set_random_state(0)(
        case()
    )
    assert (cut["label"] == 2).any()
    assert cut["image"][0, 0, 0, 0] == 0


def test_a_volume_without_a_brain_stays_as_it_is() -> None:
    empty = case()
    empty["label"] = torch.zeros_like(empty["label"])
    for transform in (RandBrainMaskd(prob=1.0), RandLesiond(prob=1.0)):
        assert torch.equal(transform.set_random_state(0)(empty)["image"], empty["image"])


def test_a_lesion_stays_in_the_brain_and_is_of_its_level() -> None:
    before = case()
    lesion = RandLesiond(prob=1.0, radius_mm=(10.0, 12.0), level=(1.0, 1.0)).set_random_state(1)
    after = lesion(before)
    changed = (after["image"] - before["image"]).abs() > 1e-3
    assert changed.any()
    assert (before["label"][changed] == 1).all()
    assert after["image"].max() > 0.95


def test_a_blob_is_an_ellipsoid_along_its_axes() -> None:
    middle, radii = torch.tensor([10, 10, 10]), torch.tensor([6.0, 3.0, 2.0])
    share = blob((21, 21, 21), middle, torch.eye(3), radii)
    lines = (share[:, 10, 10], share[10, :, 10], share[10, 10, :])
    assert [int((line > 0.5).sum()) // 2 for line in lines] in ([5, 2, 1], [6, 3, 2])
    assert all(line[10] > 0.9 and line[0] < 0.1 for line in lines)


def test_noise_leaves_padding_alone_where_it_is_silent() -> None:
    padded = {"image": torch.zeros(1, 8, 8, 8)}
    padded["image"][:, 2:6] = 0.5
    silent = RandScannerNoised(prob=1.0, silent_prob=1.0).set_random_state(0)(padded)["image"]
    loud = RandScannerNoised(prob=1.0, silent_prob=0.0).set_random_state(0)(padded)["image"]
    assert (silent[:, :2] == 0).all()
    assert (silent[:, 2:6] != 0.5).any()
    assert (loud[:, :2] != 0).any()
    again = RandScannerNoised(prob=1.0, silent_prob=0.0).set_random_state(0)(padded)["image"]
    assert torch.equal(loud, again)


@pytest.mark.parametrize("transform", [RandBrainMaskd, RandLesiond, RandScannerNoised])
def test_probability_zero_changes_nothing_and_seeds_repeat(transform: type) -> None:
    for key, value in transform(prob=0.0)(case()).items():
        assert torch.equal(value, case()[key])
    first, second = (transform(prob=1.0).set_random_state(5)(case())["image"] for _ in range(2))
    assert torch.equal(first, second)
