"""entry_check.py and label_facts.py: data that trains the opposite is found, right data is not."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from conftest import GRIDS, head_pose, make_affine, save_nifti
from scripts.data.entry_check import are_eyes, check_entry
from scripts.data.label_facts import label_facts

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
EYES = np.array([[-15.0, 34.0, -20.0], [15.0, 34.0, -20.0]])  # left, right


def head_label(pose, affine, shape, eyes=True):
    """Brain: an ellipsoid longest from front to back, at the pose's origin; two eyes."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    head = (index @ affine[:3, :3].T + affine[:3, 3] - pose[:3, 3]) @ pose[:3, :3]
    label = np.zeros(shape, np.uint8)
    label[np.linalg.norm(head / [24.0, 32.0, 24.0], axis=-1) < 1] = 1
    for eye in EYES if eyes else ():
        label[np.linalg.norm(head - eye, axis=-1) < 7] = 2
    return label


class Entry:
    """Files of a right entry, that tests then spoil."""

    def __init__(self, folder, grid="LAS", eyes=True, pose=None):
        axcodes, voxel_mm, tilt = GRIDS[grid]
        self.folder = folder
        self.shape = tuple(int(180 / v) for v in voxel_mm)
        self.affine = make_affine(axcodes, voxel_mm, tilt, self.shape)
        self.pose = head_pose() if pose is None else pose
        self.label = head_label(self.pose, self.affine, self.shape, eyes)
        self.more: dict = {}

    def findings(self, pose="right", label=None, label_affine=None):
        pose = self.pose if isinstance(pose, str) else pose
        image = np.zeros(self.shape, np.uint8)
        entry = {
            "where": "D/dataset.json: training[0]",
            "section": "training",
            "image": save_nifti(self.folder / "image.nii.gz", image, self.affine),
            "label": save_nifti(
                self.folder / "label.nii.gz",
                self.label if label is None else label,
                self.affine if label_affine is None else label_affine,
            ),
            "head_to_world": None if pose is None else torch.from_numpy(pose),
            "given": {"head_to_world": None},
            **self.more,
        }
        return check_entry(entry)


@pytest.fixture
def entry(tmp_path):
    return Entry(tmp_path)


def one(findings, error=True):
    """The message of the only finding of a kind."""
    messages = [f.message for f in findings if f.error == error]
    assert len(messages) == 1, findings
    assert all(str(f).startswith("D/dataset.json: training[0]: ") for f in findings)
    return messages[0]


@pytest.mark.parametrize("grid", list(GRIDS))
@pytest.mark.parametrize("eyes", [True, False])
def test_what_is_right_is_left_alone(tmp_path, grid, eyes):
    for seed in (3, 4, 5):
        found = Entry(tmp_path, grid, eyes, head_pose(seed))
        assert not found.findings()


def transposed(pose):
    other = pose.copy()
    other[:3, :3] = pose[:3, :3].T
    return other


@pytest.mark.parametrize(
    ("spoil", "reading"),
    [
        (lambda pose: LPS @ pose, "in LPS"),
        (np.linalg.inv, "world_to_head, its inverse"),
        (transposed, "with its rotation transposed"),
        (lambda pose: np.linalg.inv(LPS @ pose), "the inverse of a pose in LPS"),
    ],
)
@pytest.mark.parametrize("grid", ["RAS", "LAS", "oblique"])
def test_poses_that_train_the_opposite(tmp_path, grid, spoil, reading):
    found = Entry(tmp_path, grid).findings(spoil(head_pose()))
    errors = [f.message for f in found if f.error]
    # a right origin with a wrong rotation shows in the eyes, a wrong origin in its distance
    assert errors
    assert any(f"it fits if the matrix is read as {reading}" in message for message in errors)


def test_an_lps_pose_of_a_head_at_the_worlds_origin_shows_in_the_eyes(tmp_path):
    pose = head_pose()
    pose[:3, 3] = 0
    found = Entry(tmp_path, pose=pose).findings(LPS @ pose)
    assert any("eyes lie" in f.message and "in LPS" in f.message for f in found if f.error)


def test_distances_are_in_mm_of_the_world(entry):
    pose = entry.pose.copy()
    pose[:3, 3] += [0, 30, 0]
    assert "lies 30 mm from the centre of the label's brain" in one(entry.findings(pose))
    pose[:3, 3] = [0, 0, 200]
    # the volume reaches to 90 mm from the middle
    assert "lies 110 mm outside the volume" in one(entry.findings(pose))


def test_a_little_off_is_a_warning(entry):
    pose = entry.pose.copy()
    pose[:3, 3] += [0, 9.5, 0]
    assert "lies 10 mm from the centre" in one(entry.findings(pose), error=False) or "9 mm" in one(
        entry.findings(pose), error=False
    )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_labels_shifted_by_some_cm(entry, axis):
    found = entry.findings(label=np.roll(entry.label, 8, axis))
    assert any("lies 24 mm from the centre of the label's brain" in f.message for f in found)
    assert any(f.error for f in found)


def test_labels_whose_left_and_right_are_swapped(entry):
    """The array mirrored: another place, and eyes where none are. Or the affine alone."""
    found = entry.findings(label=entry.label[::-1])
    assert any(f.error for f in found)
    mirrored = entry.affine @ np.diag([-1.0, 1, 1, 1])
    mirrored[:3, 3] = entry.affine[:3, 3] + entry.affine[:3, 0] * (entry.shape[0] - 1)
    found = [f.message for f in entry.findings(label_affine=mirrored)]
    assert any("one is the mirror image of the other" in message for message in found)


def test_labels_on_another_grid(entry):
    assert "label of (50, 60, 60) voxels, image of (60, 60, 60)" in [
        f.message for f in entry.findings(label=entry.label[:50])
    ]
    moved = entry.affine.copy()
    moved[0, 3] += 4
    found = entry.findings(label_affine=moved)
    assert "label and image have other affines: corners lie 4 mm apart" in one(found)
    bad = entry.label.copy()
    bad[0, 0, 0] = 7
    assert "labels must be 0, 1 or 2, got [0, 1, 2, 7]" in one(entry.findings(label=bad))


def test_unknown_voxels_are_those_of_a_twin(entry):
    label = entry.label.copy()
    label[0, 0, 0] = 255
    assert "labels must be 0, 1 or 2, got [0, 1, 2, 255]" in one(entry.findings(label=label))
    entry.more["twin_to_world"] = torch.eye(4)
    assert not entry.findings(label=label)


def test_eyes_and_brain_named_for_each_other(entry):
    swapped = np.array([0, 2, 1], np.uint8)[entry.label]
    assert any("eyes named brain" in f.message for f in entry.findings(label=swapped) if f.error)
    eyes_only = np.array([0, 0, 1], np.uint8)[entry.label]
    found = entry.findings(label=eyes_only)
    assert any("ml in 2 parts: are these the eyes" in f.message for f in found if f.error)


def test_a_pose_and_no_brain(entry):
    assert "a pose, but no brain in the label" in one(entry.findings(label=0 * entry.label))


def test_a_brain_and_no_pose(entry):
    message = one(entry.findings(None), error=False)
    assert "and head_to_world null" in message  # said, so a warning
    entry.more["given"] = {}
    assert "but no head_to_world" in one(entry.findings(None))


def test_a_brain_that_the_edge_cuts_is_no_error(tmp_path):
    pose = head_pose()
    pose[:3, 3] = [0, 0, 85]  # 5 mm from the upper edge: the half of it is seen
    assert not [f for f in Entry(tmp_path, "RAS", False, pose).findings() if f.error]


def test_a_long_axis_that_is_not_the_poses(tmp_path):
    pose = head_pose()
    turned = pose.copy()
    turned[:3, :3] = pose[:3, [2, 0, 1]]  # what is called anterior is the right
    message = one(Entry(tmp_path, eyes=False).findings(turned), error=False)
    assert "longest axis lies 90 degrees" in message


def test_eyes_given_as_points(entry):
    entry.more = {"left_eye_mm": EYES[0].tolist(), "right_eye_mm": EYES[1].tolist()}
    assert not entry.findings()
    world = EYES @ entry.pose[:3, :3].T + entry.pose[:3, 3]
    entry.more = {"left_eye_mm": world[0].tolist(), "right_eye_mm": world[1].tolist()}
    assert "seem to be in the world" in one(entry.findings(), error=False)
    entry.more = {"left_eye_mm": EYES[1].tolist(), "right_eye_mm": EYES[0].tolist()}
    assert "left is -x" in one(entry.findings())
    far = (EYES + np.array([0, 0, 60])).tolist()
    entry.more = {"left_eye_mm": far[0], "right_eye_mm": far[1]}
    assert "lie up to 60 mm from left_eye_mm" in one(entry.findings(), error=False)
    assert not are_eyes(EYES * 3)


def test_files_that_cannot_be_read_are_named(entry):
    entry.findings()
    path = entry.folder / "label.nii.gz"
    path.write_bytes(path.read_bytes()[:300])
    found = {"image": str(entry.folder / "image.nii.gz"), "label": str(path), "head_to_world": None}
    assert "label.nii.gz: cannot be read" in one(
        check_entry(
            found | {"where": "D/dataset.json: training[0]", "section": "training", "given": {}}
        )
    )


@pytest.mark.parametrize("grid", list(GRIDS))
def test_facts_are_of_the_world(tmp_path, grid):
    entry = Entry(tmp_path, grid)
    facts = label_facts(save_nifti(tmp_path / "label.nii", entry.label, entry.affine))
    eyes = EYES @ entry.pose[:3, :3].T + entry.pose[:3, 3]
    off = np.linalg.norm(facts.eyes_mm[:, None] - eyes, axis=2).min(1)
    assert off.max() < 2
    np.testing.assert_allclose(facts.brain_mm, entry.pose[:3, 3], atol=1)
    assert facts.brain_ml == pytest.approx(4 / 3 * np.pi * 24 * 32 * 24 / 1000, rel=0.03)
    assert abs(facts.long_axis @ entry.pose[:3, 1]) > 0.98
    assert abs(facts.between_eyes @ entry.pose[:3, 0]) > 0.98
    assert not facts.cut


def test_a_torn_eye_is_not_a_pair(tmp_path):
    label = np.zeros((40, 40, 40), np.uint8)
    label[10:26, 10:26, 10:26] = 1
    label[30, 12:14, 12] = label[30, 15:17, 12] = 2
    facts = label_facts(save_nifti(tmp_path / "label.nii", label, np.diag([3.0, 3, 3, 1])))
    assert len(facts.eyes_mm) == 2
    assert facts.between_eyes is None


def test_a_label_that_is_not_3d_is_named(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 2), np.uint8), np.eye(4)), tmp_path / "l.nii")
    with pytest.raises(ValueError, match=r"l\.nii: expected a 3D label"):
        label_facts(str(tmp_path / "l.nii"))
