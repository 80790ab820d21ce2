"""scan/mrd_images.py and navigators.py: geometry of ISMRMRD images against NIfTI and SimpleITK."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("ismrmrd", reason="the extra `scan` is not installed")

import SimpleITK as sitk

from conftest import GRIDS, make_affine
from scripts.scan.mrd_images import (
    MAX_VOXELS,
    ImageRefused,
    check_header,
    image_affine,
    image_values,
    slice_images,
    volume_image,
)
from scripts.scan.navigators import Assembler, Navigator, stacked

SHAPE = (5, 6, 7)


def volume(grid="anisotropic"):
    axcodes, voxel_mm, oblique = GRIDS[grid]
    affine = make_affine(axcodes, voxel_mm, oblique, SHAPE)
    affine[:3, 3] += (11.0, -7.0, 3.0)
    return np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE), affine


@pytest.mark.parametrize("grid", GRIDS)
def test_a_volume_comes_back_as_it_was(grid):
    values, affine = volume(grid)
    image = volume_image(values, affine, repetition=3, acquisition_time_stamp=400)
    head = image.getHead()
    np.testing.assert_allclose(image_affine(head), affine, atol=1e-4)
    np.testing.assert_array_equal(image_values(image), values)
    assert (head.repetition, head.acquisition_time_stamp) == (3, 400)
    check_header(head)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_header_is_what_simpleitk_says_of_the_nifti_file(grid, tmp_path):
    """Position is the middle of the volume, directions are LPS."""
    values, affine = volume(grid)
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "v.nii")
    image = sitk.ReadImage(str(tmp_path / "v.nii"))
    head = volume_image(values, affine).getHead()
    middle = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in SHAPE])
    np.testing.assert_allclose(head.position, middle, atol=1e-4)
    directions = np.array(image.GetDirection()).reshape(3, 3).T
    for found, expected in zip(
        (head.read_dir, head.phase_dir, head.slice_dir), directions, strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(head.field_of_view, np.multiply(image.GetSpacing(), SHAPE))


@pytest.mark.parametrize("grid", GRIDS)
def test_slices_in_any_order_are_the_volume(grid):
    values, affine = volume(grid)
    images = slice_images(values, affine, repetition=1)
    np.random.RandomState(0).shuffle(images)
    found, found_affine, _ = stacked(images)
    # the stack may run the other way along the slices: the same points have the same values
    flipped = not np.allclose(found_affine, affine, atol=1e-3)
    if flipped:
        values = values[:, :, ::-1]
        affine = affine @ np.array(
            [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, SHAPE[2] - 1], [0, 0, 0, 1]]
        )
    np.testing.assert_allclose(found_affine, affine, atol=1e-3)
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.uint32, np.float32, np.float64])
def test_types_are_kept_and_others_become_float(dtype):
    values, affine = volume()
    image = volume_image(values.astype(dtype), affine)
    assert image.data.dtype == dtype
    np.testing.assert_array_equal(image_values(image), values)
    assert volume_image(values.astype(np.int8), affine).data.dtype == np.float32


def test_complex_images_are_taken_by_their_magnitude():
    values, affine = volume()
    image = volume_image((values * np.exp(2j)).astype(np.complex64), affine)
    np.testing.assert_allclose(image_values(image), values, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 8}, "8 channels: combine the coils"),
        ({"matrix_size": (0, 6, 7)}, "matrix size"),
        ({"matrix_size": (60000, 60000, 60000)}, "matrix size"),
        ({"data_type": 99}, "data type 99"),
        ({"field_of_view": (0.0, 1.0, 1.0)}, "field of view"),
        ({"position": (float("nan"), 0.0, 0.0)}, "no geometry"),
        ({"read_dir": (1.0, 1.0, 0.0)}, "not orthonormal"),
        ({"slice_dir": (0.0, 0.0, 0.0)}, "not orthonormal"),
    ],
)
def test_headers_that_cannot_be_meant(changes, message):
    head = volume_image(*volume()).getHead()
    for name, value in changes.items():
        setattr(head, name, value)
    with pytest.raises(ImageRefused, match=message):
        check_header(head)
    assert MAX_VOXELS > 64 * 64 * 48


def test_an_affine_that_shears_has_no_header():
    values, affine = volume()
    affine[0, 1] += 1.0
    with pytest.raises(ValueError, match="shears"):
        volume_image(values, affine)


def test_slices_that_do_not_belong_together():
    values, affine = volume("RAS")
    images = slice_images(values, affine)
    with pytest.raises(ImageRefused, match="not in equal steps"):
        stacked(images[:3] + images[4:])
    with pytest.raises(ImageRefused, match="not in equal steps"):
        stacked([images[0], images[0]])
    with pytest.raises(ImageRefused, match="differ in size or direction"):
        stacked([images[0], *slice_images(values[:4], affine)[1:]])


def test_the_assembler_waits_for_all_slices_and_starts_anew():
    values, affine = volume("RAS")
    assembler = Assembler(SHAPE[2])
    for repetition in range(2):
        *first, last = slice_images(values, affine, repetition=repetition)
        assert [assembler.add(image) for image in first] == [None] * 6
        found, found_affine, _ = assembler.add(last)
        np.testing.assert_array_equal(found, values)
        np.testing.assert_allclose(found_affine, affine, atol=1e-3)
    assert assembler.add(volume_image(values, affine)) is not None


def test_the_middle_of_a_navigator():
    values, affine = volume()
    navigator = Navigator(0, values, affine, 0.0, 0)
    corner = affine @ [*np.subtract(SHAPE, 1), 1]
    np.testing.assert_allclose(navigator.centre_mm, (corner[:3] + affine[:3, 3]) / 2)
