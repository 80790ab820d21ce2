"""service.py and scanner_client.py: the commands, once with the shipped network."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

pytest.importorskip("ismrmrd", reason="the extra `scan` is not installed")

from conftest import BUNDLE, save_nifti
from scripts import scanner_client, service
from scripts.geometry import geodesic_deg
from scripts.scan.estimator import HeadPoseEstimator
from scripts.scan.patient import world_to_patient
from scripts.simulation.volume import make_phantom


def start(*options):
    """The service as a process, and its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.service", "--port", "0", *options],
        cwd=BUNDLE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    return process, process.stdout.readline().strip().rsplit(":", 1)[-1]


def test_navigators_of_a_folder_get_the_poses_of_inference(tmp_path, capsys):
    """From files through TCP and the shipped network, against the network on the file's volume."""
    phantom = make_phantom(0, voxel_mm=(6.0, 6.0, 6.0), shape=(48, 48, 40))
    values = phantom.image.astype(np.float32)
    (tmp_path / "navigators").mkdir()
    for k in range(2):
        path = save_nifti(tmp_path / "navigators" / f"n{k}.nii.gz", values, phantom.affine)
    process, port = start("--deadline_ms", "600000", "--session_dir", str(tmp_path / "sessions"))
    try:
        ready = process.stdout.readline()
        options = ["--port", port, "--speed", "0", "--config", '{"plane": "coronal"}']
        answers = tmp_path / "answers.jsonl"
        source = str(tmp_path / "navigators")
        scanner_client.main([source, *options, "--answers", str(answers), "--timeout_s", "300"])
        assert "2 answers: {'ok': 2}" in capsys.readouterr().out
        scanner_client.main([source, *options, "--slices_apart", "--timeout_s", "300"])
        assert "2 answers: {'ok': 2}" in capsys.readouterr().out
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "ready after" in ready
    assert out.endswith("ended\n")

    found = [json.loads(line) for line in answers.open()]
    network = service_network()
    image = nib.load(path)
    (expected,) = network([(image.get_fdata(dtype=np.float32), image.affine)])
    pose = np.array(found[0]["head_to_patient_lps"])
    wanted = world_to_patient(expected.head_to_world)
    np.testing.assert_allclose(pose[:3, 3], wanted[:3, 3], atol=0.01)
    assert geodesic_deg(*map(torch.from_numpy, (pose[:3, :3], wanted[:3, :3]))) < 0.01
    assert found[1]["slice"]["plane"] == "coronal"
    assert [one["slice"]["order"] for one in found] == [0, 1]
    folders = sorted((tmp_path / "sessions").iterdir())
    assert len(folders) == 2
    assert (folders[0] / "navigator_0001.nii.gz").exists()


def service_network():
    from scripts.network import HeadPoseNet

    return HeadPoseEstimator(HeadPoseNet(), service.MODEL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "none.pt"], "no weights at none.pt"),
        (["--thickness_mm", "0"], "thickness_mm must be at least 0.1, got 0"),
        (["--port", "99999999"], "port"),
        (["--host", "no.such.host.invalid"], ""),
        (["--plane", "oblique"], "--plane"),
        (["--deadline_ms=-1"], "deadline_ms must be a number above 0"),
    ],
)
def test_options_that_cannot_be_meant(capsys, options, message):
    with pytest.raises(SystemExit) as stopped:
        service.main([*options] if "--port" in options else ["--port", "0", *options])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_weights_that_cannot_be_loaded_end_the_service(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"no weights")
    process, _ = start("--weights", str(tmp_path / "model.pt"))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "the network cannot be loaded" in err.splitlines()[-1]
    assert "ended" not in out


@pytest.mark.parametrize("command", [service, scanner_client])
def test_without_the_extra_one_sentence_says_what_to_install(command, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("scripts.scan.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ismrmrd", None)
    monkeypatch.setitem(sys.modules, "ismrmrd.image", None)
    with pytest.raises(SystemExit):
        command.main(["source"] if command is scanner_client else [])
    assert "install the extra `scan`" in capsys.readouterr().err


def test_a_client_without_a_service_or_volumes_says_so(tmp_path, capsys):
    with pytest.raises(SystemExit):
        scanner_client.main([str(tmp_path), "--port", "1"])
    assert "refused" in capsys.readouterr().err
