"""plain_cnn.py: the same contract as E3CNN, about the same cost, and no equivariance."""

from __future__ import annotations

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn
from torch.nn import functional

from conftest import BUNDLE
from scripts.cubes import along_grid
from scripts.geometry import frame_to_rotation
from scripts.network import E3CNN, HeadPoseNet, pool_axes
from scripts.network.plain_cnn import PlainCNN
from scripts.network.steerable import SteerableConv
from scripts.training.losses import HeadPoseLoss
from symmetry import SYMMETRIES, move_field, move_voxels, relative_error

TINY = {"channels": (4, 6), "kernel_size": 3, "convolutions": (1, 1)}


@pytest.mark.parametrize(
    ("config", "side", "out"),
    [
        ({}, 16, 4),
        (TINY, 8, 4),
        ({"channels": (4,), "kernel_size": 5, "convolutions": (2,)}, 6, 6),
        ({"channels": (4, 4, 8, 8), "kernel_size": 3, "convolutions": (1, 0, 2, 1)}, 16, 2),
    ],
)
def test_field_has_the_form_of_that_of_e3cnn(config, side, out):
    field = PlainCNN(**config).eval()(torch.randn(2, 1, side, side, side))
    assert field.shape == (2, 3, 3, out, out, out)
    assert field.isfinite().all()


def test_right_is_the_cross_product_of_the_two_votes():
    """So that every voxel's frame is right-handed, and e_x has a sign that says nothing new."""
    field = PlainCNN(**TINY)(torch.randn(2, 1, 8, 8, 8)).flatten(3)
    right, anterior, superior = field.unbind(1)
    for a, b in ((right, anterior), (right, superior)):
        assert (a * b).sum(1).abs().max() < 1e-4 * right.norm(dim=1).max()
    votes = torch.stack([functional.normalize(v, dim=1) for v in (right, anterior, superior)], 2)
    assert torch.linalg.det(votes.permute(0, 3, 1, 2)).min() > 0
    torch.testing.assert_close(
        right[1, :, 5], torch.linalg.cross(anterior[1, :, 5], superior[1, :, 5])
    )


def test_channels_that_a_crop_lacks_count_as_zero():
    net, image = PlainCNN(**TINY, in_channels=3).eval(), torch.randn(2, 1, 8, 8, 8)
    maps = torch.rand(2, 2, 8, 8, 8)
    alone = net(image)
    assert alone.equal(net(torch.cat([image, torch.zeros_like(maps)], dim=1)))
    assert relative_error(net(torch.cat([image, maps], dim=1)), alone) > 0.01
    with pytest.raises(ValueError, match="at most 3 channels"):
        net(torch.zeros(1, 4, 8, 8, 8))


def test_a_batch_is_a_loop():
    net, crops = PlainCNN(**TINY).eval(), torch.randn(3, 1, 8, 8, 8)
    together = net(crops)
    for k in range(3):
        torch.testing.assert_close(together[k : k + 1], net(crops[k : k + 1]))


def test_levels_without_an_entry_each_are_refused():
    with pytest.raises(ValueError, match=r"channels=\[4, 8\] and convolutions=\[1\]"):
        PlainCNN(channels=(4, 8), convolutions=(1,))


def test_it_is_not_equivariant():
    """What the comparison is about: under no symmetry but the identity does its field turn."""
    net, x = PlainCNN(**TINY).eval(), torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        field = net(x)
        errors = {
            k: relative_error(net(move_voxels(x, g)), move_field(field, g))
            for k, g in enumerate(SYMMETRIES)
        }
    identity = next(k for k, g in enumerate(SYMMETRIES) if g.equal(torch.eye(3).double()))
    assert errors.pop(identity) < 1e-5
    assert min(errors.values()) > 0.1


def multiply_adds(net: nn.Module, in_channels: int, side: int = 24) -> int:
    """Products in the convolutions of one crop: entries of the dense kernel x voxels."""
    total = 0

    def count(module, given, found):
        nonlocal total
        kernel = module.kernel() if isinstance(module, SteerableConv) else module.weight
        total += kernel.numel() * found[0, 0].numel()

    for module in net.modules():
        if isinstance(module, SteerableConv | nn.Conv3d):
            module.register_forward_hook(count)
    with torch.no_grad():
        net(torch.zeros(1, in_channels, side, side, side))
    return total


def config_of(*names: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / name) for name in names])
    return parser


def test_it_costs_about_as_much_as_e3cnn():
    cost = [multiply_adds(net, 4) for net in (E3CNN(in_channels=4), PlainCNN(in_channels=4))]
    print("multiply-adds of a crop, E3CNN and PlainCNN:", cost)
    assert 0.6 < cost[1] / cost[0] < 1.6
    declared = [
        multiply_adds(config_of(*names).get_parsed_content("network_def#rotation"), 3)
        for names in (("train.json",), ("train.json", "plain_cnn.json"))
    ]
    assert 0.6 < declared[1] / declared[0] < 1.6


def test_the_config_exchanges_the_rotation_network_and_nothing_else():
    names = ("train.json", "plain_cnn.json")
    parser, plain = config_of(*names[:1]), config_of(*names)
    network = plain.get_parsed_content("network_def")
    assert isinstance(network.rotation, PlainCNN)
    assert network.rotation.in_channels == 4
    ours = parser.get_parsed_content("network_def")
    assert isinstance(ours.rotation, E3CNN)
    assert {name: p.shape for name, p in network.localizer.named_parameters()} == {
        name: p.shape for name, p in ours.localizer.named_parameters()
    }
    differ = {key for key in plain.get() if plain.get()[key] != parser.get().get(key)}
    assert differ == {"network_def", "rotation_lr"}
    given, usual = dict(plain["network_def"]), dict(parser["network_def"])
    assert given.pop("rotation") != usual.pop("rotation")
    assert given == usual


def test_a_chain_with_it_trains_and_predicts():
    """Crop, maps, loss, pooling and confidence are those of E3CNN."""
    chain = {"crop_size": 8, "localizer_channels": (4,) * 6, "min_brain_ml": 0.0}
    net = HeadPoseNet(PlainCNN(**TINY, in_channels=3), **chain, landmarks=None)
    volume = torch.rand(2, 1, 16, 16, 16)
    label = (volume > 0.7).float()
    cube = along_grid(torch.zeros(2, 1, 3), torch.tensor([[40.0], [50.0]]))
    target = {
        "label": label,
        "head_to_grid": torch.eye(4).repeat(2, 1, 1),
        "has_head": torch.ones(2),
    }
    loss, optimizer = HeadPoseLoss(), torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        found = loss(net.train()(volume, cube), target)
        found.backward()
        assert all(p.grad.isfinite().all() for p in net.parameters())
        optimizer.step()
        losses.append(found.item())
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad():
        logits, field, _ = net.eval()(volume, cube)
        axes, confidence = pool_axes(field)
        prediction = net.predict(volume)
    assert ((confidence >= 0) & (confidence <= 1)).all()
    rotation = frame_to_rotation(axes)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(2))
    assert prediction.head_to_grid.shape == (2, 4, 4)
    assert logits.shape == (2, 3, 16, 16, 16)
