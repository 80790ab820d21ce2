"""Transform files, against SimpleITK, formulas of the formats, and nitransforms reading back."""

from __future__ import annotations

import importlib.util
import re

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nitransforms.linear import Affine

from conftest import GRIDS, head_pose, landmark_volume, make_affine
from scripts.evaluation.aligned import align, head_grid, write_aligned
from scripts.evaluation.transform_files import FORMATS, check_available, write_transform

SHAPE = (50, 52, 48)
POINTS = np.array([[0.0, 0, 0], [30, -20, 55], [-60, 12, 7]])  # of the head, mm
RAS_LPS = np.array([-1.0, -1, 1])


def grid_affine(grid):
    axcodes, voxel_mm, tilt = GRIDS[grid]
    return make_affine(axcodes, voxel_mm, tilt, SHAPE)


def in_world(points):
    pose = head_pose()
    return points @ pose[:3, :3].T + pose[:3, 3]


@pytest.mark.parametrize("grid", GRIDS)
def test_itk_moves_points_and_volumes_by_it(tmp_path, grid):
    """Resampling the input by the transform gives the aligned volume."""
    affine = grid_affine(grid)
    image = landmark_volume(head_pose(), affine, SHAPE)
    source = nib.Nifti1Image(image, affine)
    nib.save(source, tmp_path / "in.nii.gz")
    _, voxel_to_head = head_grid(4.0)
    values = align(image, affine, head_pose(), 4.0)
    write_aligned(tmp_path / "aligned.nii.gz", values, voxel_to_head)
    write_transform(tmp_path / "t.tfm", "transform", head_pose(), SHAPE, affine, 4.0)
    transform = sitk.ReadTransform(str(tmp_path / "t.tfm"))
    for point, expected in zip(POINTS, in_world(POINTS), strict=True):
        found = np.array(transform.TransformPoint((point * RAS_LPS).tolist())) * RAS_LPS
        np.testing.assert_allclose(found, expected, atol=1e-3)
    aligned = sitk.ReadImage(str(tmp_path / "aligned.nii.gz"))
    moved = sitk.Resample(
        sitk.ReadImage(str(tmp_path / "in.nii.gz")), aligned, transform, sitk.sitkLinear
    )
    difference = np.abs(sitk.GetArrayFromImage(moved) - sitk.GetArrayFromImage(aligned))
    assert values.max() > 3
    assert (difference > 0.01).mean() < 1e-3  # a rounding decides what is in the outermost voxel


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("word", FORMATS)
def test_nitransforms_reads_back_what_was_meant(tmp_path, grid, word):
    affine = grid_affine(grid)
    path = tmp_path / "transform"
    write_transform(path, word, head_pose(), SHAPE, affine, 4.0)
    side, voxel_to_head = head_grid(4.0)
    head = nib.Nifti1Image(np.zeros((side,) * 3, np.uint8), voxel_to_head)
    moving = nib.Nifti1Image(np.zeros(SHAPE, np.uint8), affine)
    found = Affine.from_filename(path, fmt=FORMATS[word], reference=head, moving=moving)
    np.testing.assert_allclose(found.matrix, head_pose(), atol=1e-3)


@pytest.mark.parametrize("grid", GRIDS)
def test_fsl_takes_scaled_voxels_of_the_input_to_those_of_the_head(tmp_path, grid):
    """FLIRT's coordinates: voxels times their size, i reversed where the affine is right-handed."""

    def flirt(points, affine, shape):
        voxel = (np.c_[points, np.ones(len(points))] @ np.linalg.inv(affine).T)[:, :3]
        if np.linalg.det(affine) > 0:
            voxel[:, 0] = shape[0] - 1 - voxel[:, 0]
        return voxel * np.linalg.norm(affine[:3, :3], axis=0)

    affine = grid_affine(grid)
    write_transform(tmp_path / "t.mat", "fsl", head_pose(), SHAPE, affine, 4.0)
    matrix = np.loadtxt(tmp_path / "t.mat")
    side, voxel_to_head = head_grid(4.0)
    start = flirt(in_world(POINTS), affine, SHAPE)
    found = start @ matrix[:3, :3].T + matrix[:3, 3]
    np.testing.assert_allclose(found, flirt(POINTS, voxel_to_head, (side,) * 3), atol=1e-3)


@pytest.mark.parametrize("grid", GRIDS)
def test_freesurfer_finds_the_input_as_source_and_the_head_as_destination(tmp_path, grid):
    affine = grid_affine(grid)
    write_transform(tmp_path / "t.lta", "lta", head_pose(), SHAPE, affine, 4.0)
    text = (tmp_path / "t.lta").read_text()
    assert re.search(r"type\s+= 1\b", text)  # LINEAR_RAS_TO_RAS
    rows = text.split("1 4 4\n")[1].splitlines()[:4]
    matrix = np.array([[float(number) for number in row.split()] for row in rows])
    found = in_world(POINTS) @ matrix[:3, :3].T + matrix[:3, 3]
    np.testing.assert_allclose(found, POINTS, atol=1e-4)  # from source to destination
    source, destination = text.split("src volume info")[1].split("dst volume info")
    assert "volume = 50 52 48" in source
    assert "volume = 41 41 41" in destination
    # c_ras is the world at half the size of the volume
    center = (affine @ [*(np.array(SHAPE) / 2), 1])[:3]
    stated = re.search(r"cras\s+= (.*)", source)[1].split()
    np.testing.assert_allclose([float(n) for n in stated], center, atol=1e-3)


def test_afni_has_the_map_from_head_to_input_in_lps(tmp_path):
    write_transform(tmp_path / "t.1D", "afni", head_pose(), SHAPE, grid_affine("LAS"), 4.0)
    matrix = np.loadtxt(tmp_path / "t.1D").reshape(3, 4)
    found = (POINTS * RAS_LPS) @ matrix[:, :3].T + matrix[:, 3]
    np.testing.assert_allclose(found * RAS_LPS, in_world(POINTS), atol=1e-3)


def test_an_absent_extra_is_one_sentence(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    check_available(["picture", "mask"])
    with pytest.raises(
        ModuleNotFoundError, match=r"--outputs fsl,lta needs .* pip install nitrans"
    ):
        check_available(["mask", "fsl", "lta"])
