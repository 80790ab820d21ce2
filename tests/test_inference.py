"""The output contract of inference, on a folder of good and bad volumes."""

from __future__ import annotations

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

from conftest import BUNDLE, head_pose, make_affine
from scripts.geometry import geodesic_deg
from scripts.phantom import make_phantom

STATUSES = {
    "good": "ok",
    "broken": "unreadable",
    "text": "unreadable",
    "zero": "empty",
    "flat": "not_3d",
    "nan": "not_finite",
    "fluid": "no_head",
}


def infer(dataset_dir, output_dir, *arguments):
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file"]
    command += ["configs/inference.json", "--dataset_dir", str(dataset_dir)]
    command += ["--output_dir", str(output_dir), *arguments]
    return subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def mixed_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    phantom = make_phantom(1, ga_weeks=30, contrast="epi", voxel_mm=(4, 4, 4))
    nib.save(nib.Nifti1Image(phantom.image, phantom.affine), folder / "good.nii.gz")
    whole = (folder / "good.nii.gz").read_bytes()
    (folder / "broken.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "text.nii").write_text("this is no NIfTI file")
    (folder / "notes.txt").write_text("this file is left alone")
    empty = np.zeros((20, 20, 20), dtype=np.float32)
    nib.save(nib.Nifti1Image(empty, np.eye(4)), folder / "zero.nii.gz")
    nib.save(nib.Nifti1Image(empty[0] + 1, np.eye(4)), folder / "flat.nii.gz")
    nib.save(nib.Nifti1Image(empty + np.nan, np.eye(4)), folder / "nan.nii.gz")
    ramp = np.add.outer(np.zeros((20, 20)), np.arange(20.0)).astype(np.float32)
    nib.save(nib.Nifti1Image(ramp, np.diag([4.0, 4, 4, 1])), folder / "fluid.nii.gz")
    return folder


@pytest.fixture(scope="module")
def results(mixed_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("poses")
    done = infer(mixed_folder, output)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


def test_every_volume_gets_its_file_and_nothing_else_does(results):
    records = {p.name: json.loads(p.read_text()) for p in results.glob("*.json")}
    assert set(records) == {f"{case}_pose.json" for case in STATUSES}
    assert {r["case"]: r["status"] for r in records.values()} == STATUSES


def test_pose_is_rigid_and_the_record_complete(results):
    record = json.loads((results / "good_pose.json").read_text())
    pose = np.array(record["head_to_world"])
    assert pose.shape == (4, 4)
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-4)
    assert np.linalg.det(pose) == pytest.approx(1, abs=1e-4)
    assert 0 <= record["confidence"] <= 1
    assert record["brain_volume_ml"] > 10


@pytest.mark.parametrize("case", [case for case, status in STATUSES.items() if status != "ok"])
def test_failures_say_why_and_have_no_pose(results, mixed_folder, case):
    record = json.loads((results / f"{case}_pose.json").read_text())
    assert record["head_to_world"] is None
    assert record["confidence"] == 0
    assert f"{mixed_folder}/{case}.nii" in record["message"]


def test_pictures_for_what_can_be_seen(results):
    assert {p.name for p in results.glob("*.png")} == {"good_pose.png", "fluid_pose.png"}


def test_run_fails_only_if_nothing_could_be_done(mixed_folder, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "text.nii").write_text("this is no NIfTI file")
    done = infer(bad, tmp_path / "out")
    assert done.returncode != 0
    assert "no volume could be used" in done.stdout + done.stderr
    assert json.loads((tmp_path / "out/text_pose.json").read_text())["status"] == "unreadable"
    (tmp_path / "none").mkdir()
    done = infer(tmp_path / "none", tmp_path / "out")
    assert done.returncode != 0
    assert "no .nii or .nii.gz file" in done.stdout + done.stderr


def test_storage_order_does_not_change_the_pose(tmp_path):
    """The same voxels stored as RAS, LAS, LPS and PIL give one pose in the world."""
    phantom = make_phantom(2, ga_weeks=31, contrast="t2", voxel_mm=(4, 4, 4), axcodes="RAS")
    image = nib.Nifti1Image(phantom.image, phantom.affine)
    start = nib.io_orientation(image.affine)
    (tmp_path / "in").mkdir()
    codes = ("RAS", "LAS", "LPS", "PIL")
    for code in codes:
        turn = nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(code))
        nib.save(image.as_reoriented(turn), tmp_path / "in" / f"{code}.nii.gz")
    done = infer(tmp_path / "in", tmp_path / "out", "--pictures", "False")
    assert done.returncode == 0, done.stdout + done.stderr
    poses = [
        torch.tensor(json.loads((tmp_path / f"out/{code}_pose.json").read_text())["head_to_world"])
        for code in codes
    ]
    for pose in poses[1:]:
        assert geodesic_deg(poses[0][:3, :3], pose[:3, :3]).item() < 0.1
        assert (poses[0][:3, 3] - pose[:3, 3]).norm().item() < 0.1


def test_picture_shows_the_planes_of_the_head_frame():
    """A blob on the head's anterior axis appears on the left of the sagittal plane, and so on."""
    from scripts.drawing import sample_plane

    pose, shape = head_pose(), (60, 60, 60)
    affine = make_affine("LPS", (3.0, 3.0, 3.0), 10.0, shape)
    index = np.stack(np.meshgrid(*(np.arange(60),) * 3, indexing="ij"), axis=-1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    places = {  # plane: (head axis, row, column of the blob at 40 mm; the centre is at 80, 80)
        "sagittal": {1: (80, 40), 2: (40, 80)},
        "coronal": {0: (80, 40), 2: (40, 80)},
        "axial": {0: (80, 40), 1: (40, 80)},
    }
    for plane, blobs in places.items():
        for axis, expected in blobs.items():
            center = pose[:3, 3] + 40 * pose[:3, axis]
            volume = np.exp(-0.5 * ((world - center) ** 2).sum(-1) / 25).astype(np.float32)
            picture = np.nan_to_num(sample_plane(volume, affine, pose, plane, order=1))
            found = np.unravel_index(picture.argmax(), picture.shape)
            assert np.abs(np.subtract(found, expected)).max() <= 2, (plane, axis, found)
