"""e3pose/network.py: the authors' cube and axes by hand, and the contract of HeadPoseNet."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from scripts.cubes import along_grid, brain_cube
from scripts.e3pose.network import E3PoseNet, extent_cube, read_axes
from scripts.e3pose.unet import UNet
from scripts.evaluation.inferer import HeadPoseInferer
from scripts.geometry import geodesic_deg, quaternion_to_rotation
from scripts.network import E3CNN, HeadPoseNet
from scripts.network.head_pose_net import TrainingOutput
from scripts.training.losses import HeadPoseLoss
from symmetry import SYMMETRIES, move_voxels

SMALL = {"features": 1, "levels": 2, "convolutions": 1, "pool": "signed_max", "num_radial": 5}


class Threshold(nn.Module):
    """Brain where the intensity is above 0.4, eyes above 0.9: equivariant, other than a UNet."""

    def forward(self, volume):
        brain = 10 * (volume > 0.4) - 5.0
        return torch.cat([torch.zeros_like(volume), brain, 20 * (volume > 0.9) - 10.0], dim=1)


def head(shape=(16, 20, 18), center=(7, 9, 10)):
    """A lopsided blob (1, 1, *shape) with a few bright voxels, and a smaller one far from it."""
    torch.manual_seed(1)
    volume = 0.3 * torch.rand(1, 1, *shape)
    x, y, z = center
    volume[..., x - 3 : x + 4, y - 4 : y + 4, z - 2 : z + 3] += 0.3 * torch.rand(7, 8, 5) + 0.3
    volume[..., x, y + 3, z] = 1.0
    volume[..., 0, 0, :3] = 0.6
    return volume.clamp(0, 1)


def small_chain(**options):
    return E3PoseNet(Threshold(), E3CNN(**SMALL), crop_size=8, min_brain_ml=1.0, **options).eval()


def test_cube_is_the_mean_extent_of_the_mask():
    masks = torch.zeros(3, 1, 12, 10, 14, dtype=torch.bool)
    masks[0, 0, 2:5, 3:9, 4:8] = True  # extents of 3, 6 and 4 voxels
    masks[1, 0, 11, 9, 13] = True
    cube, volume_ml = extent_cube(masks, 3.0, 0.6)
    reference, reference_ml = brain_cube(masks, 3.0, 0.6)
    torch.testing.assert_close(cube.side_mm, torch.tensor([13 / 3 * 3 / 0.6, 5.0, 1.0]))
    torch.testing.assert_close(cube.center_mm, reference.center_mm)
    assert cube.rotation.equal(torch.eye(3).expand(3, 3, 3))
    assert volume_ml.equal(reference_ml)


def test_axes_are_read_as_the_authors_read_them():
    field = torch.randn(4, 3, 3, 3, 2, 4)
    axes, _ = read_axes(field)
    for item, found in zip(field, axes, strict=True):
        voxels = [item[:, :, x, y, z] for x in range(3) for y in range(2) for z in range(4)]
        longest = max(voxels, key=lambda v: v[0].norm())
        torch.testing.assert_close(found[0], longest[0])
        for k in (1, 2):
            mean = sum(v[k] / v[k].norm() for v in voxels) / len(voxels)
            torch.testing.assert_close(found[k], mean)


def test_confidence_is_one_in_agreement_and_low_in_noise():
    rotation = quaternion_to_rotation(torch.randn(4))
    field = rotation.mT[None, :, :, None, None, None].expand(1, 3, 3, 4, 4, 4).clone()
    field[:, 0, :, ::2] *= -3  # neither the sign of e_x nor lengths count
    field[:, 1, :, :, 1:] *= 0.2
    assert read_axes(field)[1].item() == pytest.approx(1, abs=1e-5)
    noise = read_axes(torch.randn(8, 3, 3, 8, 8, 8))[1]
    assert (noise < 0.15).all()
    assert (noise >= 0).all()
    for k in range(3):  # one axis that does not agree is enough
        doubtful = field.clone()
        doubtful[:, k] = torch.randn(1, 3, 4, 4, 4)
        assert read_axes(doubtful)[1].item() < 0.35
    assert read_axes(torch.zeros(1, 3, 3, 2, 2, 2))[1].item() == 0


def test_pose_stands_at_the_largest_component_and_labels_show_it():
    volume, net = head(), small_chain()
    found = net.predict(volume)
    brain = found.label == 1
    cube, volume_ml = extent_cube(brain, net.spacing_mm, 0.6)
    torch.testing.assert_close(found.head_to_grid[:, :3, 3], cube.center_mm)
    assert found.brain_volume_ml.equal(volume_ml)
    assert found.label.dtype == torch.uint8
    assert not found.label[..., 0, 0, :3].any()  # the smaller one is not brain
    assert found.label[..., 7, 12, 10] == 2
    expected = (volume > 0.4) & (volume <= 0.9)
    assert int(brain.sum()) == int(expected.sum()) - 3
    rotation = found.head_to_grid[:, :3, :3]
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(1))


def test_left_handed_axes_are_not_turned_by_180_degrees():
    """Where e_x comes out with the other sign, the frame is the same (the authors' is not)."""

    class Field(nn.Module):
        def __init__(self, axes):
            super().__init__()
            self.axes = axes

        def forward(self, crop):
            return self.axes.expand(len(crop), 3, 3, 2, 2, 2)

    rotation = quaternion_to_rotation(torch.randn(4))
    for sign in (1.0, -1.0):
        axes = rotation.mT * torch.tensor([sign, 1.0, 1.0])[:, None]
        net = E3PoseNet(Threshold(), Field(axes[..., None, None, None]), min_brain_ml=1.0)
        found = net.predict(head()).head_to_grid[0, :3, :3]
        assert geodesic_deg(found, rotation) < 0.1


def test_a_volume_without_head_does_not_disturb_the_others():
    net, volume = small_chain(), head()
    empty = torch.zeros_like(volume)
    found = net.predict(torch.cat([empty, volume]))
    assert found.head_to_grid[0].isnan().all()
    assert found.confidence[0] == 0
    assert found.brain_volume_ml[0] == 0
    alone = net.predict(volume)
    for together, single in zip(found, alone, strict=True):
        torch.testing.assert_close(together[1:], single, equal_nan=True)
    tiny = E3PoseNet(net.localizer, net.rotation, crop_size=8, min_brain_ml=20.0)
    assert tiny.predict(volume).head_to_grid.isnan().all()


def test_a_turned_volume_gives_the_turned_pose():
    """All 24 rotations of the cube; signed pooling loses the reflections."""
    torch.manual_seed(3)
    net, volume = small_chain().double(), head().double()
    pose = net.predict(volume).head_to_grid[0]
    confidence = net.predict(volume).confidence
    for g in SYMMETRIES:
        if torch.linalg.det(g) > 0:
            found = net.predict(move_voxels(volume, g))
            expected = torch.cat([g @ pose[:3], pose[3:]])
            torch.testing.assert_close(found.head_to_grid[0], expected, atol=1e-4, rtol=0)
            torch.testing.assert_close(found.confidence, confidence)


def test_a_reference_places_the_crop_and_overrules_no_head():
    net, volume = small_chain(), head()
    cube = along_grid(torch.tensor([[[3.0, -6.0, 2.0]]]), torch.tensor([[40.0]]))
    found = net.predict(torch.zeros_like(volume) + 0.1 * volume, cube)
    torch.testing.assert_close(found.head_to_grid[:, :3, 3], cube.center_mm[:, 0])
    assert found.head_to_grid.isfinite().all()
    output = HeadPoseInferer()(volume, net, cube)
    assert set(output) == {*HeadPoseInferer()(volume, net), "reference_crop"}
    assert output["head_to_grid"].equal(net(volume))
    torch.testing.assert_close(output["reference_crop"], net.predict(volume, cube).head_to_grid)
    own = HeadPoseNet(E3CNN(**SMALL), crop_size=8, localizer_channels=(4,) * 6).eval()
    ours = own.predict(volume)
    assert {k: v.shape for k, v in ours._asdict().items()} == {
        k: v.shape for k, v in found._asdict().items()
    }


def test_both_networks_learn_from_the_loss():
    net = E3PoseNet(UNet((2, 4)), E3CNN(**SMALL), crop_size=8).train()
    volume = head()
    target = {
        "label": (volume > 0.4).float(),
        "head_to_grid": torch.eye(4).unsqueeze(0),
        "has_head": torch.ones(1),
    }
    cube = along_grid(torch.zeros(1, 1, 3), torch.tensor([[45.0]]))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        output = net(volume, cube)
        loss = HeadPoseLoss()(output, target)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert isinstance(output, TrainingOutput)
    assert output.logits.shape == (1, 3, *volume.shape[2:])
    assert output.field.shape == (1, 3, 3, 4, 4, 4)
    assert output.landmarks is None
    assert math.isfinite(losses[-1])
    assert losses[-1] < 0.9 * losses[0]
