"""crop.py against scipy.ndimage, analytic volumes and the symmetries of the cube."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from conftest import rotation_matrix
from scripts.cubes import Box, brain_box, crop_cube, crop_turned_cubes
from scripts.regions import ball, center_of_mass, densest_place, largest_component, window
from symmetry import SYMMETRIES, move_voxels

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


def test_brain_box_is_the_centre_of_mass_and_the_sphere_of_the_volume():
    masks = random_masks(0.2)
    box, volume_ml = brain_box(torch.from_numpy(masks), SPACING_MM, fill=0.6)
    for k, mask in enumerate(masks[:, 0]):
        voxel = np.array(ndimage.center_of_mass(mask))
        center = SPACING_MM * (voxel - (np.array(mask.shape) - 1) / 2)
        np.testing.assert_allclose(box.center_mm[k], center, atol=1e-4)
        volume_mm3 = mask.sum() * SPACING_MM**3
        assert volume_ml[k].item() == pytest.approx(volume_mm3 / 1000, rel=1e-6)
        radius = 0.6 * box.side_mm[k].item() / 2
        assert 4 / 3 * np.pi * radius**3 == pytest.approx(volume_mm3, rel=1e-5)


def test_brain_box_turns_with_the_brain():
    mask = torch.from_numpy(random_masks(0.2, batch=1))
    box, volume_ml = brain_box(mask, SPACING_MM, 0.6)
    for g in SYMMETRIES:
        moved, moved_ml = brain_box(move_voxels(mask, g), SPACING_MM, 0.6)
        torch.testing.assert_close(moved.center_mm, box.center_mm @ g.T.float())
        assert moved.side_mm.equal(box.side_mm)
        assert moved_ml.equal(volume_ml)


def test_brain_box_without_a_brain():
    mask = torch.zeros(2, 1, 6, 6, 6, dtype=torch.bool)
    mask[1, 0, 2, 3, 4] = True
    box, volume_ml = brain_box(mask, SPACING_MM, 0.6)
    assert volume_ml.tolist() == pytest.approx([0, 0.064])
    assert box.center_mm[0].tolist() == [0, 0, 0]
    assert box.side_mm[0].item() == 1
    assert box.center_mm[1].tolist() == [-2, 2, 6]


def cell_centers(box: Box, size: int, item: int = 0) -> np.ndarray:
    """(size, size, size, 3) positions in mm, written out from the definition."""
    steps = (np.arange(size) + 0.5) / size - 0.5
    offsets = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1)
    return box.center_mm[item].numpy() + box.side_mm[item].item() * offsets


@pytest.mark.parametrize("center", [(0.0, 0, 0), (3.0, -5.0, 8.0), (30.0, -16.0, 24.0)])
def test_crop_at_the_border_is_padded_not_clipped(center):
    """Trap 7: a clipped cube is neither cubic nor centred. A ramp shows where each cell lies."""
    shape, size = (18, 14, 16), 12
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    points = SPACING_MM * (index - (np.array(shape) - 1) / 2)
    slope = np.array([1.0, -0.7, 0.4])
    ramp = torch.from_numpy(300.0 + points @ slope)[None, None]
    box = Box(torch.tensor([center]), torch.tensor([50.0]))
    found = crop_cube(ramp, box, size, SPACING_MM)[0, 0].numpy()

    cells = cell_centers(box, size)
    to_edge = SPACING_MM * (np.array(shape) - 1) / 2 - np.abs(cells)
    inside = (to_edge >= 0).all(-1)
    outside = (to_edge <= -SPACING_MM).any(-1)
    np.testing.assert_allclose(found[inside], (300.0 + cells @ slope)[inside], atol=1e-3)
    assert (found[outside] == 0).all()
    assert inside.any()
    assert outside.any() == (center[0] == 30)
    # between the last voxel and where the next would be: trilinear with zeros, as scipy has it
    voxels = cells / SPACING_MM + (np.array(shape) - 1) / 2 + 1
    padded = np.pad(ramp[0, 0].numpy(), 1)
    expected = ndimage.map_coordinates(padded, voxels.transpose(3, 0, 1, 2), order=1)
    np.testing.assert_allclose(found, expected, atol=1e-2)


def test_crop_of_a_batch_is_a_loop():
    volume = torch.rand(3, 2, 9, 10, 8)
    box = Box(10 * torch.randn(3, 3), torch.tensor([20.0, 35.0, 60.0]))
    found = crop_cube(volume, box, 8, SPACING_MM)
    assert found.shape == (3, 2, 8, 8, 8)
    for k in range(3):
        alone = crop_cube(
            volume[k : k + 1], Box(box.center_mm[k : k + 1], box.side_mm[k : k + 1]), 8, SPACING_MM
        )
        torch.testing.assert_close(found[k : k + 1], alone)


def test_crop_turns_with_the_volume():
    volume = torch.rand(1, 1, 9, 12, 10, dtype=torch.float64)
    box = Box(torch.tensor([[6.0, -9.0, 4.0]], dtype=torch.float64), torch.tensor([40.0]))
    crop = crop_cube(volume, box, 8, SPACING_MM)
    for g in SYMMETRIES:
        moved = Box(box.center_mm @ g.T, box.side_mm)
        found = crop_cube(move_voxels(volume, g), moved, 8, SPACING_MM)
        torch.testing.assert_close(found, move_voxels(crop, g), atol=1e-12, rtol=0)


def turned_cells(box: Box, size: int, turn: np.ndarray, item: int = 0) -> np.ndarray:
    """As ``cell_centers``, of a cube whose axes are the columns of ``turn``."""
    center = box.center_mm[item].numpy()
    return center + np.einsum("ij,xyzj->xyzi", turn, cell_centers(box, size, item) - center)


def test_turned_crop_samples_the_turned_cube():
    """A ramp that all of the cube lies in is sampled without any error of interpolation."""
    shape, size, slope = (30, 32, 28), 10, np.array([1.0, -0.7, 0.4])
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    ramp = 300.0 + SPACING_MM * (index - (np.array(shape) - 1) / 2) @ slope
    box = Box(torch.tensor([[7.0, -4.0, 3.0], [0, 5.0, -6]]).double(), torch.tensor([50.0, 41.0]))
    volume = torch.from_numpy(ramp).expand(2, 1, *shape)
    for turn in Rotation.random(4, random_state=0).as_matrix():
        found = crop_cube(volume, box, size, SPACING_MM, torch.from_numpy(turn))
        for k in range(2):
            expected = 300.0 + turned_cells(box, size, turn, k) @ slope
            np.testing.assert_allclose(found[k, 0], expected, atol=1e-9)
            assert np.abs(300.0 + turned_cells(box, size, turn.T, k) @ slope - expected).max() > 1


def test_turned_crop_shows_a_blob_where_its_axes_say():
    shape, size, sigma = (36, 36, 36), 24, 9.0
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    points = SPACING_MM * (index - (np.array(shape) - 1) / 2)
    box = Box(torch.tensor([[6.0, -9.0, 4.0]]), torch.tensor([80.0]))
    turn = Rotation.from_euler("xyz", [25, -70, 130], degrees=True).as_matrix()
    seen = np.array([0.25, -0.125, 0.3])  # place in the cube, in sides from its centre
    place = box.center_mm[0].numpy() + 80.0 * turn @ seen
    blob = np.exp(-((points - place) ** 2).sum(-1) / (2 * sigma**2)).astype(np.float32)
    volume = torch.from_numpy(blob)[None, None]
    crop = crop_cube(volume, box, size, SPACING_MM, torch.from_numpy(turn).float())[0, 0]
    brightest = np.unravel_index(crop.numpy().argmax(), crop.shape)
    np.testing.assert_allclose((np.array(brightest) + 0.5) / size - 0.5, seen, atol=1 / size)
    distance2 = ((turned_cells(box, size, turn) - place) ** 2).sum(-1)
    np.testing.assert_allclose(crop, np.exp(-distance2 / (2 * sigma**2)), atol=0.06)
    straight = crop_cube(volume, box, size, SPACING_MM)[0, 0]
    assert (straight - crop).abs().max() > 0.5


def test_turn_by_nothing_is_no_turn_and_by_a_symmetry_reorders_the_cells():
    volume = torch.rand(2, 2, 9, 12, 10, dtype=torch.float64)
    box = Box(torch.tensor([[6.0, -9.0, 4.0], [1, 2, 3]]).double(), torch.tensor([40.0, 30.0]))
    crop = crop_cube(volume, box, 8, SPACING_MM)
    assert crop_cube(volume, box, 8, SPACING_MM, torch.eye(3)).equal(crop)
    for g in SYMMETRIES:
        found = crop_cube(volume, box, 8, SPACING_MM, g)
        torch.testing.assert_close(found, move_voxels(crop, g.T), atol=1e-12, rtol=0)


def test_gradients_pass_through_the_crop():
    volume = torch.rand(1, 1, 8, 8, 8, requires_grad=True)
    center = torch.tensor([[2.0, 1.0, -3.0]], requires_grad=True)
    crop_cube(volume, Box(center, torch.tensor([16.0])), 8, SPACING_MM).square().sum().backward()
    used = volume.grad[0, 0] != 0
    assert used[3:5, 3:5, 2:4].all()
    assert not used[0].any()
    assert center.grad.isfinite().all()
    assert (center.grad != 0).all()


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


def test_densest_place_is_that_of_the_mean_over_the_cube():
    """Against scipy, with zeros outside; also in volumes smaller than the cube of 11 voxels."""
    for shape in ((17, 20, 15), (5, 30, 8), (3, 3, 3)):
        probability = np.random.default_rng(0).random((2, 1, *shape))
        found, density = densest_place(torch.from_numpy(probability), SPACING_MM, window_mm=40.0)
        for k in range(2):
            dense = ndimage.uniform_filter(probability[k, 0], 11, mode="constant")
            assert dense[tuple(found[k].tolist())] == pytest.approx(dense.max(), rel=1e-9)
            assert density[k].item() == pytest.approx(dense.max(), rel=1e-9)


def test_ball_is_round_and_where_it_should_be():
    found = ball(torch.tensor([[4, 9, 2]]), (16, 14, 12), SPACING_MM, radius_mm=20.0)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in (16, 14, 12)), indexing="ij"), axis=-1)
    expected = SPACING_MM * np.linalg.norm(index - [4, 9, 2], axis=-1) <= 20
    np.testing.assert_array_equal(found[0, 0], expected)


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


def test_turned_cubes_are_those_of_crop_cube():
    volume = torch.rand(2, 1, 20, 24, 22)
    center = 10 * torch.randn(2, 3, 3)
    side = 40 + 20 * torch.rand(2, 3)
    turns = torch.stack([torch.from_numpy(rotation_matrix(k)).float() for k in range(6)])
    turns = turns.view(2, 3, 3, 3)
    cubes = crop_turned_cubes(volume, center, side, turns, 8, 4.0)
    assert cubes.shape == (6, 1, 8, 8, 8)
    for k in range(2):
        for n in range(3):
            box = Box(center[k : k + 1, n], side[k : k + 1, n])
            expected = crop_cube(volume[k : k + 1], box, 8, 4.0, turns[k, n])
            torch.testing.assert_close(cubes[3 * k + n], expected[0], atol=1e-5, rtol=0)


def test_center_of_mass():
    weights = torch.zeros(2, 1, 6, 7, 8)
    weights[0, 0, 1, 2, 3], weights[0, 0, 3, 2, 7] = 1, 3
    found = center_of_mass(weights)
    torch.testing.assert_close(found, torch.tensor([[2.5, 2.0, 6.0], [0.0, 0.0, 0.0]]))
