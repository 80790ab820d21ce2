"""How a head moves: presets keep to what they state, and a user's own table is read as meant."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from conftest import head_pose
from scripts.simulation.motion import COLUMNS, PRESETS, draw_motion, motion_of, read_motion

START = head_pose()


def drawn(name: str, count: int = 12, duration_s: float = 100.0):
    return [draw_motion(name, duration_s, np.random.RandomState(seed)) for seed in range(count)]


# medians and 95th percentiles of the way from frame to frame, 2.5 s apart, as docs/series.md states
@pytest.mark.parametrize(
    ("name", "turn_deg", "shift_mm"),
    [
        ("still", ((0.15, 0.35), (0.35, 0.6)), ((0.4, 0.9), (0.9, 1.3))),
        ("typical", ((0.5, 1.5), (6, 25)), ((0.8, 1.7), (4, 9))),
        ("restless", ((4, 9), (30, 80)), ((2, 4.5), (8, 16))),
    ],
)
def test_presets_move_as_far_as_they_say(name, turn_deg, shift_mm):
    turns, shifts = (
        np.concatenate(part) for part in zip(*(m.steps() for m in drawn(name)), strict=True)
    )
    for values, (middle, high) in ((turns, turn_deg), (shifts, shift_mm)):
        assert middle[0] < np.median(values) < middle[1]
        assert high[0] < np.percentile(values, 95) < high[1]


@pytest.mark.parametrize("name", PRESETS)
def test_a_motion_begins_where_the_head_is_stays_near_and_is_smooth(name):
    for motion in drawn(name, 3):
        np.testing.assert_allclose(motion.at(0.0, START), START, atol=1e-12)
        assert np.abs(motion.shift_mm).max() < 60  # the uterus holds it
        times = np.arange(0, 100, 0.05)
        poses = np.array([motion.at(t, START) for t in times[:400]])
        np.testing.assert_allclose(np.linalg.det(poses[:, :3, :3]), 1, atol=1e-9)
        speed_mm = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
        assert speed_mm.max() < 5  # no step of a move in one twentieth of a second


def test_a_seed_gives_one_motion_and_another_seed_another():
    one, two, other = (
        draw_motion("typical", 30, np.random.RandomState(seed)).shift_mm for seed in (4, 4, 5)
    )
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other).max() > 0.1


def write(path, rows, header=COLUMNS, mark=","):
    lines = [mark.join(header), *(mark.join(str(v) for v in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize("mark", [",", "\t"])
def test_a_table_is_the_motion_against_its_first_row(tmp_path, mark):
    """Turned and shifted between rows at constant speed, along the world's axes."""
    rows = [(10, 1, 2, 3, 0, 0, 30), (12, 5, 2, 3, 0, 0, 90), (20, 5, 2, 3, 0, 0, 90)]
    motion = motion_of(write(tmp_path / "m.csv", rows, mark=mark), 1.0, np.random.RandomState(0))
    assert motion.duration_s == 10
    half = motion.at(1.0, START)
    np.testing.assert_allclose(half[:3, 3] - START[:3, 3], [2, 0, 0], atol=1e-9)
    turned = Rotation.from_euler("z", 30, degrees=True).as_matrix() @ START[:3, :3]
    np.testing.assert_allclose(half[:3, :3], turned, atol=1e-9)
    np.testing.assert_allclose(motion.at(10.0, START)[:3, 3] - START[:3, 3], [4, 0, 0], atol=1e-9)
    with pytest.raises(ValueError, match=r"m\.csv: the motion ends at 10 s, asked for 10.5 s"):
        motion.at(10.5, START)


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([(0, 0, 0, 0, 0, 0)], COLUMNS[:-1], "no column rz_deg"),
        ([(0, 0, 0, 0, 0, 0, 0)], COLUMNS, "two rows or more, got 1"),
        ([(0,) * 7, (0,) * 7], COLUMNS, "line 3: time_s has to rise, got 0 after 0"),
        ([(0,) * 7, (1, "nan", 0, 0, 0, 0, 0)], COLUMNS, "line 3: not finite"),
        ([(0,) * 7, (1, "left", 0, 0, 0, 0, 0)], COLUMNS, "line 3: could not convert"),
        ([(0,) * 7, (1, 2)], COLUMNS, "line 3: "),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(tmp_path, rows, header, message):
    path = write(tmp_path / "own.csv", rows, header)
    with pytest.raises(ValueError, match=message) as caught:
        read_motion(path)
    assert "own.csv" in str(caught.value)


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="got 'calm'"):
        motion_of("calm", 1.0, np.random.RandomState(0))
