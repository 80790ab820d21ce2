"""Every config runs for a step, through monai.bundle; test_package.py has the command line."""

from __future__ import annotations

import ast
import csv
import json
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from jsonschema import Draft201909Validator
from monai.bundle import ConfigParser, ReferenceResolver, create_workflow
from monai.transforms import Compose

from conftest import BUNDLE, REPOSITORY, SMALL_CHAIN, SMALL_ROTATION

SMALL = {**SMALL_ROTATION, **SMALL_CHAIN}
SMALL_PLAIN = {
    "network_def#rotation#channels": [4, 4],
    "network_def#rotation#convolutions": [1, 1],
    **SMALL_CHAIN,
}
# in the middle of small patches, where the one step of an epoch needs one to move the rotation
HEADS_IN_SIGHT = {
    "train#random_transforms#0#shift_mm": 0.0,
    "train#random_transforms#0#away_prob": 0.0,
}
FILES = {
    "train": ["train.json"],
    "evaluate": ["train.json", "evaluate.json"],
    "inference": ["inference.json"],
    "inference_ts": ["inference.json", "inference_ts.json"],
    "mixture": ["train.json", "mixture.json"],
    "plain_cnn": ["train.json", "plain_cnn.json"],
    "landmarks": ["train.json", "landmarks.json"],
    "landmarks_mixture": ["train.json", "mixture.json", "landmarks.json"],
    "localizer": ["train.json", "localizer.json"],
    "localizer_mixture": ["train.json", "mixture.json", "localizer.json"],
    "rotation": ["train.json", "rotation.json"],
    "rotation_mixture": ["train.json", "mixture.json", "rotation.json"],
    "rotation_plain_cnn": ["train.json", "plain_cnn.json", "rotation.json"],
    "multi_gpu_train": ["train.json", "multi_gpu_train.json"],
    "multi_gpu_mixture": ["train.json", "mixture.json", "multi_gpu_train.json"],
    "multi_gpu_rotation": ["train.json", "multi_gpu_train.json", "rotation.json"],
    "evaluate_mixture": ["train.json", "mixture.json", "evaluate.json"],
    "evaluate_plain_cnn": ["train.json", "plain_cnn.json", "evaluate.json"],
}
CONFIGS = {
    kind: [str(BUNDLE / "configs" / name) for name in names] for kind, names in FILES.items()
}
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
PINS = dict(line.split("==") for line in PROJECT["dependencies"])


@pytest.fixture(scope="module")
def metadata():
    return json.loads((BUNDLE / "configs/metadata.json").read_text())


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """A tiny phantom data set: three volumes to train on, one to validate, two to test."""
    from scripts.phantom import write_dataset

    folder = tmp_path_factory.mktemp("phantoms")
    write_dataset(folder, 3, 1, 2, voxel_mm=(6, 6, 6), headless_share=0.4, progress=False)
    return folder


@pytest.fixture(scope="module")
def other_phantoms(tmp_path_factory):
    """Another one, whose subjects none of the first has."""
    from scripts.phantom import write_dataset

    folder = tmp_path_factory.mktemp("others")
    write_dataset(folder, 2, 1, 1, seed=1, voxel_mm=(6, 6, 6), progress=False)
    return folder


def training_overrides(phantoms, output, small=SMALL):
    return {
        "bundle_root": str(BUNDLE),
        "dataset_dir": str(phantoms),
        "output_dir": str(output),
        "epochs": 1,
        "val_interval": 1,
        "num_workers": 0,
        "patch_voxels": 32,
        **small,
    }


def workflow(kind, **overrides):
    return create_workflow(
        config_file=CONFIGS[kind],
        workflow_type="infer" if kind == "inference" else "train",
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


@pytest.mark.parametrize("part", ["landmarks", "localizer", "rotation"])
def test_training_of_one_part(part, trained, phantoms, tmp_path):
    """From given weights; what is not trained stays as it was, and both are in the file."""
    overrides = training_overrides(phantoms, tmp_path) | {"init_path": str(trained / "model.pt")}
    overrides |= HEADS_IN_SIGHT
    run = workflow(part, **overrides)
    run.run()
    before = torch.load(trained / "model.pt", weights_only=True)
    after = torch.load(tmp_path / "model.pt", weights_only=True)
    assert after.keys() == before.keys()
    changed = {key.split(".")[0] for key in after if not after[key].equal(before[key])}
    assert changed == {part}
    if part == "landmarks":  # its cubes were moved by what the network was before the epoch
        mover = run.parser.get_parsed_content("train#cubes").corrector
        for key, value in mover.state_dict().items():
            assert value.equal(before[f"landmarks.{key}"])
    # and it goes on where it was stopped
    resumed = workflow(part, **overrides | {"epochs": 2, "resume": True, "init_path": None})
    resumed.run()
    assert resumed.trainer.state.epoch == 2


def test_another_rotation_network_trains_beside_given_parts(trained, phantoms, tmp_path):
    """The file has an E3CNN; localizer and landmarks are taken from it and stay as they are."""
    overrides = training_overrides(phantoms, tmp_path, SMALL_PLAIN)
    overrides |= {"init_path": str(trained / "model.pt")}
    run = workflow("rotation_plain_cnn", **overrides)
    run.run()
    given = torch.load(trained / "model.pt", weights_only=True)
    after = torch.load(tmp_path / "model.pt", weights_only=True)
    assert {key.split(".")[1] for key in after if key.startswith("rotation.")} == {"layers"}
    others = [key for key in after if not key.startswith("rotation.")]
    assert {key.split(".")[0] for key in others} == {"localizer", "landmarks"}
    assert all(after[key].equal(given[key]) for key in others)


def test_what_is_not_trained_gets_no_gradient(phantoms, tmp_path):
    """Neither is there anything but the rotation in the optimizer, nor are cubes cut out."""
    run = workflow("rotation", **training_overrides(phantoms, tmp_path) | HEADS_IN_SIGHT)
    run.run()
    network = run.parser.get_parsed_content("network")
    (group,) = run.parser.get_parsed_content("optimizer").param_groups
    assert set(map(id, group["params"])) == set(map(id, network.rotation.parameters()))
    assert all(p.grad is not None for p in network.rotation.parameters())
    others = [*network.localizer.parameters(), *network.landmarks.parameters()]
    assert not any(p.requires_grad or p.grad is not None for p in others)
    assert run.trainer.loss_function.segmentation_weight == 0
    assert "crop" not in run.parser.get_parsed_content("train#dataset")[0]


def test_training_on_a_mixture(phantoms, other_phantoms, tmp_path):
    """One short epoch, drawn from both data sets; everything else is that of train.json."""
    overrides = training_overrides(phantoms, tmp_path)
    overrides |= {"phantom_dir": str(other_phantoms), "samples_per_epoch": 12}
    run = workflow("mixture", **overrides | {"phantom_share": 0.25})
    run.initialize()
    data = run.parser.get_parsed_content("train#dataset#data")
    assert [entry["source"] for entry in data] == [0, 0, 0, 1, 1]
    weights = run.parser.get_parsed_content("train#sampler").weights
    assert weights[3:].sum().item() == pytest.approx(0.25)
    loader = run.parser.get_parsed_content("train#dataloader")
    assert loader.sampler is run.parser.get_parsed_content("train#sampler")
    assert len(loader) == 3
    run.run()
    assert run.trainer.state.iteration == 3
    assert len(run.evaluator.data_loader) == 2  # one of either set to validate
    assert (tmp_path / "model.pt").exists()


def test_training_of_the_plain_network(phantoms, tmp_path):
    from scripts.network.plain_cnn import PlainCNN

    run = workflow("plain_cnn", **training_overrides(phantoms, tmp_path, SMALL_PLAIN))
    run.run()
    network = run.parser.get_parsed_content("network")
    assert isinstance(network.rotation, PlainCNN)
    optimizer = run.parser.get_parsed_content("optimizer")
    rates = [group["initial_lr"] for group in optimizer.param_groups]
    assert rates == [0.001, 0.003, 0.002]
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert set(state) == set(network.state_dict())
    overrides = training_overrides(phantoms, tmp_path, SMALL_PLAIN)
    workflow("evaluate_plain_cnn", **overrides | {"ckpt_path": str(tmp_path / "model.pt")}).run()
    with open(tmp_path / "cases.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 2


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
        **{key: value for key, value in SMALL.items() if key.startswith("network_def#")},
    ).run()
    for case in ("phantom_0000", "phantom_0001"):
        record = json.loads((tmp_path / f"{case}_pose.json").read_text())
        assert record["status"] in ("ok", "no_head")
        assert (tmp_path / f"{case}_pose.png").stat().st_size > 1000


def test_every_config_file_is_tested():
    found = {path.name for path in (BUNDLE / "configs").glob("*.json")}
    # in test_closed_loop.py and test_rotation_crops.py
    elsewhere = {"metadata.json", "closed_loop.json", "rotation_crops.json"}
    assert found == {name for names in FILES.values() for name in names} | elsewhere


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_every_config_parses(kind):
    """All of its files are JSON, and every reference in them leads to something."""
    parser = ConfigParser()
    for path in CONFIGS[kind]:
        assert isinstance(json.loads(Path(path).read_text()), dict)
    parser.read_config(CONFIGS[kind])
    parser.parse()
    items = parser.ref_resolver.items
    for item_id, item in items.items():
        for reference in ReferenceResolver.find_refs_in_config(item.get_config(), item_id):
            assert reference in items, f"{item_id} refers to {reference}"


# inference_ts needs a file that ckpt_export makes: tests/test_export.py
@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "inference_ts"])
def test_check_properties(kind, phantoms, other_phantoms, tmp_path, monkeypatch):
    overrides = {
        "bundle_root": str(BUNDLE),
        "dataset_dir": str(phantoms),
        "output_dir": str(tmp_path),
    }
    if "mixture" in kind:
        overrides["phantom_dir"] = str(other_phantoms)
    if kind == "inference":
        overrides["dataset_dir"] = str(phantoms / "test")
    if "multi_gpu" in kind:  # the only process of torchrun
        for name in ("RANK", "LOCAL_RANK"):
            monkeypatch.setenv(name, "0")
        monkeypatch.setenv("WORLD_SIZE", "1")
        monkeypatch.setenv("MASTER_ADDR", "localhost")
        monkeypatch.setenv("MASTER_PORT", "0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = workflow(kind, **overrides)
    run.initialize()
    assert not run.check_properties()
    run.finalize()
    assert not torch.distributed.is_initialized()


def test_embedded_phantom_is_the_default_data_set(monkeypatch, tmp_path):
    from scripts.data import phantoms as phantom

    made = []
    monkeypatch.setattr(phantom, "write_dataset", lambda root, **_: made.append(root))
    parser = ConfigParser()
    parser.read_config(CONFIGS["train"])
    parser["bundle_root"] = str(tmp_path)
    assert parser.get_parsed_content("dataset_dir") == str(tmp_path / "data" / "phantom")
    assert made == [tmp_path / "data" / "phantom"]


def settings(network):
    """Every number, text and list that a network and its chain hold, and the shapes of weights."""
    found = {key: value.shape for key, value in network.state_dict().items()}
    for name, module in [*network.named_modules(), *network.chain.named_modules(prefix="chain")]:
        for key, value in vars(module).items():
            if isinstance(value, bool | int | float | str | list | tuple) and key[0] != "_":
                found[f"{name}.{key}"] = value
    return found


def test_train_and_inference_declare_the_network_that_is_the_default():
    from scripts.network import HeadPoseNet

    expected = settings(HeadPoseNet())
    assert expected["chain.crop_size"] == 24
    for kind in ("train", "inference"):
        parser = ConfigParser()
        parser.read_config(CONFIGS[kind])
        assert settings(parser.get_parsed_content("network_def")) == expected
        assert parser["network_def#rotation#_target_"] == "scripts.network.E3CNN"


def spacings(transform):
    """``spacing_mm`` of a transform and of those in it; None is read from the volume's affine."""
    inner = getattr(transform, "transforms", ())
    inner = inner.transforms if isinstance(inner, Compose) else inner
    own = [transform.spacing_mm] if hasattr(transform, "spacing_mm") else []
    return own + [value for each in inner for value in spacings(each)]


def test_one_value_sets_the_spacing_of_all(phantoms):
    """The imported networks of the authors need 3 mm: whatever is not told would take 4."""
    parser = ConfigParser()
    parser.read_config(CONFIGS["train"])
    parser["spacing_mm"], parser["bundle_root"] = 3.0, str(BUNDLE)
    found = spacings(parser.get_parsed_content("train#preprocessing"))
    assert len(found) == 13
    assert set(found) == {3.0, None}
    # those that come straight after ToWorkingGridd: anatomy, cubes and the similarity
    assert found.count(None) == 3
    assert spacings(parser.get_parsed_content("validate#preprocessing")) == [3.0] * 3
    assert parser.get_parsed_content("network_def").chain.spacing_mm == 3
    parser = ConfigParser()
    parser.read_config(CONFIGS["inference"])
    parser["spacing_mm"], parser["bundle_root"] = 3.0, str(BUNDLE)
    parser["dataset_dir"] = str(phantoms / "test")
    assert spacings(parser.get_parsed_content("preprocessing")) == [3.0]
    handlers = parser.get_parsed_content("handlers")
    assert [h.spacing_mm for h in handlers if hasattr(h, "spacing_mm")] == [3]
    assert parser.get_parsed_content("network_def").chain.spacing_mm == 3


def expressions(config):
    """Every text of a config that Python evaluates."""
    if isinstance(config, str):
        return [config[1:]] if config.startswith("$") else []
    if not isinstance(config, dict | list):
        return []
    values = config.values() if isinstance(config, dict) else config
    return [text for value in values for text in expressions(value)]


# how every bundle of the zoo finds its device
DEVICE = "torch.device('cuda' if torch.cuda.is_available() else 'cpu')"


@pytest.mark.parametrize("path", sorted((BUNDLE / "configs").glob("*.json")), ids=lambda p: p.name)
def test_what_is_longer_than_a_sum_is_a_function_with_a_name(path):
    too_much = (ast.Lambda, ast.IfExp, ast.BoolOp, ast.comprehension, ast.NamedExpr, ast.Dict)
    content = json.loads(path.read_text())
    # what finds the bundle cannot be a function of the bundle
    content.pop("found_root", None)
    for text in expressions(content):
        tree = ast.parse(re.sub(r"@[\w#]+", "reference", text))
        found = [node for node in ast.walk(tree) if isinstance(node, too_much)]
        assert not found or text == DEVICE, text
        assert len(text) < 100


def test_train_json_can_be_read():
    assert len((BUNDLE / "configs/train.json").read_text().splitlines()) < 400


def test_metadata_has_what_the_zoo_requires(metadata):
    required = {
        "schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version",
        "required_packages_version", "task", "description", "authors", "copyright",
        "network_data_format",
    }  # fmt: skip
    assert required <= set(metadata)
    assert metadata["version"] in metadata["changelog"]
    tensor = {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range"}
    tensors = metadata["network_data_format"]
    assert set(tensors["inputs"]) == {"image"}
    assert set(tensors["outputs"]) == {"pred"}
    for described in (tensors["inputs"]["image"], tensors["outputs"]["pred"]):
        assert tensor <= set(described)
        channels = [str(number) for number in range(described["num_channels"])]
        assert list(described["channel_def"]) == channels


def test_metadata_versions_are_the_pinned_ones(metadata):
    assert metadata["version"] == PROJECT["version"]
    stated = metadata["required_packages_version"] | {
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
    }
    assert stated == PINS


def test_required_packages_are_those_that_the_bundle_uses(metadata):
    """What the scripts import, and what MONAI needs for what the configs and commands name."""
    imported = set()
    for path in (BUNDLE / "scripts").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module)
    names = {name.split(".")[0] for name in imported} - sys.stdlib_module_names
    other_names = {"ignite": "pytorch-ignite", "skimage": "scikit-image", "PIL": "pillow"}
    packages = {other_names.get(name, name) for name in names}
    by_monai = {
        "tensorboard": "TensorBoardStatsHandler" in (BUNDLE / "configs/train.json").read_text(),
        "fire": "python -m monai.bundle" in (BUNDLE / "docs/README.md").read_text(),
    }
    assert all(by_monai.values())
    base = {"torch", "monai", "numpy"}  # stated apart from the others
    # the bundle itself, and extras; cryptography comes with nvflare
    packages -= {
        "scripts",
        "nvflare",
        "cryptography",
        "nitransforms",
        "pydicom",
        "SimpleITK",
        "ismrmrd",
        "pyigtl",
    }
    assert packages | set(by_monai) == set(metadata["required_packages_version"]) | base


@pytest.mark.parametrize("page", ["README.md", "docs/deployment.md", "bundle/docs/README.md"])
def test_versions_in_the_documents_are_the_pinned_ones(page):
    stated = re.findall(r"([a-z0-9-]+)==([0-9.]+)", (REPOSITORY / page).read_text())
    assert {name: PINS.get(name) for name, _ in stated} == dict(stated)
    if page.endswith("deployment.md"):  # the list of what to carry to a machine without a network
        assert set(PINS) == {name for name, _ in stated}


def test_metadata_matches_the_schema(metadata):
    schema = BUNDLE.parents[1] / "shared/schemas/meta_schema_20240725.json"
    if not schema.exists():
        pytest.skip("the zoo's schema is not here")
    Draft201909Validator(json.loads(schema.read_text())).validate(metadata)


def test_bias_fields_are_of_either_sign():
    """MONAI draws every coefficient from the range as it stands; with positive ones alone a far
    corner becomes a hundred times brighter."""
    train = json.loads((BUNDLE / "configs/train.json").read_text())["train"]
    for transforms in (train["random_transforms"], train["cube_transforms"]):
        (bias,) = [t for t in transforms if t["_target_"] == "RandBiasFieldd"]
        low, high = bias["coeff_range"]
        assert low == -high < 0
