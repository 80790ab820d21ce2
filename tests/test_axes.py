"""axes.py: from a field to a frame, whatever the signs, the lengths and the number of voxels."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch.nn import functional

from scripts.geometry import frame_to_rotation, geodesic_deg
from scripts.network import pool_axes
from symmetry import SYMMETRIES, move_field


def test_pool_axes_ignores_the_sign_of_e_x_at_every_voxel():
    """Trap 3: every voxel counts, whatever its sign, in proportion to a length that is trained."""
    rotation = torch.from_numpy(Rotation.random(random_state=5).as_matrix())
    noise = torch.randn(1, 3, 3, 4, 4, 4, dtype=torch.float64)
    field = rotation.T.reshape(1, 3, 3, 1, 1, 1) + 0.05 * noise
    signs = torch.randn(1, 1, 1, 4, 4, 4).sign().double()
    axes, confidence = pool_axes(field)
    field[:, 0] *= signs[:, 0]
    again, same = pool_axes(field * 1e-3)
    axes[:, 0] *= (axes[:, 0] * again[:, 0]).sum(-1).sign()
    axes, again = (functional.normalize(a, dim=-1) for a in (axes, again))
    torch.testing.assert_close(again, axes)
    torch.testing.assert_close(same, confidence)
    assert 0.95 < confidence.item() < 1
    assert (axes[0] @ rotation).diagonal().abs().min() > 0.99
    silent = field.clone()
    silent[..., 2:] = 1e-4 * noise[..., 2:]  # short vectors say little, whatever they say
    torch.testing.assert_close(
        pool_axes(silent)[0][:, 1:], field[..., :2].sum((3, 4, 5))[:, 1:], rtol=1e-2, atol=1e-2
    )
    assert pool_axes(noise)[1].item() < 0.4
    assert pool_axes(torch.zeros(1, 3, 3, 2, 2, 2))[1].item() == pytest.approx(0, abs=1e-6)


def noisy_field(batch: int = 1, noise: float = 0.3) -> torch.Tensor:
    """Around the axes of the grid, of another strength in every item."""
    field = torch.eye(3, dtype=torch.float64).reshape(1, 3, 3, 1, 1, 1)
    strength = noise * torch.arange(1, batch + 1).view(-1, 1, 1, 1, 1, 1)
    return field + strength * torch.randn(batch, 3, 3, 4, 4, 4, dtype=torch.float64)


def test_axes_are_those_of_their_formula():
    """Against eigenvalues by LAPACK, item by item."""
    field = noisy_field(batch=3)
    axes, confidence = pool_axes(field)
    for item, found, sure in zip(field.flatten(3), axes, confidence, strict=True):
        values, vectors = torch.linalg.eigh(item[0] @ item[0].T)
        assert (found[0] @ vectors[:, 2]).abs().item() == pytest.approx(1, abs=1e-6)
        torch.testing.assert_close(found[1:], item[1:].sum(-1))
        shares = [(values[2] - values[1]) / values.sum()]
        shares += [item[k].sum(-1).norm() / item[k].norm(dim=0).sum() for k in (1, 2)]
        assert sure.item() == pytest.approx(min(shares).item(), abs=1e-6)


def test_axes_turn_and_mirror_with_the_field():
    field = noisy_field()
    axes, confidence = pool_axes(field)
    rotation = frame_to_rotation(axes)[0]
    for g in SYMMETRIES:
        moved, same = pool_axes(move_field(field, g))
        torch.testing.assert_close(same, confidence)
        expected = g @ rotation
        expected[:, 0] *= torch.linalg.det(g)
        assert geodesic_deg(frame_to_rotation(moved)[0], expected).item() < 1e-4


def test_no_voxel_has_a_place_of_its_own():
    field = noisy_field()
    axes, confidence = pool_axes(field)
    order = torch.randperm(64)
    shuffled = field.flatten(3)[..., order].unflatten(3, (2, 8, 4))
    again, same = pool_axes(shuffled)
    torch.testing.assert_close(again, axes)
    torch.testing.assert_close(same, confidence)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_axis_without_a_direction_is_enough_for_no_confidence(axis):
    field = torch.eye(3).reshape(1, 3, 3, 1, 1, 1).repeat(1, 1, 1, 8, 8, 8)
    assert pool_axes(field)[1].item() == pytest.approx(1, abs=1e-5)
    field[:, axis] = torch.randn(1, 3, 8, 8, 8)
    assert pool_axes(field)[1].item() < 0.2
