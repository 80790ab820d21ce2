"""localizer.py: what MONAI's BasicUNet gives on the same blocks of voxels, whatever the size."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import BasicUNet
from torch.nn import functional

from scripts.localizer import Localizer, channels_to_space, space_to_channels


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
