"""scan/prescription_picture.py: where the lines of the slices are drawn."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.image import imread

from conftest import GRIDS, LANDMARKS, head_pose, landmark_volume, make_affine
from scripts.scan.prescription import prescribe
from scripts.scan.prescription_picture import cut, draw_prescription, plane_image, views
from scripts.scan.slices import PLANES

EXTENT = np.array([(-40.0, 40.0), (-45.0, 55.0), (-60.0, 48.0)])


@pytest.mark.parametrize("plane", PLANES)
def test_in_the_planes_of_the_head_slices_are_parallel_lines_at_their_offsets(plane):
    pose = head_pose()
    stack = prescribe(pose, EXTENT, plane)
    for view in views(pose, (0.0, 0.0, 0.0))[:3]:
        lines = [cut(one.slice_to_world, stack.fov_mm, view) for one in stack.slices]
        if view.plane == plane:
            assert lines == [None] * len(lines)
            continue
        for one, ends in zip(stack.slices, lines, strict=True):
            # the head's right, front and top are on the left or above: negative
            across = np.ptp(ends, axis=0).argmin()
            np.testing.assert_allclose(ends[:, across], -one.offset_mm, atol=1e-9)
            assert np.ptp(ends[:, 1 - across]) == pytest.approx(stack.fov_mm)


def test_in_the_planes_of_the_mother_lines_lie_in_both_planes():
    pose = head_pose()
    stack = prescribe(pose, EXTENT, "coronal", tilt_deg=(10.0, 0, 5.0))
    drawn = 0
    for view in views(pose, stack.tilt_deg)[3:]:
        for one in stack.slices:
            ends = cut(one.slice_to_world, stack.fov_mm, view)
            if ends is None:
                continue
            drawn += 1
            points = view.middle_mm + ends @ np.stack([view.right, view.down])
            local = (points - one.slice_to_world[:3, 3]) @ one.slice_to_world[:3, :3]
            np.testing.assert_allclose(local[:, 2], 0, atol=1e-9)
            np.testing.assert_allclose(np.abs(local[:, :2]).max(1), stack.fov_mm / 2)
    assert drawn > len(stack.slices)


@pytest.mark.parametrize("grid", GRIDS)
def test_planes_show_the_landmarks_of_the_head(grid):
    axcodes, voxel_mm, oblique = GRIDS[grid]
    shape = tuple(int(200 / v) for v in voxel_mm)
    affine, pose = make_affine(axcodes, voxel_mm, oblique, shape), head_pose()
    volume = landmark_volume(pose, affine, shape)
    sagittal, coronal, axial = views(pose, (0.0, 0.0, 0.0))[:3]
    # right (x) of the head is on the left, the front (y) on the left or above, up (z) above
    for view, places in (
        (sagittal, {1: (-36.0, 0.0), 2: (0.0, -42.0)}),
        (coronal, {0: (-30.0, 0.0), 2: (0.0, -42.0)}),
        (axial, {0: (-30.0, 0.0), 1: (0.0, -36.0)}),
    ):
        picture = plane_image(volume, affine, view)
        for number, (right, down) in places.items():
            assert np.count_nonzero(LANDMARKS[number]) == 1
            row, column = round(down + view.half_mm), round(right + view.half_mm)
            assert picture[row, column] == pytest.approx(number + 1, rel=0.2)


def test_the_picture_is_there_with_lines_and_outline(tmp_path):
    pose = head_pose()
    affine = make_affine("LAS", (4.0, 4.0, 4.0), 10.0, (50, 50, 50))
    volume = landmark_volume(pose, affine, (50, 50, 50))
    stack = prescribe(pose, EXTENT, "axial", matrix=120)
    plain, outlined = tmp_path / "plain.png", tmp_path / "outlined.png"
    draw_prescription(plain, stack, pose, volume, affine, None, "a $case_ with {signs")
    mask = (volume > 0.5, affine)
    draw_prescription(outlined, stack, pose, volume, affine, mask, "a $case_ with {signs")
    first, second = imread(plain), imread(outlined)
    assert first.shape == second.shape == (760, 1080, 4)
    assert (first[..., 0] != first[..., 2]).mean() > 0.02  # coloured lines
    assert (first != second).any()


@pytest.mark.parametrize("value", [np.nan, 7.0])
def test_a_volume_without_contrast_does_not_stop_the_picture(tmp_path, value):
    pose, volume = np.eye(4), np.full((6, 6, 6), value, np.float32)
    stack = prescribe(pose, EXTENT, "axial")
    draw_prescription(tmp_path / "p.png", stack, pose, volume, np.diag([9.0, 9, 9, 1]), None, "")
    assert (tmp_path / "p.png").stat().st_size > 1000
