"""scan/extent.py: how far brains reach along the axes of their heads."""

from __future__ import annotations

import numpy as np
import pytest

from conftest import GRIDS, head_pose, make_affine
from scripts.scan.extent import ellipsoid_extent_mm, mask_extent_mm
from scripts.scan.slices import tilt_rotation
from scripts.simulation.volume import make_phantom

RADII = np.array([30.0, 42.0, 36.0])
MIDDLE = np.array([0.0, 5.0, -8.0])


def ellipsoid_mask(affine, shape, pose):
    """An ellipsoid of RADII about MIDDLE of the head frame."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    head = (index @ affine[:3, :3].T + affine[:3, 3] - pose[:3, 3]) @ pose[:3, :3]
    return ((head - MIDDLE) ** 2 / RADII**2).sum(-1) < 1


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("tilt_deg", [(0.0, 0.0, 0.0), (30.0, -10.0, 5.0)])
def test_extent_of_a_mask_on_every_grid(grid, tilt_deg):
    axcodes, voxel_mm, oblique = GRIDS[grid]
    shape = tuple(int(180 / v) for v in voxel_mm)
    affine, pose = make_affine(axcodes, voxel_mm, oblique, shape), head_pose()
    found = mask_extent_mm(ellipsoid_mask(affine, shape, pose), affine, pose, tilt_deg)
    turned = tilt_rotation(tilt_deg)
    reach = np.sqrt((RADII**2) @ turned**2)
    middle = MIDDLE @ turned
    # corners of voxels that are inside: never less than the brain, but for a voxel's middle
    assert (found[:, 0] <= middle - reach + 1.5).all()
    assert (found[:, 1] >= middle + reach - 1.5).all()
    np.testing.assert_allclose(found, np.stack([middle - reach, middle + reach], 1), atol=4.5)


def test_one_voxel_reaches_from_corner_to_corner():
    mask = np.zeros((5, 5, 5))
    mask[2, 2, 2] = 1
    affine = np.diag([-2.0, 3.0, 4.0, 1.0])
    found = mask_extent_mm(mask, affine, np.eye(4))
    np.testing.assert_allclose(found, [(-5, -3), (4.5, 7.5), (6, 10)])


def test_a_stray_part_does_not_count():
    mask = np.zeros((20, 20, 20))
    mask[5:10, 5:10, 5:10] = 1
    alone = mask_extent_mm(mask, np.eye(4), np.eye(4))
    mask[18, 18, 18] = mask[0, 0, 0] = 1
    np.testing.assert_array_equal(mask_extent_mm(mask, np.eye(4), np.eye(4)), alone)


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="mask is empty"):
        mask_extent_mm(np.zeros((3, 3, 3)), np.eye(4), np.eye(4))


@pytest.mark.parametrize("seed", [1, 2])
def test_a_volume_alone_gives_nearly_the_extent_of_the_mask(seed):
    phantom = make_phantom(seed, voxel_mm=(4.0, 4.0, 4.0))
    brain = phantom.label == 1
    ml = brain.sum() * 4.0**3 / 1000
    expected = mask_extent_mm(brain, phantom.affine, phantom.head_to_world)
    # a few mm come from the corners of voxels, the rest from the shape of this brain
    np.testing.assert_allclose(ellipsoid_extent_mm(ml), expected, atol=9)


def test_a_tilt_turns_the_ellipsoid():
    straight, turned = ellipsoid_extent_mm(250.0), ellipsoid_extent_mm(250.0, (90.0, 0, 0))
    np.testing.assert_allclose(turned[0], straight[0])
    np.testing.assert_allclose(turned[1], straight[2])  # what was up is now in front
    np.testing.assert_allclose(turned[2], -straight[1][::-1])


@pytest.mark.parametrize("volume_ml", [0.0, -3.0, float("nan")])
def test_no_volume_no_extent(volume_ml):
    with pytest.raises(ValueError, match="brain_volume_ml must be more than 0"):
        ellipsoid_extent_mm(volume_ml)
