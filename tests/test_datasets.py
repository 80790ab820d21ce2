"""datalists.py: errors that name the culprit, and one bad volume among good ones.

Also mixtures of data sets, and the command line of the importers.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor
from monai.transforms import Compose

from conftest import head_pose, make_affine, save_nifti
from scripts.data import transforms
from scripts.data.augmentation import RandSimilarityd
from scripts.data.case_batches import collate_cases
from scripts.data.datalists import CaseDataset, datalist, mixture, volumes_in
from scripts.data.importers import fetal_align
from scripts.data.training_cubes import HeadLandmarksd
from scripts.data.transforms import HeadToGridd
from scripts.data.volumes import LoadVolumed, ToWorkingGridd
from scripts.datasets import main
from scripts.geometry import head_to_grid
from test_importer_e3pose import Source
from test_importer_fetal_align import Clone

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
    (entry,) = datalist(folder, "training")
    pose = entry.pop("head_to_world")
    assert pose.dtype == torch.float64
    assert pose.tolist() == head_pose().tolist()
    assert [entry] == [
        {
            "image": str(folder / "images/a.nii.gz"),
            "label": str(folder / "labels/a.nii.gz"),
            "subject": "17",
            "case": "a",
        }
    ]
    assert datalist(str(folder), "test") == []


@pytest.mark.parametrize("given", ["datalist", "lists"])
def test_a_pose_is_checked_once(dataset, monkeypatch, given):
    checked, check = [], transforms.check_rigid
    monkeypatch.setattr(
        transforms, "check_rigid", lambda pose, name: (checked.append(name), check(pose, name))
    )
    folder = dataset({"training": [GOOD]})
    entry = datalist(folder, "training")[0] if given == "datalist" else dict(GOOD)
    affine = torch.from_numpy(make_affine("RAS", (4.0, 4.0, 4.0), 10.0, VOLUME.shape))
    entry["image"] = entry["label"] = MetaTensor(VOLUME[None], affine=affine)
    shown = dict(entry)
    chain = [HeadLandmarksd(), RandSimilarityd(spatial_size=8), HeadToGridd()]
    d = Compose(chain).set_random_state(0)(entry)
    assert checked == ["head_to_world of 17"]
    assert entry["head_to_world"] is shown["head_to_world"]  # the caller's own stays as it was
    landmarks = head_to_grid(affine, VOLUME.shape, 4.0, torch.from_numpy(head_pose()))[:3, 3]
    torch.testing.assert_close(d["landmarks_mm"][0], landmarks.float())


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


def test_mixture_tells_the_data_sets_apart(tmp_path):
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for folder, names in zip(folders, (["a", "b"], [], ["a"]), strict=True):
        folder.mkdir()
        for name in names:
            (folder / f"{name}.nii").touch()
        content = {"training": [{"image": f"{name}.nii"} for name in names], "test": []}
        (folder / "dataset.json").write_text(json.dumps(content))
    entries = mixture(folders, "training")
    cases = [(entry["source"], entry["case"]) for entry in entries]
    assert cases == [(0, "one/a"), (0, "b"), (2, "three/a")]
    assert entries[2] == datalist(folders[2], "training")[0] | {"source": 2, "case": "three/a"}
    assert mixture(folders, "test") == mixture([], "training") == []
    with pytest.raises(ValueError, match=r"one/dataset\.json: no section 'validation'"):
        mixture(folders, "validation")


def run_main(*arguments):
    main([str(argument) for argument in arguments])


def test_command_line_fetal_align(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fetal_align, "brain_mask", lambda aligned, *_: aligned > 500)
    clone = Clone(tmp_path).add(1).add(2, ga_weeks=28.0).add(3, ga_weeks=33.0).write()
    where = ("fetal_align", "--source", clone.source, "--dataset_dir", clone.dataset)
    run_main(*where, "--validation", "ga33.00", "--test", "ga31.00,ga28.00,")
    assert capsys.readouterr().out == f"{clone.dataset / 'dataset.json'}\n"
    expected = {"training": [], "validation": ["ep2d_03"], "test": ["ep2d_01", "ep2d_02"]}
    assert clone.cases() == expected
    run_main(*where)
    assert clone.cases()["training"] == ["ep2d_01", "ep2d_02", "ep2d_03"]


def test_command_line_e3pose(tmp_path, capsys):
    source = Source(tmp_path)
    for number in range(4):
        source.add(f"frame{number}")
    source.write()
    where = ("--images", source.images, "--labels", source.labels, "--angles_csv", source.csv)
    found = []
    for name, options in (
        ("plain", ()),
        ("turned", ("--canonical_axes", "LPS")),
        ("seed0", ("--validation_share", 0.25)),
        ("seed3", ("--validation_share", "0.25", "--seed", "3")),
    ):
        run_main("e3pose", *where, "--dataset_dir", tmp_path / name, *options)
        assert capsys.readouterr().out == f"{tmp_path / name / 'dataset.json'}\n"
        found.append(json.loads((tmp_path / name / "dataset.json").read_text()))
    plain, turned, *drawn = found
    assert [len(content["training"]) for content in found] == [4, 4, 3, 3]
    assert [len(content["validation"]) for content in found] == [0, 0, 1, 1]
    assert plain["training"][0]["head_to_world"] != turned["training"][0]["head_to_world"]
    assert drawn[0]["validation"] != drawn[1]["validation"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("fetal_align --source {0}/gone --dataset_dir {0}/new", "/gone: neither loaddata.m nor"),
        (
            "fetal_align --source {0} --dataset_dir {0}/new --test f01",
            "validation () and test ('f01',) must be disjoint and among the subjects ['ga31.00']",
        ),
        ("fetal_align --dataset_dir {0}/new", "required: --source"),
        ("fetal_align --source {0}", "required: --dataset_dir"),
        (
            "e3pose --images {0} --labels {0} --angles_csv {0}/gone.csv --dataset_dir {0}/new",
            "No such file or directory: '{0}/gone.csv'",
        ),
        (
            "e3pose --images {0} --labels {0} --angles_csv {0}/a.csv --dataset_dir {0}/new",
            "a.csv, line 2: {0}/frame.nii.gz: no such file, nor .nii",
        ),
        (
            "e3pose --images {0} --labels {0} --angles_csv {0}/a.csv --dataset_dir {0}/new "
            "--canonical_axes RAA",
            "canonical_axes must be a letter each of RL, AP and SI, got 'RAA'",
        ),
        (
            "e3pose --images {0} --labels {0} --angles_csv {0}/a.csv --dataset_dir {0}/new "
            "--validation_share half",
            "--validation_share: invalid float value: 'half'",
        ),
        ("e4pose --dataset_dir {0}/new", "invalid choice: 'e4pose'"),
        ("", "required: command"),
    ],
)
def test_command_line_errors_end_with_code_2(tmp_path, capsys, arguments, message):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ep2d_01.nii.gz").touch()
    landmarks = "bman{1} = [1 1 1]; lman{1} = [0 2 0]; rman{1} = [2 2 0];"
    (tmp_path / "loaddata.m").write_text(f"ga(1) = 31;\n{landmarks}\n")
    (tmp_path / "a.csv").write_text("frame_id,rot_x,rot_y,rot_z\nframe,1,2,3\n")
    with pytest.raises(SystemExit) as raised:
        run_main(*(argument.format(tmp_path) for argument in arguments.split()))
    assert raised.value.code == 2
    printed = capsys.readouterr()
    assert message.format(tmp_path) in printed.err
    assert "python -m scripts.datasets" in printed.err
    assert not printed.out
    assert not (tmp_path / "new").exists()


def chain():
    """The transforms of configs/inference.json."""
    return Compose([LoadVolumed(["image"]), ToWorkingGridd(label_key=None, spacing_mm=4.0)])


def bad_and_good_files(folder):
    """Name -> expected status, written into the folder; good ones first, last and in between."""
    affine = make_affine("LPS", (3.0, 3.0, 3.0), 20.0, VOLUME.shape)
    with_nan = VOLUME.copy()
    with_nan[2:9, 3:9, 4:9] = np.nan
    files = {
        "0_good": (VOLUME, "ok"),
        "1_zero": (np.zeros_like(VOLUME), "empty"),
        "2_flat": (VOLUME[0], "not_3d"),
        "3_row": (VOLUME[0, 0], "not_3d"),
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
    items = list(
        DataLoader(dataset, batch_size=1, num_workers=num_workers, collate_fn=collate_cases)
    )
    assert {item["case"][0]: item["status"][0] for item in items} == expected
    good = dataset[0]
    for item in items:
        assert item["image"].shape[:2] == (1, 1)
        assert item["image"].ndim == 5
        assert item["affine"].shape == (1, 4, 4)
        assert set(item) == {
            *("path", "case", "reading", "status", "message", "warnings", "doubt"),
            *("image", "affine"),
        }
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
def test_defects_become_a_status(tmp_path, caplog, raised):
    """Of this case only; the log has the whole story."""
    save_nifti(tmp_path / "a.nii", VOLUME)
    save_nifti(tmp_path / "b.nii", VOLUME)

    def defect(entry):
        if entry["case"] == "a":
            raise raised
        return entry

    dataset = CaseDataset(volumes_in(tmp_path), Compose([LoadVolumed(["image"]), defect]))
    bad, good = dataset[0], dataset[1]
    assert (bad["status"], good["status"]) == ("failed", "ok")
    assert f"a.nii: failed: {type(raised).__name__}: " in bad["message"]
    assert "Traceback" in caplog.text
