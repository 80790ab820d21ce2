"""What reading costs in memory, without the packages that only some files need."""

from __future__ import annotations

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from conftest import BUNDLE

RUN = """
import json, resource, sys
for extra in ("pydicom", "SimpleITK", "gdcm"):  # MONAI imports what it finds of them
    sys.modules[extra] = None
sys.path.insert(0, sys.argv[1])
from scripts.data.datalists import CaseDataset, volumes_in
from scripts.data.volumes import LoadVolumed, ToWorkingGridd

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

load, grid = LoadVolumed("image"), ToWorkingGridd(label_key=None)
dataset = CaseDataset(volumes_in(sys.argv[2]), lambda entry: grid(load(entry)))
start = peak_mb()
statuses = {str(dataset[0]["status"]) for _ in range(int(sys.argv[3]) // 10 + 1)}
first = peak_mb()
for _ in range(int(sys.argv[3])):
    dataset[0]
print(json.dumps([sorted(statuses), first - start, peak_mb() - first]))
"""


@pytest.mark.parametrize(
    ("shape", "voxel_mm", "times", "most_mb"),
    [((64, 64, 40), 4.0, 100, 60), ((200, 200, 100), 1.4, 0, 150)],
    ids=["many", "large"],
)
def test_memory(tmp_path, shape, voxel_mm, times, most_mb):
    """Of a large float64 stack a small multiple; MONAI's smoothing took 1 GB. None over time."""
    values = np.random.default_rng(0).random(shape)
    nib.save(nib.Nifti1Image(values, np.diag([voxel_mm] * 3 + [1])), tmp_path / "a.nii")
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(BUNDLE), str(tmp_path), str(times)],
        capture_output=True,
        text=True,
        check=True,
    )
    statuses, first, later = json.loads(done.stdout.splitlines()[-1])
    assert statuses == ["ok"]
    assert first < most_mb
    assert later < 10
