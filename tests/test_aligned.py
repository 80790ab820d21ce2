"""The volume in the head frame."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from conftest import GRIDS, LANDMARKS, head_pose, landmark_volume, make_affine
from scripts.evaluation.aligned import align, head_grid, write_aligned

SHAPE = (50, 52, 48)


def stored(grid):
    """Blobs at the landmarks of a head, on one of the grids."""
    axcodes, voxel_mm, tilt = GRIDS[grid]
    affine = make_affine(axcodes, voxel_mm, tilt, SHAPE)
    return landmark_volume(head_pose(), affine, SHAPE), affine


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("voxel_mm", [3.3])
def test_the_world_of_the_file_is_the_head_frame(tmp_path, grid, voxel_mm):
    """Each landmark is brightest at its own coordinates, as nibabel and ITK have them."""
    side, voxel_to_head = head_grid(voxel_mm)
    values = align(*stored(grid), head_pose(), voxel_mm)
    assert values.shape == (side,) * 3
    write_aligned(tmp_path / "a.nii.gz", values, voxel_to_head)
    written = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(written.affine[:3, :3], voxel_mm * np.eye(3))
    np.testing.assert_allclose(written.affine @ [*[side // 2] * 3, 1], [0, 0, 0, 1], atol=1e-5)
    itk = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    for height, point in enumerate(LANDMARKS, start=1):
        voxel = np.round(np.linalg.inv(written.affine) @ [*point, 1])[:3].astype(int)
        around = tuple(slice(n - 5, n + 6) for n in voxel)
        part = values[around]
        weights = np.where(part > 0.3 * part.max(), part, 0)
        index = np.stack(np.meshgrid(*(np.arange(11),) * 3, indexing="ij"), axis=-1)
        center = voxel - 5 + (index * weights[..., None]).sum((0, 1, 2)) / weights.sum()
        found = written.affine @ [*center, 1]
        np.testing.assert_allclose(found[:3], point, atol=0.7)
        assert part.max() == pytest.approx(height, rel=0.15)
        lps = itk.TransformContinuousIndexToPhysicalPoint(center.tolist())
        np.testing.assert_allclose(np.array(lps) * [-1, -1, 1], found[:3], atol=1e-3)


def test_how_the_volume_is_stored_does_not_matter():
    expected = align(*stored("RAS"), head_pose(), 4.0)
    for grid in ("LAS", "LPS", "PIL"):
        image, affine = stored(grid)
        np.testing.assert_allclose(align(image, affine, head_pose(), 4.0), expected, atol=1e-3)
    for grid in ("oblique", "anisotropic"):  # other voxels of the same head
        found = align(*stored(grid), head_pose(), 4.0)
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98


def test_what_lies_outside_is_zero_and_the_outermost_half_voxel_is_not():
    image = np.full((4, 4, 4), 7, np.float32)
    affine = np.diag([10.0, 10, 10, 1])
    affine[:3, 3] = -15
    values = align(image, affine, np.eye(4), 2.0)
    inside = np.abs(np.arange(81) - 40) <= 10
    expected = 7.0 * (inside[:, None, None] & inside[None, :, None] & inside[None, None, :])
    np.testing.assert_array_equal(values, expected)
