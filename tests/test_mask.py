"""The mask on the input's grid, with the input's header."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from conftest import GRIDS, head_pose, make_affine
from scripts.evaluation.mask import label_to_grid, write_mask

SHAPE = (46, 50, 40)


def working_label(pose):
    """A brain of radius 30 mm and eyes on a 4 mm RAS grid, with its affine."""
    shape = (60, 60, 60)
    affine = make_affine("RAS", (4.0, 4.0, 4.0), 0.0, shape)
    head = head_coordinates(shape, affine, pose)
    label = (np.linalg.norm(head, axis=-1) < 30).astype(np.uint8)
    for x in (-16.0, 16.0):
        label[np.linalg.norm(head - [x, 36.0, -12.0], axis=-1) < 9] = 2
    return label, affine


def head_coordinates(shape, affine, pose):
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    return (world - pose[:3, 3]) @ pose[:3, :3]


@pytest.mark.parametrize("grid", GRIDS)
def test_classes_lie_where_they_are_in_the_world(grid):
    axcodes, voxel_mm, tilt = GRIDS[grid]
    pose, affine = head_pose(), make_affine(axcodes, voxel_mm, tilt, SHAPE)
    mask = label_to_grid(*working_label(pose), SHAPE, affine)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1, 2}
    head = head_coordinates(SHAPE, affine, pose)
    ml = np.prod(voxel_mm) / 1000
    assert (mask == 1).sum() * ml == pytest.approx(4 / 3 * np.pi * 27, rel=0.06)
    np.testing.assert_allclose(head[mask == 1].mean(0), [0, -0.5, 0.2], atol=1.0)
    eyes = head[mask == 2]
    np.testing.assert_allclose(eyes[eyes[:, 0] > 0].mean(0), [16, 36, -12], atol=1.5)
    np.testing.assert_allclose(eyes[eyes[:, 0] < 0].mean(0), [-16, 36, -12], atol=1.5)


def test_no_steps_of_the_working_grid_are_left_in_a_finer_one():
    pose, shape = np.eye(4), (80, 80, 80)
    affine = make_affine("RAS", (1.0, 1.0, 1.0), 0.0, shape)
    label, label_affine = working_label(pose)
    label[label == 2] = 0
    mask = label_to_grid(label, label_affine, shape, affine)
    ball = np.linalg.norm(head_coordinates(shape, affine, pose), axis=-1) < 30
    inside = mask == 1
    overlap = 2 * (inside & ball).sum() / (inside.sum() + ball.sum())
    nearest = np.repeat(np.repeat(np.repeat(label, 4, 0), 4, 1), 4, 2)
    nearest = nearest[80:160, 80:160, 80:160] == 1
    assert overlap > 0.01 + 2 * (nearest & ball).sum() / (nearest.sum() + ball.sum())


def test_a_mask_beside_the_field_of_view_or_of_nothing_is_empty():
    label, affine = working_label(head_pose())
    away = make_affine("RAS", (3.0, 3.0, 3.0), 0.0, SHAPE)
    away[:3, 3] += 1000
    assert not label_to_grid(label, affine, SHAPE, away).any()
    assert not label_to_grid(np.zeros_like(label), affine, SHAPE, affine).any()


def geometry(header):
    names = [f for f in header if f.startswith(("quatern", "qoffset", "srow"))]
    names += ["qform_code", "sform_code", "xyzt_units"]
    return {name: np.asarray(header[name]).tolist() for name in names} | {
        "pixdim": header["pixdim"][:4].tolist(),
        "shape": header.get_data_shape()[:3],
    }


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("codes", [(1, 1), (0, 2), (3, 0), (0, 0), (1, 4)])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_mask_has_the_header_of_its_input(tmp_path, grid, codes, kind):
    axcodes, voxel_mm, tilt = GRIDS[grid]
    affine = make_affine(axcodes, voxel_mm, tilt, SHAPE)
    header = kind.header_class()
    header["descrip"] = b"Jane Doe"
    header.set_xyzt_units("mm", "msec")
    source = kind(np.zeros(SHAPE, np.int16), affine, header)
    other = affine.copy()
    other[:3, 3] += 7  # qform and sform may differ; both are kept
    source.set_qform(other, codes[0])
    source.set_sform(affine, codes[1])
    nib.save(source, tmp_path / "in.nii.gz")
    source = nib.load(tmp_path / "in.nii.gz")
    mask = np.zeros(SHAPE, np.uint8)
    mask[3:9, 5, 7] = 1
    write_mask(tmp_path / "mask.nii.gz", mask, source.affine, source.header)
    written = nib.load(tmp_path / "mask.nii.gz")
    assert type(written) is type(source)
    assert geometry(written.header) == geometry(source.header)
    np.testing.assert_array_equal(written.affine, source.affine)
    assert written.get_data_dtype() == np.uint8
    assert written.header["descrip"].item() == b""
    np.testing.assert_array_equal(np.asarray(written.dataobj), mask)


@pytest.mark.parametrize("grid", GRIDS)
def test_itk_reads_the_mask_on_the_grid_of_the_input(tmp_path, grid):
    axcodes, voxel_mm, tilt = GRIDS[grid]
    affine = make_affine(axcodes, voxel_mm, tilt, SHAPE)
    source = nib.Nifti1Image(np.zeros(SHAPE, np.float32), affine)
    nib.save(source, tmp_path / "in.nii.gz")
    write_mask(tmp_path / "with.nii.gz", np.ones(SHAPE, np.uint8), affine, source.header)
    write_mask(tmp_path / "without.nii.gz", np.ones(SHAPE, np.uint8), affine)
    image = sitk.ReadImage(str(tmp_path / "in.nii.gz"))
    for name in ("with", "without"):
        mask = sitk.ReadImage(str(tmp_path / f"{name}.nii.gz"))
        assert mask.GetPixelID() == sitk.sitkUInt8
        for part in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(mask, part)(), getattr(image, part)(), atol=1e-4)
        np.testing.assert_allclose(nib.load(tmp_path / f"{name}.nii.gz").affine, affine, atol=1e-4)


def test_a_series_and_a_header_that_is_none_of_nifti(tmp_path):
    affine = make_affine("LPS", (3.0, 3.0, 4.0), 0.0, SHAPE)
    series = nib.Nifti1Image(np.zeros((*SHAPE, 5), np.int16), affine)
    write_mask(tmp_path / "series.nii.gz", np.ones(SHAPE, np.uint8), affine, series.header)
    assert nib.load(tmp_path / "series.nii.gz").shape == SHAPE
    other = nib.MGHImage(np.zeros(SHAPE, np.float32), affine)
    write_mask(tmp_path / "mgh.nii.gz", np.ones(SHAPE, np.uint8), affine, other.header)
    np.testing.assert_allclose(nib.load(tmp_path / "mgh.nii.gz").affine, affine)
