"""What is said of a case."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import head_pose
from inference_runs import prediction
from scripts.evaluation.record import conclude
from scripts.labels import Status


def item(**changes):
    affine = torch.diag(torch.tensor([4.0, 4, 4, 1])).double()
    affine[:3, 3] = -70
    return {
        "case": "c",
        "path": "in/c.nii.gz",
        "status": Status.OK,
        "message": "",
        "warnings": ["shear of 2 degrees"],
        "doubt": "",
        "image": torch.zeros(1, 36, 36, 36),
        "affine": affine,
    } | changes


def said(given, pose, confidence=0.9, **more):
    batch = {"image": given["image"][None], "affine": given["affine"][None]}
    found = {key: values[0] for key, values in prediction(batch, pose, confidence).items()}
    return conclude(given, found | more, 4.0, 90.0)


def test_the_pose_is_that_of_the_world():
    finding = said(item(), head_pose())
    np.testing.assert_allclose(finding.pose, head_pose(), atol=1e-4)
    np.testing.assert_allclose(finding.record["head_to_world"], head_pose(), atol=1e-4)
    assert finding.record["status"] == "ok"
    assert finding.record["warnings"] == ["shear of 2 degrees"]
    assert "frame" not in finding.record


def test_a_doubt_makes_every_pose_uncertain_and_says_why():
    doubt = "sform and qform mirror each other"
    sure = said(item(doubt=doubt), head_pose(), 1.0)
    assert sure.record["status"] == "uncertain"
    assert sure.record["message"] == f"in/c.nii.gz: {doubt}"
    assert sure.record["head_to_world"] is not None
    assert sure.doubt == doubt
    unsure = said(item(doubt=doubt), head_pose(), 0.2)
    assert unsure.record["status"] == "uncertain"
    assert "off by 144.0 degrees, more than 90" in unsure.record["message"]
    assert doubt in unsure.record["message"]
    nothing = said(item(doubt=doubt), None)
    assert nothing.record["status"] == "no_head"
    assert doubt in nothing.record["message"]


@pytest.mark.parametrize("status", [s for s in Status if not s.usable])
def test_what_could_not_be_read_has_no_pose_whatever_the_network_says(status):
    record = said(item(status=status, message="in/c.nii.gz: why"), head_pose()).record
    assert record["status"] == status
    assert record["head_to_world"] is None
    assert record["confidence"] == record["brain_volume_ml"] == 0
    assert record["message"] == "in/c.nii.gz: why"


def test_frames_of_a_series_are_told():
    frame = SimpleNamespace(frame=2, frames=5, time_s=4.5)
    record = said(item(reading=frame), head_pose()).record
    assert (record["frame"], record["frames"], record["time_s"]) == (2, 5, 4.5)


def test_expected_errors_are_kept_where_the_network_gives_them():
    error = {"rotation_sd_deg": torch.tensor(3.25), "translation_sd_mm": torch.tensor(1.5)}
    record = said(item(), head_pose(), **error).record
    assert (record["rotation_sd_deg"], record["translation_sd_mm"]) == (3.25, 1.5)
    assert "rotation_sd_deg" not in said(item(), None, **error).record
    error["translation_sd_mm"] = torch.tensor(float("nan"))
    record = said(item(), head_pose(), **error).record
    assert record["rotation_sd_deg"] == 3.25
    assert "translation_sd_mm" not in record


@pytest.mark.parametrize(
    ("error_deg", "above_deg", "why"),
    [
        (3.0, 15.0, ""),
        (15.0, 15.0, ""),
        (15.25, 15.0, "its turn is expected to be off by 15.2 degrees, more than 15"),
        (179.0, None, ""),
        (float("nan"), 15.0, "how far off its turn may be is not known"),
        (None, 180.0, "how far off its turn may be is not known"),
        (float("nan"), None, ""),
        (None, None, ""),
    ],
)
@pytest.mark.parametrize("confidence", [0.01, 1.0])
def test_the_expected_error_alone_makes_a_pose_uncertain(error_deg, above_deg, why, confidence):
    """Whatever the confidence; what is not known is uncertain, unless nothing is."""
    given = item()
    batch = {"image": given["image"][None], "affine": given["affine"][None]}
    found = {key: value[0] for key, value in prediction(batch, head_pose(), confidence).items()}
    del found["rotation_sd_deg"]
    if error_deg is not None:
        found["rotation_sd_deg"] = torch.tensor(error_deg)
    record = conclude(given, found, 4.0, above_deg).record
    assert record["status"] == ("uncertain" if why else "ok")
    said_of_it = f"in/c.nii.gz: {why}: check the pose by eye, or scan again"
    assert record["message"] == (said_of_it if why else "")
    known = error_deg is not None and np.isfinite(error_deg)
    assert ("rotation_sd_deg" in record) == known
    assert record["head_to_world"] is not None
    assert record["confidence"] == confidence


@pytest.mark.parametrize("spoiled", ["grid", "pose"])
def test_no_matrix_that_is_not_rigid_is_called_a_pose(spoiled):
    given, pose = item(), head_pose()
    more = {}
    if spoiled == "grid":
        given["affine"][0, 1] = 1.0  # shear
        given["affine"] = given["affine"].contiguous()
        more["head_to_grid"] = torch.eye(4)
        pose = None
    else:
        more["head_to_grid"] = torch.diag(torch.tensor([-1.0, 1, 1, 1]))
    finding = said(given, pose, **more)
    assert finding.record["status"] == "failed"
    assert finding.record["head_to_world"] is None
    assert "in/c.nii.gz" in finding.record["message"]


def test_the_surest_frame_stands_for_a_series():
    sure, unsure = said(item(), head_pose(), 0.9), said(item(), head_pose(), 0.6)
    none = said(item(), None)
    broken = said(item(status=Status.UNREADABLE), None)
    assert sure.surer_than(unsure)
    assert not unsure.surer_than(sure)
    assert unsure.surer_than(none)
    assert none.surer_than(broken)
    assert broken.surer_than(None)
    # the expected error tells more than the confidence
    near = said(item(), head_pose(), 0.7, rotation_sd_deg=torch.tensor(4.0))
    far = said(item(), head_pose(), 0.9, rotation_sd_deg=torch.tensor(40.0))
    assert near.surer_than(far)
    unknown = said(item(), head_pose(), 1.0, rotation_sd_deg=torch.tensor(float("nan")))
    assert far.surer_than(unknown)
    assert not unknown.surer_than(near)


def test_records_are_json():
    json.loads(json.dumps(said(item(), head_pose()).record, allow_nan=False))
