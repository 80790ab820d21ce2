"""weights.py: the authors' networks, as computed by the original, and files that are refused."""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from e3nn import o3
from monai.bundle import ConfigParser, create_workflow

from conftest import BUNDLE
from scripts import weights
from scripts.cubes import along_grid
from scripts.e3pose.checkpoints import import_e3pose, read_state
from scripts.e3pose.network import E3PoseNet, read_axes
from scripts.e3pose.unet import UNet
from scripts.e3pose.weights import import_localizer, import_rotation
from scripts.network import E3CNN, e3cnn
from scripts.network.steerable import SignedMaxPool, SteerableConv

PARITY = Path(__file__).parent / "data/parity"
ROTATION, LOCALIZER = PARITY / "e3cnn_small.pth", PARITY / "unet_small.ckpt"
TOLERANCE: dict[str, Any] = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(scope="module")
def rotation_state():
    return read_state(ROTATION, "net_state_dict")


@pytest.fixture(scope="module")
def localizer_state():
    return read_state(LOCALIZER, "state_dict")


@pytest.fixture(scope="module")
def original():
    """What the original computes, by name."""
    with np.load(PARITY / "e3cnn_small_io.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file}


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Folder that the command has written, from the bundle's folder; 6 mm for speed."""
    folder = tmp_path_factory.mktemp("imported")
    command = [sys.executable, "-m", "scripts.weights", "e3pose", "--rotation", str(ROTATION)]
    command += ["--localizer", str(LOCALIZER), "--output_dir", str(folder)]
    command += ["--crop_size", "16", "--spacing_mm", "6"]
    done = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / "e3pose.json")
    assert sorted(os.listdir(folder)) == ["e3pose.json", "model.pt"]
    return folder


def declared_network(folder):
    parser = ConfigParser()
    parser.read_config([BUNDLE / "configs/inference.json", folder / "e3pose.json"])
    parser["bundle_root"] = str(BUNDLE)
    net = parser.get_parsed_content("network_def")
    path = parser.get_parsed_content("ckpt_path")
    net.load_state_dict(torch.load(path, weights_only=True))
    return net.eval()


@torch.no_grad()
def test_every_level_has_the_originals_features(rotation_state, original):
    net, _ = import_rotation(rotation_state, ROTATION)
    x = original["image"]
    for level, stage in enumerate(net.stages):
        x = stage(x)
        m = 2 * 2**level
        full = o3.Irreps(f"{4 * m}x0e+{4 * m}x0o+{2 * m}x1e+{2 * m}x1o+{m}x2e+{m}x2o")
        reached = {ir for _, ir in stage[-1].irreps_out}
        kept = torch.cat([torch.full((mul * ir.dim,), ir in reached) for mul, ir in full])
        expected = original[f"level{level}"]
        torch.testing.assert_close(x, expected[:, kept], **TOLERANCE)
        assert not expected[:, ~kept].any()  # zero in the original, to the last bit
        assert int((~kept).sum()) == (8 if level == 0 else 0)
    torch.testing.assert_close(net.out(x), original["field"], **TOLERANCE)


@torch.no_grad()
def test_field_axes_and_rotation_are_the_originals(imported, original):
    """Through the files that the command wrote, and the whole chain behind the crop."""
    net, image = declared_network(imported), original["image"]
    assert isinstance(net, E3PoseNet)
    box = along_grid(torch.zeros(1, 1, 3), torch.tensor([[16 * net.spacing_mm]]))  # the volume
    field = net.axis_field(image, box)
    torch.testing.assert_close(field.flatten(1, 2), original["field"], **TOLERANCE)
    axes, _ = read_axes(field)
    torch.testing.assert_close(axes.flatten(), original["pooled"], **TOLERANCE)
    pose = net.predict(image, box).head_to_grid[0]
    torch.testing.assert_close(pose[:3, :3], original["rotation"], **TOLERANCE)


@torch.no_grad()
def test_logits_are_the_originals(imported):
    net = declared_network(imported)
    with np.load(PARITY / "unet_small_io.npz") as file:
        image, logits = (torch.from_numpy(file[name]) for name in ("image", "logits"))
    torch.testing.assert_close(net.localizer(image), logits, **TOLERANCE)


def to_authors(net: E3CNN) -> dict[str, torch.Tensor]:
    """State of an E3CNN that has kept every irrep, under the authors' names."""
    state = {}
    for name, value in net.state_dict().items():
        name = name.replace("center_weight", "sc.weight")
        if match := re.fullmatch(r"stages\.(\d)\.(\d)\.(conv|norm)\.(.*)", name):
            level, place, kind, rest = match.groups()
            number = int(place) + (level == "0")
            kind = "batchnorm" if kind == "norm" else "conv"
            name = f"down.down_blocks.{level}.{kind}{number}.{rest}"
        state[f"net.{name}"] = value
    return state


@torch.no_grad()
@pytest.mark.parametrize(("features", "levels"), [(1, 1), (1, 2), (2, 1)])
def test_cutting_what_is_not_reached_leaves_the_function(features, levels, monkeypatch):
    """Also where the last convolution sees irreps that are zero, and with random scales."""
    config = {"convolutions": 2, "pool": "signed_max", "num_radial": 5, "radius": 2.5}
    with monkeypatch.context() as patch:
        patch.setattr(e3cnn, "reachable", lambda irreps_in, irreps_out, lmax: irreps_out)
        full = E3CNN(features=features, levels=levels, **config).eval()
    for name, value in full.named_parameters():
        if ".norm." in name:
            value.copy_(torch.randn_like(value))
    crop = torch.rand(1, 1, 8, 8, 8)
    cut, found = import_rotation(to_authors(full), "full")
    assert found["features"] == [features * 2**level for level in range(levels)]
    assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in full.parameters())
    torch.testing.assert_close(cut(crop), full(crop), **TOLERANCE)


def multiply_adds(net: E3CNN, side: int) -> float:
    """Products of one crop: entries of the dense kernels x voxels."""
    total = 0.0
    for name, module in net.named_modules():
        if isinstance(module, SteerableConv):
            level = int(name.split(".")[1]) if name != "out" else net.levels - 1
            entries = sum(module.dims_in) * sum(module.dims_out) * module.kernel_size**3
            total += entries * (side >> level) ** 3
    return total


def test_networks_of_the_authors_own_size(monkeypatch):
    """Five levels, m = 2: nothing of the function, but a quarter of the cost is cut away."""
    with monkeypatch.context() as patch:
        patch.setattr(e3cnn, "reachable", lambda irreps_in, irreps_out, lmax: irreps_out)
        full = E3CNN(2, 5, convolutions=2, pool="signed_max", num_radial=5, radius=2.5)
    net, config = import_rotation(to_authors(full), "full")
    assert config["features"] == [2, 4, 8, 16, 32]
    cost = [multiply_adds(network, 64) for network in (full, net)]
    print(f"10^9 multiply-adds of a crop of 64^3, as stored and as imported: {cost}")
    assert 0.74 < cost[1] / cost[0] < 0.77
    whole = E3PoseNet(UNet(), net)
    assert sum(p.numel() * p.element_size() for p in whole.parameters()) < 25e6


def test_sizes_are_read_from_the_weights(imported):
    declared = json.loads((imported / "e3pose.json").read_text())
    definition = declared["network_def"]
    assert definition["localizer"] | {"_target_": ""} == {
        "_target_": "",
        "features": [4, 8, 16],
        "kernel_size": 3,
    }
    rotation = definition["rotation"]
    assert (rotation["levels"], rotation["features"]) == (3, [2, 4, 8])
    assert (rotation["pool"], rotation["num_radial"], rotation["radius"]) == ("signed_max", 5, 2.5)
    assert (definition["crop_size"], declared["spacing_mm"]) == (16, 6.0)
    net = declared_network(imported)
    assert isinstance(net.rotation.stages[1][0], SignedMaxPool)


def test_canonical_axes_turn_the_field(rotation_state, original):
    fields = {}
    for axes in ("RAS", "LAS", "LPS", "RAI", "RSA", "RIA"):
        net, _ = import_rotation(rotation_state, ROTATION, axes)
        with torch.no_grad():
            fields[axes] = net(original["image"])
    right, y, z = fields["RAS"].unbind(1)
    expected = {"LAS": (y, z), "LPS": (-y, z), "RAI": (y, -z), "RSA": (z, y), "RIA": (z, -y)}
    for axes, pair in expected.items():
        torch.testing.assert_close(fields[axes], torch.stack([right, *pair], dim=1), **TOLERANCE)
    for axes in ("ARS", "RA", "RRS"):
        with pytest.raises(ValueError, match=repr(axes)):
            import_rotation(rotation_state, ROTATION, axes)


# --- files that are refused ---


def rotation_error(state):
    with pytest.raises(ValueError, match=r"^R\.pth: ") as error:
        import_rotation(state, "R.pth")
    return str(error.value)


def localizer_error(state):
    with pytest.raises(ValueError, match=r"^U\.ckpt: ") as error:
        import_localizer(state, "U.ckpt")
    return str(error.value)


WEIGHTS = re.compile(r"(conv[12]|out)\.(sc\.)?weight$|batchnorm[12]\.(weight|bias)$")


def test_every_missing_key_is_named(rotation_state, localizer_state):
    """Also where nothing is left of a level, or of all of them."""
    needed = [key for key in rotation_state if WEIGHTS.search(key)]
    assert len(needed) == 3 * 2 * 4 + 2
    for key in needed:
        short = {k: v for k, v in rotation_state.items() if k != key}
        assert repr(key) in rotation_error(short)
    for key in [key for key in localizer_state if key.startswith("model.")]:
        short = {k: v for k, v in localizer_state.items() if k != key}
        assert repr(key) in localizer_error(short)
    short = {k: v for k, v in rotation_state.items() if "down_blocks.1." not in k}
    assert "'net.down.down_blocks.1.batchnorm1.bias'" in rotation_error(short)
    assert "'net.down.down_blocks.0.batchnorm1.bias'" in rotation_error({})
    assert "'model.list_encoder_blocks.0.0.weight'" in localizer_error({})


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("net.down.down_blocks.1.conv2.weight", (5, 2881)),
        ("net.down.down_blocks.0.conv1.sc.weight", (21,)),
        ("net.down.down_blocks.2.batchnorm2.bias", (79,)),
        ("net.down.down_blocks.0.conv1.emb", (7, 7, 7, 5)),
        ("net.out.weight", (4, 312)),
        ("model.list_encoder_blocks.1.2.weight", (8, 9, 3, 3, 3)),
        ("model.list_decoder_blocks.0.0.weight", (8, 16, 3, 3, 3)),
        ("model.last_conv.weight", (2, 4, 1, 1, 1)),
    ],
)
def test_other_sizes_are_refused_with_both_shapes(key, shape, rotation_state, localizer_state):
    state = rotation_state if key.startswith("net.") else localizer_state
    error = rotation_error if key.startswith("net.") else localizer_error
    message = error(state | {key: torch.zeros(shape)})
    assert f"{key}: expected shape {tuple(state[key].shape)}, got {shape}" in message


def test_other_architectures_are_refused(rotation_state, localizer_state):
    key = "net.down.down_blocks.0.batchnorm1.bias"
    message = rotation_error(rotation_state | {key: torch.zeros(21)})
    assert key in message
    assert "(21,)" in message
    key = "net.down.down_blocks.2.conv2.emb"
    other = rotation_state | {key: rotation_state[key].roll(1, -1)}
    assert f"{key}: the kernel is built from other functions" in rotation_error(other)
    for key in ("net.down.down_blocks.0.conv3.weight", "net.down.down_blocks.0.conv1.sc.bias"):
        assert key in rotation_error(rotation_state | {key: torch.zeros(3)})
    key = "model.list_encoder_blocks.0.5.weight"
    assert key in localizer_error(localizer_state | {key: torch.zeros(3)})


def test_files_that_are_no_checkpoints(tmp_path):
    whole, broken = ROTATION.read_bytes(), tmp_path / "broken.pth"
    for content in (whole[:-1], whole[: len(whole) // 2], b"", b"some text", b"\x1f\x8b\x08"):
        broken.write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.pth: cannot be read: truncated, or no"):
            read_state(broken, "net_state_dict")
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such file"):
        read_state(tmp_path / "none.pth", "net_state_dict")
    with pytest.raises(ValueError, match=r"unet_small\.ckpt: expected .*'net_state_dict', found"):
        read_state(LOCALIZER, "net_state_dict")
    for content, message in (
        ([1], "expected a state_dict under 'x'"),
        ({"x": {"a": 1}}, "a: expected a tensor, got a int"),
        ({"x": {"a": torch.tensor([1.0, torch.nan])}}, "a: has values that are NaN"),
    ):
        torch.save(content, broken)
        with pytest.raises(ValueError, match=message):
            read_state(broken, "x")


class Code:
    """Unpickled, it would leave a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


class Settings(dict):
    """As Lightning keeps hyperparameters."""


def test_python_objects_are_refused_or_passed_over_and_never_run(tmp_path, caplog, localizer_state):
    path, trace = tmp_path / "lightning.ckpt", tmp_path / "trace"
    objects = {
        "hyper_parameters": Settings(lr=1e-4, other=argparse.Namespace(a=[1, 2])),
        "callbacks": {Path: Path("best.ckpt"), "rng": np.random.default_rng(0)},
        "code": Code(trace),
    }
    torch.save({"state_dict": localizer_state, **objects}, path)
    with pytest.raises(ValueError, match="could run code") as error:
        read_state(path, "state_dict")
    for name in ("argparse.Namespace", "exec", "Settings", "--skip_objects"):
        assert name in str(error.value)
    state = read_state(path, "state_dict", skip_objects=True)
    assert "passed over objects of" in caplog.text
    assert not trace.exists()
    assert all(state[key].equal(value) for key, value in localizer_state.items())
    torch.load(path, weights_only=False)
    assert trace.exists()  # the file does what it is feared to do
    state = {"a": localizer_state["model.last_conv.bias"].to_sparse()}
    torch.save({"state_dict": state, **objects}, path)
    with pytest.raises(ValueError, match="a: expected a tensor, got a _Skipped"):
        read_state(path, "state_dict", skip_objects=True)


def test_the_command_refuses_what_it_cannot_use(tmp_path, capsys):
    given = {"--rotation": ROTATION, "--localizer": LOCALIZER, "--output_dir": tmp_path / "o"}

    def refused(**changed):
        options = given | {f"--{key}": value for key, value in changed.items()}
        arguments = [str(x) for item in options.items() if item[1] is not None for x in item]
        with pytest.raises(SystemExit) as stop:
            weights.main(["e3pose", *arguments])
        assert stop.value.code == 2
        assert not (tmp_path / "o").exists()
        return capsys.readouterr().err

    assert "required: --localizer" in refused(localizer=None)
    assert "required: --rotation" in refused(rotation=None)
    assert "e3cnn_small.pth: expected a state_dict under 'state_dict'" in refused(
        localizer=ROTATION
    )
    assert "multiple of 4 voxels, got 18" in refused(crop_size=18)
    assert "spacing_mm must be a length in mm, got -1" in refused(spacing_mm=-1)
    assert "'SAR'" in refused(canonical_axes="SAR")


def test_nothing_else_is_overwritten(imported, tmp_path):
    arguments = {"rotation": ROTATION, "localizer": LOCALIZER, "crop_size": 16, "spacing_mm": 6.0}
    before = {path.name: path.stat().st_mtime_ns for path in imported.iterdir()}
    import_e3pose(**arguments, output_dir=imported)  # the same again
    assert {path.name: path.stat().st_mtime_ns for path in imported.iterdir()} == before
    with pytest.raises(ValueError, match=r"e3pose\.json has other content and is left alone"):
        import_e3pose(**arguments | {"spacing_mm": 3.0}, output_dir=imported)
    (tmp_path / "model.pt").write_text("mine")
    with pytest.raises(ValueError, match=r"model\.pt has other content and is left alone"):
        import_e3pose(**arguments, output_dir=tmp_path)
    assert os.listdir(tmp_path) == ["model.pt"]
    assert (tmp_path / "model.pt").read_text() == "mine"


# --- the override with the bundle's configs ---


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    from scripts.phantom import write_dataset

    folder = tmp_path_factory.mktemp("phantoms")
    write_dataset(folder, 1, 1, 1, voxel_mm=(6, 6, 6), headless_share=0.0, progress=False)
    return folder


def run(names, folder, phantoms, output, workflow_type="train", **overrides):
    paths = [str(BUNDLE / "configs" / name) for name in names] + [str(folder / "e3pose.json")]
    workflow = create_workflow(
        config_file=paths,
        workflow_type=workflow_type,
        bundle_root=str(BUNDLE),
        dataset_dir=str(phantoms),
        output_dir=str(output),
        num_workers=0,
        **overrides,
    )
    workflow.run()
    return workflow


def test_inference_with_imported_weights(imported, phantoms, tmp_path):
    """Random weights see no brain; told that all is brain, they place the head in the middle."""
    state = torch.load(imported / "model.pt", weights_only=True)
    state["localizer.out.bias"][1] += 10
    torch.save(state, tmp_path / "brain.pt")
    records = []
    for checkpoint in ({}, {"ckpt_path": str(tmp_path / "brain.pt")}):
        options = {"pictures": False, **checkpoint}
        run(["inference.json"], imported, phantoms / "test", tmp_path, "infer", **options)
        records.append(json.loads((tmp_path / "phantom_0000_pose.json").read_text()))
    assert [record["status"] for record in records] == ["no_head", "ok"]
    assert records[0]["head_to_world"] is None
    pose = torch.tensor(records[1]["head_to_world"], dtype=torch.float64)
    square = pose[:3, :3] @ pose[:3, :3].mT
    torch.testing.assert_close(square, torch.eye(3, dtype=torch.float64), atol=1e-5, rtol=0)
    image = nib.load(phantoms / "test/phantom_0000.nii.gz")
    middle = image.affine @ [*((n - 1) / 2 for n in image.shape), 1]
    assert np.linalg.norm(pose[:, 3].numpy() - middle) < 6
    assert 0 <= records[1]["confidence"] <= 1


def test_fine_tuning_and_evaluating_imported_weights(imported, phantoms, tmp_path):
    before = torch.load(imported / "model.pt", weights_only=True)
    settings = {"epochs": 1, "val_interval": 1, "patch_voxels": 16}
    trained = run(["train.json"], imported, phantoms, tmp_path / "t", **settings)
    rates = [g["initial_lr"] for g in trained.parser.get_parsed_content("optimizer").param_groups]
    assert rates == [0.001, 0.0001]
    after = torch.load(tmp_path / "t/model.pt", weights_only=True)
    assert set(after) == set(before)
    for key, value in before.items():  # from the imported weights on: moved, by one step
        change = (after[key].double() - value.double()).abs().max().item()
        if "running" not in key and "tracked" not in key:
            assert change < 0.01, key
    assert not all(after[key].equal(value) for key, value in before.items())
    names = ["train.json", "evaluate.json"]
    for checkpoint in ({}, {"ckpt_path": str(tmp_path / "t/model.pt")}):
        run(names, imported, phantoms, tmp_path / "e", **checkpoint)
        with open(tmp_path / "e/cases.csv", newline="") as file:
            (row,) = csv.DictReader(file)
        assert 0 <= float(row["reference_crop_deg"]) <= 180
