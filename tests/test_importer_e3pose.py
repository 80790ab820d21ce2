"""importers/e3pose.py: poses through Euler angles and back, and errors that name the culprit."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from conftest import GRIDS, head_pose, make_affine, rotation_matrix, save_nifti
from scripts.data.datalists import datalist
from scripts.data.importers.e3pose import angles_to_rotation, import_e3pose, pose_to_angles
from scripts.geometry import geodesic_deg

SHAPE = (22, 25, 28)
CENTER = np.array([12, 9, 15])  # of the ball, voxel indices; not the volume's centre
HEAD_SIDES = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1)}
HEAD_SIDES["I"] = (0, 0, -1)


def grid_affine(name: str) -> np.ndarray:
    """Affine of the grid of that name in conftest.GRIDS, off the world's origin."""
    affine = make_affine(*GRIDS[name], SHAPE)
    affine[:3, 3] += [11.0, -23.0, 5.0]
    return affine


def ball_label() -> np.ndarray:
    """A brain whose centre of mass is CENTER exactly, and eyes to one side of it."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1)
    label = (np.linalg.norm(index - CENTER, axis=-1) < 6.5).astype(np.uint8)
    label[18:20, 4:6, 15] = 2
    return label


class Source:
    """Images, labels and rows of a CSV below a folder; ``run`` imports them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows = folder, []
        self.images, self.labels = folder / "source" / "images", folder / "source" / "labels"
        self.csv, self.dataset = folder / "source" / "angles.csv", folder / "dataset"
        self.images.mkdir(parents=True)
        self.labels.mkdir()
        self.label = ball_label()

    def add(self, name, affine=None, angles=(10.0, 20.0, 30.0), suffix=".nii", **columns):
        affine = grid_affine("RAS") if affine is None else affine
        image = np.random.default_rng(0).random(SHAPE).astype(np.float32)
        save_nifti(self.images / f"{name}{suffix}", image, affine)
        save_nifti(self.labels / f"{name}{suffix}", self.label, affine)
        angles = dict(zip(("rot_x", "rot_y", "rot_z"), map(repr, angles), strict=True))
        self.rows.append({"frame_id": name} | angles | columns)
        return self

    def write(self) -> None:
        lines = [self.rows[0], *(row.values() for row in self.rows)]
        self.csv.write_text("".join(",".join(line) + "\n" for line in lines))

    def run(self, *args, **kwargs) -> Path:
        if not self.csv.exists():
            self.write()
        return import_e3pose(self.images, self.labels, self.csv, self.dataset, *args, **kwargs)


@pytest.fixture
def source(tmp_path):
    return Source(tmp_path)


def assert_same_pose(pose, truth):
    pose, truth = (torch.as_tensor(p, dtype=torch.float64) for p in (pose, truth))
    assert geodesic_deg(pose[:3, :3], truth[:3, :3]).item() < 1e-3
    assert (pose[:3, 3] - truth[:3, 3]).norm().item() < 1e-2


@pytest.mark.parametrize(
    ("grid", "canonical_axes"),
    [(grid, axes) for grid in ("RAS", "LPS", "oblique") for axes in ("RAS", "LPS", "PIR", "SAL")]
    + [(grid, axes) for grid in ("LAS", "PIL") for axes in ("LAS", "RAI", "PIL")]
    + [("anisotropic", "RAS")],
)
def test_round_trip(source, grid, canonical_axes):
    affine = grid_affine(grid)
    assert nib.orientations.aff2axcodes(affine) == tuple(GRIDS[grid][0])
    truths = {}
    for seed in range(3):
        truth = np.eye(4)
        truth[:3, :3] = rotation_matrix(seed)
        truth[:3, 3] = affine[:3, :3] @ CENTER + affine[:3, 3]
        truths[f"case.{seed}"] = truth
        source.add(f"case.{seed}", affine, pose_to_angles(truth, affine, canonical_axes))
    path = source.run(canonical_axes)
    entries = datalist(path.parent, "training")
    assert [entry["case"] for entry in entries] == list(truths)
    for entry in entries:
        assert_same_pose(entry["head_to_world"], truths[entry["case"]])


@pytest.mark.parametrize(
    ("grid", "canonical_axes"),
    [("RAS", "RAS"), ("LPS", "RAS"), ("PIL", "LPI"), ("oblique", "PIR"), ("LAS", "LAS")],
)
def test_points_go_where_scipy_and_the_letters_say(source, grid, canonical_axes):
    """From voxel to head coordinates twice: by the layout's definition, and by the world."""
    affine, angles = grid_affine(grid), (25.0, -50.0, 110.0)
    path = source.add("a", affine, angles).run(canonical_axes)
    (entry,) = datalist(path.parent, "training")
    voxels = np.random.default_rng(1).uniform(0, 20, (50, 3))
    canonical = Rotation.from_euler("xyz", angles, degrees=True).apply(3.0 * (voxels - CENTER))
    expected = sum(
        canonical[:, [axis]] * np.array(HEAD_SIDES[letter])
        for axis, letter in enumerate(canonical_axes)
    )
    world = voxels @ affine[:3, :3].T + affine[:3, 3]
    pose = np.array(entry["head_to_world"])
    head = (world - pose[:3, 3]) @ pose[:3, :3]
    np.testing.assert_allclose(head, expected, atol=1e-3)


def test_angles_are_those_of_scipys_extrinsic_xyz():
    for angles in np.random.default_rng(0).uniform(-180, 180, (20, 3)):
        expected = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
        rotation = angles_to_rotation(*angles.tolist())
        assert rotation.dtype == torch.float64
        np.testing.assert_allclose(rotation.numpy(), expected, atol=1e-12)


HALF = np.sqrt(3) / 2


@pytest.mark.parametrize(
    ("grid", "canonical_axes", "angles", "rotation"),
    [
        # i points to the head's front, j up, k to its right; i, j, k are the world's L, P, S
        ("LPS", "RAS", (90.0, 0.0, 90.0), [[0, -1, 0], [0, 0, -1], [1, 0, 0]]),
        # the front is row 1 of Rx(30): 0, cos 30, -sin 30
        ("RAS", "RAS", (30.0, 0.0, 0.0), [[1, 0, 0], [0, HALF, 0.5], [0, -0.5, HALF]]),
        # no rotation: the head's left, back and top are where i, j and k point
        ("RAS", "LPS", (0.0, 0.0, 0.0), [[-1, 0, 0], [0, -1, 0], [0, 0, 1]]),
        # i and j half turned by z, and i is the world's left
        ("LAS", "LAS", (0.0, 0.0, 180.0), [[-1, 0, 0], [0, -1, 0], [0, 0, 1]]),
    ],
)
def test_poses_computed_by_hand(source, grid, canonical_axes, angles, rotation):
    affine = grid_affine(grid)
    path = source.add("a", affine, angles).run(canonical_axes)
    (entry,) = datalist(path.parent, "training")
    truth = np.eye(4)
    truth[:3, :3] = rotation
    truth[:3, 3] = affine[:3, :3] @ CENTER + affine[:3, 3]
    assert_same_pose(entry["head_to_world"], truth)


@pytest.mark.parametrize("rot_y", [90.0, -90.0])
@pytest.mark.filterwarnings("error")
def test_gimbal_lock_gives_other_angles_of_the_same_rotation(rot_y):
    rotation = Rotation.from_euler("xyz", [20.0, rot_y, 50.0], degrees=True).as_matrix()
    pose = np.eye(4)
    pose[:3, :3] = rotation.T
    angles = pose_to_angles(pose, np.eye(4))
    assert angles[2] == 0
    np.testing.assert_allclose(angles_to_rotation(*angles).numpy(), rotation, atol=1e-7)


def test_paths_lead_to_the_sources_and_nothing_is_copied(source, monkeypatch):
    source.add("a", suffix=".nii.gz").add("b").write()
    (source.images / "without_row.nii").touch()
    elsewhere = source.folder / "far" / "away"
    elsewhere.mkdir(parents=True)
    link = source.folder / "link"
    link.symlink_to(elsewhere)
    (source.images / "c.nii").symlink_to(source.images / "b.nii")
    (source.labels / "c.nii").symlink_to(source.labels / "b.nii")
    source.csv.write_text(source.csv.read_text() + "c,0,0,0\n")
    monkeypatch.chdir(source.folder)
    path = import_e3pose("source/images", "source/labels", "source/angles.csv", "link")
    assert path == Path("link/dataset.json")
    assert [p.name for p in elsewhere.iterdir()] == ["dataset.json"]
    first, _, last = json.loads(path.read_text())["training"]
    assert first["image"] == "../../source/images/a.nii.gz"
    assert first["label"] == "../../source/labels/a.nii.gz"
    assert last["image"] == "../../source/images/c.nii"
    assert [entry["case"] for entry in datalist("link", "training")] == ["a", "b", "c"]


def test_all_sections_are_there(source):
    path = source.add("a").add("b").run()
    content = json.loads(path.read_text())
    assert list(content) == ["training", "validation", "test"]
    assert [e["subject"] for e in content["training"]] == ["a", "b"]
    assert content["validation"] == content["test"] == []


def test_folds_and_subjects(source):
    for name, fold, subject in (
        ("a", "validation", "s2"),
        ("b", "training", "s1"),
        ("c", "validation", "s2"),
        ("d", "test", "s3"),
    ):
        source.add(name, fold=fold, subject=subject)
    folder = source.run().parent
    found = {
        section: [(entry["case"], entry["subject"]) for entry in datalist(folder, section)]
        for section in ("training", "validation", "test")
    }
    assert found == {
        "training": [("b", "s1")],
        "validation": [("a", "s2"), ("c", "s2")],
        "test": [("d", "s3")],
    }


def test_validation_share_draws_whole_subjects(source):
    for number in range(12):
        source.add(f"frame{number}", subject=f"s{number % 4}")
    drawn = set()
    for seed in range(8):
        source.dataset = source.folder / f"seed{seed}"
        path = source.run(validation_share=0.25, seed=seed)
        assert source.run(validation_share=0.25, seed=seed) == path
        validation = datalist(path.parent, "validation")
        assert len(validation) == 3
        assert len({entry["subject"] for entry in validation}) == 1
        assert len(datalist(path.parent, "training")) == 9
        drawn.add(validation[0]["subject"])
    assert len(drawn) > 1


@pytest.mark.parametrize(
    ("share", "columns", "message"),
    [
        (1.0, {}, "validation_share must lie in .* 1.0 of 2"),
        (-0.1, {}, "validation_share must lie in .* -0.1 of 2"),
        (float("nan"), {}, "validation_share must lie in .* nan of 2"),
        (0.1, {}, "leave subjects for training and validation, got 0.1 of 2"),
        (0.9, {}, "leave subjects for training and validation, got 0.9 of 2"),
        (0.5, {"fold": "training"}, r"angles\.csv has a column fold: validation_share 0.5"),
    ],
)
def test_validation_share_that_cannot_be(source, share, columns, message):
    source.add("a", **columns).add("b", **columns)
    with pytest.raises(ValueError, match=message):
        source.run(validation_share=share)
    assert not source.dataset.exists()


def test_a_csv_from_a_spreadsheet_is_read(source):
    source.add("a").add("b", suffix=".nii.gz")
    expected = source.run().read_text()
    source.dataset = source.folder / "other"
    text = (
        "\ufeffframe_id , subject, fold, rot_x,  rot_y,rot_z, remark\r\n"
        'a.nii , "a", "training",10 , 20.0, 3e1, "good, sharp"\r\n'
        ",,,,,,\r\n"
        "\r\n"
        "b.nii.gz, b,training , 10, 20, 30,\r\n"
    )
    source.csv.write_bytes(text.encode())
    assert source.run().read_text() == expected


GOOD = "frame_id,rot_x,rot_y,rot_z\na,1,2,3\n"
FOLDS = "frame_id,rot_x,rot_y,rot_z,fold,subject\na,1,2,3,training,s\n"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", ValueError, r"line 1: .*'frame_id', 'rot_x', 'rot_y', 'rot_z'.*got \[\]"),
        (
            "frame_id,rot_x,rot_z\na,1,2\n",
            ValueError,
            r"line 1: .*'rot_y'.*got \['frame_id', 'rot_x', 'rot_z'\]",
        ),
        ("frame_id,rot_x,rot_x,rot_y,rot_z\n", ValueError, r"line 1: .*got .*'rot_x', 'rot_x'"),
        (
            "frame_id,rot_x,rot_y,rot_z,fold,fold\n",
            ValueError,
            r"line 1: .*'fold'\], got .*'fold', 'fold'\]",
        ),
        ("frame_id;rot_x;rot_y;rot_z\na;1;2;3\n", ValueError, "line 1: .*frame_id;rot_x"),
        ("frame_id,rot_x,rot_y,rot_z\n", ValueError, "no rows"),
        (GOOD + "b,1,2\n", ValueError, "line 3: 3 values for 4 columns"),
        (GOOD + "b,1,2,3,4\n", ValueError, "line 3: 5 values for 4 columns"),
        (GOOD + "b,1,up,3\n", ValueError, "line 3: rot_y .*'up'"),
        (GOOD + "b,1,2,\n", ValueError, "line 3: rot_z .*''"),
        (GOOD + "b,nan,2,3\n", ValueError, "line 3: rot_x .*'nan'"),
        (GOOD + "b,1,2,inf\n", ValueError, "line 3: rot_z .*'inf'"),
        (GOOD + "\nb,1,2,x\n", ValueError, "line 4: rot_z .*'x'"),
        (GOOD + ",1,2,3\n", ValueError, "line 3: frame_id .*''"),
        (GOOD + ".nii.gz,1,2,3\n", ValueError, "line 3: frame_id .*nii"),
        (GOOD + "../images/b,1,2,3\n", ValueError, r"line 3: frame_id .*'\.\./images/b'"),
        (GOOD + "b,1,2,3\na,4,5,6\n", ValueError, r"line 4: frame 'a' as in .*csv, line 2"),
        (GOOD + "a.nii.gz,1,2,3\n", ValueError, r"line 3: frame 'a' as in .*csv, line 2"),
        (FOLDS + "b,1,2,3,train,t\n", ValueError, "line 3: fold .*training.*'train'"),
        (FOLDS + "b,1,2,3,,t\n", ValueError, "line 3: fold .*''"),
        (FOLDS + "b,1,2,3,training,\n", ValueError, "line 3: no subject"),
        (
            FOLDS + "b,1,2,3,test,s\n",
            ValueError,
            r"line 3: subject 's' is in test, but in training in .*csv, line 2",
        ),
        (GOOD + "c,1,2,3\n", FileNotFoundError, r"line 3: .*images/c\.nii\.gz: no such file"),
    ],
)
def test_errors_of_the_csv_name_line_and_value(source, text, error, message):
    source.add("a").add("b")
    source.csv.write_text(text)
    with pytest.raises(error, match=rf"angles\.csv.*{message}"):
        source.run()
    assert not source.dataset.exists()


def test_no_csv_or_not_a_text(source):
    source.add("a")
    with pytest.raises(FileNotFoundError, match=r"gone\.csv"):
        import_e3pose(source.images, source.labels, source.folder / "gone.csv", source.dataset)
    source.csv.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ValueError, match=r"angles\.csv: not a CSV file in UTF-8"):
        source.run()


def test_missing_and_ambiguous_files(source):
    source.add("a").add("b")
    (source.labels / "b.nii").unlink()
    with pytest.raises(FileNotFoundError, match=r"csv, line 3: .*labels/b\.nii\.gz: no such file"):
        source.run()
    source.add("b", suffix=".nii.gz")
    with pytest.raises(ValueError, match=r"csv, line 3: .*images/b.* both there"):
        source.run()


def shifted(affine, label):
    affine[0, 3] += 1
    return label


def shorter(affine, label):
    return label[:-1]


def other_value(affine, label):
    label[0, 0, 0] = 3
    return label


def no_brain(affine, label):
    label[label == 1] = 0
    return label


def no_volume(affine, label):
    return label[0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shifted, "grid is not the image's"),
        (shorter, "grid is not the image's"),
        (other_value, r"labels must be 0, 1 or 2, got \[0.0, 1.0, 2.0, 3.0\]"),
        (no_brain, "no voxel is 1, brain"),
        (no_volume, "expected one 3D volume"),
    ],
)
def test_labels_that_cannot_be_used(source, spoil, message):
    source.add("a").add("b")
    affine = grid_affine("RAS")
    label = spoil(affine, ball_label())
    save_nifti(source.labels / "b.nii", label, affine)
    with pytest.raises(ValueError, match=rf"csv, line 3: .*labels/b\.nii: .*{message}"):
        source.run()
    assert not source.dataset.exists()


@pytest.mark.parametrize("code", ["RA", "RASR", "RAA", "RLS", "ras", "XYZ", "", "RAs"])
def test_bad_canonical_axes(source, code):
    source.add("a")
    message = f"canonical_axes must be .*got {code!r}"
    with pytest.raises(ValueError, match=message):
        source.run(code)
    with pytest.raises(ValueError, match=message):
        pose_to_angles(head_pose(), np.eye(4), code)


@pytest.mark.parametrize(
    ("grid", "axes", "message"),
    [
        ("LAS", "RAS", "LAS, are left-handed and the canonical axes, RAS, right-handed.*'LAS'"),
        ("PIL", "RAS", "PIL, are left-handed and the canonical axes, RAS, right-handed.*'LAS'"),
        ("LPS", "LAS", "LPS, are right-handed and the canonical axes, LAS, left-handed.*'RAS'"),
    ],
)
def test_a_head_that_would_be_its_mirror_image(source, grid, axes, message):
    affine = grid_affine(grid)
    source.add("a", affine)
    with pytest.raises(ValueError, match=rf"csv, line 2: .*images/a\.nii: the voxel.*{message}"):
        source.run(axes)
    assert not source.dataset.exists()
    with pytest.raises(ValueError, match=f"the affine: the voxel.*{message}"):
        pose_to_angles(head_pose(), affine, axes)


def test_sheared_voxels(source):
    affine = grid_affine("oblique")
    affine[:3, 0] += 0.01 * affine[:3, 1]
    source.add("a", affine)
    with pytest.raises(ValueError, match=r"line 2: .*images/a\.nii: the voxel axes are not at rig"):
        source.run()
    with pytest.raises(ValueError, match="the affine: the voxel axes are not at right angles"):
        pose_to_angles(head_pose(), affine)


def test_rounded_affines_give_poses_that_are_rigid(source):
    affine = grid_affine("oblique").round(3)
    path = source.add("a", affine).run()
    pose = np.array(datalist(path.parent, "training")[0]["head_to_world"])
    np.testing.assert_allclose(pose[:3, :3].T @ pose[:3, :3], np.eye(3), atol=1e-12)


def test_pose_that_is_not_rigid_has_no_angles():
    with pytest.raises(ValueError, match="head_to_world: expected a rigid transform"):
        pose_to_angles(np.diag([-1.0, 1, 1, 1]), np.eye(4))


def test_another_dataset_is_never_overwritten(source):
    path = source.add("a").run()
    os.utime(path, (1, 1))
    assert source.run() == path
    assert path.stat().st_mtime == 1  # the same content is not written again
    old = path.read_text()
    with pytest.raises(ValueError, match=r"dataset\.json is another data set"):
        source.run("LPS")
    assert path.read_text() == old
    assert [p.name for p in source.dataset.iterdir()] == ["dataset.json"]
