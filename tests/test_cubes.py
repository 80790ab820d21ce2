"""cubes.py against scipy.ndimage, analytic volumes and the symmetries of the cube."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from conftest import rotation_matrix
from scripts.cubes import (
    TYPICAL_BRAIN_MM,
    Cube,
    along_grid,
    brain_cube,
    chosen,
    in_line,
    reference_cube,
    resized,
    sample_cubes,
)
from scripts.geometry import geodesic_deg, landmark_frame
from symmetry import SYMMETRIES, move_voxels

SPACING_MM = 4.0


def random_masks(share: float, shape=(9, 12, 7), batch: int = 3) -> np.ndarray:
    return np.random.default_rng(int(1000 * share)).random((batch, 1, *shape)) < share


def test_brain_cube_is_the_centre_of_mass_and_the_sphere_of_the_volume():
    masks = random_masks(0.2)
    cube, volume_ml = brain_cube(torch.from_numpy(masks), SPACING_MM, fill=0.6)
    for k, mask in enumerate(masks[:, 0]):
        voxel = np.array(ndimage.center_of_mass(mask))
        center = SPACING_MM * (voxel - (np.array(mask.shape) - 1) / 2)
        np.testing.assert_allclose(cube.center_mm[k], center, atol=1e-4)
        volume_mm3 = mask.sum() * SPACING_MM**3
        assert volume_ml[k].item() == pytest.approx(volume_mm3 / 1000, rel=1e-6)
        radius = 0.6 * cube.side_mm[k].item() / 2
        assert 4 / 3 * np.pi * radius**3 == pytest.approx(volume_mm3, rel=1e-5)


def test_brain_cube_turns_with_the_brain():
    mask = torch.from_numpy(random_masks(0.2, batch=1))
    cube, volume_ml = brain_cube(mask, SPACING_MM, 0.6)
    for g in SYMMETRIES:
        moved, moved_ml = brain_cube(move_voxels(mask, g), SPACING_MM, 0.6)
        torch.testing.assert_close(moved.center_mm, cube.center_mm @ g.T.float())
        assert moved.side_mm.equal(cube.side_mm)
        assert moved.rotation.equal(torch.eye(3)[None])
        assert moved_ml.equal(volume_ml)


def test_brain_cube_without_a_brain():
    mask = torch.zeros(2, 1, 6, 6, 6, dtype=torch.bool)
    mask[1, 0, 2, 3, 4] = True
    cube, volume_ml = brain_cube(mask, SPACING_MM, 0.6)
    assert volume_ml.tolist() == pytest.approx([0, 0.064])
    assert cube.center_mm[0].tolist() == [0, 0, 0]
    assert cube.side_mm[0].item() == 1
    assert cube.center_mm[1].tolist() == [-2, 2, 6]


def cube_of(center, side, rotation=None, dtype=torch.float32) -> Cube:
    """One cube (batch, 1) of each volume, from centres (batch, 3) and sides (batch)."""
    cube = along_grid(torch.as_tensor(center, dtype=dtype)[:, None], torch.tensor(side)[:, None])
    if rotation is None:
        return cube
    return cube._replace(rotation=torch.as_tensor(rotation).expand_as(cube.rotation))


def crop_of(volume, cube: Cube, size: int) -> torch.Tensor:
    """(batch, channels, size, size, size) of the one cube of each volume."""
    found = sample_cubes(volume, cube, size, SPACING_MM)
    assert found.shape == (len(volume), 1, volume.shape[1], size, size, size)
    return found[:, 0]


def cell_centers(cube: Cube, size: int, item: int = 0) -> np.ndarray:
    """(size, size, size, 3) positions in mm, written out from the definition."""
    steps = (np.arange(size) + 0.5) / size - 0.5
    offsets = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1)
    turned = np.einsum("ij,xyzj->xyzi", cube.rotation[item, 0].double().numpy(), offsets)
    return cube.center_mm[item, 0].numpy() + cube.side_mm[item, 0].item() * turned


@pytest.mark.parametrize("center", [(0.0, 0, 0), (3.0, -5.0, 8.0), (30.0, -16.0, 24.0)])
def test_crop_at_the_border_is_padded_not_clipped(center):
    """Trap 7: a clipped cube is neither cubic nor centred. A ramp shows where each cell lies."""
    shape, size = (18, 14, 16), 12
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    points = SPACING_MM * (index - (np.array(shape) - 1) / 2)
    slope = np.array([1.0, -0.7, 0.4])
    ramp = torch.from_numpy(300.0 + points @ slope)[None, None]
    cube = cube_of([center], [50.0])
    found = crop_of(ramp, cube, size)[0, 0].numpy()

    cells = cell_centers(cube, size)
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


def test_crops_of_a_batch_are_a_loop():
    """Over the volumes, and over the cubes of each, whatever their turns and sizes."""
    volume = torch.rand(2, 3, 20, 24, 22)
    turns = torch.stack([torch.from_numpy(rotation_matrix(k)).float() for k in range(6)])
    cube = Cube(10 * torch.randn(2, 3, 3), 40 + 20 * torch.rand(2, 3), turns.view(2, 3, 3, 3))
    found = sample_cubes(volume, cube, 8, SPACING_MM)
    assert found.shape == (2, 3, 3, 8, 8, 8)
    for k in range(2):
        for n in range(3):
            one = Cube(*(value[k : k + 1, n : n + 1] for value in cube))
            expected = crop_of(volume[k : k + 1], one, 8)
            torch.testing.assert_close(found[k, n], expected[0], atol=1e-5, rtol=0)


def test_crop_turns_with_the_volume():
    volume = torch.rand(1, 1, 9, 12, 10, dtype=torch.float64)
    cube = cube_of([[6.0, -9.0, 4.0]], [40.0], dtype=torch.float64)
    crop = crop_of(volume, cube, 8)
    for g in SYMMETRIES:
        moved = cube._replace(center_mm=cube.center_mm @ g.T)
        found = crop_of(move_voxels(volume, g), moved, 8)
        torch.testing.assert_close(found, move_voxels(crop, g), atol=1e-12, rtol=0)


def test_turned_crop_samples_the_turned_cube():
    """A ramp that all of the cube lies in is sampled without any error of interpolation."""
    shape, size, slope = (30, 32, 28), 10, np.array([1.0, -0.7, 0.4])
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    ramp = 300.0 + SPACING_MM * (index - (np.array(shape) - 1) / 2) @ slope
    volume = torch.from_numpy(ramp).expand(2, 1, *shape)
    centers, sides = [[7.0, -4.0, 3.0], [0, 5.0, -6]], [50.0, 41.0]
    for turn in Rotation.random(4, random_state=0).as_matrix():
        cube, back = (cube_of(centers, sides, t, torch.float64) for t in (turn, turn.T.copy()))
        found = crop_of(volume, cube, size)
        for k in range(2):
            expected = 300.0 + cell_centers(cube, size, k) @ slope
            np.testing.assert_allclose(found[k, 0], expected, atol=1e-9)
            assert np.abs(300.0 + cell_centers(back, size, k) @ slope - expected).max() > 1


def test_turned_crop_shows_a_blob_where_its_axes_say():
    shape, size, sigma = (36, 36, 36), 24, 9.0
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    points = SPACING_MM * (index - (np.array(shape) - 1) / 2)
    turn = Rotation.from_euler("xyz", [25, -70, 130], degrees=True).as_matrix()
    cube = cube_of([[6.0, -9.0, 4.0]], [80.0], torch.from_numpy(turn).float())
    seen = np.array([0.25, -0.125, 0.3])  # place in the cube, in sides from its centre
    place = cube.center_mm[0, 0].numpy() + 80.0 * turn @ seen
    blob = np.exp(-((points - place) ** 2).sum(-1) / (2 * sigma**2)).astype(np.float32)
    volume = torch.from_numpy(blob)[None, None]
    crop = crop_of(volume, cube, size)[0, 0]
    brightest = np.unravel_index(crop.numpy().argmax(), crop.shape)
    np.testing.assert_allclose((np.array(brightest) + 0.5) / size - 0.5, seen, atol=1 / size)
    distance2 = ((cell_centers(cube, size) - place) ** 2).sum(-1)
    np.testing.assert_allclose(crop, np.exp(-distance2 / (2 * sigma**2)), atol=0.06)
    straight = crop_of(volume, cube_of([[6.0, -9.0, 4.0]], [80.0]), size)[0, 0]
    assert (straight - crop).abs().max() > 0.5


def test_a_turn_by_a_symmetry_reorders_the_cells():
    volume = torch.rand(2, 2, 9, 12, 10, dtype=torch.float64)
    cube = cube_of([[6.0, -9.0, 4.0], [1, 2, 3]], [40.0, 30.0], dtype=torch.float64)
    crop = crop_of(volume, cube, 8)
    for g in SYMMETRIES:
        found = crop_of(volume, cube._replace(rotation=g.expand(2, 1, 3, 3)), 8)
        torch.testing.assert_close(found, move_voxels(crop, g.T), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_crops_have_the_type_of_the_volume(dtype):
    """Whatever that of the cube is: the chain's cubes are float32 whatever the network is in."""
    volume = torch.rand(1, 1, 9, 12, 10, dtype=dtype)
    given = [cube_of([[6.0, -9.0, 4.0]], [40.0], dtype=t) for t in (torch.float32, torch.float64)]
    first, second = (crop_of(volume, cube, 6) for cube in given)
    assert first.dtype == second.dtype == dtype
    torch.testing.assert_close(first, second)


def test_gradients_pass_through_the_crop():
    volume = torch.rand(1, 1, 8, 8, 8, requires_grad=True)
    center = torch.tensor([[[2.0, 1.0, -3.0]]], requires_grad=True)
    crop_of(volume, along_grid(center, torch.tensor([[16.0]])), 8).square().sum().backward()
    used = volume.grad[0, 0] != 0
    assert used[3:5, 3:5, 2:4].all()
    assert not used[0].any()
    assert center.grad.isfinite().all()
    assert (center.grad != 0).all()


# Cube


def random_cubes(*shape: int) -> Cube:
    turns = [torch.from_numpy(rotation_matrix(k)).float() for k in range(math.prod(shape))]
    rotation = torch.stack(turns).view(*shape, 3, 3)
    return Cube(10 * torch.randn(*shape, 3), 50 + 50 * torch.rand(shape), rotation)


@pytest.mark.parametrize("shape", [(), (3,), (2, 4)])
def test_cubes_along_the_grid_are_not_turned(shape):
    center, side = torch.randn(*shape, 3, dtype=torch.float64), torch.rand(shape)
    cube = along_grid(center, side)
    assert cube.center_mm is center
    assert cube.side_mm is side
    assert cube.rotation.equal(torch.eye(3, dtype=torch.float64).expand(*shape, 3, 3))


def test_resized_cubes_differ_in_size_alone():
    """All by the first factor first."""
    cube = random_cubes(2, 3)
    found = resized(cube, [0.5, 1.0, 2.0])
    for k, factor in enumerate([0.5, 1.0, 2.0]):
        part = Cube(*(value[:, 3 * k : 3 * k + 3] for value in found))
        assert part.side_mm.equal(factor * cube.side_mm)
        assert part.center_mm.equal(cube.center_mm)
        assert part.rotation.equal(cube.rotation)
    assert found.side_mm.shape == (2, 9)


def test_of_each_volume_its_own_cubes_are_chosen():
    cube = random_cubes(3, 4)
    index = torch.tensor([[2, 1], [0, 0], [3, 2]])
    found = chosen(cube, index)
    assert found.side_mm.shape == (3, 2)
    for k in range(3):
        for n in range(2):
            for value, every in zip(found, cube, strict=True):
                assert value[k, n].equal(every[k, index[k, n]])


@pytest.mark.parametrize("shape", [(), (2, 4)])
def test_cubes_in_line_see_their_landmarks_straight_and_in_the_middle(shape):
    """Where the landmarks lie in mm does not depend on the cube that shows them."""
    cube = random_cubes(*shape)
    upright = torch.tensor([[0.0, 0.0, 0.0], [-0.12, 0.26, -0.15], [0.12, 0.26, -0.15]])
    turn = torch.from_numpy(Rotation.from_euler("xyz", [20, -30, 50], degrees=True).as_matrix())
    point = (upright @ turn.float().T + torch.tensor([0.1, -0.05, 0.2])).expand(*shape, 3, 3)
    better = in_line(cube, point)
    assert better.side_mm is cube.side_mm

    def place_mm(cube, point):
        offset = cube.side_mm[..., None, None] * point @ cube.rotation.mT
        return cube.center_mm.unsqueeze(-2) + offset

    seen = place_mm(cube, point) - better.center_mm.unsqueeze(-2)
    seen = seen @ better.rotation / better.side_mm[..., None, None]
    torch.testing.assert_close(seen[..., 0, :], torch.zeros(*shape, 3), atol=1e-5, rtol=0)
    frame = landmark_frame(*seen.unbind(-2))
    assert geodesic_deg(frame, torch.eye(3).expand_as(frame)).max() < 0.05
    # and nothing moves that is in line already
    again = in_line(better, seen)
    torch.testing.assert_close(again.center_mm, better.center_mm, atol=1e-3, rtol=0)
    assert geodesic_deg(again.rotation, better.rotation).max() < 0.05


def test_reference_cube_is_that_of_the_labelled_brain():
    mask = torch.from_numpy(random_masks(0.2, batch=1))
    cube = reference_cube(mask[0], torch.randn(3), SPACING_MM, 0.6)
    expected, _ = brain_cube(mask, SPACING_MM, 0.6)
    for value, alone in zip(cube, expected, strict=True):
        assert value.equal(alone[0])
    origin = torch.tensor([4.0, -3.0, 2.0])
    unseen = reference_cube(torch.zeros_like(mask[0]), origin, SPACING_MM, 0.5)
    assert unseen.center_mm.equal(origin)
    assert unseen.side_mm.item() == pytest.approx(TYPICAL_BRAIN_MM / 0.5)
    assert unseen.rotation.equal(torch.eye(3))
