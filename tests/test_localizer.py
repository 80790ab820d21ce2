"""localizer.py: what MONAI's BasicUNet gives on the same blocks of voxels, whatever the size."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import BasicUNet
from torch import nn
from torch.nn import functional

from scripts.network.localizer import (
    Localizer,
    SmallVolumeConv,
    channels_to_space,
    space_to_channels,
)
from scripts.training.precision import TrainingInferer


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("shape", [(64, 64, 64), (70, 75, 66), (30, 90, 101)])
def test_the_unet_is_monais(shape, batch):
    net = Localizer((4, 4, 4, 4, 4, 4)).eval()
    volume = torch.rand(batch, 1, *shape)
    padding = [p for n in reversed(shape) for p in (0, max(n % 2, 64 - n))]
    with torch.no_grad():
        blocks = space_to_channels(functional.pad(volume, padding))
        expected = channels_to_space(BasicUNet.forward(net, blocks))
        expected = expected[..., : shape[0], : shape[1], : shape[2]]
        torch.testing.assert_close(net(volume), expected, atol=1e-4, rtol=1e-4)
    assert net.state_dict().keys() == BasicUNet(3, upsample="nontrainable").state_dict().keys()


@torch.no_grad()
@pytest.mark.parametrize("taps", [1, 3])
@pytest.mark.parametrize("shape", [(1, 8, 20, 18, 16), (1, 8, 60, 60, 8), (2, 8, 9, 10, 11)])
def test_one_small_volume_by_onednn_is_convolved_alike(shape, taps, monkeypatch):
    conv = SmallVolumeConv(8, 16, taps, padding=taps // 2).eval()
    called = []
    onednn = torch.mkldnn_convolution
    monkeypatch.setattr(
        torch, "mkldnn_convolution", lambda *given: called.append(len(given)) or onednn(*given)
    )
    x = torch.randn(shape)
    expected = nn.Conv3d.forward(conv, x)
    torch.testing.assert_close(conv(x), expected, atol=1e-4, rtol=1e-4)
    assert len(called) == (shape == (1, 8, 20, 18, 16))
    torch.testing.assert_close(torch.jit.script(conv)(x), expected, atol=1e-4, rtol=1e-4)
    called.clear()
    torch.testing.assert_close(conv.double()(x.double()).float(), expected, atol=1e-4, rtol=1e-4)
    conv.float().train()(x)
    assert not called  # double precision and training go torch's own way


def test_gradients_in_bfloat16_whatever_memory_holds():
    """Of the convolutions over 2 x 2 x 2: torch's own are then NaN, or anything."""
    torch.manual_seed(0)
    deepest = Localizer((8, 8, 16, 64, 64, 8)).train().down_4
    weight = deepest.convs.conv_0.conv.weight
    blocks = torch.rand(2, 64, 4, 4, 4)  # of two volumes of 64^3
    deepest(blocks).square().mean().backward()
    expected = weight.grad.clone()
    for value in (float("nan"), 1e3):
        for _ in range(5):
            deepest.zero_grad()
            memory = [torch.full((1024 * k,), value) for k in (1, 16, 64, 108, 256, 500)]
            del memory
            TrainingInferer(True)(blocks, deepest).float().square().mean().backward()
            assert (weight.grad - expected).norm() < 1e-3 * expected.norm()
