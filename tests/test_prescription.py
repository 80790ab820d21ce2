"""scan/prescription.py: slices, against SimpleITK as another implementation of the geometry."""

from __future__ import annotations

import json
import time

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation

from conftest import GRIDS, LANDMARKS, head_pose, landmark_volume, make_affine
from scripts.scan.prescription import prescribe
from scripts.scan.slices import PLANES

EXTENT = np.array([(-40.0, 40.0), (-45.0, 55.0), (-60.0, 48.0)])
# Where a point of the head is to be seen: signed head axes along the picture's right, its down, and
# along the numbers of the slices. The fetus's right is on the left, the face on the left or above.
SEEN = {
    "axial": ((-1, 0), (-1, 1), 2),
    "coronal": ((-1, 0), (-1, 2), 1),
    "sagittal": ((-1, 1), (-1, 2), 0),
}


def resampled(image, record, number):
    """What SimpleITK shows of an image in the slice that a record prescribes: (row, column)."""
    entry = record["slices"][number]
    orientation = np.array(entry["image_orientation_patient"])
    row, column = orientation[:3], orientation[3:]
    filter_ = sitk.ResampleImageFilter()
    filter_.SetSize((record["matrix"], record["matrix"], 1))
    filter_.SetOutputSpacing((record["in_plane_mm"], record["in_plane_mm"], 1.0))
    filter_.SetOutputOrigin(entry["image_position_patient"])
    normal = np.cross(row, column)
    filter_.SetOutputDirection(np.stack([row, column, normal], axis=1).ravel().tolist())
    np.testing.assert_allclose(normal, entry["normal_lps"], atol=1e-9)
    return sitk.GetArrayFromImage(filter_.Execute(image))[0]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("plane", PLANES)
def test_slices_show_landmarks_where_the_head_has_them(grid, plane, tmp_path):
    axcodes, voxel_mm, oblique = GRIDS[grid]
    shape = tuple(int(200 / v) for v in voxel_mm)
    affine, pose = make_affine(axcodes, voxel_mm, oblique, shape), head_pose()
    path = tmp_path / "image.nii.gz"
    nib.save(nib.Nifti1Image(landmark_volume(pose, affine, shape), affine), path)
    image = sitk.ReadImage(str(path))

    record = prescribe(pose, EXTENT, plane, 3.0, in_plane_mm=1.0, matrix=160).record()
    (right, right_axis), (down, down_axis), axis = SEEN[plane]
    for height, point in enumerate(LANDMARKS, start=1):
        offsets = np.array([one["offset_mm"] for one in record["slices"]])
        number = int(np.argmin(np.abs(offsets - point[axis])))
        assert abs(offsets[number] - point[axis]) <= 1.5
        pixels = resampled(image, record, number)
        # around the place where the blob should be: another one may be in the slice
        expected = np.array([down * point[down_axis], right * point[right_axis]]) + 79.5
        j, i = np.round(expected).astype(int)
        part = pixels[j - 12 : j + 13, i - 12 : i + 13]
        blob = np.where(part > 0.4 * part.max(), part, 0)
        found = np.add(ndimage.center_of_mass(blob), (j - 12, i - 12))
        np.testing.assert_allclose(found, expected, atol=0.7)
        # 6 mm blob, cut at most 1.5 mm from its middle, on voxels of 3 mm and more
        assert part.max() == pytest.approx(height, rel=0.16)


@pytest.mark.parametrize("tilt_deg", [(0, 0, 0), (20.0, 0, 0), (10.0, -35.0, 50.0)])
@pytest.mark.parametrize("plane", PLANES)
def test_slices_are_rigid_and_stacked_along_the_head(plane, tilt_deg):
    pose = head_pose(5)
    stack = prescribe(pose, EXTENT, plane, 4.0, gap_mm=1.0, tilt_deg=tilt_deg)
    axis = SEEN[plane][2]
    # scipy's lower-case "xyz": about fixed axes, x first
    turned = pose[:3, :3] @ Rotation.from_euler("xyz", tilt_deg, degrees=True).as_matrix()
    for k, one in enumerate(stack.slices):
        assert one.number == k
        matrix = one.slice_to_world
        np.testing.assert_allclose(matrix[:3, :3].T @ matrix[:3, :3], np.eye(3), atol=1e-12)
        assert np.linalg.det(matrix) == pytest.approx(1.0)
        assert abs(matrix[:3, 2] @ turned[:, axis]) == pytest.approx(1.0)
        np.testing.assert_allclose(matrix[:3, 3], pose[:3, 3] + one.offset_mm * turned[:, axis])
    offsets = np.array([one.offset_mm for one in stack.slices])
    np.testing.assert_allclose(np.diff(offsets), 5.0)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize(("thickness_mm", "gap_mm"), [(3.0, 0.0), (4.0, 1.5), (2.5, 0.3)])
def test_the_stack_covers_brain_and_margin_and_not_a_slice_more(plane, thickness_mm, gap_mm):
    stack = prescribe(head_pose(), EXTENT, plane, thickness_mm, gap_mm=gap_mm)
    low, high = EXTENT[SEEN[plane][2]]
    offsets = np.array([one.offset_mm for one in stack.slices])
    pitch = thickness_mm + gap_mm
    assert stack.margin_mm == 2 * pitch
    first, last = offsets[0] - thickness_mm / 2, offsets[-1] + thickness_mm / 2
    assert first <= low - stack.margin_mm + 1e-9
    assert last >= high + stack.margin_mm - 1e-9
    assert last - first < high - low + 2 * stack.margin_mm + pitch
    assert (first + last) / 2 == pytest.approx((low + high) / 2)


def test_number_of_slices_is_the_one_of_the_method():
    """Extent over thickness, and four."""
    assert len(prescribe(np.eye(4), EXTENT, "axial", 3.0).slices) == 108 / 3 + 4
    assert len(prescribe(np.eye(4), EXTENT, "axial", 3.0, slices=7).slices) == 7


def test_an_uncertain_pose_takes_more_slices():
    sure = prescribe(np.eye(4), EXTENT, "axial")
    shifted = prescribe(np.eye(4), EXTENT, "axial", translation_sd_mm=6.0)
    assert (sure.margin_mm, shifted.margin_mm) == (6.0, 12.0)
    assert len(shifted.slices) == len(sure.slices) + 4
    turned = prescribe(np.eye(4), EXTENT, "axial", rotation_sd_deg=10.0)
    assert turned.margin_mm == pytest.approx(2 * 60 * np.radians(10))


def test_slices_in_order():
    stack = prescribe(np.eye(4), EXTENT, "axial", interleave=4)
    assert [one.number for one in stack.in_order()][:3] == [0, 4, 8]
    assert [one.order for one in stack.in_order()] == list(range(len(stack.slices)))


def test_the_record_is_plain_json_with_the_fields_of_the_contract():
    record = json.loads(json.dumps(prescribe(head_pose(), EXTENT, "coronal").record()))
    one = record["slices"][3]
    assert {"number", "order", "slice_to_world"} < set(one)
    lengths = {"image_orientation_patient": 6, "image_position_patient": 3}
    for key, length in {**lengths, "normal_lps": 3, "centre_lps": 3}.items():
        assert len(one[key]) == length
    flip = np.array([-1, -1, 1])
    world = np.array(one["slice_to_world"])
    np.testing.assert_allclose(one["image_orientation_patient"][:3], flip * world[:3, 0])
    np.testing.assert_allclose(one["image_orientation_patient"][3:], flip * world[:3, 1])
    np.testing.assert_allclose(one["centre_lps"], flip * world[:3, 3])
    np.testing.assert_allclose(
        record["navigator_fov_centre_lps"], flip * record["navigator_fov_centre_mm"]
    )


def test_the_next_navigator_goes_to_the_brain_but_not_too_far():
    pose = head_pose()
    free = prescribe(pose, EXTENT, "axial")
    np.testing.assert_array_equal(free.navigator_fov_centre_mm, pose[:3, 3])
    far = pose[:3, 3] + [0, 0, 100.0]
    bound = prescribe(pose, EXTENT, "axial", fov_centre_mm=far, fov_step_mm=15.0)
    np.testing.assert_allclose(bound.navigator_fov_centre_mm, far - [0, 0, 15.0])


def test_phase_direction_turns_with_the_head():
    upright = prescribe(np.eye(4), EXTENT, "axial")
    assert (upright.phase, upright.body_mm) == ("column", pytest.approx(280.0))
    assert upright.phase_oversampling == pytest.approx(280 / 256)
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("z", 80, degrees=True).as_matrix()
    lying = prescribe(turned, EXTENT, "axial", phase=upright.phase)
    assert lying.phase == "row"
    # the image has turned, what is phase-encoded still runs from the mother's front to her back
    assert abs(lying.slices[0].slice_to_world[1, 0]) > 0.9
    assert prescribe(np.eye(4), EXTENT, "axial", matrix=512).phase_oversampling == 1.0


def test_what_is_too_small_is_said():
    assert prescribe(np.eye(4), EXTENT, "axial").warnings == ()
    (few,) = prescribe(np.eye(4), EXTENT, "axial", slices=10).warnings
    assert few == "the slices cover 30 mm, the brain is 108.0 mm long there"
    (narrow,) = prescribe(np.eye(4), EXTENT, "axial", matrix=80).warnings
    assert narrow == "a field of view of 80 mm cuts a brain that takes 110.0 mm"


MIRROR, SCALED = np.diag([-1.0, 1, 1, 1]), np.diag([2.0, 2, 2, 1])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"head_to_world": np.full((4, 4), np.nan)}, "4 x 4 and finite"),
        ({"head_to_world": np.eye(3)}, "4 x 4"),
        ({"head_to_world": MIRROR}, "no rigid transform"),
        ({"head_to_world": SCALED}, "no rigid transform"),
        ({"extent_mm": EXTENT.T}, r"extent_mm must be \(3, 2\)"),
        ({"extent_mm": EXTENT[:, ::-1]}, "from low to high"),
        ({"extent_mm": EXTENT * np.inf}, "finite"),
        ({"plane": "oblique"}, "plane 'oblique' is none of axial, coronal, sagittal"),
        ({"thickness_mm": 0.0}, "thickness_mm must be at least 0.1, got 0"),
        ({"thickness_mm": float("nan")}, "thickness_mm .* got nan"),
        ({"gap_mm": -1.0}, "gap_mm must be at least 0, got -1"),
        ({"in_plane_mm": 0.0}, "in_plane_mm"),
        ({"matrix": 0}, "matrix"),
        ({"slices": 0}, "slices must be at least 1, got 0"),
        ({"interleave": 0}, "interleave"),
        ({"fov_step_mm": -1.0}, "fov_step_mm"),
        ({"tilt_deg": (1.0, 2.0)}, "tilt_deg must be three angles"),
        ({"tilt_deg": (1.0, 2.0, float("inf"))}, "tilt_deg must be three angles"),
    ],
)
def test_what_makes_no_stack_is_refused(changed, message):
    good = {"head_to_world": np.eye(4), "extent_mm": EXTENT, "plane": "axial"}
    with pytest.raises(ValueError, match=message):
        prescribe(**{**good, **changed})


def test_it_is_fast():
    start = time.perf_counter()
    for _ in range(20):
        prescribe(np.eye(4), EXTENT, "axial")
    assert (time.perf_counter() - start) / 20 < 0.02
