"""datasets.py and files.py: errors that name the culprit, and one bad volume among good ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose

from conftest import head_pose, make_affine, save_nifti
from scripts.datasets import CaseDataset, case_name, datalist, volumes_in
from scripts.files import partial_path, write_text
from scripts.transforms import LoadVolumed, ToWorkingGridd

VOLUME = np.random.default_rng(0).random((12, 14, 16)).astype(np.float32)


@pytest.fixture
def dataset(tmp_path):
    """Writes a dataset.json and the empty files that it may name; gives the folder."""
    for name in ("images/a.nii.gz", "images/b.nii.gz", "labels/a.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def write(content):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "dataset.json").write_text(text)
        return tmp_path

    return write


GOOD = {
    "image": "images/a.nii.gz",
    "label": "labels/a.nii.gz",
    "head_to_world": head_pose().tolist(),
    "subject": 17,
    "comment": "of no use to training",
}


def test_datalist_gives_full_paths_and_what_training_needs(dataset):
    folder = dataset({"training": [GOOD], "test": []})
    assert datalist(folder, "training") == [
        {
            "image": str(folder / "images/a.nii.gz"),
            "label": str(folder / "labels/a.nii.gz"),
            "head_to_world": head_pose().tolist(),
            "subject": "17",
            "case": "a",
        }
    ]
    assert datalist(str(folder), "test") == []


def test_datalist_paths_are_relative_to_the_folder_not_to_the_caller(dataset, monkeypatch):
    folder = dataset({"training": [GOOD]})
    monkeypatch.chdir(folder.parent)
    (entry,) = datalist(folder.name, "training")
    assert entry["image"] == f"{folder.name}/images/a.nii.gz"
    assert Path(entry["label"]).exists()


@pytest.mark.parametrize("absent", [{}, {"label": None, "head_to_world": None, "subject": "s"}])
def test_datalist_without_label_and_pose(dataset, absent):
    (entry,) = datalist(
        dataset({"validation": [{"image": "images/b.nii.gz"} | absent]}), "validation"
    )
    assert "label" not in entry
    assert entry["head_to_world"] is None
    assert entry["subject"] == absent.get("subject", "b")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("{nonsense", ValueError, "not valid JSON"),
        ({"test": [], "training": []}, ValueError, "'validation'.*test.*training"),
        ({"validation": [GOOD, {"label": "labels/a.nii.gz"}]}, ValueError, r'\[1\] has no "image"'),
        (
            {"validation": [GOOD, GOOD | {"image": "images/c.nii.gz"}]},
            FileNotFoundError,
            r"\[1\].*image .*c.nii.gz does not exist",
        ),
        (
            {"validation": [GOOD | {"label": "labels/b.nii.gz"}]},
            FileNotFoundError,
            r"\[0\].*label .*b.nii.gz does not exist",
        ),
        (
            {"validation": [GOOD, GOOD, GOOD | {"head_to_world": (2 * np.eye(4)).tolist()}]},
            ValueError,
            r"\[2\].*17.*rigid",
        ),
        (
            {"validation": [GOOD | {"head_to_world": np.diag([-1.0, 1, 1, 1]).tolist()}]},
            ValueError,
            r"\[0\].*det -1",
        ),
        (
            {"validation": [GOOD | {"head_to_world": np.eye(3).tolist()}]},
            ValueError,
            r"\[0\].*4 x 4",
        ),
        ({"validation": [GOOD | {"head_to_world": [[1, 0], [1]]}]}, ValueError, r"\[0\]"),
        ({"validation": [GOOD | {"head_to_world": "up"}]}, ValueError, r"\[0\]"),
    ],
)
def test_datalist_errors_name_the_file_and_the_entry(dataset, content, error, message):
    folder = dataset(content)
    with pytest.raises(error, match=f"dataset.json.*{message}"):
        datalist(folder, "validation")


def test_datalist_without_dataset(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dataset\.json: no such file"):
        datalist(tmp_path, "training")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("x/a.nii", "a"),
        ("a.nii.gz", "a"),
        ("a.b.nii.gz", "a.b"),
        ("a.gz", "a.gz"),
        (Path("nii"), "nii"),
    ],
)
def test_case_name(path, name):
    assert case_name(path) == name


def test_volumes_in_takes_nifti_files_only_and_in_order(tmp_path):
    for name in ("b.nii.gz", "a.nii", "notes.txt", "c.gz", "d.nii.gz.md5", "dataset.json", "e.mgz"):
        (tmp_path / name).touch()
    (tmp_path / "folder.nii").mkdir()
    assert volumes_in(tmp_path) == [
        {"image": str(tmp_path / "a.nii"), "case": "a"},
        {"image": str(tmp_path / "b.nii.gz"), "case": "b"},
    ]


def test_volumes_in_tells_two_files_of_one_name_apart(tmp_path):
    for name in ("a.nii", "a.nii.gz", "b.nii"):
        (tmp_path / name).touch()
    assert [entry["case"] for entry in volumes_in(str(tmp_path))] == ["a.nii", "a.nii.gz", "b"]


def test_volumes_in_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone: no such folder"):
        volumes_in(tmp_path / "gone")
    (tmp_path / "file.nii").touch()
    with pytest.raises(FileNotFoundError, match=r"file\.nii: no such folder"):
        volumes_in(tmp_path / "file.nii")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"empty: no \.nii or \.nii\.gz"):
        volumes_in(tmp_path / "empty")


def chain():
    """The transforms of configs/inference.json."""
    return Compose([LoadVolumed(["image"]), ToWorkingGridd(label_key=None, spacing_mm=4.0)])


def bad_and_good_files(folder):
    """Name -> expected status, written into the folder; good ones first, last and in between."""
    affine = make_affine("LPS", (3.0, 3.0, 3.0), 20.0, VOLUME.shape)
    with_nan = VOLUME.copy()
    with_nan[2, 3, 4] = np.nan
    files = {
        "0_good": (VOLUME, "ok"),
        "1_zero": (np.zeros_like(VOLUME), "empty"),
        "2_flat": (VOLUME[0], "not_3d"),
        "3_frames": (np.stack([VOLUME] * 2, axis=-1), "not_3d"),
        "4_good": (VOLUME, "ok"),
        "5_nan": (with_nan, "not_finite"),
        "7_good": (VOLUME, "ok"),
    }
    for name, (volume, _) in files.items():
        save_nifti(folder / f"{name}.nii.gz", volume, affine)
    (folder / "6_text.nii.gz").write_text("no image\n")
    return {name: status for name, (_, status) in files.items()} | {"6_text": "unreadable"}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_volumes_do_not_stop_the_others(tmp_path, num_workers):
    expected = bad_and_good_files(tmp_path)
    dataset = CaseDataset(volumes_in(tmp_path), chain())
    items = list(DataLoader(dataset, batch_size=1, num_workers=num_workers))
    assert {item["case"][0]: item["status"][0] for item in items} == expected
    good = dataset[0]
    for item in items:
        assert item["image"].shape[:2] == (1, 1)
        assert item["image"].ndim == 5
        assert item["affine"].shape == (1, 4, 4)
        assert set(item) == {"path", "case", "status", "message", "image", "affine"}
        if item["status"][0] == "ok":
            assert torch.equal(item["image"][0], good["image"])
            assert item["message"][0] == ""
            assert item["affine"].det().item() > 0  # the file is in LPS, tilted
        else:
            assert Path(item["path"][0]).name in item["message"][0]
            assert not item["image"].any()
            assert torch.equal(item["affine"][0], torch.eye(4, dtype=torch.float64))


def test_a_transform_without_compose_is_understood_as_well(tmp_path):
    save_nifti(tmp_path / "flat.nii", VOLUME[0])
    assert CaseDataset(volumes_in(tmp_path), LoadVolumed(["image"]))[0]["status"] == "not_3d"


@pytest.mark.parametrize("raised", [KeyError("x"), RuntimeError("x"), ValueError("x")])
def test_defects_are_raised(tmp_path, raised):
    save_nifti(tmp_path / "good.nii", VOLUME)

    def defect(_):
        raise raised

    dataset = CaseDataset(volumes_in(tmp_path), Compose([LoadVolumed(["image"]), defect]))
    with pytest.raises(RuntimeError, match="applying transform"):
        dataset[0]


def test_write_text_replaces_whole_files_only(tmp_path, monkeypatch):
    path = tmp_path / "new" / "folder" / "pose.json"
    write_text(path, "old")
    write_text(str(path), "newer")
    assert path.read_text() == "newer"
    assert list(path.parent.iterdir()) == [path]
    plain = Path.write_text

    def interrupted(self, text, *args, **kwargs):
        plain(self, text[: len(text) // 2], *args, **kwargs)
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", interrupted)
    for target in (path, path.with_name("other.json")):
        with pytest.raises(OSError, match="disk full"):
            write_text(target, "a longer text")
    assert path.read_text() == "newer"
    assert not path.with_name("other.json").exists()


def test_partial_path_is_hidden_beside_the_file(tmp_path):
    partial = partial_path(tmp_path / "sub" / "mask.nii.gz")
    assert partial.parent == tmp_path / "sub"
    assert partial.parent.is_dir()
    assert partial.name.startswith(".")
    assert partial.name.endswith("mask.nii.gz")
