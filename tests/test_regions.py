"""regions.py against scipy.ndimage, by hand, and each volume of a batch for itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from scripts.regions import (
    ball,
    balls,
    center_of_mass,
    densest_place,
    largest_component,
    likely_places,
    window,
)

SPACING_MM = 4.0


def largest_by_scipy(mask: np.ndarray) -> np.ndarray:
    """Largest 26-connected component; of several of one size, the one that ends last in memory."""
    labels, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    if not count:
        return np.zeros_like(mask)
    sizes = np.bincount(labels.ravel())[1:]
    ties = np.flatnonzero(sizes == sizes.max()) + 1
    last = max(ties, key=lambda k: np.flatnonzero(labels.ravel() == k).max())
    return labels == last


def random_masks(share: float, shape=(9, 12, 7), batch: int = 3) -> np.ndarray:
    return np.random.default_rng(int(1000 * share)).random((batch, 1, *shape)) < share


@pytest.mark.parametrize("share", [0.01, 0.03, 0.06, 0.1, 0.3, 0.9])
def test_largest_component_is_that_of_scipy(share):
    masks = random_masks(share)
    expected = np.stack([largest_by_scipy(mask[0])[None] for mask in masks])
    found = largest_component(torch.from_numpy(masks))
    assert found.dtype == torch.bool
    np.testing.assert_array_equal(found.numpy(), expected)


def snake(shape=(13, 15, 5)) -> np.ndarray:
    """A path one voxel thin that winds through the volume, hundreds of steps from end to end."""
    mask = np.zeros(shape, dtype=bool)
    mask[::2, :, ::4] = True
    for turn, x in enumerate(range(1, shape[0], 2)):
        mask[x, -1 if turn % 2 else 0, ::4] = True
    mask[-1, -1, 2] = mask[-1, -1, 1] = mask[-1, -1, 3] = True  # joins the two floors
    return mask


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flip", [False, True])
def test_largest_component_follows_a_snake(axes, flip):
    mask = snake().transpose(axes)
    mask = mask[::-1, ::-1, ::-1].copy() if flip else mask.copy()
    assert ndimage.label(mask, structure=np.ones((3, 3, 3)))[1] == 1
    found = largest_component(torch.from_numpy(mask)[None, None])
    np.testing.assert_array_equal(found[0, 0].numpy(), mask)


def test_the_rounds_suffice_for_the_longest_path_in_the_ball():
    """Half of all voxels of 29^3, sheet after sheet, on one path."""
    n = 29
    mask = np.zeros((n, n, n), dtype=bool)
    mask[::2, ::2] = True
    for i in range(0, n, 2):
        for turn, j in enumerate(range(1, n, 2)):
            mask[i, j, 0 if turn % 2 else -1] = True
        if i + 2 < n:
            mask[i + 1, -1 if i % 4 else 0, 0] = True
    assert ndimage.label(mask, structure=np.ones((3, 3, 3)))[1] == 1
    given = torch.from_numpy(mask)[None, None]
    assert largest_component(given).equal(given)
    assert not largest_component(given, rounds=4).equal(given)  # it does need rounds


def test_corners_connect_and_gaps_do_not():
    mask = torch.zeros(1, 1, 8, 8, 8, dtype=torch.bool)
    mask[0, 0, [1, 2, 3], [1, 2, 3], [3, 2, 1]] = True  # touch at corners only
    mask[0, 0, 5:7, 5, 5] = True
    found = largest_component(mask)
    assert found[0, 0, :5].equal(mask[0, 0, :5])
    assert not found[0, 0, 5:].any()


def test_an_empty_mask_stays_empty_and_leaves_the_others_alone():
    masks = torch.from_numpy(random_masks(0.05))
    alone = largest_component(masks)
    masks[1] = False
    found = largest_component(masks)
    assert not found[1].any()
    assert found[0].equal(alone[0])
    assert found[2].equal(alone[2])
    assert not largest_component(torch.zeros(1, 1, 3, 4, 5, dtype=torch.bool)).any()


def test_ball_at_the_densest_place_cuts_a_leak_and_keeps_the_brain():
    shape, spacing = (40, 34, 30), 4.0
    index = torch.stack(torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij"), -1)
    center = torch.tensor([[12, 20, 11], [25, 12, 18]])
    brain = (index - center[:, None, None, None]).float().norm(dim=-1) < 9
    leak = torch.zeros_like(brain)
    leak[:, :, 15:17, 14:16] = True  # a thin sheet of "brain" through the whole volume
    probability = (brain | leak).float().unsqueeze(1)
    place, density = densest_place(probability, spacing)
    inside = ball(place, shape, spacing)
    assert inside.shape == (2, 1, *shape)
    assert (inside[:, 0] & brain).sum() == brain.sum()
    distance = spacing * (index - center[:, None, None, None]).float().norm(dim=-1)
    assert distance[inside[:, 0]].max() <= 56 + 5 * spacing  # the leak pulls the centre a little
    assert density.gt(0.5).all()
    alone, density_alone = densest_place(probability[1:], spacing)
    assert alone.equal(place[1:])
    torch.testing.assert_close(density_alone, density[1:])
    assert ball(place[1:], shape, spacing).equal(inside[1:])


@pytest.mark.parametrize(
    ("window_mm", "voxels"), [(44.0, 13), (40.0, 11), (36.0, 11), (22.0, 7), (4.0, 3)]
)
def test_densest_place_is_that_of_the_mean_over_the_cube(window_mm, voxels):
    """In the next larger odd number of voxels; against scipy, with zeros outside.

    Also in volumes smaller than the cube.
    """
    for shape in ((17, 20, 15), (5, 30, 8), (3, 3, 3)):
        probability = np.random.default_rng(0).random((2, 1, *shape))
        given = torch.from_numpy(probability)
        found, density = densest_place(given, SPACING_MM, window_mm)
        for k in range(2):
            dense = ndimage.uniform_filter(probability[k, 0], voxels, mode="constant")
            assert dense[tuple(found[k].tolist())] == pytest.approx(dense.max(), rel=1e-9)
            assert density[k].item() == pytest.approx(dense.max(), rel=1e-9)


# likely_places

SHAPE = (61, 44, 33)  # odd sizes, of which halving could lose a voxel


def clouds(*given, shape=SHAPE) -> torch.Tensor:
    """Probability (1, 1, *shape) of balls: voxel of the middle, radius in voxels, probability."""
    index = torch.stack(torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij"), -1)
    volume = torch.zeros(1, 1, *shape)
    for middle, radius, value in given:
        inside = (index - torch.tensor(middle)).float().norm(dim=-1) <= radius
        volume[0, 0][inside] = value
    return volume


BRAINS = (((12, 14, 15), 7, 0.9), ((48, 30, 20), 7, 0.6))


def places(volume, number=2, radius_mm=56.0, apart_mm=64.0):
    return likely_places(volume, number, SPACING_MM, radius_mm, apart_mm)


def test_likely_places_are_the_middles_the_likeliest_first():
    both = torch.cat([clouds(*BRAINS), clouds((*BRAINS[0][:2], 0.3), BRAINS[1])])
    found, density = places(both)
    assert found.shape == (2, 2, 3)
    assert found.dtype == torch.int64
    assert density.shape == (2, 2)
    middles = torch.tensor([middle for middle, _, _ in BRAINS])
    assert (found[0] - middles).abs().max() <= 1
    assert (found[1] - middles.flip(0)).abs().max() <= 1
    # balls of one size: their densities are as their probabilities
    torch.testing.assert_close(density[0, 0] / density[0, 1], torch.tensor(1.5), atol=0.05, rtol=0)
    torch.testing.assert_close(density[1, 0] / density[1, 1], torch.tensor(2.0), atol=0.07, rtol=0)
    # the mean over a cube of 7 coarse voxels, here of 14
    dense = ndimage.uniform_filter(both[0, 0].numpy(), 14, mode="constant")
    assert density[0, 0].item() == pytest.approx(dense.max(), rel=0.1)
    for k in range(2):
        alone, alone_density = places(both[k : k + 1])
        assert alone[0].equal(found[k])
        torch.testing.assert_close(alone_density[0], density[k])


def test_likely_places_stay_apart():
    """The rim of a large brain is no second place, nor is what lies next to it."""
    large, beside = ((20, 20, 16), 13, 0.9), ((35, 20, 16), 3, 0.9)
    far = ((54, 38, 8), 5, 0.2)
    found, density = places(clouds(large, beside, far))
    assert (found[0, 0] - torch.tensor(large[0])).abs().max() <= 2  # what is beside it pulls
    assert (found[0, 1] - torch.tensor(far[0])).abs().max() <= 1
    assert density[0, 1] < 0.2
    # what keeps them apart is the radius: the trap is the rim
    _, rim = places(clouds(large, beside, far), apart_mm=44.0)
    assert rim[0, 1] > 1.3 * density[0, 1]


def test_a_likely_place_is_the_middle_of_what_is_around_it():
    """Of all within the radius: the densest voxel of an uneven brain lies beside its middle."""
    uneven = clouds(((27, 22, 16), 9, 0.3), ((39, 22, 16), 3, 1.0), ((38, 22, 16), 6, 0.9))
    densest, _ = densest_place(uneven, SPACING_MM)
    mass = ndimage.center_of_mass(uneven[0, 0].numpy())
    found, _ = places(uneven, number=1)
    assert np.abs(found[0, 0].numpy() - mass).max() <= 1
    assert densest[0, 0] - found[0, 0, 0] >= 3
    # what lies further away does not count
    other, _ = places(uneven + clouds(((3, 5, 4), 3, 0.5)), number=1)
    assert other.equal(found)


def test_likely_places_reach_the_last_voxels():
    corner = torch.zeros(1, 1, *SHAPE)
    corner[0, 0, -1, -1, -1] = 1.0
    found, density = places(corner, number=1)
    assert (found[0, 0] - (torch.tensor(SHAPE) - 1)).abs().max() <= 1
    assert density.item() > 0


@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 1), (3, 2, 5)])
def test_likely_places_of_nothing_are_places_of_no_density(shape):
    found, density = places(torch.zeros(2, 1, *shape))
    assert found.shape == (2, 2, 3)
    assert (found >= 0).all()
    assert density.eq(0).all()


def test_ball_is_round_and_where_it_should_be():
    found = ball(torch.tensor([[4, 9, 2]]), (16, 14, 12), SPACING_MM, radius_mm=20.0)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in (16, 14, 12)), indexing="ij"), axis=-1)
    expected = SPACING_MM * np.linalg.norm(index - [4, 9, 2], axis=-1) <= 20
    np.testing.assert_array_equal(found[0, 0], expected)


def test_balls_are_those_of_all_points():
    center = torch.tensor([[[2.0, 3, 4], [5.5, 1, 2]], [[torch.nan] * 3, [-3, 4, 4]]])
    radius = torch.tensor([1.5, 3.2])
    found = balls(center, radius, [7, 8, 9])
    points = torch.stack(torch.meshgrid(*map(torch.arange, (7, 8, 9)), indexing="ij"), dim=-1)
    apart = (points[None, None] - center[:, :, None, None, None]).norm(dim=-1)
    expected = (apart <= radius[:, None, None, None, None]).any(1, keepdim=True)
    assert found.equal(expected)
    assert found[0, 0, 5, 1, 2]  # half a voxel from the second point
    assert found[1].sum() == 5  # of the only one of its points that there is


def test_window_is_a_slice_of_the_padded_volume():
    volume = torch.rand(3, 2, 7, 12, 9)
    start = torch.tensor([[1, 2, 0], [-4, 7, 5], [30, -30, 0]])
    part = window(volume, start, (6, 6, 6))
    assert part.shape == (3, 2, 6, 6, 6)
    padded = np.pad(volume.numpy(), [(0, 0)] * 2 + [(40, 40)] * 3)
    for k in range(3):
        x, y, z = (40 + start[k]).tolist()
        np.testing.assert_array_equal(part[k], padded[k, :, x : x + 6, y : y + 6, z : z + 6])
    assert (part[2] == 0).all()


def test_window_can_be_put_back():
    volume, start = torch.rand(2, 1, 7, 12, 9), torch.tensor([[1, 2, 0], [-4, 7, 5]])
    back = window(window(volume, start, (6, 6, 6)), -start, volume.shape[2:])
    seen = torch.zeros_like(volume)
    seen[0, :, 1:7, 2:8, 0:6] = 1
    seen[1, :, 0:2, 7:12, 5:9] = 1
    assert back.equal(volume * seen)
    whole = window(volume, torch.tensor([[-3, -2, -1]] * 2), (16, 16, 16))
    assert window(whole, torch.tensor([[3, 2, 1]] * 2), volume.shape[2:]).equal(volume)


def test_center_of_mass():
    weights = torch.zeros(2, 1, 6, 7, 8)
    weights[0, 0, 1, 2, 3], weights[0, 0, 3, 2, 7] = 1, 3
    found = center_of_mass(weights)
    torch.testing.assert_close(found, torch.tensor([[2.5, 2.0, 6.0], [0.0, 0.0, 0.0]]))
