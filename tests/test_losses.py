"""losses.py: what the losses must be blind to, what they must see, and partial labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.losses import DiceLoss
from monai.networks import one_hot
from scipy.spatial.transform import Rotation
from scipy.stats import vonmises_fisher
from torch.nn import functional

from scripts.cubes import cube_cells
from scripts.labels import BACKGROUND, BRAIN, EYES, UNKNOWN
from scripts.network.head_pose_net import TrainingOutput
from scripts.network.landmarks import Landmarks
from scripts.training.losses import (
    AxisEvidenceLoss,
    AxisFieldLoss,
    HeadPoseLoss,
    LandmarkLoss,
    SegmentationLoss,
)


def random_rotations(n: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(Rotation.random(n, random_state=seed).as_matrix()).float()


def random_field(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 3, 4, 4, 4)


def turn(field: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Every vector of the field turned; the voxels stay, because the loss sums over them."""
    return torch.einsum("ij,bkjxyz->bkixyz", rotation, field)


def field_of(rotation: torch.Tensor) -> torch.Tensor:
    """The perfect field: at every voxel the columns of the rotation, of any length."""
    lengths = torch.rand(len(rotation), 3, 1, 4, 4, 4) + 0.1
    return rotation.mT[..., None, None, None] * lengths


def test_loss_follows_its_formula():
    field, rotation = random_field(), random_rotations(2, 0)
    found = AxisFieldLoss(voxel_weight=0.3, pooled_weight=0.7)(field, rotation)
    assert found.shape == (2,)
    for k in range(2):
        v = field[k].flatten(2).numpy()
        n = v / np.linalg.norm(v, axis=1, keepdims=True)
        e = rotation[k].numpy()
        c = np.stack([e[:, axis] @ n[axis] for axis in range(3)])
        voxel = (1 - np.abs(c[0]) + 1 - c[1] + 1 - c[2]).mean()
        total = v.sum(-1)
        cosines = [total[a] @ e[:, a] / np.linalg.norm(total[a]) for a in (1, 2)]
        along = ((e[:, 0] @ v[0]) ** 2).sum() / (v[0] ** 2).sum()
        pooled = 1 - along + 2 - sum(cosines)
        assert found[k].item() == pytest.approx(0.3 * voxel + 0.7 * pooled, abs=1e-5)


def test_loss_is_zero_at_the_truth_only():
    rotation = random_rotations(4, 1)
    loss = AxisFieldLoss()
    torch.testing.assert_close(
        loss(field_of(rotation), rotation), torch.zeros(4), atol=1e-5, rtol=0
    )
    assert loss(field_of(rotation), random_rotations(4, 2)).min() > 0.1
    for axis in (1, 2):
        wrong = field_of(rotation)
        wrong[:, axis] *= -1
        assert loss(wrong, rotation).min() > 2.4  # 2 pooled and 0.25 * 2 per voxel


def test_evidence_is_the_negative_logarithm_of_a_density_on_the_sphere():
    """scipy's von Mises-Fisher distribution, of the mean vector times the factor."""
    field, rotation = random_field(), random_rotations(2, 4)
    found = AxisEvidenceLoss(voxel_weight=0.0, evidence=7.0)(field, rotation)
    for k in range(2):
        v, e = field[k].flatten(2).double().numpy(), rotation[k].double().numpy()
        expected = 1 - ((e[:, 0] @ v[0]) ** 2).sum() / (v[0] ** 2).sum()
        for axis in (1, 2):
            natural = 7 * v[axis].mean(-1)
            size = np.linalg.norm(natural)
            expected -= vonmises_fisher(natural / size, size).logpdf(e[:, axis])
        assert found[k].item() == pytest.approx(expected, abs=1e-4)


def test_evidence_that_is_surely_wrong_is_pushed_hardest():
    """1 - cos has no slope there."""
    rotation = torch.eye(3)[None]
    slopes = {}
    for loss in (AxisFieldLoss(0.0), AxisEvidenceLoss(0.0)):
        field = 4 * torch.eye(3)[None, ..., None, None, None].expand(1, 3, 3, 2, 2, 2).clone()
        field[:, 2] *= -1
        field.requires_grad_()
        loss(field, rotation).sum().backward()
        slopes[type(loss)] = field.grad[:, 2].sum((2, 3, 4))[0]
    assert slopes[AxisFieldLoss].abs().max() < 1e-5
    torch.testing.assert_close(
        slopes[AxisEvidenceLoss], torch.tensor([0.0, 0, -10]), atol=0.3, rtol=0
    )
    huge = 1e4 * torch.eye(3)[None, ..., None, None, None].expand(1, 3, 3, 2, 2, 2)
    assert torch.isfinite(AxisEvidenceLoss()(-huge, rotation)).all()
    assert torch.isfinite(AxisEvidenceLoss()(0 * huge, rotation)).all()


@pytest.mark.parametrize("loss", [AxisFieldLoss(), AxisEvidenceLoss()])
def test_loss_is_blind_to_the_sign_of_e_x(loss):
    field, rotation = random_field(), random_rotations(2, 3)
    expected = loss(field, rotation)
    flipped = field.clone()
    flipped[:, 0] *= torch.randn(2, 1, 4, 4, 4).sign()  # at any voxel, on its own
    torch.testing.assert_close(loss(flipped, rotation), expected)
    target = rotation * torch.tensor([-1.0, 1, 1])
    torch.testing.assert_close(loss(field, target), expected)


def authors_loss(field, rotation):
    """As published: component-wise L1 of e_y and e_z."""
    unit = functional.normalize(field.flatten(3), dim=2)
    target = rotation.mT.unsqueeze(-1)
    right = torch.linalg.cross(unit[:, 0], target[:, 0].expand_as(unit[:, 0]), dim=1).norm(dim=1)
    return 0.5 * right.mean(1) + (unit[:, 1:] - target[:, 1:]).abs().mean((1, 2, 3))


@pytest.mark.parametrize("loss", [AxisFieldLoss(), AxisEvidenceLoss()])
def test_loss_is_invariant_under_rotation_and_the_authors_is_not(loss):
    field, rotation = random_field(), random_rotations(2, 4)
    expected, naive = loss(field, rotation), authors_loss(field, rotation)
    naive_changes = []
    for g in random_rotations(10, 5):
        turned = turn(field, g)
        torch.testing.assert_close(loss(turned, g @ rotation), expected, atol=1e-5, rtol=1e-5)
        naive_changes.append((authors_loss(turned, g @ rotation) / naive - 1).abs().max().item())
    assert max(naive_changes) > 0.005
    # the same error of 20 degrees about e_x, for heads that lie in different ways
    truth = random_rotations(50, 6)
    off = torch.from_numpy(Rotation.from_rotvec([np.radians(20), 0, 0]).as_matrix()).float()
    tilted = field_of(truth @ off)
    tilted = torch.nn.functional.normalize(tilted, dim=2)
    naive, ours = (f(tilted, truth) for f in (authors_loss, loss))
    assert naive.max() > 1.2 * naive.min()
    torch.testing.assert_close(ours, ours[:1].expand(50), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("start", ["zero", "truth", "random"])
def test_gradient_is_finite(start):
    rotation = random_rotations(2, 7)
    field = {"zero": torch.zeros(2, 3, 3, 2, 2, 2), "truth": field_of(rotation)}.get(
        start, random_field()
    )
    field.requires_grad_()
    AxisFieldLoss()(field, rotation).sum().backward()
    assert field.grad.isfinite().all()
    assert (field.grad.abs().max() > 1e-3) == (start != "truth")


def test_gradient_leads_to_the_truth():
    rotation = random_rotations(2, 8)
    field = random_field().requires_grad_()
    optimizer = torch.optim.Adam([field], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        loss = AxisFieldLoss()(field, rotation).sum()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_no_voxel_has_a_place_in_the_loss():
    """Fields of any shape are sets of voxels: only sums over them count."""
    first, second, rotation = random_field(), random_field(), random_rotations(2, 11)
    loss = AxisFieldLoss()
    both = loss(torch.cat([first, second], dim=3), rotation)
    torch.testing.assert_close(loss(torch.cat([second, first], dim=4), rotation), both)
    twice = loss(torch.cat([first, first], dim=3), rotation)
    torch.testing.assert_close(twice, loss(first, rotation))
    assert (both - twice).abs().min() > 1e-3


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"expected a field .* got \(2, 9, 4, 4, 4\)"):
        AxisFieldLoss()(torch.zeros(2, 9, 4, 4, 4), torch.eye(3).expand(2, 3, 3))
    with pytest.raises(ValueError, match=r"got .* and \(1, 3, 3\)"):
        AxisFieldLoss()(torch.zeros(2, 3, 3, 2, 2, 2), torch.eye(3)[None])


def random_label(batch: int = 2, values=(BACKGROUND, BRAIN, EYES)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    index = torch.randint(len(values), (batch, 1, 5, 6, 4), generator=generator)
    return torch.tensor(values, dtype=torch.uint8)[index]


def test_segmentation_loss_is_cross_entropy_and_dice():
    logits, label = torch.randn(2, 3, 5, 6, 4), random_label()
    dice = DiceLoss(include_background=False, softmax=True)
    weighted = {SegmentationLoss(): (1.0, 3.0, 30.0), SegmentationLoss((1, 8.0, 2)): (1, 8.0, 2)}
    for loss, weights in weighted.items():
        found = loss(logits, label)
        for k in range(2):
            x, y = logits[k : k + 1], label[k : k + 1].long()
            entropy = functional.cross_entropy(x, y[:, 0], weight=torch.tensor(weights))
            expected = entropy + dice(x, one_hot(y, 3))
            assert found[k].item() == pytest.approx(expected.item(), abs=1e-5)


def test_perfect_segmentation_costs_nothing():
    label = random_label()
    logits = 40.0 * one_hot(label.long(), 3)
    torch.testing.assert_close(SegmentationLoss()(logits, label), torch.zeros(2), atol=1e-4, rtol=0)


def test_unknown_voxels_do_not_count():
    logits, label = torch.randn(2, 3, 5, 6, 4), random_label()
    unknown = torch.rand(2, 1, 5, 6, 4) < 0.4
    label[unknown] = UNKNOWN
    loss = SegmentationLoss()
    expected = loss(logits, label)
    changed = torch.where(unknown, 20 * torch.randn_like(logits), logits).requires_grad_()
    found = loss(changed, label)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    hidden = unknown.expand_as(logits)
    assert (changed.grad[hidden] == 0).all()
    assert (changed.grad[~hidden] != 0).all()
    label[:] = UNKNOWN
    assert loss(logits, label).tolist() == [0, 0]


def shift_to_eyes(logits):
    """Same probability of "background or eyes" and of brain, shared differently."""
    either = torch.logaddexp(logits[:, BACKGROUND], logits[:, EYES])
    share = torch.rand_like(either)
    return torch.stack([either + share.log(), logits[:, BRAIN], either + (1 - share).log()], dim=1)


def test_eyes_that_are_not_labelled_are_not_unlearned():
    logits = torch.randn(2, 3, 5, 6, 4)
    without, with_eyes = random_label(values=(BACKGROUND, BRAIN)), random_label()
    loss = SegmentationLoss()
    shifted = shift_to_eyes(logits)
    torch.testing.assert_close(loss(shifted, without), loss(logits, without))
    assert (loss(shifted, with_eyes) - loss(logits, with_eyes)).abs().min() > 0.01
    # item by item: one volume with eyes in its label, one without
    label = torch.cat([with_eyes[:1], without[1:]])
    torch.testing.assert_close(
        loss(logits, label), torch.stack([loss(logits, with_eyes)[0], loss(logits, without)[1]])
    )
    assert loss(100 * logits.requires_grad_(), without).isfinite().all()
    (gradient,) = torch.autograd.grad(loss(logits, without).sum(), logits)
    assert gradient.isfinite().all()


def test_a_volume_without_a_head_teaches_that_there_are_no_eyes():
    logits, label = torch.randn(1, 3, 5, 6, 4), torch.zeros(1, 1, 5, 6, 4, dtype=torch.uint8)
    raised = logits.clone()
    raised[:, EYES] += 2
    loss = SegmentationLoss()
    assert loss(raised, label) > loss(logits, label) + 0.1
    torch.testing.assert_close(
        loss(logits, label)[0], functional.cross_entropy(logits, label[:, 0].long())
    )


def test_segmentation_loss_is_the_same_under_autocast():
    """float16, as MONAI's own mixed precision takes it, would overflow in the sums over voxels."""
    logits, label = torch.randn(2, 3, 48, 48, 48), torch.zeros(2, 1, 48, 48, 48)
    label[:, :, 10:40, 10:40, 10:40] = BRAIN
    label[0, :, 5:8] = EYES
    expected = SegmentationLoss()(logits, label)
    with torch.autocast("cpu", torch.float16):
        found = SegmentationLoss()(logits, label)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def target_of(rotation, label, has_head):
    pose = torch.eye(4).repeat(len(rotation), 1, 1)
    pose[:, :3, :3] = rotation
    pose[:, :3, 3] = 30.0
    return {"head_to_grid": pose, "label": label, "has_head": torch.tensor(has_head)}


def test_total_is_the_weighted_sum():
    logits, label = torch.randn(2, 3, 5, 6, 4), random_label()
    field, rotation = random_field(), random_rotations(2, 9)
    loss = HeadPoseLoss(
        rotation_weight=2.0, segmentation_weight=3.0, voxel_weight=0.1, pooled_weight=0.5
    )
    found = loss(TrainingOutput(logits, field, None), target_of(rotation, label, [1.0, 1.0]))
    expected = 2 * AxisFieldLoss(0.1, 0.5)(field, rotation).mean()
    expected = expected + 3 * SegmentationLoss()(logits, label).mean()
    torch.testing.assert_close(found, expected)


def test_rotation_counts_only_where_there_is_a_head():
    logits, label = torch.randn(3, 3, 5, 6, 4), random_label(3)
    field, rotation = random_field(3).requires_grad_(), random_rotations(3, 10)
    loss = HeadPoseLoss(segmentation_weight=0.0)
    found = loss(TrainingOutput(logits, field, None), target_of(rotation, label, [1.0, 0.0, 1.0]))
    each = AxisFieldLoss()(field, rotation)
    torch.testing.assert_close(found, (each[0] + each[2]) / 2)
    (gradient,) = torch.autograd.grad(found, field)
    assert (gradient[1] == 0).all()
    assert (gradient[[0, 2]] != 0).all()
    none = loss(TrainingOutput(logits, field, None), target_of(rotation, label, [0.0, 0.0, 0.0]))
    assert none.item() == 0
    (gradient,) = torch.autograd.grad(none, field)
    assert (gradient == 0).all()


# LandmarkLoss


def landmarks_at(point, score=0.0):
    """What a network that is sure of ``point`` (batch, 3, 3) gives."""
    cells = cube_cells(16).flatten(0, 2)
    squares = (cells - point[:, :, None]).square().sum(-1)
    heatmap = (-squares / (2 * 0.045**2)).unflatten(2, (16, 16, 16))
    one = torch.ones(len(point))
    return Landmarks(heatmap, point, score * one)


def cube_target(point, aligned=1.0):
    one = torch.ones(len(point))
    return {"crop_point": point, "crop_aligned": aligned * one}


POINT = torch.tensor([[[0.0, 0.1, 0.0], [-0.15, 0.3, -0.1], [0.15, 0.3, -0.1]]])


def test_landmark_loss_is_least_at_the_truth():
    loss = LandmarkLoss()
    best = loss(landmarks_at(POINT, 20.0), cube_target(POINT))
    for other in (POINT + 0.05, POINT[:, [0, 2, 1]], POINT * 0.7):
        assert loss(landmarks_at(other, 20.0), cube_target(POINT)) > best + 0.5
    assert loss(landmarks_at(POINT, -20.0), cube_target(POINT)) > best + 5
    wrong = cube_target(POINT, aligned=0.0)
    assert loss(landmarks_at(POINT, 20.0), wrong) > loss(landmarks_at(POINT, -20.0), wrong) + 5


def test_landmark_loss_leaves_out_what_is_unknown():
    """Unknown eyes and alignments change nothing, and no gradient comes from them."""
    loss, found = LandmarkLoss(), landmarks_at(POINT.repeat(2, 1, 1))
    nan = float("nan")
    target = cube_target(POINT.repeat(2, 1, 1).clone())
    target["crop_point"][1] = nan
    target["crop_aligned"][1] = nan
    alone = loss(landmarks_at(POINT), cube_target(POINT))
    torch.testing.assert_close(loss(found, target), alone)
    point = (POINT.repeat(2, 1, 1) + 0.01).requires_grad_()
    loss(found._replace(point=point), target).backward()
    assert point.grad[0].abs().sum() > 0
    assert point.grad[1].eq(0).all()
    nothing = {name: torch.full_like(value, nan) for name, value in target.items()}
    assert loss(found, nothing) == 0


def test_head_pose_loss_adds_that_of_the_landmarks():
    logits, field = torch.randn(1, 3, 4, 4, 4), torch.randn(1, 3, 3, 2, 2, 2)
    target = {
        "label": torch.ones(1, 1, 4, 4, 4),
        "head_to_grid": torch.eye(4)[None],
        "has_head": torch.ones(1),
        **cube_target(POINT),
    }
    without = HeadPoseLoss()(TrainingOutput(logits, field, None), target)
    found = landmarks_at(POINT + 0.1)
    together = HeadPoseLoss(landmark_weight=2.0)(TrainingOutput(logits, field, found), target)
    torch.testing.assert_close(together, without + 2 * LandmarkLoss()(found, target))


def test_segmentation_loss_as_a_mean():
    logits, label = torch.randn(3, 3, 4, 4, 4), torch.randint(0, 3, (3, 1, 4, 4, 4))
    each = SegmentationLoss()(logits, label)
    torch.testing.assert_close(SegmentationLoss(reduction="mean")(logits, label), each.mean())
    with pytest.raises(ValueError, match="sum"):
        SegmentationLoss(reduction="sum")
