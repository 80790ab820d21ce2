"""Seconds and memory of the networks, beside what their convolutions alone take.

From the bundle's folder: ``python -m scripts.benchmark [--device cuda] [--repeats 7]``. The floor
of a row is the time of conv3d calls of the same shapes, and of nothing else. Inference runs the
shipped weights on a phantom of 160 x 160 x 64 voxels; training steps run on noise. First comes the
navigator beside other busy processes, with threads that spin while they wait, as libgomp has them,
and with threads that sleep, as all commands of the bundle have them (docs/deployment.md).
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .cubes import along_grid
from .data.volumes import LoadVolumed, ToWorkingGridd
from .e3pose.fast_convolutions import fastest
from .export import declared_network
from .files import write_nifti
from .network import E3CNN, HeadPoseNet, PlainCNN
from .phantom import make_phantom
from .process import sleep_while_waiting
from .training.losses import HeadPoseLoss

ROOT = Path(__file__).parents[1]


class Convolutions(TorchFunctionMode):
    """Notes the conv3d calls of what runs inside: a random input like each, its kernel, padding."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor, Any]] = []

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv3d:
            x, kernel = args[:2]
            padding = args[4] if len(args) > 4 else kwargs.get("padding", 0)
            grad = x.requires_grad  # the first convolution has no gradient of its input
            self.calls.append((torch.rand_like(x).requires_grad_(grad), kernel.detach(), padding))
        return func(*args, **kwargs)

    def run(self) -> list[Tensor]:
        return [torch.conv3d(x, kernel, padding=padding) for x, kernel, padding in self.calls]

    def run_backward(self) -> None:
        for x, kernel, padding in self.calls:
            y = torch.conv3d(x, kernel.requires_grad_(), padding=padding)
            wanted = [part for part in (x, kernel) if part.requires_grad]
            torch.autograd.grad(y, wanted, torch.ones_like(y))


class Table:
    """Times calls and prints a row each."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats
        print(f"{'':46}{'seconds':>9}{'floor':>9}{'ratio':>7}")

    def seconds(self, call: Callable[[], object], repeats: int | None = None) -> float:
        """Median wall time of ``call`` after two calls that do not count."""
        times = []
        for _ in range((repeats or self.repeats) + 2):
            start = time.perf_counter()
            call()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - start)
        return statistics.median(times[2:])

    def row(
        self, name: str, call: Callable[[], object], floor: Callable[[], object] | None = None
    ) -> None:
        taken = self.seconds(call)
        text = f"{name:46}{taken:9.3f}"
        if floor is not None:
            least = self.seconds(floor)
            text += f"{least:9.3f}{taken / least:7.2f}"
        print(text, flush=True)


def convolutions(call: Callable[[], object]) -> Convolutions:
    """The conv3d calls of one call."""
    with Convolutions() as noted:
        call()
    return noted


def peak_gib() -> float:
    """Largest resident memory of this process so far, GiB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def file_to_pose(path: Path, network: HeadPoseNet, device: torch.device) -> Tensor:
    """``head_to_grid`` (1, 4, 4) of a NIfTI file, as inference.json prepares it."""
    to_grid = ToWorkingGridd(label_key=None, spacing_mm=network.chain.spacing_mm)
    image = to_grid(LoadVolumed("image")({"image": str(path)}))["image"].as_tensor()
    return network(image[None].to(device))


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Other processes that each keep a processor busy, as long as this lasts."""
    command = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def beside_others(table: Table, network: HeadPoseNet, folder: Path, waiting: str) -> None:
    """File to pose of a navigator while nothing else runs, and beside busy processes."""
    navigator = folder / "navigator.nii.gz"
    phantom = make_phantom(0, voxel_mm=(6.0, 6.0, 6.0), shape=(64, 64, 48))
    write_nifti(navigator, phantom.image.astype("float32"), phantom.affine)
    for count in (0, 1, 2):
        with busy(count):
            taken = table.seconds(lambda: file_to_pose(navigator, network, table.device), 5)
        print(
            f"{f'navigator beside {count} busy, waiting threads {waiting}':46}{taken:9.3f}",
            flush=True,
        )


def inference(table: Table, network: HeadPoseNet, folder: Path) -> None:
    """From files to poses with the shipped weights, and the parts of the chain."""
    stack, navigator = folder / "stack.nii.gz", folder / "navigator.nii.gz"
    for path, voxel_mm, shape in (
        (stack, (3.0, 3.0, 4.5), (160, 160, 64)),
        (navigator, (6.0, 6.0, 6.0), (64, 64, 48)),
    ):
        phantom = make_phantom(0, voxel_mm=voxel_mm, shape=shape)
        write_nifti(path, phantom.image.astype("float32"), phantom.affine)
    chain, device = network.chain, table.device
    to_grid = ToWorkingGridd(label_key=None, spacing_mm=chain.spacing_mm)
    volume = to_grid(LoadVolumed("image")({"image": str(stack)}))["image"].as_tensor()
    volume = volume[None].to(device)
    size = " x ".join(str(n) for n in volume.shape[2:])
    whole = convolutions(lambda: network(volume))
    network.freeze()
    places = chain.localize(volume)
    first = chain.first_poses(places)
    best = chain.search(volume, first)
    for name, path in (("navigator 64 x 64 x 48", navigator), ("stack 160 x 160 x 64", stack)):
        call = lambda path=path: file_to_pose(path, network, device)  # noqa: E731
        table.row(f"{name}, file to pose", call)
    loaded = LoadVolumed("image")({"image": str(stack)})
    table.row("  of it to the working grid", lambda: to_grid(dict(loaded)))
    table.row(f"  of it volume {size} to pose", lambda: network(volume), whole.run)
    table.row("    of it localize", lambda: chain.localize(volume))
    table.row("    of it first poses", lambda: chain.first_poses(places))
    table.row("    of it search", lambda: chain.search(volume, first))
    table.row("    of it describe", lambda: chain.describe(places, best))


def crops(table: Table, networks: Iterable[tuple[str, nn.Module, Tensor]]) -> None:
    """Rotation networks on crops; the floor is that of the same network before ``freeze``."""
    for name, network, crop in networks:
        network.eval()
        floor = convolutions(lambda n=network, c=crop: n(c)).run  # type: ignore[misc]
        call = lambda n=network, c=crop: n(c)  # type: ignore[misc]  # noqa: E731
        table.row(name, call, floor)
        if isinstance(network, E3CNN):
            network.freeze(crop.shape[-1], fastest)
            table.row(f"{name}, frozen", call, floor)


def training(table: Table, network: HeadPoseNet, batch: int, patch: int) -> None:
    """An optimizer step on noise."""
    loss, device = HeadPoseLoss(), table.device
    optimizer = torch.optim.Adam(network.parameters())
    volumes = torch.rand(batch, 1, patch, patch, patch, device=device)
    target = {
        "label": (volumes > 0.9).float(),
        "head_to_grid": torch.eye(4, device=device).expand(batch, 4, 4),
        "has_head": torch.ones(batch, device=device),
        "crop_point": torch.zeros(4 * batch, 3, 3, device=device),
        "crop_aligned": torch.ones(4 * batch, device=device),
    }
    cubes = torch.rand(4 * batch, 1, 32, 32, 32, device=device)
    cube = along_grid(
        torch.zeros(batch, 1, 3, device=device), torch.full((batch, 1), 140.0, device=device)
    )
    network.train()

    def step(mixed_precision: bool = False) -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision):
            output = network(volumes, cube, cubes)
        loss(output, target).backward()
        optimizer.step()

    floor = convolutions(step)
    name = f"training step, batch {batch}, patch {patch}^3"
    table.row(name, step, floor.run_backward)
    table.row(f"{name}, bfloat16", lambda: step(mixed_precision=True))


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--device", default="cpu")
    options.add_argument("--repeats", type=int, default=7)
    given = options.parse_args()
    device = torch.device(given.device)
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs/train.json"), str(ROOT / "configs/plain_cnn.json")])
    plain: PlainCNN = parser.get_parsed_content("network_def#rotation")
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs/train.json"))

    def shipped() -> HeadPoseNet:
        return declared_network(ROOT / "configs/train.json", ROOT / "models/model.pt").to(device)

    table, before = Table(device, given.repeats), peak_gib()
    network = shipped()
    with torch.no_grad():
        with tempfile.TemporaryDirectory() as folder:
            if device.type == "cpu":
                beside_others(table, network, Path(folder), "spin")
                sleep_while_waiting()
                beside_others(table, network, Path(folder), "sleep")
            inference(table, network, Path(folder))
        inference_gib = peak_gib() - before
        small = torch.rand(4, 3, *[network.chain.crop_size] * 3, device=device)
    training(table, shipped(), parser["batch_size"], parser["patch_voxels"])
    with torch.no_grad():
        authors = E3CNN(2, 5, convolutions=2, pool="signed_max", num_radial=5, radius=2.5)
        large = torch.rand(1, 1, 64, 64, 64, device=device)
        crops(
            table,
            [
                ("shipped E3CNN, 4 crops of 24^3", shipped().rotation, small),
                ("plain CNN, 4 crops of 24^3", plain.to(device), small),
                ("authors' E(3)-CNN, crop of 64^3", authors.to(device), large),
            ],
        )
    if device.type == "cpu":
        print(f"peak memory of inference above the imports {inference_gib:.2f} GiB")
        print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    else:
        print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
