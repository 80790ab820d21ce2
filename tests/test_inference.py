"""The output contract of inference, on a folder of good and bad volumes."""

from __future__ import annotations

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.utils import CommonKeys

from conftest import BUNDLE
from scripts.cubes import along_grid
from scripts.evaluation.inferer import HeadPoseInferer
from scripts.evaluation.pose_writer import PoseWriter
from scripts.evaluation.run_folder import RunFolder
from scripts.geometry import geodesic_deg
from scripts.network import E3CNN, HeadPoseNet
from scripts.phantom import make_phantom
from scripts.training.batches import PrepareHeadBatch
from scripts.training.losses import HeadPoseLoss
from scripts.training.precision import TrainingInferer

STATUSES = {
    "good": "ok",
    "broken": "unreadable",
    "text": "unreadable",
    "zero": "empty",
    "flat": "not_3d",
    "nan": "not_finite",
    "fluid": "no_head",
}


def infer(dataset_dir, output_dir, *arguments):
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file"]
    command += ["configs/inference.json", "--dataset_dir", str(dataset_dir)]
    command += ["--output_dir", str(output_dir), *arguments]
    return subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def mixed_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    phantom = make_phantom(1, ga_weeks=30, contrast="epi", voxel_mm=(4, 4, 4))
    nib.save(nib.Nifti1Image(phantom.image, phantom.affine), folder / "good.nii.gz")
    whole = (folder / "good.nii.gz").read_bytes()
    (folder / "broken.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "text.nii").write_text("this is no NIfTI file")
    (folder / "notes.txt").write_text("this file is left alone")
    empty = np.zeros((20, 20, 20), dtype=np.float32)
    nib.save(nib.Nifti1Image(empty, np.eye(4)), folder / "zero.nii.gz")
    nib.save(nib.Nifti1Image(empty[0] + 1, np.eye(4)), folder / "flat.nii.gz")
    nib.save(nib.Nifti1Image(empty + np.nan, np.eye(4)), folder / "nan.nii.gz")
    ramp = np.add.outer(np.zeros((20, 20)), np.arange(20.0)).astype(np.float32)
    nib.save(nib.Nifti1Image(ramp, np.diag([4.0, 4, 4, 1])), folder / "fluid.nii.gz")
    return folder


@pytest.fixture(scope="module")
def results(mixed_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("poses")
    done = infer(mixed_folder, output)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


def test_every_volume_gets_its_file_and_nothing_else_does(results):
    records = {p.name: json.loads(p.read_text()) for p in results.glob("*.json")}
    assert set(records) == {f"{case}_pose.json" for case in STATUSES}
    assert {r["case"]: r["status"] for r in records.values()} == STATUSES


def test_pose_is_rigid_and_the_record_complete(results):
    record = json.loads((results / "good_pose.json").read_text())
    pose = np.array(record["head_to_world"])
    assert pose.shape == (4, 4)
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-4)
    assert np.linalg.det(pose) == pytest.approx(1, abs=1e-4)
    assert 0 <= record["confidence"] <= 1
    assert record["brain_volume_ml"] > 10


@pytest.mark.parametrize("case", [case for case, status in STATUSES.items() if status != "ok"])
def test_failures_say_why_and_have_no_pose(results, mixed_folder, case):
    record = json.loads((results / f"{case}_pose.json").read_text())
    assert record["head_to_world"] is None
    assert record["confidence"] == 0
    assert f"{mixed_folder}/{case}.nii" in record["message"]


def test_the_run_has_a_page_and_a_table(results):
    page = (results / "report.html").read_text()
    assert "notes.txt" in page  # left aside
    rows = (results / "poses.tsv").read_text().splitlines()[1:]
    assert {row.split("\t")[0]: row.split("\t")[1] for row in rows} == STATUSES


def test_pictures_for_what_can_be_seen(results):
    assert {p.name for p in results.glob("*.png")} == {"good_pose.png", "fluid_pose.png"}


def test_run_fails_only_if_nothing_could_be_done(mixed_folder, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "text.nii").write_text("this is no NIfTI file")
    done = infer(bad, tmp_path / "out")
    assert done.returncode != 0
    assert "no volume could be used" in done.stdout + done.stderr
    assert json.loads((tmp_path / "out/text_pose.json").read_text())["status"] == "unreadable"
    (tmp_path / "none").mkdir()
    done = infer(tmp_path / "none", tmp_path / "out")
    assert done.returncode != 0
    assert "no .nii or .nii.gz file" in done.stdout + done.stderr


def test_storage_order_does_not_change_the_pose(tmp_path):
    """The same voxels stored as RAS, LAS, LPS and PIL give one pose in the world."""
    phantom = make_phantom(2, ga_weeks=31, contrast="t2", voxel_mm=(4, 4, 4), axcodes="RAS")
    image = nib.Nifti1Image(phantom.image, phantom.affine)
    start = nib.io_orientation(image.affine)
    (tmp_path / "in").mkdir()
    codes = ("RAS", "LAS", "LPS", "PIL")
    for code in codes:
        turn = nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(code))
        nib.save(image.as_reoriented(turn), tmp_path / "in" / f"{code}.nii.gz")
    outputs = ("--outputs", "aligned,transform", "--aligned_mm", "4")
    done = infer(tmp_path / "in", tmp_path / "out", *outputs)
    assert done.returncode == 0, done.stdout + done.stderr
    aligned = [nib.load(tmp_path / f"out/{code}_aligned.nii.gz").get_fdata() for code in codes]
    for other in aligned[1:]:  # the same picture
        assert np.corrcoef(aligned[0].ravel(), other.ravel())[0, 1] > 0.999
    poses = [
        torch.tensor(json.loads((tmp_path / f"out/{code}_pose.json").read_text())["head_to_world"])
        for code in codes
    ]
    for pose in poses[1:]:
        assert geodesic_deg(poses[0][:3, :3], pose[:3, :3]).item() < 0.1
        assert (poses[0][:3, 3] - pose[:3, 3]).norm().item() < 0.1


# In this process: what stands between MONAI's engines and the network


@pytest.fixture
def network():
    """A tiny HeadPoseNet, a batch of volumes, and cubes to look at."""
    rotation = E3CNN(features=1, levels=2, convolutions=1, lmax=1, in_channels=3)
    chain = {"crop_size": 8, "localizer_channels": (4,) * 6, "min_brain_ml": 0.0}
    return HeadPoseNet(rotation, **chain, landmarks=None, maps_dropout=0.0)


CUBE = along_grid(
    torch.tensor([[[5.0, -4.0, 3.0]], [[0.0, 0.0, 8.0]]]), torch.tensor([[60.0], [70.0]])
)


def test_inferer_gives_what_the_network_predicts_and_the_pose_of_the_reference_crop(network):
    volumes = torch.rand(2, 1, 18, 20, 16)
    found = HeadPoseInferer()(volumes, network.eval(), CUBE)
    with torch.no_grad():
        expected = network.predict(volumes)
        reference = network.predict(volumes, CUBE).head_to_grid
    for name, value in expected._asdict().items():
        torch.testing.assert_close(found.pop(name), value, equal_nan=True)
    pose = found.pop("reference_crop")
    assert pose.equal(reference)
    assert not found
    torch.testing.assert_close(pose[:, :3, 3], CUBE.center_mm[:, 0])  # where the reference says
    without = HeadPoseInferer()(volumes, network)
    assert set(without) == set(expected._fields)
    assert not any(value.requires_grad for value in without.values())


def test_inferer_takes_what_training_hands_it(network):
    """The landmarks' cubes too, which a pose does not need."""
    volumes = torch.rand(2, 1, 18, 20, 16)
    batch = {
        "image": volumes,
        "label": torch.zeros(2, 1, 18, 20, 16),
        "head_to_grid": torch.eye(4).repeat(2, 1, 1),
        "has_head": torch.ones(2),
        "center_mm": CUBE.center_mm[:, 0],
        "side_mm": CUBE.side_mm[:, 0],
        "crop": torch.rand(2, 3, 1, 8, 8, 8),
        "crop_point": torch.zeros(2, 3, 3, 3),
        "crop_aligned": torch.ones(2, 3),
    }
    image, target, inputs, _ = PrepareHeadBatch()(batch)
    assert image.equal(volumes)
    for found, expected in zip(inputs.cube, CUBE, strict=True):
        assert found.equal(expected)
    assert inputs.landmark_cubes.equal(batch["crop"].flatten(0, 1))
    assert target["crop_point"].shape == (6, 3, 3)
    found = HeadPoseInferer()(image, network.eval(), *inputs)
    expected = HeadPoseInferer()(image, network, CUBE)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found["reference_crop"], expected["reference_crop"])
    for name in ("crop", "crop_point", "crop_aligned"):
        del batch[name]
    assert PrepareHeadBatch()(batch)[2].landmark_cubes is None


@pytest.mark.parametrize(
    ("capabilities", "warnings"),
    [
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, 1),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, 0),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, 0),
        ({"architecture": "aarch64"}, 0),
    ],
)
def test_mixed_precision_warns_once_where_it_is_slower(monkeypatch, caplog, capabilities, warnings):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    volume = torch.zeros(1)
    TrainingInferer(mixed_precision=False)(volume, torch.nn.Identity())
    assert not caplog.records
    inferer = TrainingInferer(mixed_precision=True)
    for _ in range(2):
        inferer(volume, torch.nn.Identity())
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warnings


@pytest.mark.parametrize("mixed_precision", [False, True])
def test_training_inferer(network, mixed_precision):
    """Half the bits change the values a little, and neither weights nor gradients lose theirs."""
    volumes = torch.rand(2, 1, 18, 20, 16)
    exact = network(volumes, CUBE)
    found = TrainingInferer(mixed_precision)(volumes, network, CUBE)
    for ours, expected in zip(found[:2], exact[:2], strict=True):
        assert ours.shape == expected.shape
        error = (ours.float() - expected).abs().max() / expected.abs().max()
        assert error < 0.1 if mixed_precision else ours.equal(expected)
    target = {
        "label": (volumes > 0.8).float(),
        "head_to_grid": torch.eye(4).repeat(2, 1, 1),
        "has_head": torch.ones(2),
    }
    loss = HeadPoseLoss()(found, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, HeadPoseLoss()(exact, target), rtol=0.02, atol=0.02)
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name


def test_poses_with_a_large_expected_error_are_uncertain(tmp_path):
    """They are written with a pose, a status of their own and what to do; by default none are."""
    batch = {
        "case": ["sure", "at_the_bound", "unsure"],
        "status": ["ok"] * 3,
        "message": [""] * 3,
        "path": [f"{name}.nii.gz" for name in ("sure", "at_the_bound", "unsure")],
        "affine": torch.diag(torch.tensor([4.0, 4, 4, 1])).double().repeat(3, 1, 1),
        "image": torch.zeros(3, 1, 8, 8, 8),
    }
    found = {
        "head_to_grid": torch.eye(4).repeat(3, 1, 1),
        "confidence": torch.tensor([0.2, 0.25, 0.99]),
        "rotation_sd_deg": torch.tensor([4.0, 20.0, 25.0]),
        "brain_volume_ml": torch.full((3,), 200.0),
    }
    for bound, expected in ((None, "ok"), (20.0, "uncertain")):
        engine = Engine(lambda *_: {CommonKeys.PRED: found})
        folder = RunFolder(tmp_path, outputs="json", uncertain_above_deg=bound)
        PoseWriter(folder, 4.0).attach(engine)
        engine.run([batch])
        records = [
            json.loads((tmp_path / f"{name}_pose.json").read_text()) for name in batch["case"]
        ]
        assert [record["status"] for record in records] == ["ok", "ok", expected]
        assert all(np.shape(record["head_to_world"]) == (4, 4) for record in records)
        message = records[2]["message"]
        assert (message == "") == (expected == "ok")
        why = "unsure.nii.gz: its turn is expected to be off by 25.0 degrees, more than 20"
        assert expected == "ok" or why in message
    alone = {key: values[2:] for key, values in batch.items()}
    found = {key: values[2:] for key, values in found.items()}
    engine.run([alone])  # a run with nothing but uncertain poses has not failed
    assert json.loads((tmp_path / "unsure_pose.json").read_text())["status"] == "uncertain"
