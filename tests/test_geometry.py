"""geometry.py against scipy's Rotation, nibabel's affines, and the traps that others fell into."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from conftest import head_pose, make_affine, rotation_matrix
from scripts import geometry as g


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_axis_rotations_match_scipy(axis):
    rotate = getattr(g, f"rotation_about_{axis}")
    angles = torch.tensor([-170.0, -30.0, 0.0, 45.0, 180.0], dtype=torch.float64)
    expected = Rotation.from_euler(axis, angles.numpy()[:, None], degrees=True).as_matrix()
    np.testing.assert_allclose(rotate(angles), expected, atol=1e-12)
    np.testing.assert_allclose(rotate(45.0), expected[3], atol=1e-12)


def test_quaternion_matches_scipy_and_is_uniform():
    quaternions = np.random.default_rng(0).normal(size=(4000, 4))
    ours = g.quaternion_to_rotation(torch.from_numpy(quaternions))
    expected = Rotation.from_quat(quaternions[:, [1, 2, 3, 0]]).as_matrix()
    np.testing.assert_allclose(ours, expected, atol=1e-12)
    # the angle of a uniform rotation has density (1 - cos) / pi: mean 126.5 degrees
    angles = g.geodesic_deg(torch.eye(3, dtype=torch.float64), ours)
    assert angles.mean().item() == pytest.approx(np.degrees(np.pi / 2 + 2 / np.pi), abs=1.5)


@pytest.mark.parametrize("number", [1, 2, 4, 7, 8, 32])
def test_spread_rotations_are_proper_and_begin_at_the_identity(number):
    rotations = g.spread_rotations(number)
    assert rotations.shape == (number, 3, 3)
    assert rotations.dtype == torch.float64
    identity = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(
        rotations @ rotations.mT, identity.expand(number, 3, 3), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(rotations[0], identity, atol=1e-12, rtol=0)
    np.testing.assert_allclose(torch.linalg.det(rotations), 1, atol=1e-12)
    assert g.spread_rotations(number).equal(rotations)


def nearest_deg(rotations: torch.Tensor) -> float:
    """Smallest angle between any two."""
    angles = g.geodesic_deg(rotations[:, None], rotations[None])
    return (angles + 360 * torch.eye(len(rotations))).min().item()


@pytest.mark.parametrize(("number", "apart_deg"), [(4, 80), (8, 60), (16, 45), (32, 35)])
def test_spread_rotations_are_spread(number, apart_deg):
    found = g.spread_rotations(number)
    assert nearest_deg(found) > apart_deg
    drawn = [
        torch.from_numpy(Rotation.random(number, random_state=seed).as_matrix())
        for seed in range(20)
    ]
    assert nearest_deg(found) > 1.2 * np.median([nearest_deg(r) for r in drawn])
    if number >= 16:  # they cancel better than the mean of as many at random
        assert found.mean(0).norm() < 0.7 * np.sqrt(3 / number)


@pytest.mark.parametrize("angle", [0.0, 1e-5, 0.3, 90.0, 179.9999, 180.0])
def test_geodesic_is_exact_near_zero_and_near_180(angle):
    a = rotation_matrix(0)
    turn = Rotation.from_rotvec(np.radians(angle) * np.array([0.6, 0.0, 0.8])).as_matrix()
    found = g.geodesic_deg(torch.from_numpy(a), torch.from_numpy(a @ turn))
    assert found.item() == pytest.approx(angle, abs=1e-6)


def test_geodesic_is_not_the_mean_euler_difference():
    a, b = rotation_matrix(1), rotation_matrix(2)
    expected = np.degrees((Rotation.from_matrix(a).inv() * Rotation.from_matrix(b)).magnitude())
    found = g.geodesic_deg(torch.from_numpy(a), torch.from_numpy(b))
    assert found.item() == pytest.approx(expected, abs=1e-9)


def test_axis_angles():
    a, b = rotation_matrix(1), rotation_matrix(2)
    expected = np.degrees(np.arccos((a * b).sum(0)))
    np.testing.assert_allclose(
        g.axis_angles_deg(torch.from_numpy(a), torch.from_numpy(b)), expected, atol=1e-9
    )


def test_frame_with_flipped_x_is_no_180_degree_error():
    rotation = torch.from_numpy(rotation_matrix(4))
    axes = rotation.T.clone()
    axes[0] *= -1
    found = g.frame_to_rotation(axes)
    assert g.geodesic_deg(found, rotation).item() < 1e-6
    # the trap: the determinant times the whole product
    u, _, vh = torch.linalg.svd(axes.T)
    wrong = torch.linalg.det(u @ vh) * (u @ vh)
    assert g.geodesic_deg(wrong, rotation).item() > 170


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-11)])
def test_nearest_rotation_is_that_of_the_singular_vectors(dtype, tolerance):
    matrix = torch.randn(500, 3, 3, dtype=dtype)
    u, s, vh = torch.linalg.svd(matrix)
    signs = torch.ones(500, 3, dtype=dtype)
    signs[:, 2] = torch.linalg.det(u @ vh)
    expected = u @ torch.diag_embed(signs) @ vh
    defined = s[:, 1] + signs[:, 2] * s[:, 2] > 0.05  # else more than one is nearest
    assert defined.sum() > 450
    found = g.nearest_rotation(matrix)
    torch.testing.assert_close(found[defined], expected[defined], atol=tolerance, rtol=0)
    identity = torch.eye(3, dtype=dtype).expand(500, 3, 3)
    torch.testing.assert_close(found @ found.mT, identity, atol=1e-5, rtol=0)
    assert (torch.linalg.det(found) > 0.99).all()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("n", [3, 4])
def test_top_eigenvector_is_that_of_eigh(n, scale):
    matrix = torch.randn(200, n, n, dtype=torch.float64)
    matrix = scale * (matrix @ matrix.mT)
    values, vectors = torch.linalg.eigh(matrix)
    found = g.top_eigenvector(matrix)
    distinct = values[:, -2] < 0.999 * values[:, -1]
    cosine = (found * vectors[..., -1]).sum(-1).abs()
    torch.testing.assert_close(cosine[distinct], torch.ones_like(cosine[distinct]))
    assert (g.top_eigenvector(torch.zeros(2, n, n)) == 0).all()


def test_frame_is_the_nearest_rotation():
    generator = torch.Generator().manual_seed(0)
    for seed in range(20):
        rotation = torch.from_numpy(rotation_matrix(seed))
        axes = rotation.T + 0.2 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
        axes = torch.nn.functional.normalize(axes, dim=-1)
        expected, _ = Rotation.align_vectors(axes.numpy(), np.eye(3))
        found = g.frame_to_rotation(axes * torch.tensor([[2.0], [0.3], [5.0]]))
        np.testing.assert_allclose(found, expected.as_matrix(), atol=1e-6)
        assert torch.linalg.det(found).item() == pytest.approx(1, abs=1e-9)


def test_frame_batches_and_undefined_frames():
    axes = torch.eye(3).repeat(4, 1, 1)
    axes[1] = 0
    axes[2, 2] = axes[2, 1]
    found = g.frame_to_rotation(axes)
    assert torch.isnan(found[1:3]).all()
    torch.testing.assert_close(found[0], torch.eye(3))
    torch.testing.assert_close(found[3], torch.eye(3))


def test_rigid_inverse():
    pose = torch.from_numpy(head_pose())
    torch.testing.assert_close(
        g.invert_rigid(pose) @ pose, torch.eye(4, dtype=torch.float64), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("tilt", [0.0, 17.0])
def test_grid_to_world_agrees_with_the_affine(tilt):
    shape = (11, 8, 9)
    affine = make_affine("RAS", (4.0, 4.0, 4.0), tilt, shape)
    matrix = g.grid_to_world(torch.from_numpy(affine), shape, 4.0)
    voxel = np.array([2.0, 7.0, 3.0, 1.0])
    grid_mm = np.append(4.0 * (voxel[:3] - (np.array(shape) - 1) / 2), 1.0)
    np.testing.assert_allclose(matrix.numpy() @ grid_mm, affine @ voxel, atol=1e-9)


@pytest.mark.parametrize(
    "affine", [np.diag([-4.0, 4, 4, 1]), np.diag([4.0, 4, 4.5, 1]), np.diag([3.0, 3, 3, 1])]
)
def test_grid_to_world_refuses_what_is_no_right_handed_isotropic_grid(affine):
    with pytest.raises(ValueError, match="rigid"):
        g.grid_to_world(torch.from_numpy(affine), (8, 8, 8), 4.0)


def test_head_to_grid_of_scaled_and_mirrored_grids():
    pose, shape = head_pose(), (20, 22, 24)
    plain = make_affine("RAS", (4.0, 4.0, 4.0), 9.0, shape)
    for mirror, scale in ((1, 1.0), (1, 1.3), (-1, 1.0), (-1, 0.8)):
        affine = plain @ np.diag([mirror / scale, 1 / scale, 1 / scale, 1.0])
        found = g.head_to_grid(torch.from_numpy(affine), shape, 4.0, torch.from_numpy(pose))
        g.check_rigid(found, "found")
        point = np.array([11.0, -20.0, 31.0])
        voxel = np.linalg.inv(affine) @ pose @ np.append(point, 1.0)
        grid_mm = 4.0 * (voxel[:3] - (np.array(shape) - 1) / 2)
        seen = scale * point * [mirror, 1, 1]  # where the landmark is in the augmented head
        np.testing.assert_allclose((found.numpy() @ np.append(seen, 1.0))[:3], grid_mm, atol=1e-9)


def stretch_along(pose: np.ndarray, factors) -> np.ndarray:
    """World matrix (4, 4) that stretches about the head's origin along the head's axes."""
    return pose @ np.diag([*factors, 1.0]) @ np.linalg.inv(pose)


@pytest.mark.parametrize("mirror", [1, -1])
def test_head_to_grid_of_a_head_stretched_along_its_own_axes(mirror):
    """The axes stay the axes, and every landmark moves by the factor of its axis."""
    pose, shape, factors = head_pose(), (20, 22, 24), np.array([1.15, 0.9, 1.3])
    plain = make_affine("RAS", (4.0, 4.0, 4.0), 9.0, shape) @ np.diag([mirror, 1, 1, 1])
    # the grid shows the stretched head if its voxels lie in the world by the inverse stretch
    affine = stretch_along(pose, 1 / factors) @ plain
    found = g.head_to_grid(torch.from_numpy(affine), shape, 4.0, torch.from_numpy(pose))
    before = g.head_to_grid(torch.from_numpy(plain), shape, 4.0, torch.from_numpy(pose))
    g.check_rigid(found, "found")
    torch.testing.assert_close(found, before, atol=1e-9, rtol=0)
    point = np.array([11.0, -20.0, 31.0])
    voxel = np.linalg.inv(affine) @ pose @ np.append(point, 1.0)
    grid_mm = 4.0 * (voxel[:3] - (np.array(shape) - 1) / 2)
    seen = factors * point * [mirror, 1, 1]
    np.testing.assert_allclose((found.numpy() @ np.append(seen, 1.0))[:3], grid_mm, atol=1e-9)


def test_head_to_grid_refuses_shear():
    """Also a stretch, unless it runs along the head's own axes."""
    affine = torch.tensor(np.diag([4.0, 4.0, 6.0, 1.0]))
    pose = torch.from_numpy(head_pose())
    with pytest.raises(ValueError, match="rigid"):
        g.head_to_grid(affine, (8, 8, 8), 4.0, pose)
    upright = torch.eye(4, dtype=torch.float64)
    assert g.head_to_grid(affine, (9, 9, 9), 4.0, upright)[:3, :3].equal(upright[:3, :3])
    sheared = torch.tensor([[4.0, 0.4, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1]])
    for head in (upright, pose):
        with pytest.raises(ValueError, match="rigid"):
            g.head_to_grid(sheared, (8, 8, 8), 4.0, head)


def test_landmarks_to_pose():
    pose = head_pose(8)
    down = np.radians(30)
    eyes = np.array([[sign * 17, 45 * np.cos(down), -45 * np.sin(down)] for sign in (-1, 1)])
    left, right = torch.from_numpy(eyes @ pose[:3, :3].T + pose[:3, 3])
    found = g.landmarks_to_pose(torch.from_numpy(pose[:3, 3]), left, right)
    np.testing.assert_allclose(found, pose, atol=1e-9)
    with pytest.raises(ValueError, match="one line"):
        g.landmarks_to_pose(left, left, left)


def test_check_rigid_names_the_matrix():
    with pytest.raises(ValueError, match=r"my pose.*det -1"):
        g.check_rigid(torch.diag(torch.tensor([-1.0, 1, 1, 1])), "my pose")
    with pytest.raises(ValueError, match="finite"):
        g.check_rigid(torch.full((4, 4), torch.nan), "my pose")


def test_half_and_quarter_turns_are_rotations_of_the_cube():
    for turns, angle in ((g.half_turns()[1:], 180.0), (g.quarter_turns(), 90.0)):
        assert turns.eq(turns.round()).all()
        angles = g.geodesic_deg(torch.eye(3).expand_as(turns), turns)
        torch.testing.assert_close(angles, torch.full_like(angles, angle))
        torch.testing.assert_close(torch.linalg.det(turns), torch.ones(len(turns)))
        assert len(torch.unique(turns, dim=0)) == len(turns)
    assert g.half_turns()[0].equal(torch.eye(3))
    z = torch.tensor([0.0, 0.0, 1.0])
    assert (g.quarter_turns() @ z).eq(z).all()


def test_axis_and_angle_agree_with_scipy():
    axis, angle = torch.randn(5, 3).double(), torch.tensor([0.0, 10, -70, 180, 250]).double()
    vectors = torch.nn.functional.normalize(axis, dim=-1) * torch.deg2rad(angle)[:, None]
    expected = Rotation.from_rotvec(vectors.numpy()).as_matrix()
    torch.testing.assert_close(g.axis_angle_to_rotation(axis, angle), torch.from_numpy(expected))


def test_frame_of_landmarks_is_that_of_the_pose():
    points = torch.randn(4, 3, 3).double()
    expected = g.landmarks_to_pose(*points.unbind(1))[:, :3, :3]
    torch.testing.assert_close(g.landmark_frame(*points.unbind(1)), expected)
    collinear = torch.tensor([[0.0, 0, 0], [1, 1, 1], [2, 2, 2]])
    assert g.landmark_frame(*collinear).isfinite().all()
