"""frozen.py, export.py and ckpt_export: what is frozen or exported gives what the network gives."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
from monai.data import MetaTensor
from torch.nn import functional

from chains import Blind, Rated, mark
from conftest import BUNDLE, labelled_case, save_nifti
from scripts.data.volumes import LoadVolumed, ToWorkingGridd
from scripts.e3pose.fast_convolutions import MatrixConv, TiledConv, fastest
from scripts.export import declared_network, export_program, write_onnx, write_pt2
from scripts.geometry import no_head
from scripts.network import E3CNN, HeadPoseNet
from scripts.network.frozen import DirectConv
from scripts.phantom import make_phantom

TINY = {"features": 1, "levels": 2, "convolutions": 1, "lmax": 1, "in_channels": 3}
# batch, sizes: odd ones, smaller and larger than the window, a batch
SHAPES = [(1, 1, 64, 64, 64), (1, 1, 41, 70, 51), (3, 1, 40, 17, 90)]


def random_norms(network):
    """Weights and biases of the norms away from one and zero, where a mix-up would not show."""
    for name, parameter in network.named_parameters():
        if ".norm." in name:
            parameter.data.uniform_(0.5, 1.5)
    return network


def tiny_chain(sure_deg=180.0):
    torch.manual_seed(0)
    net = HeadPoseNet(
        random_norms(E3CNN(**TINY)),
        crop_size=8,
        localizer_channels=(4, 4, 4, 4, 4, 4),
        min_brain_ml=0.05,
        min_density=1e-4,
        landmarks=None,
        sure_deg=sure_deg,
    )
    # brain wherever the volume is bright, so that there is something to turn
    net.localizer.final_conv.bias.data[8:16] += 0.3
    # what is marked is seen in the second pass only, or not at all
    net.chain.localizer = Blind(net.localizer)
    net.chain.search = Rated()  # the second pass needs an expected error
    return net.eval()


def volumes(tmp_path):
    """Noise, a head as inference prepares it, and a batch that needs the second pass."""
    tmp_path.mkdir(exist_ok=True)
    case = labelled_case(tmp_path)
    loaded = LoadVolumed("image")({"image": case["image"]})
    head = ToWorkingGridd(label_key=None, spacing_mm=4.0)(loaded)["image"].as_tensor()[None]
    generator = torch.Generator().manual_seed(2)
    noise = [torch.rand(shape, generator=generator) for shape in SHAPES]
    unseen = torch.cat([mark(noise[1], 0), noise[1].flip(2), mark(noise[1], 0, 1)])
    return [*noise, head, unseen]


def test_the_volumes_need_both_passes(tmp_path):
    """What the other tests compare: all is found at once but what is marked."""
    net = tiny_chain()
    with torch.no_grad():
        *others, unseen = volumes(tmp_path)
        assert not any(no_head(net.chain.one_pass(volume).head_to_grid).any() for volume in others)
        assert no_head(net.chain.one_pass(unseen).head_to_grid).tolist() == [True, False, True]
        assert no_head(net(unseen)).tolist() == [False, False, True]


def assert_same(found, expected):
    assert found.isnan().equal(expected.isnan())
    torch.testing.assert_close(found.nan_to_num(), expected.nan_to_num(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize(
    ("form", "side"), [(DirectConv, 9), (MatrixConv, 4), (TiledConv, 8), (TiledConv, 16)]
)
def test_forms_of_a_convolution_are_the_same(form, side, size):
    x, kernel = torch.rand(2, 3, side, side, side), torch.randn(5, 3, size, size, size)
    conv = form(kernel, 4, tiles=3) if form is TiledConv else form(kernel)
    expected = functional.conv3d(x, kernel, padding=size // 2)
    torch.testing.assert_close(conv(x), expected, atol=1e-4, rtol=1e-5)
    assert not list(conv.parameters())
    assert not conv.state_dict()


def test_the_form_of_a_convolution_follows_the_size():
    def form(c, out, side, size=5):
        return type(fastest(torch.zeros(out, c, size, size, size), side))

    assert form(30, 64, 64) is TiledConv
    assert form(240, 576, 8) is TiledConv
    assert form(480, 1152, 4) is MatrixConv
    for few in ((3, 36, 24), (60, 144, 6), (30, 64, None), (64, 64, 20)):
        assert form(*few) is DirectConv
    assert form(64, 64, 64, size=3) is DirectConv


@pytest.mark.parametrize("crop_size", [None, 16])
@pytest.mark.parametrize(
    "config",
    [
        {"in_channels": 3},
        {"features": 2, "levels": 3, "convolutions": 2, "num_radial": 5, "radius": 2.5},
        {"features": [2, 2], "levels": 2, "lmax": 1, "convolutions": 1, "pool": "norm_max"},
    ],
)
def test_a_frozen_network_is_the_same(config, crop_size):
    net = random_norms(E3CNN(**config)).eval()
    crop = torch.rand(2, config.get("in_channels", 1), 16, 16, 16)
    with torch.no_grad():
        expected = net(crop)
        weights = {name: value.clone() for name, value in net.state_dict().items()}
        frozen = net.freeze(crop_size, fastest)
        found = frozen(crop)
    assert frozen is net
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert frozen.state_dict().keys() == weights.keys()
    for name, value in frozen.state_dict().items():
        assert value.equal(weights[name]), name


def test_a_frozen_network_cannot_be_trained_nor_loaded():
    net = tiny_chain()
    weights = copy.deepcopy(net.state_dict())
    assert net.freeze() is net
    for frozen in (net, net.rotation):
        with pytest.raises(RuntimeError, match="frozen and cannot be trained: build another one"):
            frozen.train()
        assert not frozen.training
    with pytest.raises(RuntimeError, match="frozen: load weights before"):
        net.load_state_dict(weights)
    other = tiny_chain().train()
    other.load_state_dict(net.state_dict())  # what is frozen can go on in another network
    assert net.eval() is net


def test_a_frozen_chain_is_the_same(tmp_path):
    net = tiny_chain()
    with torch.no_grad():
        expected = [net.predict(volume) for volume in volumes(tmp_path)]
        net.freeze()
        for volume, before in zip(volumes(tmp_path), expected, strict=True):
            after = net.predict(volume)
            assert_same(after.head_to_grid, before.head_to_grid)
            assert after.label.equal(before.label)


LOADED = """
import sys, torch
class Refused:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("e3nn", "monai", "scripts"):
            raise ImportError(name)
sys.meta_path.insert(0, Refused())
path, data = sys.argv[1:]
model = torch.jit.load(path) if path.endswith(".ts") else torch.export.load(path).module()
with torch.no_grad():
    torch.save([model(volume) for volume in torch.load(data)], data)
"""


# line coverage makes tracing slower
@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("name", "sure_deg"),
    [
        ("model.ts", 180.0),
        ("model.pt2", None),
        pytest.param("model.pt2", 180.0, marks=pytest.mark.slow),
    ],
)
def test_exported_files_work_without_this_code(name, sure_deg, tmp_path):
    """Of torch.export one pass: with the second one it takes minutes."""
    net, given, path = tiny_chain(sure_deg), volumes(tmp_path / "volumes"), tmp_path / name
    with torch.no_grad():
        expected = [net(volume) for volume in given]
    if name.endswith("ts"):
        torch.jit.save(torch.jit.script(net), path)
    else:
        write_pt2(export_program(net), path)
    torch.save(given, tmp_path / "data.pt")
    command = [sys.executable, "-c", LOADED, str(path), str(tmp_path / "data.pt")]
    subprocess.run(command, check=True, cwd=tmp_path)
    found = torch.load(tmp_path / "data.pt")
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert_same(a, b)
    assert any(not pose.isnan().any() for pose in found)
    assert any(pose.isnan().any() for pose in found)


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.parametrize("sure_deg", [None, 180.0])
def test_onnx_of_any_batch_and_size(sure_deg, tmp_path):
    """Minutes of conversion, with a second pass more."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net, given = tiny_chain(sure_deg), volumes(tmp_path / "volumes")
    program = export_program(net)
    with torch.no_grad():
        expected = [net(volume) for volume in given]
    assert any(pose.isnan().any() for pose in expected)
    write_onnx(program, tmp_path / "written/model.onnx")
    assert [path.name for path in (tmp_path / "written").iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(str(tmp_path / "written/model.onnx"))
    assert [x.name for x in session.get_inputs() + session.get_outputs()] == [
        "volume",
        "head_to_grid",
    ]
    for volume, pose in zip(given, expected, strict=True):
        (found,) = session.run(None, {"volume": volume.numpy()})
        assert_same(torch.from_numpy(found), pose)


def test_ckpt_export_and_inference_from_the_file(tmp_path):
    """The shipped weights as TorchScript, under the zoo's limit, give what inference.json gives."""
    (tmp_path / "in").mkdir()
    phantom = make_phantom(1, ga_weeks=32.0, contrast="epi", voxel_mm=(5, 5, 5), shape=(64, 64, 64))
    save_nifti(tmp_path / "in/head.nii.gz", phantom.image, phantom.affine)

    def bundle(*arguments):
        command = [sys.executable, "-m", "monai.bundle", *arguments]
        subprocess.run(command, check=True, cwd=BUNDLE, capture_output=True)

    model = str(tmp_path / "model.ts")
    bundle("ckpt_export", "--config_file", "configs/inference.json", "--filepath", model)
    assert (tmp_path / "model.ts").stat().st_size < 25e6
    run = ["run", "--dataset_dir", str(tmp_path / "in"), "--device", "cpu", "--pictures", "False"]
    run += ["--num_workers", "0", "--output_dir"]
    bundle(*run, str(tmp_path / "eager"), "--config_file", "configs/inference.json")
    both = "['configs/inference.json','configs/inference_ts.json']"
    bundle(*run, str(tmp_path / "ts"), "--config_file", both, "--ts_path", model)
    eager, ts = (
        json.loads((tmp_path / name / "head_pose.json").read_text()) for name in ("eager", "ts")
    )
    assert eager["status"] == ts["status"] == "ok"
    assert ts["brain_volume_ml"] == pytest.approx(eager["brain_volume_ml"])
    assert ts["confidence"] == pytest.approx(eager["confidence"], abs=1e-3)
    poses = [torch.tensor(result["head_to_world"]) for result in (eager, ts)]
    torch.testing.assert_close(*poses, atol=1e-3, rtol=0)


@pytest.mark.no_cover
@pytest.mark.parametrize("form", ["script", pytest.param("export", marks=pytest.mark.slow)])
def test_the_shipped_chain_is_the_same(form, tmp_path):
    """With landmarks, whose search is a chain of choices: on a head, where they are clear."""
    net = declared_network(BUNDLE / "configs/inference.json", BUNDLE / "models/model.pt")
    phantom = make_phantom(1, ga_weeks=30, contrast="epi", voxel_mm=(4, 4, 4))
    image = MetaTensor(
        torch.from_numpy(phantom.image).float()[None], affine=torch.from_numpy(phantom.affine)
    )
    volume = ToWorkingGridd(label_key=None)({"image": image})["image"].as_tensor()[None]
    with torch.no_grad():
        expected = net(volume)
        if form == "script":
            exported = torch.jit.script(net)
        else:
            write_pt2(export_program(net), tmp_path / "model.pt2")
            exported = torch.export.load(tmp_path / "model.pt2").module()
        found = exported(volume)
    assert expected.isfinite().all()
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
