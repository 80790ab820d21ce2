"""What bfloat16 costs the shipped rotation network in equivariance; run by itself it prints it.

python tests/test_mixed_precision.py
"""

from __future__ import annotations

import time
from typing import cast

import pytest
import torch
from monai.bundle import ConfigParser

from conftest import BUNDLE
from scripts.cubes import along_grid, sample_cubes
from scripts.geometry import frame_to_rotation, geodesic_deg
from scripts.network import HeadPoseNet, pool_axes
from scripts.phantom import make_phantom
from scripts.training.precision import TrainingInferer
from symmetry import move_field, move_voxels

MOVES = {
    "turn": torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]).double(),  # by 90 degrees
    "mirror": torch.diag(torch.tensor([-1.0, 1, 1])).double(),
}
# largest relative change of the field, and of the rotation in degrees
BOUNDS = {False: (1e-5, 0.05), True: (0.02, 1.0)}


def shipped_network() -> HeadPoseNet:
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.json"))
    network = cast(HeadPoseNet, parser.get_parsed_content("network_def"))
    network.load_state_dict(torch.load(BUNDLE / "models" / "model.pt", weights_only=True))
    return network


def crops(count: int, side: int) -> torch.Tensor:
    """Heads of phantoms (count, 1, side, side, side), as in training placed by their brains."""
    heads = []
    for seed in range(count):
        phantom = make_phantom(seed, ga_weeks=30, contrast="epi", voxel_mm=(4, 4, 4), axcodes="RAS")
        volume = torch.from_numpy(phantom.image / phantom.image.max()).float()[None, None]
        middle = (torch.tensor(volume.shape[2:]) - 1) / 2
        first = torch.from_numpy(phantom.affine).float()
        center = torch.from_numpy(phantom.head_to_world[:3, 3]).float() - first[:3, 3]
        center_mm = torch.linalg.solve(first[:3, :3], center) * 4 - middle * 4
        cube = along_grid(center_mm[None, None], torch.tensor([[150.0]]))
        heads.append(sample_cubes(volume, cube, side, 4.0)[:, 0])
    return torch.cat(heads)


def costs(mixed_precision: bool, inputs: torch.Tensor) -> dict[str, tuple[float, float]]:
    """Root-mean-square relative change of the field, and median change of the rotation in degrees,
    by which turning the crop differs from turning the result."""
    network, inferer = shipped_network().rotation.eval(), TrainingInferer(mixed_precision)
    found = {}
    with torch.no_grad():
        field = inferer(inputs, network).float()
        for name, move in MOVES.items():
            moved, expected = inferer(move_voxels(inputs, move), network), move_field(field, move)
            change = (moved.float() - expected).norm() / expected.norm()
            frames = [frame_to_rotation(pool_axes(f)[0]) for f in (moved.float(), expected)]
            # the sign of e_x is free, frame_to_rotation chooses it
            found[name] = change.item(), geodesic_deg(*frames).median().item()
    return found


def step_cpu_s(mixed_precision: bool) -> float:
    """Processor time of a forward and backward pass of training on two patches, one thread."""
    torch.set_num_threads(1)
    network, inferer = shipped_network().train(), TrainingInferer(mixed_precision)
    patches = torch.rand(2, 1, 64, 64, 64)
    cube = along_grid(torch.zeros(2, 1, 3), torch.full((2, 1), 150.0))
    seconds = []
    for _ in range(5):
        start = time.process_time()
        outputs = inferer(patches, network, cube)
        sum(output.float().square().mean() for output in outputs[:2]).backward()
        seconds.append(time.process_time() - start)
    return sorted(seconds)[2]


@pytest.mark.parametrize("mixed_precision", [False, True])
def test_equivariance_of_the_shipped_weights(mixed_precision):
    """On one coarser crop: a processor without bfloat16 takes half a minute for one of 24^3."""
    bounds = BOUNDS[mixed_precision]
    for name, found in costs(mixed_precision, crops(1, 20)).items():
        assert found[0] < bounds[0], name
        assert found[1] < bounds[1], name
        if mixed_precision:  # else it is not on at all
            assert found[0] > BOUNDS[False][0]


if __name__ == "__main__":
    for mixed_precision in BOUNDS:
        kind = "bfloat16" if mixed_precision else "float32"
        print(f"{kind} step: {step_cpu_s(mixed_precision):.2f} s of one processor")
        for name, (field, rotation_deg) in costs(mixed_precision, crops(4, 24)).items():
            print(f"{kind} {name}: field {field:.1e}, rotation {rotation_deg:.3f} degrees")
