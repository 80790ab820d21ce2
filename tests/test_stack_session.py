"""scan/stack_session.py and session_options.py: what is answered, without sockets or clocks."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("ismrmrd", reason="the extra `scan` is not installed")

from conftest import head_pose, rotation_matrix
from scripts.scan.estimator import Estimate
from scripts.scan.field_of_view import next_centre_mm
from scripts.scan.followers import TrackedPose
from scripts.scan.navigators import Navigator
from scripts.scan.patient import world_to_patient
from scripts.scan.pose_job import Found
from scripts.scan.pose_noise import Noise
from scripts.scan.prescription import FOV_STEP_MM, prescribe
from scripts.scan.session_options import SessionOptions
from scripts.scan.stack_session import StackSession
from scripts.scan.tracking import TrackingParameters

EXTENT = np.array([(-30.0, 30.0), (-40.0, 45.0), (-45.0, 38.0)])
OK = Found("ok", head_pose(), 0.97, EXTENT, 6.0, 4.0, 0.01)


class Scan:
    """A session with a navigator every 2.5 s."""

    def __init__(self, **options):
        self.stack, self.count = StackSession(SessionOptions(**options)), 0

    def tell(self, found, after_s=0.2, learn=True, stamp=0):
        navigator = Navigator(
            self.count, np.zeros((4, 4, 4), np.float32), np.eye(4), 2.5 * self.count, stamp
        )
        self.count += 1
        self.stack.started(navigator)
        if found is not None and learn:
            self.stack.learn(navigator.number, found)
        return self.stack.answer(navigator, found, navigator.received_s + after_s, "")


def test_the_pose_is_that_of_the_navigator_and_the_slice_that_of_the_track():
    scan = Scan(plane="sagittal", thickness_mm=2.0)
    answer = scan.tell(OK)
    np.testing.assert_allclose(answer["head_to_patient_lps"], world_to_patient(OK.head_to_world))
    ahead = scan.stack.tracker.predict(1.0)
    plan = prescribe(ahead.head_to_world, EXTENT, "sagittal", 2.0)
    expected = plan.in_order()[0]
    np.testing.assert_allclose(answer["slice"]["slice_to_world"], expected.slice_to_world)
    assert answer["slice"]["of"] == len(plan.slices)
    assert (answer["latency_ms"], answer["age_ms"], answer["confidence"]) == (200.0, 200.0, 0.97)
    json.dumps(answer)


def test_a_stack_keeps_its_number_of_slices_and_begins_anew_after_the_last():
    scan = Scan(slices=3, interleave=1)
    larger = Found("ok", head_pose(), 0.97, EXTENT * 1.5, 6.0, 4.0, 0.01)
    found = [scan.tell(OK if k < 2 else larger)["slice"] for k in range(5)]
    assert [one["number"] for one in found] == [0, 1, 2, 0, 1]
    assert [one["stack"] for one in found] == [0, 0, 0, 1, 1]
    assert {one["of"] for one in found} == {3}


def test_no_pose_predicts_from_the_track_until_it_is_too_old():
    scan = Scan(max_age_s=6.0)
    assert scan.tell(None)["status"] == "no_pose"
    scan.tell(OK)
    nothing = Found("no_head", message="no head found (no_head)")
    first = scan.tell(nothing)
    assert (first["status"], first["confidence"]) == ("predicted", 0.0)
    assert first["age_ms"] == pytest.approx(2700)  # one repetition and the latency
    assert first["message"] == "no head found (no_head)"
    second = scan.tell(nothing)
    assert second["translation_sd_mm"] > first["translation_sd_mm"]
    old = scan.tell(nothing)
    assert (old["status"], old["slice"], old["head_to_patient_lps"]) == ("no_pose", None, None)


def test_uncertain_poses_do_not_begin_a_stack():
    scan = Scan()
    unsure = Found("uncertain", head_pose(), 0.7, EXTENT, 12.0, 7.0, 0.2)
    answer = scan.tell(unsure)
    assert (answer["status"], answer["slice"]) == ("uncertain", None)
    assert scan.tell(OK)["slice"]["order"] == 0
    assert scan.tell(unsure)["slice"]["order"] == 1


def test_a_late_result_helps_the_next_answer_and_an_older_one_is_left():
    scan = Scan()
    assert scan.tell(None)["status"] == "no_pose"
    assert scan.stack.learn(0, OK) == "used"
    assert scan.tell(None)["status"] == "predicted"
    assert scan.tell(OK)["status"] == "ok"
    assert scan.stack.learn(1, OK) == "late"
    assert scan.stack.learn(77, OK) == "late"


def test_a_jump_is_not_followed_at_once():
    scan = Scan()
    for _ in range(4):
        scan.tell(OK)
    wrong = head_pose()
    wrong[:3, :3] = rotation_matrix(11)
    wrong[:3, 3] += 60
    answer = scan.tell(Found("ok", wrong, 0.96, EXTENT, 6.0, 4.0, 0.02))
    np.testing.assert_allclose(answer["head_to_patient_lps"], world_to_patient(wrong))
    normal = np.array(answer["slice"]["slice_to_world"])[:3, 2]
    assert abs(normal @ head_pose()[:3, 2]) > 0.98  # the slice still follows the track


def test_clocks_that_stand_still_or_go_back_do_not_end_a_session():
    scan = Scan(time_stamp_ms=2.5)
    for stamp in (1000, 1000, 4, 0, 2000):
        assert scan.tell(OK, stamp=stamp)["status"] == "ok"
    assert scan.stack.tracker.predict(5.0).age_s == pytest.approx(0.0)


def test_the_next_navigator_follows_in_steps():
    scan = Scan(fov_step_mm=10.0)
    far = head_pose()
    far[:3, 3] = (100.0, 0, 0)
    answer = scan.tell(Found("ok", far, 0.97, EXTENT, 6.0, 4.0, 0.01))
    middle = np.array([1.5, 1.5, 1.5])
    step = world_to_patient(np.array(answer["navigator_fov_centre_lps"])) - middle
    assert np.linalg.norm(step) == pytest.approx(10.0)
    assert step[0] > 9.9


def test_the_service_asks_for_the_slices_of_the_closed_loop():
    """Against the closed loop's own way from estimates to slices, over the same navigators."""
    follower = TrackedPose(TrackingParameters())
    scan = Scan(plane="coronal")
    dice = np.random.RandomState(0)
    planned, centre = None, np.array([1.5, 1.5, 1.5])  # of the navigators of Scan
    for n in range(25):
        pose = head_pose()
        pose[:3, 3] += dice.normal(0, 2, 3) + (15 if n > 12 else 0)
        status = ("ok", "ok", "uncertain", "no_head")[n % 4] if n else "ok"
        noise = Noise(6.0, 4.0, 0.01)
        given = None if status == "no_head" else pose
        estimate = Estimate(status, given, 0.97, noise, None, None)
        follower.observe(2.5 * n, estimate, pose)
        planned = prescribe(
            follower.pose_at(2.5 * n + 1.0)[0],
            EXTENT,
            "coronal",
            slices=None if planned is None else len(planned.slices),
            phase=None if planned is None else planned.phase,
        )
        one = planned.in_order()[n]
        answer = scan.tell(Found(status, given, 0.97, EXTENT, *noise))
        assert answer["slice"]["number"] == one.number
        assert answer["slice"]["offset_mm"] == one.offset_mm
        np.testing.assert_allclose(answer["slice"]["slice_to_world"], one.slice_to_world)
        following = next_centre_mm(follower.pose_at(2.5 * n + 2.5)[0][:3, 3], centre, FOV_STEP_MM)
        np.testing.assert_allclose(answer["navigator_fov_centre_lps"], world_to_patient(following))


def test_options_from_json():
    options = SessionOptions(thickness_mm=4.0)
    changed = options.changed('{"plane": "coronal", "tilt_deg": [1, 2, 3], "slices": 12}')
    assert (changed.plane, changed.tilt_deg, changed.slices) == ("coronal", (1, 2, 3), 12)
    assert changed.thickness_mm == 4.0
    assert options.plane == "axial"


@pytest.mark.parametrize(
    "text",
    [
        "", "no json", "[]", '"axial"', "null", '{"plane": 3}', '{"thickness_mm": null}',
        '{"thickness_mm": 1e999}', '{"tilt_deg": [1, 2]}', '{"tilt_deg": "a"}', '{"matrix": "x"}',
        '{"deadline_ms": true}', '{"time_stamp_ms": 0}', '{"navigator_slices": -1}', '{"x": 1}',
        '{"interleave": 0}', '{"slices": 0}', '{"repetition_s": "2"}', '{"plane": ["axial"]}',
    ],
)  # fmt: skip
def test_options_that_make_no_session_are_a_value_error(text):
    with pytest.raises(ValueError, match=r"\w"):
        SessionOptions().changed(text)
