"""scan/slices.py: planes, tilt and the order of acquisition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from scripts.scan.slices import PLANES, interleaved, tilt_rotation


def test_planes_are_right_handed_and_stacked_along_their_normal():
    for directions, axis in PLANES.values():
        row, column, normal = np.array(directions)
        np.testing.assert_array_equal(np.cross(row, column), normal)
        assert abs(normal[axis]) == 1


@pytest.mark.parametrize("count", [1, 5, 8, 37])
@pytest.mark.parametrize("interleave", [1, 2, 4, 50])
def test_every_slice_is_acquired_once_and_neighbours_apart(count, interleave):
    order = interleaved(count, interleave)
    assert sorted(order) == list(range(count))
    acquired = np.argsort(order)
    steps = np.diff(acquired)
    assert ((steps == interleave) | (acquired[1:] < interleave)).all()
    if count == 8 and interleave == 4:
        assert acquired.tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_tilt_is_about_the_heads_own_axes():
    for seed in range(3):
        angles = np.random.default_rng(seed).uniform(-180, 180, 3)
        expected = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
        np.testing.assert_allclose(tilt_rotation(angles), expected, atol=1e-12)
    # a positive first angle lifts the front
    assert (tilt_rotation((20, 0, 0)) @ [0, 1, 0])[2] > 0.3
