"""LandmarkNet alone; its training cubes are in test_head_crops.py, its search in test_search.py."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from torch.utils.data import DataLoader

from scripts.network.landmarks import LandmarkNet, eye_radius_mm
from scripts.training.corrector import FreshCopy, shared_copy


@pytest.fixture
def net():
    return LandmarkNet((8, 16, 16), crop_size=16).eval()


def test_shapes_and_types(net):
    found = net(torch.rand(3, 1, 16, 16, 16))
    assert found.heatmap.shape == (3, 3, 8, 8, 8)
    assert found.point.shape == (3, 3, 3)
    assert found.score.shape == (3,)
    assert found.point.abs().max() < 0.5
    exact = net.double()(torch.rand(1, 1, 16, 16, 16, dtype=torch.float64))
    assert {value.dtype for value in exact} == {torch.float64}


@pytest.mark.parametrize(("features", "size"), [((8, 8), 16), ((8, 8, 8), 20)])
def test_what_it_cannot_be_built_of_is_named(features, size):
    with pytest.raises(ValueError, match=str(size)):
        LandmarkNet(features, size)


def test_scale_and_offset_of_the_intensities_do_not_matter(net):
    crop = torch.rand(2, 1, 16, 16, 16)
    for value, other in zip(net(crop), net(3 * crop + 5), strict=True):
        torch.testing.assert_close(value, other, atol=2e-3, rtol=2e-3)


def test_an_empty_cube_gives_finite_numbers(net):
    assert all(value.isfinite().all() for value in net(torch.zeros(1, 1, 16, 16, 16)))


def test_points_are_where_the_heat_maps_peak(net, monkeypatch):
    """In sides of the cube: voxel (x, y, z) of 8 lies at ((x, y, z) + 0.5) / 8 - 0.5."""
    heatmap = torch.zeros(1, 3, 8, 8, 8)
    voxels = torch.tensor([[4, 3, 4], [1, 6, 2], [6, 7, 1]])
    for channel, (x, y, z) in enumerate(voxels.tolist()):
        heatmap[0, channel, x, y, z] = 50
    monkeypatch.setattr(net.heatmaps, "forward", lambda _: heatmap)
    found = net(torch.rand(1, 1, 16, 16, 16))
    torch.testing.assert_close(found.point[0], (voxels + 0.5) / 8 - 0.5)


def test_gradients_reach_every_parameter(net):
    found = net.train()(torch.rand(2, 1, 16, 16, 16))
    (found.heatmap.square().sum() + found.score.sum()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.abs().max() > 0, name


class Seen(torch.utils.data.Dataset):
    """What a network says of a cube of ones, of each of 2 items."""

    def __init__(self, network):
        self.network = network

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.network(torch.ones(1, 1, 16, 16, 16)).score


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_shared_copy_follows_its_network_from_epoch_to_epoch(net, num_workers):
    """Within an epoch it stays; workers that live on see the new weights too."""
    shared = shared_copy(net)
    assert not any(parameter.requires_grad for parameter in shared.parameters())
    loader = DataLoader(Seen(shared), num_workers=num_workers, persistent_workers=num_workers > 0)
    bias, seen = net.summary.bias.detach(), []

    def step(engine, score):
        seen.append(score.item())
        bias.add_(1.0)

    trainer = Engine(step)
    FreshCopy(shared, net).attach(trainer)
    trainer.run(loader, max_epochs=2)
    first = seen[0]
    assert seen == pytest.approx([first, first, first + 2, first + 2], abs=1e-5)
    assert net.summary.bias.requires_grad


def test_the_size_of_eyes_goes_with_their_distance():
    """At 30 weeks they lie 32.5 mm apart and measure 13.4 mm (Robinson et al. 2008)."""
    radius = eye_radius_mm(torch.tensor([32.46, 22.46, 2.0]))
    torch.testing.assert_close(radius, torch.tensor([6.7, 4.35, 0.0]))
