"""rotation_crops.py: what is cut, what is kept of it, and training on it by its config."""

from __future__ import annotations

import pytest
import torch
from monai.bundle import create_workflow
from torch import nn

from chains import tiny_net
from conftest import BUNDLE
from scripts.cubes import along_grid, sample_cubes
from scripts.files import write_tensors
from scripts.training.rotation_crops import CropCutter, RotationCrops, jittered, load_localizer

SPACING_MM = 4.0


class Drawn(nn.Module):
    """A localizer that takes bright voxels for brain."""

    def forward(self, volume):
        brain = 20 * (volume - 0.5)
        return torch.cat([torch.zeros_like(volume), brain, torch.full_like(volume, -20.0)], dim=1)


def cutter(in_channels=4):
    network = tiny_net(in_channels)
    network.chain.localizer = Drawn()
    network._modules["localizer"] = network.chain.localizer
    return CropCutter(network)


def batch(shift=(0, 0, 0), grown=1.0):
    """One patch with a head, a ball of 40 mm, one without; and how far the reference is off."""
    axis = torch.arange(24) - 11.5
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    ball = ((x - 2) ** 2 + y**2 + z**2 <= 25).float()[None]
    image = torch.stack([ball, torch.zeros_like(ball)])
    pose = torch.eye(4).repeat(2, 1, 1)
    pose[0, :3, :3] = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    center = torch.tensor([[8.0, 0, 0], [0, 0, 0]]) + torch.tensor(shift)
    side = torch.tensor([40 / 0.6, 60.0]) * grown
    has_head = torch.tensor([1.0, 0.0])
    return {
        "image": image, "head_to_grid": pose, "has_head": has_head, "center_mm": center,
        "side_mm": side,
    }  # fmt: skip


def test_two_crops_of_every_head_in_the_reference_cube_and_in_the_localizers():
    cut, given = cutter(), batch(shift=(4.0, 0, 0), grown=1.1)
    crops, rotations = cut(given)
    size = cut.network.chain.crop_size
    assert crops.shape == (2, 3, size, size, size)
    assert rotations.equal(given["head_to_grid"][:1, :3, :3].repeat(2, 1, 1))
    reference = along_grid(given["center_mm"][:1, None], given["side_mm"][:1, None])
    image = given["image"][:1]
    seen = torch.cat([image, torch.sigmoid(20 * (image - 0.5)), torch.zeros_like(image)], dim=1)
    expected = sample_cubes(seen, reference, size, SPACING_MM)[0, 0]
    torch.testing.assert_close(crops[0], expected, atol=1e-3, rtol=0)
    # the localizer knows better where the ball is: its cube is centred on it
    middle = crops[1, 0] - crops[1, 0].flip(0)
    assert middle.abs().max() < 0.02
    assert (crops[0, 0] - crops[0, 0].flip(0)).abs().max() > 0.1


def test_where_the_localizer_sees_another_place_the_second_cube_is_jittered():
    torch.manual_seed(0)
    cut, given = cutter(), batch(shift=(60.0, 0, 0))
    crops, _ = cut(given)
    assert (crops[0] - crops[1]).abs().max() == 0 or not crops[1, 0].any()
    cube = along_grid(torch.zeros(50, 1, 3), torch.full((50, 1), 100.0))
    moved = jittered(cube, shift=0.1, scale=1.25)
    assert moved.center_mm.abs().max() <= 10
    assert moved.center_mm.std() > 4
    assert moved.side_mm.min() >= 80
    assert moved.side_mm.max() <= 125


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "w.pt"
    write_tensors(tiny_net().state_dict(), path)
    return path


def test_files_are_cut_once_and_a_run_that_was_stopped_goes_on(tmp_path, weights):
    passes = []

    class Loader:
        def __iter__(self):
            passes.append(len(passes))
            if len(passes) == 3:
                raise KeyboardInterrupt
            return iter([batch()])

    network = tiny_net()
    with pytest.raises(KeyboardInterrupt):
        RotationCrops(tmp_path / "c", 4, Loader(), network, weights)
    assert len(list((tmp_path / "c").iterdir())) == 2
    crops = RotationCrops(tmp_path / "c", 4, Loader(), network, weights)
    assert len(passes) == 5  # two that were done, the one that was stopped, two more
    assert len(crops) == 8
    again = RotationCrops(tmp_path / "c", 4, None, network, "nowhere.pt")
    assert torch.equal(again[3]["rotation"], crops[3]["rotation"])
    assert again[0]["crop"].shape[0] == 3
    for key, value in network.localizer.state_dict().items():
        assert value.equal(torch.load(weights)[f"localizer.{key}"])


def test_items_are_augmented_and_have_the_channels_of_the_network(tmp_path, weights):
    def brighter(d):
        return {"image": d["image"] + 1}

    torch.manual_seed(1)
    network = tiny_net(in_channels=4)
    crops = RotationCrops(tmp_path, 1, [batch()], network, weights, [brighter], maps_dropout=0.5)
    stored = torch.load(tmp_path / "crops_0000_0.pt")["crop"][0].float()
    shown = [crops[0]["crop"] for _ in range(20)]
    assert all(item[:1].equal(stored[:1] + 1) for item in shown)
    lost = [not item[1:3].any() for item in shown]
    assert 3 < sum(lost) < 17
    assert all(gone or item[1:3].equal(stored[1:]) for gone, item in zip(lost, shown, strict=True))
    assert all(item.shape[0] == 4 for item in shown)


def test_what_cannot_be_used_is_refused(tmp_path, weights):
    network = tiny_net()
    nobody = batch()
    nobody["has_head"] = torch.zeros(2)
    with pytest.raises(ValueError, match="no patch shows a head"):
        RotationCrops(tmp_path / "a", 1, [nobody], network, weights)
    with pytest.raises(ValueError, match="--init_path"):
        RotationCrops(tmp_path / "b", 1, [batch()], network, None)
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        load_localizer(network, tmp_path / "none.pt")
    write_tensors({"localizer.w": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt"):
        load_localizer(network, tmp_path / "other.pt")


@pytest.mark.parametrize("plain", [False, True])
def test_the_config_trains_the_rotation_and_nothing_else(tmp_path, plain):
    from scripts.phantom import write_dataset
    from test_configs import HEADS_IN_SIGHT, SMALL, SMALL_PLAIN, training_overrides

    write_dataset(tmp_path / "d", 2, 1, 0, voxel_mm=(6, 6, 6), progress=False)
    names = ["train", *(["plain_cnn"] if plain else []), "rotation", "rotation_crops"]
    files = [str(BUNDLE / f"configs/{name}.json") for name in names]
    overrides = training_overrides(tmp_path / "d", tmp_path / "o", SMALL_PLAIN if plain else SMALL)
    start = create_workflow(config_file=files[:1], workflow_type="train", **{
        **training_overrides(tmp_path / "d", tmp_path / "o")
    })  # fmt: skip
    start.initialize()
    given = start.parser.get_parsed_content("network").state_dict()
    write_tensors(given, tmp_path / "start.pt")
    more = {"init_path": str(tmp_path / "start.pt"), "crop_passes": 1, "crops_per_epoch": 4}
    run = create_workflow(
        config_file=files, workflow_type="train", **overrides | HEADS_IN_SIGHT | more
    )
    run.run()
    after = torch.load(tmp_path / "o/model.pt", weights_only=True)
    others = [key for key in after if not key.startswith("rotation.")]
    assert all(after[key].equal(given[key]) for key in others)
    if not plain:
        rotation = [key for key in after if key.startswith("rotation.")]
        assert any(not after[key].equal(given[key]) for key in rotation)
    assert list((tmp_path / "o/crops").glob("crops_0000_0.pt"))
