"""unet.py: sizes, batches and the form of the blocks; parity stands in test_weights.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from scripts.e3pose.unet import UNet


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 14, 11), (3, 2, 5), (1, 1, 1)])
def test_volumes_of_any_size(shape):
    net = UNet((2, 3, 4)).eval()
    assert net(torch.rand(2, 1, *shape)).shape == (2, 3, *shape)


def test_other_sizes_are_padded_with_zeros_at_their_ends():
    net, volume = UNet((2, 3, 4)).eval(), torch.rand(1, 1, 9, 14, 12)
    whole = net(functional.pad(volume, (0, 0, 0, 2, 0, 3)))
    assert whole.shape[2:] == (12, 16, 12)
    torch.testing.assert_close(net(volume), whole[..., :9, :14, :12])


def test_a_batch_is_a_loop_in_eval_mode():
    net, volumes = UNet((2, 4)), torch.rand(3, 1, 8, 8, 8)
    net.train()(volumes)  # moves the running statistics
    together = net.eval()(volumes)
    for k in range(3):
        torch.testing.assert_close(together[k : k + 1], net(volumes[k : k + 1]))


def test_default_is_the_authors_size():
    net = UNet()
    assert [block[0].weight.shape[:2] for block in net.encoder] == [
        (16, 1), (32, 16), (64, 32), (128, 64),
    ]  # fmt: skip
    assert [block[0].weight.shape[:2] for block in net.decoder] == [(64, 192), (32, 96), (16, 48)]
    kinds = [nn.Conv3d, nn.ELU, nn.Conv3d, nn.ELU, nn.BatchNorm3d]
    assert all([type(layer) for layer in block] == kinds for block in net.encoder)


@pytest.mark.parametrize("wrong", [{"features": ()}, {"kernel_size": 4}])
def test_what_is_no_network_is_refused(wrong):
    with pytest.raises(ValueError, match="at least one level and an odd kernel"):
        UNet(**wrong)
