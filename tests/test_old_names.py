"""Names that stand in configs of users work for one release, with a FutureWarning."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, create_workflow

from conftest import BUNDLE
from scripts.e3pose.checkpoints import import_e3pose
from scripts.e3pose.network import E3PoseNet
from scripts.e3pose.unet import UNet
from scripts.network import E3CNN
from scripts.phantom import write_dataset

PARITY = Path(__file__).parent / "data/parity"
OLD = {
    "scripts.e3pose.network.E3PoseNet": "scripts.e3pose_network.E3PoseNet",
    "scripts.e3pose.unet.UNet": "scripts.unet.UNet",
}


@pytest.fixture(scope="module")
def written_by_0_7(tmp_path_factory):
    """A folder as version 0.7.0 wrote it: the same but for two names; 6 mm for speed."""
    folder = tmp_path_factory.mktemp("imported")
    path = import_e3pose(
        PARITY / "e3cnn_small.pth", PARITY / "unet_small.ckpt", folder, spacing_mm=6.0, crop_size=16
    )
    text = path.read_text()
    for new, old in OLD.items():
        assert text.count(f'"{new}"') == 1
        text = text.replace(new, old)
    path.write_text(text)
    definition = json.loads(text)["network_def"]
    assert definition["_target_"] == "scripts.e3pose_network.E3PoseNet"
    assert definition["localizer"]["_target_"] == "scripts.unet.UNet"
    assert definition["rotation"]["_target_"] == "scripts.network.E3CNN"
    return folder


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_dataset(folder, 1, 1, 1, voxel_mm=(6, 6, 6), headless_share=0.0, progress=False)
    return folder


@pytest.mark.parametrize(
    ("name", "expected"),
    [("scripts.e3pose_network.E3PoseNet", E3PoseNet), ("scripts.unet.UNet", UNet)],
)
def test_an_old_name_is_the_class_and_says_the_new_one(name, expected):
    module, attribute = name.rsplit(".", 1)
    new = f"{expected.__module__}.{attribute}"
    with pytest.warns(FutureWarning, match=rf"{name} is {new} since 0\.8"):
        assert getattr(importlib.import_module(module), attribute) is expected
    with pytest.raises(AttributeError, match="no attribute 'Other'"):
        importlib.import_module(module).Other  # noqa: B018
    arguments = {} if expected is UNet else {"localizer": None, "rotation": None}
    with pytest.warns(FutureWarning, match=name):
        made = ConfigParser({"it": {"_target_": name, **arguments}}).get_parsed_content("it")
    assert type(made) is expected


@pytest.mark.parametrize("config", ["inference.json", "train.json"])
def test_a_file_of_0_7_declares_the_same_network(config, written_by_0_7):
    parser = ConfigParser()
    parser.read_config([BUNDLE / "configs" / config, written_by_0_7 / "e3pose.json"])
    parser["bundle_root"] = str(BUNDLE)
    with pytest.warns(FutureWarning) as said:
        network = parser.get_parsed_content("network_def")
    assert {old for old in OLD.values() if any(old in str(w.message) for w in said)} == {
        *OLD.values()
    }
    assert isinstance(network, E3PoseNet)
    assert isinstance(network.localizer, UNet)
    assert isinstance(network.rotation, E3CNN)
    assert (network.spacing_mm, network.crop_size, network.crop_fill) == (6.0, 16, 0.6)
    network.load_state_dict(torch.load(written_by_0_7 / "model.pt", weights_only=True))


def run(names, folder, dataset_dir, output_dir, workflow_type="train", **overrides):
    paths = [str(BUNDLE / "configs" / name) for name in names] + [str(folder / "e3pose.json")]
    done = create_workflow(
        config_file=paths,
        workflow_type=workflow_type,
        bundle_root=str(BUNDLE),
        dataset_dir=str(dataset_dir),
        output_dir=str(output_dir),
        num_workers=0,
        **overrides,
    )
    done.run()
    return done


def test_a_file_of_0_7_infers_trains_and_evaluates(written_by_0_7, phantoms, tmp_path):
    """All of it on the grid that the file asks for."""
    folder = written_by_0_7
    run(["inference.json"], folder, phantoms / "test", tmp_path / "i", "infer", pictures=False)
    record = json.loads((tmp_path / "i/phantom_0000_pose.json").read_text())
    assert record["status"] in ("ok", "no_head")
    settings = {"epochs": 1, "val_interval": 1, "patch_voxels": 16}
    trained = run(["train.json"], folder, phantoms, tmp_path / "t", **settings)
    assert trained.parser.get_parsed_content("train#random_transforms")[1].spacing_mm == 6
    before = torch.load(folder / "model.pt", weights_only=True)
    after = torch.load(tmp_path / "t/model.pt", weights_only=True)
    assert set(after) == set(before)
    moved = {key.split(".")[0] for key in after if not after[key].equal(before[key])}
    assert "localizer" in moved
    run(["train.json", "evaluate.json"], folder, phantoms, tmp_path / "e")
    assert (tmp_path / "e/cases.csv").read_text().count("\n") == 2
