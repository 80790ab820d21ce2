"""From one volume to the pose of the head in it, and a picture of it, in Python.

    .venv/bin/python examples/volume_to_pose.py [volume.nii.gz] [--output_dir O]

Without a volume it makes a synthetic one. Frames and units: docs/conventions.md.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundle"))
from scripts.data.volumes import LoadVolumed, ToWorkingGridd
from scripts.evaluation.drawing import draw_pose
from scripts.files import write_nifti
from scripts.geometry import grid_to_world
from scripts.network import HeadPoseNet
from scripts.phantom import make_phantom

parser = argparse.ArgumentParser()
parser.add_argument("volume", nargs="?", type=Path)
parser.add_argument("--output_dir", type=Path, default=Path())
options = parser.parse_args()
options.output_dir.mkdir(parents=True, exist_ok=True)
path = options.volume
if path is None:
    path = options.output_dir / "phantom.nii.gz"
    phantom = make_phantom(seed=0, ga_weeks=30, contrast="epi", voxel_mm=(4, 4, 4))
    write_nifti(path, phantom.image, phantom.affine)

network = HeadPoseNet()
weights = Path(__file__).resolve().parents[1] / "bundle/models/model.pt"
network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))

scan = LoadVolumed("image")({"image": path})["image"]  # (1, i, j, k), as the file has it
grid = ToWorkingGridd(label_key=None)({"image": scan})["image"]  # RAS, 4 mm, in [0, 1]
with torch.no_grad():
    found = network.eval().predict(grid.as_tensor()[None])  # of a batch of one

pose = None  # head_to_world, from mm in the head's frame to RAS mm
if found.head_to_grid.isfinite().all():  # NaN: no head
    to_world = grid_to_world(grid.affine, grid.shape[1:], spacing_mm=4.0)
    pose = (to_world @ found.head_to_grid[0].double()).numpy()
record = {
    "head_to_world": None if pose is None else pose.tolist(),
    # the turn's expected error, one standard deviation: the commands call up to 10 degrees "ok"
    "rotation_sd_deg": None if pose is None else round(found.rotation_sd_deg.item(), 3),
    "confidence": round(found.confidence.item(), 4),
    "brain_volume_ml": round(found.brain_volume_ml.item(), 1),
}
print(json.dumps(record, indent=2))

picture = options.output_dir / "pose.png"
image, label = scan[0].numpy(), found.label[0, 0].numpy()
title = f"{path.name}: confidence {record['confidence']:.2f}"
draw_pose(picture, image, scan.affine.numpy(), label, grid.affine.numpy(), pose, title)
