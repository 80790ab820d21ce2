"""prescribe.py: from a pose and its mask to the files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from conftest import head_pose, labelled_case
from scripts.prescribe import main
from scripts.scan.patient import patient_to_device

EYES = np.array([(15.0, 34.0, -20.0), (-15.0, 34.0, -20.0)])  # of labelled_case, head frame


def write_pose(folder, name="case", **changed):
    record = {
        "case": name,
        "status": "ok",
        "head_to_world": head_pose().tolist(),
        "confidence": 0.98,
        "brain_volume_ml": 82.0,
        "message": "",
        **changed,
    }
    path = folder / f"{name}_pose.json"
    path.write_text(json.dumps(record))
    return path


def written(folder, name="case"):
    return json.loads((folder / f"{name}_prescription.json").read_text())


def test_slices_from_mask_and_volume_show_the_eyes(tmp_path, capsys):
    case = labelled_case(tmp_path)
    pose = write_pose(tmp_path)
    (tmp_path / "head_label.nii.gz").rename(tmp_path / "case_mask.nii.gz")
    main([str(pose), "--plane", "axial", "--matrix", "128", "--image", case["image"]])
    assert "slices: " in (printed := capsys.readouterr().out)
    assert "picture: " in printed
    assert (tmp_path / "case_prescription.png").exists()
    record = written(tmp_path)
    assert record["extent_from"] == "mask"
    # brain of 27 mm radius, voxels of 3 mm in a turned grid
    np.testing.assert_allclose(record["extent_mm"], [(-27, 27)] * 3, atol=3.5)
    assert (np.abs(record["extent_mm"]) > 26).all()

    labels = sitk.ReadImage(str(tmp_path / "case_mask.nii.gz"))
    offsets = [one["offset_mm"] for one in record["slices"]]
    entry = record["slices"][int(np.argmin(np.abs(np.array(offsets) + 20)))]
    for x, y, _ in EYES:
        row, column = -y + 63.5, -x + 63.5
        point = np.array(entry["image_position_patient"])
        orientation = np.array(entry["image_orientation_patient"])
        point = point + column * orientation[:3] + row * orientation[3:]
        assert labels[labels.TransformPhysicalPointToIndex(point.tolist())] == 2


def test_without_a_mask_the_volume_of_the_brain_has_to_do(tmp_path, capsys):
    main([str(write_pose(tmp_path)), "--output_dir", str(tmp_path / "new")])
    assert "no picture" in capsys.readouterr().out
    assert written(tmp_path / "new")["extent_from"] == "brain_volume_ml"


def test_the_aligned_volume_beside_the_pose_is_drawn_on(tmp_path):
    pose = write_pose(tmp_path)
    aligned = nib.Nifti1Image(np.random.default_rng(0).random((9, 9, 9)), np.diag([9.0, 9, 9, 1]))
    nib.save(aligned, tmp_path / "case_aligned.nii.gz")
    main([str(pose)])
    assert (tmp_path / "case_prescription.png").stat().st_size > 20_000


def test_names_of_a_bids_tree_are_known(tmp_path):
    pose = write_pose(tmp_path, "sub-1_run-2_desc-T2w")
    case = labelled_case(tmp_path)
    (tmp_path / "head_label.nii.gz").rename(tmp_path / "sub-1_run-2_desc-brain_mask.nii.gz")
    Path(case["image"]).rename(tmp_path / "sub-1_run-2_space-head_T2w.nii.gz")
    main([str(pose)])
    assert written(tmp_path, "sub-1_run-2_desc-T2w")["extent_from"] == "mask"
    assert (tmp_path / "sub-1_run-2_desc-T2w_prescription.png").exists()


def test_the_scanners_coordinates_are_those_of_the_patient_turned(tmp_path):
    options = ["--patient_position", "FFDL", "--isocentre_lps", "5,6,7"]
    main([str(write_pose(tmp_path)), *options])
    record = written(tmp_path)
    transform = patient_to_device("FFDL", (5.0, 6.0, 7.0))
    np.testing.assert_array_equal(record["patient_to_device"], transform)
    one = record["slices"][2]
    device = np.array(one["slice_to_device"])
    np.testing.assert_allclose(
        device[:3, 3], transform[:3, :3] @ one["centre_lps"] + transform[:3, 3]
    )
    np.testing.assert_allclose(device[:3, 2], transform[:3, :3] @ one["normal_lps"])


def test_options_reach_the_stack(tmp_path):
    options = "--plane sagittal --thickness_mm 4 --gap_mm 1 --in_plane_mm 0.8 --matrix 320"
    options += " --slices 9 --interleave 3 --tilt_deg=-5,0,2.5 --fov_centre_mm=-60,0,0"
    options += " --fov_step_mm 10"
    main([str(write_pose(tmp_path)), *options.split()])
    record = written(tmp_path)
    assert (record["plane"], record["tilt_deg"]) == ("sagittal", [-5.0, 0.0, 2.5])
    assert (record["thickness_mm"], record["gap_mm"], record["fov_mm"]) == (4.0, 1.0, 256.0)
    assert [one["order"] for one in record["slices"]] == [0, 3, 6, 1, 4, 7, 2, 5, 8]
    step = np.array(record["navigator_fov_centre_mm"]) - [-60, 0, 0]
    assert np.linalg.norm(step) == pytest.approx(10)


def test_standard_deviations_of_the_pose_widen_the_margin(tmp_path):
    main([str(write_pose(tmp_path, translation_sd_mm=8.0, rotation_sd_deg=None))])
    assert written(tmp_path)["margin_mm"] == 16.0


def test_uncertain_poses_only_if_allowed(tmp_path, capsys):
    pose = write_pose(
        tmp_path, status="uncertain", message="its turn is expected to be off by 21.3 degrees"
    )
    with pytest.raises(SystemExit):
        main([str(pose)])
    message = capsys.readouterr().err
    assert "status 'uncertain'" in message
    assert "--allow_uncertain" in message
    assert "off by 21.3 degrees" in message
    assert list(tmp_path.iterdir()) == [pose]
    main([str(pose), "--allow_uncertain"])
    assert written(tmp_path)["status"] == "uncertain"


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ({"status": "no_head", "head_to_world": None}, ["--allow_uncertain"], "there is no pose"),
        ({"brain_volume_ml": 0.0}, [], "brain_volume_ml must be more than 0, got 0.0"),
        ({"head_to_world": [[1, 2], [3, 4]]}, [], "head_to_world must be 4 x 4"),
        ({"head_to_world": [["a"] * 4] * 4}, [], "case_pose.json: head_to_world must be"),
        ({"brain_volume_ml": "text"}, [], "case_pose.json: could not convert"),
        ({"translation_sd_mm": [3]}, [], "case_pose.json: float"),
        ({"head_to_world": np.diag([2.0, 1, 1, 1]).tolist()}, [], "no rigid transform"),
        ({}, ["--image", "{folder}/none.nii"], "none.nii"),
        ({}, ["--mask", "{folder}/case_pose.json"], "case_pose.json cannot be read as a volume"),
        ({}, ["--tilt_deg", "1,2"], "--tilt_deg"),
        ({}, ["--plane", "oblique"], "--plane"),
        ({}, ["--thickness_mm", "0"], "thickness_mm must be at least 0.1, got 0"),
        ({}, ["--matrix", "0"], "matrix must be at least 1, got 0"),
        ({}, ["--patient_position", "SITTING"], "--patient_position"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, content, options, message):
    pose = write_pose(tmp_path, **content)
    with pytest.raises(SystemExit) as stopped:
        main([str(pose), *(option.format(folder=tmp_path) for option in options)])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == [pose]


@pytest.mark.parametrize("text", ["", "[1, 2]", "{}", "\x00\xff", '"text"', "null"])
def test_a_file_that_is_no_pose_is_named(tmp_path, capsys, text):
    path = tmp_path / "case_pose.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SystemExit):
        main([str(path)])
    assert f"{path} is no pose of inference" in capsys.readouterr().err


def test_an_empty_mask_is_refused_and_a_missing_pose_named(tmp_path, capsys):
    pose = write_pose(tmp_path)
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4)), tmp_path / "m.nii")
    for arguments, message in (
        ([str(pose), "--mask", str(tmp_path / "m.nii")], "mask is empty"),
        ([str(tmp_path / "gone_pose.json")], "gone_pose.json"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err
