"""What is found below a folder, what it is called, and what is left aside with which reason."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePath

import nibabel as nib
import numpy as np
import pytest

from conftest import save_nifti
from scripts.data.datalists import volumes_in
from scripts.reading import find_cases, read_image
from scripts.reading.bids import entities
from scripts.reading.formats import case_name

VALUES = np.random.default_rng(0).random((6, 7, 8)).astype(np.float32)


def put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_nifti(path, VALUES)


def names(found) -> list[str]:
    return [case.name for case in found.cases]


def aside(found, folder: Path) -> dict[str, str]:
    return {os.path.relpath(path, folder): why for path, why in found.left_aside}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("x/a.nii", "a"),
        ("a.nii.gz", "a"),
        ("a.b.NII.Gz", "a.b"),
        ("a.gz", "a.gz"),
        ("a.mha", "a"),
        ("a.MGZ", "a"),
        (Path("nii"), "nii"),
        (".nii", ".nii"),
    ],
)
def test_case_name(path, name):
    assert case_name(path) == name


def test_a_folder_is_searched_to_the_bottom(tmp_path):
    put(tmp_path, "b.nii.gz", "a.nii", "sub/c.nii", "sub/deep/er/d.nii.gz")
    for name in ("notes.txt", "c.gz", "d.nii.gz.md5", "sub/dataset.json", "archive.zip"):
        (tmp_path / name).write_text("text")
    put(tmp_path, ".hidden/a.nii", "sub/.b.nii", ".c.nii")
    (tmp_path / "folder.nii").mkdir()
    os.symlink(tmp_path / "gone.nii", tmp_path / "dangling.nii")
    os.symlink(tmp_path, tmp_path / "sub" / "round")
    os.symlink(tmp_path / "a.nii", tmp_path / "sub" / "link.nii")
    found = find_cases(tmp_path)
    assert names(found) == ["a", "b", "sub_c", "sub_deep_er_d", "sub_link"]
    assert found.cases[3].folder == PurePath("sub/deep/er")
    left = aside(found, tmp_path)
    assert set(left) == {
        *("notes.txt", "c.gz", "d.nii.gz.md5", "sub/dataset.json", "archive.zip", "dangling.nii"),
    }
    assert "dangling link" in left["dangling.nii"]
    assert "gone.nii" in left["dangling.nii"]
    assert ".txt" in left["notes.txt"]


def test_one_file_a_list_and_another_folder(tmp_path):
    put(tmp_path, "x/a.nii", "x/b.nii", "y/c.nii")
    assert names(find_cases(tmp_path / "x/a.nii")) == ["a"]
    assert names(find_cases(str(tmp_path / "y"))) == ["c"]
    found = find_cases([str(tmp_path / "x/b.nii"), tmp_path / "y"])
    assert names(found) == ["b", "c"]
    os.chdir(tmp_path)
    put(tmp_path, "20240131/a.nii")
    assert names(find_cases(20240131)) == ["a"]  # as Fire hands such a name over


@pytest.mark.parametrize("given", [None, True, 1e5, {}, [], [None], [1.5]])
def test_what_is_no_path(given):
    with pytest.raises(ValueError, match=r"dataset_dir is .*quotes"):
        find_cases(given)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone: no such folder or file"):
        find_cases(tmp_path / "gone")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"no \.nii or \.nii\.gz.*notes\.txt: no kind"):
        find_cases(tmp_path)


def test_no_two_cases_share_a_name(tmp_path):
    put(
        tmp_path, "a.nii", "a.nii.gz", "b.nii", "x/c.nii", "x_c.nii", "Q.nii", "q.nii.gz", "s_t.nii"
    )
    put(tmp_path, "s/t.nii")
    found = names(find_cases(tmp_path))
    assert len({name.casefold() for name in found}) == 9
    assert {"a.nii", "a.nii.gz", "b", "x_c.nii", "x_c.nii_2", "Q.nii", "q.nii.gz"} <= set(found)
    again = names(find_cases([tmp_path, tmp_path / "b.nii"]))
    assert len(set(again)) == 10


def test_names_that_are_hard_to_write(tmp_path):
    long = "n" * 250
    put(tmp_path, f"{long}.nii", "f" * 120 + "/" + "g" * 120 + ".nii", "$a$ b.nii", "M\u00fc.nii")
    raw = os.fsencode(tmp_path) + b"/M\xfcller\n.nii"
    os.rename(tmp_path / "M\u00fc.nii", raw)
    found = find_cases(tmp_path)
    assert len(found.cases) == 4
    for case in found.cases:
        assert len(case.name.encode()) <= 160
        case.shown.encode()
        read_image(case)
    assert "M\u00fcller_" in names(found)
    assert "$a$ b" in names(found)


def test_outputs_are_no_inputs(tmp_path):
    put(tmp_path, "a.nii", "out/b.nii", "a_mask.nii.gz", "other_mask.nii", "a_aligned.nii.gz")
    (tmp_path / "a_pose.json").write_text("{}")
    found = find_cases(tmp_path, tmp_path / "out")
    assert names(found) == ["a", "other_mask"]
    left = aside(found, tmp_path)
    assert left["out"] == "the folder of the outputs"
    assert left["a_mask.nii.gz"] == left["a_aligned.nii.gz"] == "an output of inference"
    assert names(find_cases(tmp_path, tmp_path)) == ["a", "other_mask", "out_b"]


def test_pairs_are_one_case(tmp_path):
    nib.save(nib.Nifti1Pair(VALUES, np.diag([3, 3, 3, 1])), tmp_path / "p.hdr")
    (tmp_path / "alone.img").write_bytes(b"x")
    found = find_cases(tmp_path)
    assert names(found) == ["p"]
    assert aside(found, tmp_path) == {"alone.img": ".img without .hdr or .hdr.gz beside it"}
    assert names(find_cases(tmp_path / "p.img")) == ["p"]
    os.rename(tmp_path / "p.hdr", tmp_path / "P.HDR")
    os.rename(tmp_path / "p.img", tmp_path / "P.IMG")
    (case,) = find_cases(tmp_path).cases
    np.testing.assert_array_equal(read_image(case).values, VALUES)


def test_a_bids_data_set(tmp_path):
    (tmp_path / "dataset_description.json").write_text(json.dumps({"Name": "n"}))
    scan = "sub-01/ses-2/anat/sub-01_ses-2_run-1_T2w.nii.gz"
    put(tmp_path, scan, "derivatives/x/sub-01_T2w.nii", "sub-02/anat/odd.nii")
    put(tmp_path, "sub-02/func/sub-02_part-phase_bold.nii", "sub-02/func/sub-02_part-mag_bold.nii")
    found = find_cases(tmp_path)
    assert names(found) == ["sub-01_ses-2_run-1_T2w", "sub-02_anat_odd", "sub-02_part-mag_bold"]
    first = found.cases[0]
    assert first.folder == PurePath("sub-01/ses-2/anat")
    assert first.bids == {
        **{"sub": "01", "ses": "2", "run": "1"},
        **{"suffix": "T2w", "datatype": "anat"},
    }
    assert found.cases[1].bids is None
    left = aside(found, tmp_path)
    assert "derivatives" in left
    assert "phase" in left["sub-02/func/sub-02_part-phase_bold.nii"]


@pytest.mark.parametrize(
    "name", ["T2w.nii", "ses-1_sub-1_T2w.nii", "sub-1_run-1.nii", "sub-_T2w.nii"]
)
def test_names_that_are_not_of_bids(name):
    assert entities(PurePath("sub-1/anat") / name) is None


def test_entries_have_what_the_writers_need(tmp_path):
    put(tmp_path, "a.nii")
    nib.save(nib.Nifti1Image(np.stack([VALUES] * 2, -1), np.eye(4)), tmp_path / "b.nii")
    (tmp_path / "notes.txt").touch()
    entries = volumes_in(tmp_path, tmp_path / "out", "3,3,4")
    assert [(e["case"], e["reading"].frame) for e in entries] == [("a", 0), ("b", 0), ("b", 1)]
    assert entries[0]["image"] == str(tmp_path / "a.nii")
    assert entries[0]["reading"].voxel_mm == (3, 3, 4)
    assert [why for _, why in entries.left_aside] == ["no kind of file that is read (.txt)"]
    image = read_image(entries[0]["reading"])
    assert np.linalg.norm(image.affine[:3, :3], axis=0) == pytest.approx([3, 3, 4])


def test_folders_that_cannot_be_opened_are_told(tmp_path, monkeypatch):
    put(tmp_path, "a.nii", "shut/b.nii")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find_cases(tmp_path)
    assert names(found) == ["a"]
    assert "Permission denied" in aside(found, tmp_path)["shut"]
