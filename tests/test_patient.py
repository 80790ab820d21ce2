"""scan/patient.py: patient and device coordinates, against a table written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.scan.patient import PATIENT_POSITIONS, patient_to_device, world_to_patient

LEFT, POSTERIOR, HEAD = np.eye(3)  # LPS
# What somebody in front of the scanner sees on the right (device +x), below (+y) and far away, in
# the bore (+z), for each way to lie: thought through one by one with a doll on a table.
SEEN = {
    "HFS": (LEFT, POSTERIOR, HEAD),
    "HFP": (-LEFT, -POSTERIOR, HEAD),
    "HFDR": (POSTERIOR, -LEFT, HEAD),
    "HFDL": (-POSTERIOR, LEFT, HEAD),
    "FFS": (-LEFT, POSTERIOR, -HEAD),
    "FFP": (LEFT, -POSTERIOR, -HEAD),
    "FFDR": (-POSTERIOR, -LEFT, -HEAD),
    "FFDL": (POSTERIOR, LEFT, -HEAD),
}


@pytest.mark.parametrize("position", SEEN)
def test_device_axes_are_what_is_seen_from_the_front(position):
    rotation = patient_to_device(position)[:3, :3]
    for axis, direction in enumerate(SEEN[position]):
        np.testing.assert_array_equal(rotation @ direction, np.eye(3)[axis])


def test_all_positions_are_signed_permutations_without_a_mirror():
    assert sorted(PATIENT_POSITIONS) == sorted(SEEN)
    for position in PATIENT_POSITIONS:
        rotation = patient_to_device(position)[:3, :3]
        assert sorted(np.abs(rotation).ravel().tolist()) == [0.0] * 6 + [1.0] * 3
        assert np.linalg.det(rotation) == pytest.approx(1.0)


def test_positions_differ_as_the_standard_says():
    """Feet first is the patient turned about the vertical; prone is rolled about the long axis."""
    about_vertical, about_long = np.diag([-1.0, 1, -1]), np.diag([-1.0, -1, 1])
    for lying in ("S", "P"):
        head_first, feet_first = (patient_to_device(f"{k}F{lying}")[:3, :3] for k in "HF")
        np.testing.assert_array_equal(feet_first, about_vertical @ head_first)
    for first in ("HF", "FF"):
        supine, prone = (patient_to_device(f"{first}{lying}")[:3, :3] for lying in "SP")
        np.testing.assert_array_equal(prone, supine @ about_long)


def test_the_isocentre_is_the_origin_of_the_device():
    transform = patient_to_device("FFDL", (10.0, -20.0, 30.0))
    np.testing.assert_allclose(transform @ [10, -20, 30, 1], [0, 0, 0, 1])
    np.testing.assert_allclose(transform @ [11, -20, 30, 1], [0, 1, 0, 1])  # left is down


@pytest.mark.parametrize("position", ["", "HF", "SITTING", "hfs", "AFDR"])
def test_other_positions_are_refused(position):
    with pytest.raises(ValueError, match=f"patient position '{position}' is none of HFS"):
        patient_to_device(position)


def test_world_to_patient_is_what_simpleitk_says(tmp_path):
    import nibabel as nib
    import SimpleITK as sitk

    affine = np.array([[0, -2.0, 0, 10], [3.0, 0, 0, -20], [0, 0, 4.0, 30], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), affine), tmp_path / "a.nii")
    image = sitk.ReadImage(str(tmp_path / "a.nii"))
    index = (3, 1, 2)
    expected = image.TransformIndexToPhysicalPoint(index)
    np.testing.assert_allclose(world_to_patient((affine @ [*index, 1])[:3]), expected)
    np.testing.assert_allclose((world_to_patient(affine) @ [*index, 1])[:3], expected)
    np.testing.assert_allclose(world_to_patient(world_to_patient(affine)), affine)
    with pytest.raises(ValueError, match=r"got \(4,\)"):
        world_to_patient([1, 2, 3, 1])
