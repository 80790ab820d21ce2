"""Planes of the head frame."""

from __future__ import annotations

import numpy as np

from conftest import head_pose, make_affine
from scripts.evaluation.planes import Head, plane_points, sample_plane


def blob(affine, shape, center):
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    return np.exp(-0.5 * ((world - center) ** 2).sum(-1) / 25).astype(np.float32)


def test_picture_shows_the_planes_of_the_head_frame():
    """A blob on the head's anterior axis appears on the left of the sagittal plane, and so on."""
    pose, shape = head_pose(), (60, 60, 60)
    affine = make_affine("LPS", (3.0, 3.0, 3.0), 10.0, shape)
    places = {  # plane: (head axis, row, column of the blob at 40 mm; the centre is at 80, 80)
        "sagittal": {1: (80, 40), 2: (40, 80)},
        "coronal": {0: (80, 40), 2: (40, 80)},
        "axial": {0: (80, 40), 1: (40, 80)},
    }
    for plane, blobs in places.items():
        for axis, expected in blobs.items():
            volume = blob(affine, shape, pose[:3, 3] + 40 * pose[:3, axis])
            picture = np.nan_to_num(sample_plane(volume, affine, pose, plane, order=1))
            found = np.unravel_index(picture.argmax(), picture.shape)
            assert np.abs(np.subtract(found, expected)).max() <= 2, (plane, axis, found)


def test_parallel_slices_lie_along_the_axis_that_they_do_not_contain():
    pose, shape = head_pose(), (60, 60, 60)
    affine = make_affine("PIL", (3.0, 3.0, 3.0), 0.0, shape)
    for axis, plane in enumerate(("sagittal", "coronal", "axial")):
        volume = blob(affine, shape, pose[:3, 3] + 30 * pose[:3, axis])
        brightness = {
            offset: np.nanmax(sample_plane(volume, affine, pose, plane, 1, offset))
            for offset in (-30.0, 0.0, 30.0)
        }
        assert max(brightness, key=brightness.get) == 30.0
        assert brightness[30.0] > 0.9 > 0.1 > brightness[0.0]


def test_width_and_step():
    points = plane_points("axial", 2.0, 5.0, 20.0)
    assert points.shape == (21, 21, 3)
    np.testing.assert_allclose(points[0, 0], [20, 20, 5])


def test_without_a_pose_the_planes_are_the_middle_of_the_volume():
    affine = make_affine("LPS", (3.0, 3.0, 3.0), 0.0, (20, 20, 20))
    affine[:3, 3] += [5, 6, 7]
    head = Head(np.zeros((20, 20, 20)), affine, None, None, None)
    np.testing.assert_allclose(head.planes_to_world[:3, 3], [5, 6, 7], atol=1e-9)
    np.testing.assert_array_equal(head.planes_to_world[:3, :3], np.eye(3))


def test_the_range_of_a_large_image_is_that_of_a_part_of_its_voxels():
    image = np.random.default_rng(0).uniform(0, 1, (130, 120, 110))
    image[0, 0, 0] = 1e9
    low, high = Head(image, np.eye(4), None, None, None).range()
    assert abs(low - 0.005) < 2e-3
    assert abs(high - 0.995) < 2e-3
