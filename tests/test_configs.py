"""Every config runs for a step, through monai.bundle as a user calls it."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys

import pytest
import torch
from jsonschema import Draft201909Validator
from monai.bundle import ConfigParser, create_workflow

from conftest import BUNDLE

# a network that steps in well under a second; every other value is the shipped one
SMALL = {
    "network_def#features": [1, 1],
    "network_def#levels": 2,
    "network_def#convolutions": 1,
    "network_def#crop_size": 8,
    "network_def#localizer_channels": [4, 8],
}
CONFIGS = {
    "train": [str(BUNDLE / "configs/train.json")],
    "evaluate": [str(BUNDLE / "configs/train.json"), str(BUNDLE / "configs/evaluate.json")],
    "inference": [str(BUNDLE / "configs/inference.json")],
}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """A tiny phantom data set: three volumes to train on, one to validate, two to test."""
    from scripts.phantom import write_dataset

    folder = tmp_path_factory.mktemp("phantoms")
    write_dataset(folder, 3, 1, 2, voxel_mm=(6, 6, 6), headless_share=0.4, progress=False)
    return folder


def training_overrides(phantoms, output):
    return {
        "bundle_root": str(BUNDLE),
        "dataset_dir": str(phantoms),
        "output_dir": str(output),
        "epochs": 1,
        "val_interval": 1,
        "num_workers": 0,
        "patch_voxels": 32,
        **SMALL,
    }


def workflow(kind, **overrides):
    return create_workflow(
        config_file=CONFIGS[kind],
        workflow_type={"evaluate": "train", "inference": "infer"}.get(kind, kind),
        **overrides,
    )


@pytest.fixture(scope="module")
def trained(phantoms, tmp_path_factory):
    """Output folder of one epoch of training."""
    output = tmp_path_factory.mktemp("trained")
    run = workflow("train", **training_overrides(phantoms, output))
    run.run()
    run.finalize()
    return output


def test_training_leaves_a_plain_state_dict_a_checkpoint_and_curves(trained):
    state = torch.load(trained / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert (trained / "checkpoint.pt").exists()
    assert list(trained.glob("**/events.out.tfevents*"))


def test_training_resumes_and_refuses_to_resume_what_is_finished(trained, phantoms, tmp_path):
    for name in ("model.pt", "checkpoint.pt"):
        shutil.copy(trained / name, tmp_path / name)
    overrides = training_overrides(phantoms, tmp_path)
    resumed = workflow("train", **overrides | {"epochs": 2, "resume": True})
    resumed.run()
    assert resumed.trainer.state.epoch == 2
    with pytest.raises(RuntimeError) as error:
        workflow("train", **overrides | {"resume": True}).run()
    assert "nothing to resume" in str(error.value.__cause__)


def test_evaluation_writes_metrics_and_a_row_per_case(trained, phantoms, tmp_path):
    overrides = training_overrides(phantoms, tmp_path)
    workflow("evaluate", **overrides | {"ckpt_path": str(trained / "model.pt")}).run()
    with open(tmp_path / "cases.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["phantom_0000", "phantom_0001"]
    assert all(0 <= float(row["rotation_deg"]) <= 180 for row in rows)
    metrics = (tmp_path / "metrics.csv").read_text()
    for name in ("rotation_deg", "rotation_above_30", "translation_mm", "dice_eyes"):
        assert name in metrics


def test_inference_writes_a_pose_and_a_picture_per_volume(trained, phantoms, tmp_path):
    workflow(
        "inference",
        bundle_root=str(BUNDLE),
        dataset_dir=str(phantoms / "test"),
        output_dir=str(tmp_path),
        ckpt_path=str(trained / "model.pt"),
        num_workers=0,
        **SMALL,
    ).run()
    for case in ("phantom_0000", "phantom_0001"):
        record = json.loads((tmp_path / f"{case}_pose.json").read_text())
        assert record["status"] in ("ok", "no_head")
        assert (tmp_path / f"{case}_pose.png").stat().st_size > 1000


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_check_properties(kind, phantoms, tmp_path):
    overrides = {
        "bundle_root": str(BUNDLE),
        "dataset_dir": str(phantoms),
        "output_dir": str(tmp_path),
    }
    if kind == "inference":
        overrides["dataset_dir"] = str(phantoms / "test")
    run = workflow(kind, **overrides)
    run.initialize()
    assert not run.check_properties()


def test_command_line_from_the_bundle_folder(trained, phantoms, tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "training"]
    command += ["--config_file", "configs/train.json", "--dataset_dir", str(phantoms)]
    command += ["--output_dir", str(tmp_path), "--epochs", "1", "--num_workers", "0"]
    for key, value in (SMALL | {"patch_voxels": 32, "val_interval": 1}).items():
        command += [f"--{key}", str(value)]
    done = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "model.pt").exists()


def test_embedded_phantom_is_the_default_data_set(monkeypatch, tmp_path):
    from scripts import phantom

    made = []
    monkeypatch.setattr(phantom, "write_dataset", lambda root, **_: made.append(root))
    parser = ConfigParser()
    parser.read_config(CONFIGS["train"])
    parser["bundle_root"] = str(tmp_path)
    assert parser.get_parsed_content("dataset_dir") == str(tmp_path / "data" / "phantom")
    assert made == [tmp_path / "data" / "phantom"]


@pytest.mark.parametrize("workflow_type", ["train", "inference"])
def test_bundle_load_gives_the_network_with_the_shipped_weights(workflow_type, tmp_path):
    """From any folder, in a process that knows nothing of the bundle but its path."""
    assert (BUNDLE / "models/model.pt").stat().st_size < 25e6
    code = f"""
import monai.bundle, torch
network = monai.bundle.load(
    name={BUNDLE.name!r}, bundle_dir={str(BUNDLE.parent)!r}, workflow_type={workflow_type!r},
    args_file={{"bundle_root": {str(BUNDLE)!r}}},
)
state = torch.load({str(BUNDLE / "models/model.pt")!r}, weights_only=True)
torch.testing.assert_close(dict(network.state_dict()), dict(state))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_train_and_inference_declare_one_network():
    network = {}
    for kind in ("train", "inference"):
        parser = ConfigParser()
        parser.read_config(CONFIGS[kind])
        for key in ("crop_fill", "spacing_mm"):
            parser[f"network_def#{key}"] = parser.get_parsed_content(f"network_def#{key}")
        network[kind] = parser["network_def"]
    assert network["train"] == network["inference"]


def test_metadata_has_what_the_zoo_requires():
    metadata = json.loads((BUNDLE / "configs/metadata.json").read_text())
    required = {
        "schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version",
        "required_packages_version", "task", "description", "authors", "copyright",
        "network_data_format",
    }  # fmt: skip
    assert required <= set(metadata)
    assert metadata["version"] in metadata["changelog"]


def test_metadata_versions_are_the_pinned_ones():
    import tomllib

    project = tomllib.loads((BUNDLE.parent / "pyproject.toml").read_text())["project"]
    pins = dict(line.split("==") for line in project["dependencies"])
    metadata = json.loads((BUNDLE / "configs/metadata.json").read_text())
    assert metadata["version"] == project["version"]
    stated = metadata["required_packages_version"] | {
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
    }
    assert {name: pins[name] for name in stated} == stated


def test_metadata_matches_the_schema():
    schema = BUNDLE.parents[1] / "shared/schemas/meta_schema_20240725.json"
    if not schema.exists():
        pytest.skip("the zoo's schema is not here")
    metadata = json.loads((BUNDLE / "configs/metadata.json").read_text())
    Draft201909Validator(json.loads(schema.read_text())).validate(metadata)
