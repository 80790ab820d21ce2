"""Seconds and memory of the network as inference.json and train.json declare it.

From the bundle's folder: ``python -m scripts.benchmark``. Inference runs the shipped weights on a
phantom, because the time of the largest component depends on the mask; training steps on noise.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose

from .crop import Box
from .loss import HeadPoseLoss
from .network import HeadPoseNet
from .phantom import make_phantom
from .transforms import ToWorkingGridd

ROOT = Path(__file__).parents[1]


def median_seconds(call: Callable[[], object], repeats: int = 7) -> float:
    """Median wall time of ``call`` after one call that does not count."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_gib() -> float:
    """Largest resident memory of this process so far, GiB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Print the table."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs/train.json"))
    network: HeadPoseNet = parser.get_parsed_content("network_def")
    batch, patch = parser["batch_size"], parser["patch_voxels"]
    before = peak_gib()

    state = torch.load(ROOT / "models/model.pt", weights_only=True)
    network.load_state_dict(state)
    phantom = make_phantom(0, voxel_mm=(3, 3, 4.5), shape=(160, 160, 64))
    image = MetaTensor(
        torch.from_numpy(phantom.image).float()[None], affine=torch.from_numpy(phantom.affine)
    )
    item = {"image": image}
    to_grid = Compose([ToWorkingGridd(label_key=None, spacing_mm=network.spacing_mm)])
    seconds = {"stack 160 x 160 x 64 to working grid": median_seconds(lambda: to_grid(item))}
    volume = to_grid(item)["image"].as_tensor()[None]
    network.eval()
    with torch.no_grad():
        shape = " x ".join(str(n) for n in volume.shape[2:])
        seconds[f"volume {shape} to pose"] = median_seconds(lambda: network(volume))
        seconds["of it the localizer, both looks"] = median_seconds(lambda: network.closer(volume))
        box = Box(torch.zeros(1, 3), torch.full((1,), 140.0))
        logits = torch.zeros(1, 3, *volume.shape[2:])
        seconds["of it the E3CNN"] = median_seconds(lambda: network.axis_field(volume, logits, box))
    inference_gib = peak_gib() - before

    loss = HeadPoseLoss()
    optimizer = torch.optim.Adam(network.parameters())
    volumes = torch.rand(batch, 1, patch, patch, patch)
    target = {
        "label": (volumes > 0.9).float(),
        "head_to_grid": torch.eye(4).expand(batch, 4, 4),
        "has_head": torch.ones(batch),
    }
    boxes = Box(torch.zeros(batch, 3), torch.full((batch,), 140.0))
    network.train()

    def step() -> None:
        optimizer.zero_grad()
        loss(network(volumes, boxes), target).backward()
        optimizer.step()

    seconds[f"training step, batch {batch}, patch {patch}^3"] = median_seconds(step)
    for name, value in seconds.items():
        print(f"{name:44}{value:8.3f} s")
    print(f"{'peak memory of inference above the imports':44}{inference_gib:8.2f} GiB")
    print(f"{'peak memory with training':44}{peak_gib() - before:8.2f} GiB")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")


if __name__ == "__main__":
    main()
