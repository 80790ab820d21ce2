"""examples/: each runs as it is and prints what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from conftest import REPOSITORY
from scripts.phantom import make_phantom


def run(*arguments):
    """Output of ``examples/volume_to_pose.py`` as JSON, its pose as an array."""
    command = [sys.executable, "examples/volume_to_pose.py", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(done.stdout)
    return np.array(record["head_to_world"]), record


def assert_rigid(pose):
    np.testing.assert_allclose(pose[:3, :3].T @ pose[:3, :3], np.eye(3), atol=1e-4)
    np.testing.assert_allclose(pose[3], [0, 0, 0, 1])
    assert np.linalg.det(pose) == pytest.approx(1, abs=1e-4)


def test_given_nothing_it_shows_a_phantom(tmp_path):
    pose, record = run("--output_dir", tmp_path)
    assert_rigid(pose)
    assert 0 <= record["confidence"] <= 1
    assert imread(tmp_path / "pose.png").std() > 0.05  # a picture, not one shade
    assert nib.load(tmp_path / "phantom.nii.gz").ndim == 3


def test_given_a_volume_it_finds_its_head(tmp_path):
    phantom = make_phantom(2, ga_weeks=31, contrast="t2", voxel_mm=(5, 5, 5), axcodes="LPS")
    nib.save(nib.Nifti1Image(phantom.image, phantom.affine), tmp_path / "stack.nii")
    pose, record = run(tmp_path / "stack.nii", "--output_dir", tmp_path / "new")
    assert_rigid(pose)
    assert np.linalg.norm(pose[:3, 3] - phantom.head_to_world[:3, 3]) < 10
    assert record["brain_volume_ml"] > 50
    assert 0 < record["rotation_sd_deg"] <= 45
    assert imread(tmp_path / "new/pose.png").std() > 0.05
    assert not (tmp_path / "new/phantom.nii.gz").exists()
