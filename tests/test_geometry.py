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


def test_head_to_grid_refuses_shear():
    affine = torch.tensor(np.diag([4.0, 4.0, 6.0, 1.0]))
    with pytest.raises(ValueError, match="rigid"):
        g.head_to_grid(affine, (8, 8, 8), 4.0, torch.eye(4))


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
