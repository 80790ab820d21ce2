"""dataset_check.py, dataset_entries.py and `scripts.datasets check`: what one may say."""

from __future__ import annotations

import json
import logging
import shutil

import numpy as np
import pytest
from matplotlib.image import imread

from conftest import head_pose, labelled_case
from scripts.data.datalists import datalist, mixture
from scripts.data.dataset_check import (
    DatasetError,
    check_dataset,
    checked,
    checked_mixture,
    refuse_bad,
    summary,
)
from scripts.data.dataset_entries import Finding, read_dataset
from scripts.datasets import main


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """An entry whose files are there, with full paths."""
    return labelled_case(tmp_path_factory.mktemp("case"))


@pytest.fixture
def write(tmp_path):
    """Writes a dataset.json, given as text, bytes or content; gives the folder."""

    def _write(content, name="data"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        if not isinstance(content, str | bytes):
            content = json.dumps(content)
        data = content if isinstance(content, bytes) else content.encode()
        (folder / "dataset.json").write_bytes(data)
        return folder

    return _write


def messages(folder, error=True, sections=None):
    return [str(f) for f in check_dataset(folder, sections) if f.error == error]


def test_a_good_set_has_no_errors(write, case):
    folder = write({"training": [case], "validation": [], "test": [], "phantom": {"seed": 0}})
    assert messages(folder) == []
    assert messages(folder, error=False) == [
        f"{folder}/dataset.json: section 'validation' is empty: training then keeps its last "
        "weights, unmeasured"
    ]


@pytest.mark.parametrize("key", ["head_to_wrld", "HeadToWorld", "head2world", "pose"])
def test_a_misspelt_pose_is_an_error_everywhere(write, case, key):
    """Every volume would count as one without a head."""
    entry = {k: v for k, v in case.items() if k != "head_to_world"} | {key: case["head_to_world"]}
    folder = write({"training": [entry], "validation": []})
    (message,) = messages(folder)
    assert f"training[0]: unknown key '{key}', did you mean 'head_to_world'?" in message
    with pytest.raises(ValueError, match=r"training\[0\]: unknown key .* did you mean"):
        datalist(folder, "training")


def test_other_unknown_keys_are_warnings_said_once(write, case):
    entries = [case | {"lable": "x", "comment": k} for k in range(3)]
    del entries[0]["label"]
    found = messages(write({"training": entries, "validation": []}), error=False)
    assert any("training[0]: unknown key 'lable', did you mean 'label'?" in text for text in found)
    assert any("unknown key 'comment', which nothing reads" in text for text in found)
    text = summary(check_dataset(write({"training": entries, "validation": []})))
    assert text.count("'comment'") == 1
    assert "'comment', which nothing reads (and 2 entries more)" in text


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("a.nii", 'training[1]: expected an object with "image", got str "a.nii"'),
        (None, 'training[1]: expected an object with "image", got NoneType null'),
        ({"image": ["a", "b"]}, "training[1]: image must be one path, as text, got list"),
        ({"image": 7}, "training[1]: image must be one path, as text, got int 7"),
        ({"label": "x.nii"}, "training[1]: label {0}/x.nii does not exist"),
        ({"imgae": "x.nii"}, "training[1]: unknown key 'imgae', did you mean 'image'?"),
        ({"image": "gone.nii"}, "training[1]: image {0}/gone.nii does not exist"),
        ({"image": "."}, "training[1]: image {0} is a folder"),
        ({"head_to_world": [[1, 0], [0, 1]]}, "training[1]: head_to_world of "),
        ({"head_to_world": np.eye(4)[:3].tolist()}, "expected a finite 4 x 4 matrix"),
        ({"head_to_world": head_pose().T.tolist()}, "last row must be 0, 0, 0, 1"),
        ({"head_to_world": (np.eye(4) * np.nan).tolist()}, "expected a finite 4 x 4 matrix"),
        ({"left_eye_mm": [1, 2]}, "training[1]: left_eye_mm must be three numbers"),
        ({"left_eye_mm": [1, 2, 3]}, "only one is given"),
    ],
)
def test_entries_that_cannot_be_meant_are_named(write, case, entry, message):
    folder = write({"training": [case, entry], "validation": [], "test": []})
    found = [f for f in check_dataset(folder) if "training[1]" in str(f)]
    assert any(message.format(folder) in str(f) for f in found), found
    with pytest.raises((ValueError, FileNotFoundError), match=r"dataset\.json: training\[1\]"):
        datalist(folder, "training")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[1]", "expected sections, got a list"),
        ({"training": None}, "section 'training' is null, expected a list"),
        ({"training": {"image": "a"}}, "section 'training' is a dict, expected a list"),
    ],
)
def test_files_that_cannot_be_meant_are_named(write, content, message):
    folder = write(content)
    with pytest.raises(ValueError, match=r"dataset\.json.*" + message):
        datalist(folder, "training")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_editors_write_is_read(write, encoding):
    assert read_dataset(write(json.dumps({"training": ["ä"]}).encode(encoding))) == {
        "training": ["ä"]
    }


@pytest.mark.parametrize("given", [["a", "b"], None, 7])
def test_a_dataset_dir_that_is_no_folder_is_named(given):
    with pytest.raises(ValueError, match="dataset_dir: expected one folder"):
        datalist(given, "training")


def test_sections_that_share_what_they_must_not(write, case, tmp_path):
    other = tmp_path / "other.nii.gz"
    shutil.copy(case["image"], other)
    twice = case | {"image": str(other)}
    folder = write({"training": [case], "validation": [twice], "test": [case]})
    found = messages(folder)
    assert any("subject in both training and validation: head" in text for text in found)
    warned = messages(folder, error=False)  # nothing is learned from these
    assert any("subject in both validation and test: head" in text for text in warned)
    entries = [case | {"subject": "a"}, case | {"subject": "a"}]
    folder = write({"training": entries, "validation": [case | {"subject": "b"}]})
    assert any("image in both training and validation" in text for text in messages(folder))
    assert any("2 times" in text for text in messages(folder, error=False))


def test_an_empty_training_section_is_an_error(write, case):
    folder = write({"training": [], "validation": [case], "test": []})
    assert messages(folder) == [f"{folder}/dataset.json: section 'training' is empty"]
    with pytest.raises(DatasetError, match="section 'training' is empty: nothing to work on"):
        checked(folder, "training", needed=True)
    assert checked(folder, "test") == []
    with pytest.raises(DatasetError, match="'test' is empty"):
        checked_mixture([folder, folder], "test", check=False, needed=True)


def test_training_refuses_errors_of_its_section_and_logs_warnings(write, case, caplog, tmp_path):
    wrong = np.array(case["head_to_world"])
    wrong[:3, 3] += 40
    other = tmp_path / "other.nii.gz"
    shutil.copy(case["image"], other)
    bad = case | {"head_to_world": wrong.tolist(), "subject": "bad", "image": str(other)}
    folder = write({"training": [case | {"note": 1}], "validation": [], "test": [bad]})
    caplog.set_level(logging.WARNING)
    assert len(checked(folder, "training")) == 1  # the test section is not its business
    assert "unknown key 'note'" in caplog.text
    with pytest.raises(
        DatasetError, match=r"(?s)1 errors in .*test\[0\]: the pose's origin lies 69 mm"
    ):
        refuse_bad(folder, "test")
    assert len(checked(folder, "test", check=False)) == 1
    folder = write({"training": [bad] * 15, "validation": []})
    with pytest.raises(DatasetError, match="15 errors") as raised:
        checked_mixture([folder], "training")
    assert str(raised.value).endswith("and 5 more")


def test_cases_of_one_name_are_told_apart(write, case, tmp_path):
    folder = write({})
    for name in ("a/t2.nii.gz", "b/t2.nii.gz", "c/one.nii", "c/one.nii.gz", "t1.nii"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    names = ["a/t2.nii.gz", "b/t2.nii.gz", "c/one.nii", "c/one.nii.gz", "t1.nii"]
    write({"training": [{"image": name} for name in names]})
    cases = [entry["case"] for entry in datalist(folder, "training")]
    assert cases == ["a/t2", "b/t2", "c/one.nii", "c/one.nii.gz", "t1"]
    other = write({"training": [{"image": "../data/t1.nii"}]}, "again")
    cases = [entry["case"] for entry in mixture([folder, other], "training")]
    assert cases[-2:] == ["data/t1", "again/t1"]


def test_command_line_check(write, case, tmp_path, capsys):
    wrong = np.array(case["head_to_world"])
    wrong[:3, :3] = wrong[:3, :3] @ np.diag([-1.0, -1, 1])  # the face at the back
    bad = case | {"head_to_world": wrong.tolist(), "subject": "bad", "label": case["label"]}
    folder = write({"training": [bad, case], "validation": [], "test": []})
    where = ["check", "--dataset_dir", str(folder), "--picture_dir", str(tmp_path / "p")]
    with pytest.raises(SystemExit) as raised:
        main(where)
    assert raised.value.code == 1
    printed = capsys.readouterr().out
    assert "error: " in printed
    assert "training[0]: the label's eyes lie" in printed
    assert f"{folder}: 1 errors, " in printed
    pictures = sorted(p.name for p in (tmp_path / "p").iterdir())
    assert pictures == ["training_0_head.png", "training_1_head.png"]
    assert imread(tmp_path / "p" / pictures[0]).std() > 0.05
    folder = write({"training": [case], "validation": [], "test": []})
    with pytest.raises(SystemExit) as raised:
        main(["check", "--dataset_dir", str(folder)])
    assert raised.value.code == 0
    with pytest.raises(SystemExit) as raised:
        main(["check", "--dataset_dir", str(tmp_path / "gone")])
    assert raised.value.code == 2
    assert "gone/dataset.json: no such file, nor such a folder" in capsys.readouterr().err


def test_findings_are_said_with_their_place():
    assert str(Finding("D: test[1]", "no pose")) == "D: test[1]: no pose"
    assert str(Finding("D: test[1]", 'has no "image"')) == 'D: test[1] has no "image"'
