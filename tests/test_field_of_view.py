"""scan/field_of_view.py: the phase direction, and the next navigator's centre."""

from __future__ import annotations

import math

import numpy as np
import pytest

from conftest import rotation_matrix
from scripts.scan.field_of_view import (
    MOTHER_MM,
    SWAP_BELOW,
    body_widths_mm,
    next_centre_mm,
    phase_direction,
)

RIGHT, FRONT, UP = np.eye(3)


@pytest.mark.parametrize(
    ("row", "column", "phase"),
    [
        (-RIGHT, -FRONT, "column"),  # across the mother: front to back
        (-RIGHT, -UP, "row"),  # coronal: right to left
        (-FRONT, -UP, "row"),  # sagittal: front to back
        (-UP, -FRONT, "column"),
    ],
)
def test_planes_of_the_mother_are_encoded_as_radiographers_do(row, column, phase):
    assert phase_direction(row, column)[0] == phase


def test_widths_are_those_of_the_ellipsoid():
    """Against points on the ellipsoid's surface that lie in the plane."""
    row, column, _ = rotation_matrix(4).T
    angle = np.linspace(0, 2 * np.pi, 3600)
    directions = np.outer(np.cos(angle), row) + np.outer(np.sin(angle), column)
    radius = 1 / np.linalg.norm(directions / (np.array(MOTHER_MM) / 2), axis=1)
    points = radius[:, None] * directions
    found = body_widths_mm(row, column)
    np.testing.assert_allclose(found, [np.ptp(points @ row), np.ptp(points @ column)], rtol=1e-5)


def turned(angle_deg):
    c, s = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    return c * RIGHT + s * FRONT, -s * RIGHT + c * FRONT


def test_a_head_half_way_between_does_not_change_the_phase_direction():
    assert phase_direction(*turned(40))[0] == "column"
    assert phase_direction(*turned(50))[0] == "row"
    assert phase_direction(*turned(50), "column")[0] == "column"
    assert phase_direction(*turned(40), "row")[0] == "row"
    for before in ("row", "column"):  # but a clear change is followed
        assert phase_direction(*turned(0), before)[0] == "column"
        assert phase_direction(*turned(90), before)[0] == "row"


def test_the_angle_of_the_change_is_the_one_that_is_documented():
    kept = [a for a in range(91) if phase_direction(*turned(a), "column")[0] == "column"]
    assert kept == list(range(62))
    row, column = body_widths_mm(*turned(61))
    assert row == pytest.approx(SWAP_BELOW * column, rel=0.01)


def test_the_width_is_that_of_the_direction_that_is_used():
    for before in (None, "row", "column"):
        phase, width = phase_direction(*turned(50), before)
        assert width == body_widths_mm(*turned(50))[("row", "column").index(phase)]


def test_the_next_navigator_follows_the_head_in_steps():
    head, centre = np.array([30.0, -40.0, 0.0]), np.zeros(3)
    np.testing.assert_array_equal(next_centre_mm(head, None, 20.0), head)
    np.testing.assert_allclose(next_centre_mm(head, centre, 20.0), [12, -16, 0])
    np.testing.assert_array_equal(next_centre_mm(head, centre, 50.0), head)
    np.testing.assert_array_equal(next_centre_mm(head, head, 0.0), head)  # no 0 / 0
    np.testing.assert_array_equal(next_centre_mm(head, centre, 0.0), centre)
    for _ in range(3):
        centre = next_centre_mm(head, centre, 20.0)
    np.testing.assert_allclose(centre, head)
